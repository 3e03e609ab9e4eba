//! `mainstay snapshot`: the control plane's state to a file and back.
//!
//! Saving asks the running server, over its API, for the pieces, so that nothing has to stop and nobody else touches the
//! store's file; where no server runs, it opens the store itself; with `--store` it reads etcd. The file appears under its
//! name when it is whole and on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use mainstay_store::snapshot::{self, SnapshotError, Summary};
use mainstay_store::{EmbeddedStore, EtcdStore, Settings, Store};
use serde_json::{Value, json};

use crate::cli::{DataDir, Output, SnapshotArgs, SnapshotVerb, StoreArgs};
use crate::client::{self, ClientError};
use crate::instance::{self, Instance, InstanceError};
use crate::state;

/// Why a snapshot could not be taken or used.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The file could not be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It would overwrite something.
    #[error("{} exists already: choose another name", .0.display())]
    Exists(PathBuf),
    /// The server ended the answer before its end.
    #[error("the server's answer was cut off: {0}")]
    CutOff(String),
    /// The server refused.
    #[error("the server refused: {0}")]
    Refused(String),
    /// Neither a server runs nor is there a store.
    #[error("there is no store in {}; name the instance with --data-dir, or an etcd with --store", .0.display())]
    Missing(PathBuf),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store.
    #[error(transparent)]
    Store(#[from] mainstay_store::Error),
    /// The instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The API.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The API.
    #[error(transparent)]
    Kube(#[from] kube::Error),
}

/// Runs `mainstay snapshot`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(args: &SnapshotArgs) -> Result<(), Failure> {
    match &args.verb {
        SnapshotVerb::Save { file, data, store, output } => {
            let summary = save(file, data, store).await?;
            report("saved", file, &summary, *output);
        }
        SnapshotVerb::Restore { file, data, store, output } => {
            let summary = match state::etcd(store)? {
                Some(settings) => snapshot::restore_etcd(file, settings).await?,
                None => snapshot::restore_embedded(file, &instance::data_dir(&data.data_dir)?.join("store"))?,
            };
            report("restored", file, &summary, *output);
            if !summary.encrypted_with.is_empty() && *output == Output::Text {
                println!("the server needs the encryption.yaml with key {}", summary.encrypted_with.join(", "));
            }
        }
        SnapshotVerb::Status { file, output } => report("whole", file, &snapshot::verify(file)?, *output),
        SnapshotVerb::Defrag { data, output } => {
            let client = client::from_file(&Instance::load(&data.data_dir)?.kubeconfig()).await?;
            let request = http::Request::post("/maintenance/defragment").body(Vec::new());
            let sizes: Value = client.request(request.map_err(kube::Error::HttpError)?).await?;
            match output {
                Output::Json => println!("{sizes:#}"),
                Output::Text => println!("{} bytes on disk before, {} now", sizes["beforeBytes"], sizes["afterBytes"]),
            }
        }
    }
    Ok(())
}

async fn save(file: &Path, data: &DataDir, store: &StoreArgs) -> Result<Summary, Failure> {
    if file.exists() {
        return Err(Failure::Exists(file.to_owned()));
    }
    if let Some(settings) = state::etcd(store)? {
        let store = Arc::new(EtcdStore::open(settings).await?);
        return keep(file, from_store(store).await?).await;
    }
    let data_dir = instance::data_dir(&data.data_dir)?;
    let directory = data_dir.join("store");
    if !directory.join("store.redb").exists() && Instance::load(&data_dir).is_err() {
        return Err(Failure::Missing(data_dir));
    }
    // The lock on the directory says whether a server runs; if not, the store is ours for the moment.
    match EmbeddedStore::open(&directory, Settings::default()) {
        Err(mainstay_store::Error::InUse { .. }) => keep(file, from_server(&Instance::load(&data_dir)?).await?).await,
        opened => keep(file, from_store(Arc::new(opened?)).await?).await,
    }
}

type Pieces = futures::stream::BoxStream<'static, Result<bytes::Bytes, Failure>>;

async fn from_store(store: Arc<dyn Store>) -> Result<Pieces, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(snapshot::save(store, now).await?.map_err(Failure::from).boxed())
}

async fn from_server(instance: &Instance) -> Result<Pieces, Failure> {
    let client = client::from_file(&instance.kubeconfig()).await?;
    let request = http::Request::get("/maintenance/snapshot").body(kube::client::Body::empty());
    let response = client.send(request.map_err(kube::Error::HttpError)?).await?;
    let status = response.status();
    if !status.is_success() {
        let body = response.into_body().collect_bytes().await?;
        let status: Value = serde_json::from_slice(&body).unwrap_or_else(|_| json!({"message": status.to_string()}));
        return Err(Failure::Refused(status["message"].as_str().unwrap_or("without saying why").to_owned()));
    }
    Ok(response.into_body().into_data_stream().map_err(|error| Failure::CutOff(error.to_string())).boxed())
}

/// Writes the pieces beside their place, checks the whole, and moves it there.
async fn keep(file: &Path, pieces: impl Stream<Item = Result<bytes::Bytes, Failure>>) -> Result<Summary, Failure> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let draft = file.with_file_name(format!(".{name}.{}", std::process::id()));
    let failed = |source| Failure::Write { path: draft.clone(), source };
    let mut pieces = std::pin::pin!(pieces);
    let write = async {
        // Secrets that are not encrypted are in it: its owner's only.
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
        while let Some(piece) = pieces.try_next().await? {
            out.write_all(&piece).map_err(failed)?;
        }
        out.sync_all().map_err(failed)?;
        let summary = snapshot::verify(&draft)?;
        fs::hard_link(&draft, file).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Failure::Exists(file.to_owned()),
            _ => Failure::Write { path: file.to_owned(), source },
        })?;
        let directory = file.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        Ok(summary)
    };
    let written = write.await;
    let _ = fs::remove_file(&draft);
    written
}

fn report(what: &str, file: &Path, summary: &Summary, output: Output) {
    if output == Output::Json {
        println!("{:#}", json!(summary));
        return;
    }
    let Summary { version, header, bytes, sha256, entries, encrypted_with } = summary;
    let created = i64::try_from(header.created_unix_s).ok().and_then(|second| Timestamp::from_second(second).ok());
    println!("{}: {what}", file.display());
    println!("  taken      {}", created.map_or_else(|| "?".to_owned(), |created| created.to_string()));
    println!("  revision   {}", header.revision);
    println!("  entries    {}", header.count);
    println!("  size       {bytes} bytes, format {version}");
    println!("  sha256     {sha256}");
    if !encrypted_with.is_empty() {
        println!("  encrypted  with {}", encrypted_with.join(", "));
    }
    for (kind, count) in entries {
        println!("  {count:>9}  {kind}");
    }
}
