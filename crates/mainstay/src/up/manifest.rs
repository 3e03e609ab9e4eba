//! Reading manifests and applying them.
//!
//! Kinds that are not built in are looked up in the API when they are applied, and waited for a while: their definition may be
//! one of the manifests before them, or one of Mainstay's own that is still being taken in.
//!
//! What `kubectl apply` does, in small: an object that is not there is created; one that is there gets a patch with the
//! manifest, and with a null for every field that the last applied manifest had and this one has not. The manifest is kept
//! in the same annotation, so that `kubectl apply` goes on from here.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, header};
use kube::Client;
use mainstay_check::manifest::files;
use mainstay_model::meta;
use mainstay_model::resource::{self, Resource};
use serde::Deserialize;
use serde_json::{Value, json};

/// The annotation in which `kubectl apply` keeps what was applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Marks what Mainstay itself has made, with a digest of it.
const OWN: &str = "mainstay.dev/definition";
/// Definitions and namespaces first, then what others refer to, then what runs.
const ORDER: &[&str] = &[
    "CustomResourceDefinition",
    "Namespace",
    "ServiceAccount",
    "ConfigMap",
    "Secret",
    "Service",
    "PodDisruptionBudget",
];

/// How long a kind may take to be served after its definition was applied.
const SERVED_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks whether it is.
const SERVED_RETRY: Duration = Duration::from_millis(50);

/// Why manifests could not be read or applied.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file or directory could not be read.
    #[error("cannot read {path}: {source}; -f takes a file, a directory, or - for standard input")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory without manifests.
    #[error("there are no manifests (*.yaml, *.yml, *.json) in {0}")]
    Empty(PathBuf),
    /// Not YAML.
    #[error("{path}: {reason}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        reason: String,
    },
    /// Not a Kubernetes object, or of a kind that is not served.
    #[error("{path}: {what}")]
    Object {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// The API refused it.
    #[error("{path}: {object}: {source}")]
    Apply {
        /// The file.
        path: PathBuf,
        /// Kind and name.
        object: String,
        /// What the API said.
        source: Box<kube::Error>,
    },
}

/// An object to apply.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Where it stands.
    pub path: PathBuf,
    /// What it is.
    pub kind: String,
    /// Its resource; unknown until the API says it if the kind is not built in.
    resource: Option<Arc<Resource>>,
    /// Its namespace; of built-in kinds, `default` unless it says another.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    object: Value,
}

/// Reads all manifests of the given paths, in the order in which they should be applied.
///
/// # Errors
/// The first thing that cannot be read.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>, ManifestError> {
    let mut manifests = Vec::new();
    for path in paths {
        let files = files(path).map_err(|source| ManifestError::Read { path: path.clone(), source })?;
        if files.is_empty() {
            return Err(ManifestError::Empty(path.clone()));
        }
        for file in files {
            let text = if file.as_os_str() == "-" {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).map(|_| text)
            } else {
                fs::read_to_string(&file)
            };
            let text = text.map_err(|source| ManifestError::Read { path: file.clone(), source })?;
            parse(&file, &text, &mut manifests)?;
        }
    }
    let place = |manifest: &Manifest| ORDER.iter().position(|kind| *kind == manifest.kind).unwrap_or(ORDER.len());
    manifests.sort_by_key(place);
    Ok(manifests)
}

/// Takes the objects out of a YAML stream; `path` is for messages.
///
/// # Errors
/// What is not an object, or of a kind that cannot be served.
pub fn parse(path: &Path, text: &str, manifests: &mut Vec<Manifest>) -> Result<(), ManifestError> {
    let broken = |reason: String| ManifestError::Yaml { path: path.to_owned(), reason };
    // `n` and `on` are names like any other (YAML 1.2); only `true` and `false` are not.
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| broken(error.to_string()))?;
    for document in documents {
        match &document {
            Value::Null => {}
            Value::Object(_) if document["kind"] == "List" => {
                for item in document["items"].as_array().into_iter().flatten() {
                    manifests.push(manifest(path, item.clone())?);
                }
            }
            _ => manifests.push(manifest(path, document)?),
        }
    }
    Ok(())
}

fn manifest(path: &Path, object: Value) -> Result<Manifest, ManifestError> {
    let wrong = |what: String| ManifestError::Object { path: path.to_owned(), what };
    let (api_version, kind) = (meta::api_version(&object).to_owned(), meta::kind(&object).to_owned());
    if api_version.is_empty() || kind.is_empty() {
        return Err(wrong(
            "an object without apiVersion or kind; every document must be a Kubernetes object".to_owned(),
        ));
    }
    let resource = resource::find_kind(&api_version, &kind).cloned();
    // A group with a dot that nobody built in may be defined by a CustomResourceDefinition.
    let may_be_custom = api_version.rsplit_once('/').is_some_and(|(group, _)| group.contains('.'));
    if resource.is_none() && !may_be_custom {
        return Err(wrong(not_served(&kind, &api_version)));
    }
    let name = meta::name(&object).to_owned();
    if name.is_empty() {
        return Err(wrong(format!("a {kind} without metadata.name")));
    }
    let written = meta::namespace(&object).map(str::to_owned);
    let namespace = match &resource {
        Some(resource) => resource.namespaced.then(|| written.unwrap_or_else(|| "default".to_owned())),
        None => written,
    };
    Ok(Manifest { path: path.to_owned(), kind, resource, namespace, name, object })
}

fn not_served(kind: &str, api_version: &str) -> String {
    format!("{kind} ({api_version}) is not served by this version of Mainstay")
}

/// Asks the API for the resource of a kind, and again until it is served.
async fn discover(client: &Client, api_version: &str, kind: &str) -> kube::Result<Option<Resource>> {
    let since = Instant::now();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let path = format!("/apis/{api_version}");
    loop {
        let listed = match send(client, Method::GET, &path, "application/json", &Value::Null).await {
            Ok(listed) => listed,
            Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
            Err(error) => return Err(error),
        };
        let mut resources = listed["resources"].as_array().into_iter().flatten();
        let is_it = |it: &&Value| it["kind"] == kind && it["name"].as_str().is_some_and(|name| !name.contains('/'));
        if let Some(found) = resources.find(is_it) {
            let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
            return Ok(Some(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                kind: kind.to_owned(),
                plural: text("name"),
                singular: text("singularName"),
                list_kind: format!("{kind}List"),
                short_names: Vec::new(),
                categories: Vec::new(),
                namespaced: found["namespaced"] == true,
                subresources: Vec::new(),
                verbs: Vec::new(),
            }));
        }
        if since.elapsed() > SERVED_TIMEOUT {
            return Ok(None);
        }
        tokio::time::sleep(SERVED_RETRY).await;
    }
}

impl Manifest {
    /// Kind and name, as `kubectl` says them.
    pub fn shown(&self) -> String {
        format!("{}/{}", self.kind.to_lowercase(), self.name)
    }

    /// The object as it was read.
    pub fn object(&self) -> &Value {
        &self.object
    }

    /// Whether it makes pods, or is one.
    pub fn runs(&self) -> bool {
        !ORDER.contains(&self.kind.as_str())
    }

    /// The text that `kubectl apply` would keep of this manifest: without changes on its part, it finds nothing to do.
    fn applied_text(&self, namespace: Option<&str>) -> String {
        let mut object = self.object.clone();
        let metadata = meta::ensure_map(&mut object["metadata"]);
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        meta::ensure_map(annotations).remove(LAST_APPLIED);
        if let Some(namespace) = namespace {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        format!("{object}\n")
    }

    /// Creates or patches the object.
    ///
    /// # Errors
    /// What the API said.
    pub async fn apply(&self, client: &Client) -> Result<(), ManifestError> {
        let failed =
            |source| ManifestError::Apply { path: self.path.clone(), object: self.shown(), source: Box::new(source) };
        let resource = self.resolve(client).await?;
        let namespace = resource.namespaced.then(|| self.namespace.as_deref().unwrap_or("default"));
        let mut object = self.object.clone();
        meta::set_annotation(&mut object, LAST_APPLIED, &self.applied_text(namespace));
        let collection = format!("{}?fieldValidation=Strict&fieldManager=mainstay-up", resource.path(namespace, None));
        match send(client, Method::POST, &collection, "application/json", &object).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            other => return other.map(drop).map_err(failed),
        }
        let path = resource.path(namespace, Some(&self.name));
        let live = send(client, Method::GET, &path, "application/json", &Value::Null).await.map_err(failed)?;
        let last = meta::annotation(&live, LAST_APPLIED).and_then(|text| serde_json::from_str(text).ok());
        let mut patch = object;
        drop_removed(&mut patch, &last.unwrap_or(Value::Null));
        let path = format!("{path}?fieldManager=mainstay-up");
        // Only built-in kinds know which of their lists are maps.
        let built_in = self.resource.is_some();
        let patch_type =
            if built_in { "application/strategic-merge-patch+json" } else { "application/merge-patch+json" };
        send(client, Method::PATCH, &path, patch_type, &patch).await.map(drop).map_err(failed)
    }

    /// Creates the object if it is not there. One that is there is replaced if Mainstay made it and this one says something
    /// else; what people have made is left alone.
    ///
    /// # Errors
    /// What the API said.
    pub async fn ensure(&self, client: &Client) -> Result<(), ManifestError> {
        let failed =
            |source| ManifestError::Apply { path: self.path.clone(), object: self.shown(), source: Box::new(source) };
        let resource = self.resolve(client).await?;
        let namespace = resource.namespaced.then(|| self.namespace.as_deref().unwrap_or("default"));
        let mut object = self.object.clone();
        let mark = digest(&self.object);
        meta::set_annotation(&mut object, OWN, &mark);
        let path = resource.path(namespace, Some(&self.name));
        let live = match send(client, Method::GET, &path, "application/json", &Value::Null).await {
            Ok(live) => live,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let collection = format!("{}?fieldManager=mainstay", resource.path(namespace, None));
                return match send(client, Method::POST, &collection, "application/json", &object).await {
                    // Another server was faster.
                    Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
                    other => other.map(drop).map_err(failed),
                };
            }
            Err(error) => return Err(failed(error)),
        };
        if meta::annotation(&live, OWN).is_none_or(|known| known == mark) {
            return Ok(());
        }
        object["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
        let path = format!("{path}?fieldManager=mainstay");
        send(client, Method::PUT, &path, "application/json", &object).await.map(drop).map_err(failed)
    }

    /// The resource, from the API if the kind is not built in.
    async fn resolve(&self, client: &Client) -> Result<Arc<Resource>, ManifestError> {
        if let Some(resource) = &self.resource {
            return Ok(resource.clone());
        }
        let failed =
            |source| ManifestError::Apply { path: self.path.clone(), object: self.shown(), source: Box::new(source) };
        let api_version = meta::api_version(&self.object);
        let found = discover(client, api_version, &self.kind).await.map_err(failed)?;
        let what = not_served(&self.kind, api_version);
        found.map(Arc::new).ok_or_else(|| ManifestError::Object { path: self.path.clone(), what })
    }
}

/// Tells one text of an object from another (FNV-1a of its JSON, which is sorted by keys).
fn digest(object: &Value) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", object.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}

/// A null in `patch` for every field that `last` had and `patch` has not.
fn drop_removed(patch: &mut Value, last: &Value) {
    let (Value::Object(patch), Value::Object(last)) = (patch, last) else { return };
    for (key, before) in last {
        match patch.get_mut(key) {
            Some(now) => drop_removed(now, before),
            None => drop(patch.insert(key.clone(), Value::Null)),
        }
    }
}

async fn send(client: &Client, method: Method, path: &str, kind: &str, body: &Value) -> kube::Result<Value> {
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind).body(bytes);
    let text = client.request_text(request.map_err(kube::Error::HttpError)?).await?;
    Ok(Value::deserialize(&mut serde_json::Deserializer::from_str(&text)).unwrap_or(json!(null)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn documents_are_read_and_ordered() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: n}\n---\n# nothing\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n";
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.yaml"), text).unwrap();
        let manifests = read(&[directory.path().to_owned()]).unwrap();
        let shown: Vec<String> = manifests.iter().map(Manifest::shown).collect();
        assert_eq!(shown, ["namespace/n", "deployment/a"]);
        assert_eq!(manifests[1].namespace.as_deref(), Some("n"));
    }

    #[test]
    fn custom_kinds_are_taken_and_come_after_their_definitions() {
        let text = "apiVersion: example.com/v1\nkind: Unicorn\nmetadata: {name: u}\n---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: unicorns.example.com}\n";
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.yaml"), text).unwrap();
        let manifests = read(&[directory.path().to_owned()]).unwrap();
        let shown: Vec<String> = manifests.iter().map(Manifest::shown).collect();
        assert_eq!(shown, ["customresourcedefinition/unicorns.example.com", "unicorn/u"]);
        assert!(manifests[1].runs());
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_file_named() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(&[directory.path().to_owned()]), Err(ManifestError::Empty(_))));
        fs::write(directory.path().join("a.yaml"), "kind: Unicorn\napiVersion: v1\nmetadata: {name: u}").unwrap();
        let error = read(&[directory.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("a.yaml") && error.contains("Unicorn"), "{error}");
    }

    #[test]
    fn removed_fields_become_null() {
        let mut patch = json!({"spec": {"a": 1}});
        drop_removed(&mut patch, &json!({"spec": {"a": 2, "b": 3}, "data": {}}));
        assert_eq!(patch, json!({"spec": {"a": 1, "b": null}, "data": null}));
    }
}
