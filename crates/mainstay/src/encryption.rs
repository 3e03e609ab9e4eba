//! The configuration of encryption at rest: `encryption.yaml` in the data directory, and `mainstay secrets`.
//!
//! It is Kubernetes' `EncryptionConfiguration`. The first start makes one that encrypts Secrets with a key of its own and still
//! reads what is not encrypted. Rotation puts a new key first and lets the server write everything anew; the file is on
//! disk, with its directory, before the first value depends on it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kube::Client;
use mainstay_store::{EncryptionConfiguration, EncryptionError, Keyring, NamedKey};
use serde_json::{Value, json};

use crate::cli::{Output, SecretsArgs, SecretsVerb};
use crate::client::{self, ClientError};
use crate::instance::{Instance, InstanceError};

/// What is encrypted unless the file says otherwise.
const RESOURCES: [&str; 1] = ["secrets"];

/// Why encryption could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// The file could not be read or written.
    #[error("cannot {doing} {}: {source}", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not the YAML of an `EncryptionConfiguration`.
    #[error("{} cannot be read: {reason}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The configuration cannot be used.
    #[error("{} cannot be used: {source}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: EncryptionError,
    },
    /// Nothing is encrypted by it.
    #[error("{} has no aesgcm provider: there is no key to rotate", .0.display())]
    NothingEncrypted(PathBuf),
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] mainstay_store::Error),
    /// The instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The API.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The API refused.
    #[error("the server refused: {0}")]
    Refused(#[from] kube::Error),
    /// Some values are still written with an old key.
    #[error("{0} values are still to be written anew; the old keys stay. Try again")]
    Outdated(u64),
}

/// Where the configuration of an instance is.
pub fn file(instance: &Instance) -> PathBuf {
    instance.data_dir.join("encryption.yaml")
}

/// Reads a configuration.
///
/// # Errors
/// When it cannot be read or used.
pub fn keyring(path: &Path) -> Result<Keyring, EncryptError> {
    Keyring::new(&load(path)?).map_err(|source| EncryptError::Unusable { path: path.to_owned(), source })
}

/// Reads the configuration of an instance; makes one if there is none.
///
/// # Errors
/// When it cannot be read, used or made.
pub fn keyring_of(instance: &Instance) -> Result<Keyring, EncryptError> {
    let path = file(instance);
    if !path.exists() {
        let configuration = EncryptionConfiguration::new(&RESOURCES, NamedKey::random(key_name(1))?);
        store(&path, &configuration)?;
    }
    keyring(&path)
}

/// A name that no key of before had, even if the file with them was lost: `key-2-9c41d07e`.
fn key_name(number: u64) -> String {
    format!("key-{number}-{:08x}", fastrand::u32(..))
}

fn load(path: &Path) -> Result<EncryptionConfiguration, EncryptError> {
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| EncryptError::File { doing: "read", path: path.to_owned(), source })?;
    serde_saphyr::from_str(&text)
        .map_err(|error| EncryptError::Unreadable { path: path.to_owned(), reason: error.to_string() })
}

/// Writes a configuration, for its owner only, and waits until it is on disk: a key that is lost takes all with it.
fn store(path: &Path, configuration: &EncryptionConfiguration) -> Result<(), EncryptError> {
    let failed = |source| EncryptError::File { doing: "write", path: path.to_owned(), source };
    let yaml = serde_saphyr::to_string(configuration)
        .map_err(|error| EncryptError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
    let text = format!("# Without these keys what is encrypted is lost. Keep a copy apart from the snapshots.\n{yaml}");
    let draft = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// Runs `mainstay secrets`.
///
/// # Errors
/// See [`EncryptError`].
pub async fn run(args: &SecretsArgs) -> Result<(), EncryptError> {
    let (data, output) = match &args.verb {
        SecretsVerb::Status { data, output } | SecretsVerb::Rotate { data, output, .. } => (data, *output),
    };
    let instance = Instance::load(&data.data_dir)?;
    let client = client::from_file(&instance.kubeconfig()).await?;
    let mut answer = match &args.verb {
        SecretsVerb::Status { .. } => call(&client, http::Method::GET).await?,
        SecretsVerb::Rotate { .. } => rotate(&instance, &client).await?,
    };
    if let SecretsVerb::Rotate { forget_old: true, .. } = &args.verb {
        let outdated = answer["outdated"].as_u64().unwrap_or(0);
        if outdated > 0 {
            return Err(EncryptError::Outdated(outdated));
        }
        let mut configuration = load(&file(&instance))?;
        let forgotten = configuration.keep_first();
        store(&file(&instance), &configuration)?;
        call(&client, http::Method::POST).await?;
        answer["forgotten"] = json!(forgotten);
    }
    print(&answer, output);
    Ok(())
}

/// A new key first; then everything is written anew.
async fn rotate(instance: &Instance, client: &Client) -> Result<Value, EncryptError> {
    let path = file(instance);
    let mut configuration = load(&path)?;
    let numbers = configuration.key_names().filter_map(|name| name.split('-').nth(1)?.parse::<u64>().ok());
    let name = key_name(numbers.max().unwrap_or(0) + 1);
    if configuration.put_first(&NamedKey::random(name.clone())?) == 0 {
        return Err(EncryptError::NothingEncrypted(path));
    }
    Keyring::new(&configuration).map_err(|source| EncryptError::Unusable { path: path.clone(), source })?;
    store(&path, &configuration)?;
    let mut answer = call(client, http::Method::POST).await?;
    answer["newKey"] = json!(name);
    Ok(answer)
}

async fn call(client: &Client, method: http::Method) -> Result<Value, EncryptError> {
    let request = http::Request::builder().method(method).uri("/maintenance/encryption").body(Vec::new());
    Ok(client.request(request.map_err(kube::Error::HttpError)?).await?)
}

fn print(answer: &Value, output: Output) {
    if output == Output::Json {
        println!("{answer:#}");
        return;
    }
    if let Some(name) = answer["newKey"].as_str() {
        println!("new key {name}: {} values written anew", answer["rewritten"]);
    }
    for (name, count) in answer["byKey"].as_object().into_iter().flatten() {
        println!("{count} values encrypted with {name}");
    }
    println!("{} values not encrypted", answer["notEncrypted"]);
    if answer["outdated"] != 0 {
        println!("{} values would be written otherwise today: mainstay secrets rotate", answer["outdated"]);
    }
    for name in answer["forgotten"].as_array().into_iter().flatten() {
        println!("key {} forgotten: snapshots from before cannot be read without it", name.as_str().unwrap_or("?"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn instance(directory: &Path) -> Instance {
        Instance {
            data_dir: directory.to_owned(),
            api: "127.0.0.1:6443".parse().unwrap(),
            network: "10.90.0.0/16".to_owned(),
            nodes: 0,
            zones: 1,
            hollow_nodes: 0,
            audit: None,
            tuning: crate::tuning::Tuning::default(),
            node: crate::node_tuning::NodeTuning::default(),
        }
    }

    #[test]
    fn the_first_start_makes_a_private_file_that_later_ones_keep() {
        let directory = tempfile::tempdir().unwrap();
        let instance = instance(directory.path());
        keyring_of(&instance).unwrap();
        let path = file(&instance);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        keyring_of(&instance).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        let configuration = load(&path).unwrap();
        let names: Vec<&str> = configuration.key_names().collect();
        assert!(names.len() == 1 && names[0].starts_with("key-1-"), "{names:?}");
    }

    #[test]
    fn a_file_as_kubernetes_documents_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("encryption.yaml");
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets, configmaps]\n  providers:\n";
        let secret = "c2VjcmV0IGlzIHNlY3VyZSwgSSB0aGluayBzbyBoZXI=";
        fs::write(
            &path,
            format!(
                "{head}  - aesgcm:\n      keys:\n      - name: key1\n        secret: {secret}\n  - identity: {{}}\n"
            ),
        )
        .unwrap();
        keyring(&path).unwrap();
        fs::write(&path, format!("{head}  - aescbc:\n      keys: []\n")).unwrap();
        let said = keyring(&path).unwrap_err().to_string();
        assert!(said.contains("encryption.yaml") && said.contains("aescbc"), "{said}");
    }
}
