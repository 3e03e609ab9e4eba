//! Carries out what `plan` decides, one thing at a time, and keeps what came of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use http::{Method, Request, header};
use kube::Client;
use serde_json::Value;
use tokio::sync::Notify;

use super::plan::{self, Step};
use super::{Attempts, Entry, Held, kept, order};
use crate::api::Key;

/// How long a change that was just kept may take to come back as configuration.
const SEEN_MAX: Duration = Duration::from_secs(30);
/// How long gateways of a cluster may take to know a new account, so that all of them answer its challenges.
const SPREAD: Duration = Duration::from_secs(2);
/// Longest sleep: clocks are set, and machines sleep.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Where Secrets are kept.
pub(crate) enum Store {
    /// Files of a directory, readable by nobody else.
    Directory(PathBuf),
    /// Objects of the cluster.
    Cluster(Client),
}

/// Why a Secret could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The state directory.
    #[error("writing below {}: {source}; choose another directory with --state", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The request could not be made.
    #[error("writing Secret {0}: {1}")]
    Request(String, #[source] http::Error),
    /// The Kubernetes API.
    #[error("writing Secret {0}: {1}; may this gateway create and patch Secrets?")]
    Api(String, #[source] Box<kube::Error>),
}

/// What the control thread and the driver tell each other.
#[derive(Default)]
pub(crate) struct Driver {
    /// The configuration has been compiled anew.
    pub(crate) compiled: Notify,
    /// Certificates obtained, and failures, since the start.
    pub(crate) obtained: Cell<u64>,
    pub(crate) failed: Cell<u64>,
    /// What was tried by this process: counts even where it could not be kept.
    attempts: RefCell<BTreeMap<Key, Attempts>>,
}

impl Driver {
    /// Works for ever. `live` answers what the live configuration wants; `reload` has it read again.
    pub(crate) async fn run(&self, store: &Store, live: impl Fn() -> Rc<Vec<Entry>>, reload: impl Fn()) {
        loop {
            let mut entries = (*live()).clone();
            for entry in &mut entries {
                self.remember(entry);
            }
            let now = jiff::Timestamp::now().as_second();
            match plan::next(&entries, now) {
                Ok((entry, step)) => {
                    let outcome = match step {
                        Step::Register => register(store, entry).await,
                        _ => obtain(store, entry).await,
                    };
                    reload();
                    let outcome = match outcome {
                        Ok(()) => self.seen(entry, step, &live).await.map_err(str::to_owned),
                        Err(error) => Err(error.to_string()),
                    };
                    self.note(store, entry, step, outcome).await;
                    if step == Step::Register && matches!(store, Store::Cluster(_)) {
                        tokio::time::sleep(SPREAD).await;
                    }
                }
                Err(at) => {
                    let wait = at.map_or(SLEEP_MAX, |at| Duration::from_secs(at.saturating_sub(now).max(1) as u64));
                    let _ = tokio::time::timeout(wait.min(SLEEP_MAX), self.compiled.notified()).await;
                }
            }
        }
    }

    /// What this process knows of attempts, where it is newer than what was kept.
    fn remember(&self, entry: &mut Entry) {
        let own = self.attempts.borrow().get(&entry.secret).cloned();
        if let Some(own) = own.filter(|own| own.last >= entry.tried().last) {
            entry.attempts.insert(entry.secret.to_string(), own);
        }
    }

    /// Waits until what was kept is part of the configuration: nothing else can be decided before.
    async fn seen(&self, entry: &Entry, step: Step, live: &impl Fn() -> Rc<Vec<Entry>>) -> Result<(), &'static str> {
        let there = || {
            let entries = live();
            let now = entries.iter().find(|it| it.secret == entry.secret);
            // What is not wanted any more is not waited for.
            now.is_none_or(|now| if step == Step::Register { now.account.is_some() } else { now.held != entry.held })
        };
        let waiting = async {
            while !there() {
                self.compiled.notified().await;
            }
        };
        tokio::time::timeout(SEEN_MAX, waiting).await.map_err(|_| "what was kept has not become configuration")
    }

    /// Takes in what came of a step.
    async fn note(&self, store: &Store, entry: &Entry, step: Step, outcome: Result<(), String>) {
        let (secret, server) = (entry.secret.to_string(), &entry.issuer.server);
        let last = jiff::Timestamp::now().as_second();
        let (before, asked) = (entry.tried().failures, entry.asked());
        let attempts = match outcome {
            Ok(()) => {
                tracing::info!(secret, server, names = ?entry.names, ?step, "a step towards a certificate is done");
                self.obtained.set(self.obtained.get() + u64::from(step != Step::Register));
                Attempts { failures: 0, last, error: String::new(), asked }
            }
            Err(error) => {
                let next = jiff::Timestamp::from_second(plan::retry_at(before + 1, last)).unwrap_or_default();
                tracing::warn!(secret, server, names = ?entry.names, error, %next, "no certificate");
                self.failed.set(self.failed.get() + 1);
                Attempts { failures: before + 1, last, error, asked }
            }
        };
        self.attempts.borrow_mut().insert(entry.secret.clone(), attempts.clone());
        // What a registration kept is newer than the entry.
        if attempts.failures == 0 && (before == 0 || step == Step::Register) {
            return;
        }
        let mut all = entry.attempts.clone();
        all.insert(secret, attempts);
        let registered = entry.account.as_deref().zip(entry.thumbprint.as_deref());
        if let Err(error) = store.put(&entry.issuer.account, &kept::account_secret(entry, registered, &all)).await {
            tracing::warn!(%error, "what was tried could not be kept; a restart will not know of it");
        }
    }
}

async fn register(store: &Store, entry: &Entry) -> Result<(), Box<dyn std::error::Error>> {
    let made = order::register(&entry.issuer).await?;
    let registered = Some((made.credentials.as_str(), made.thumbprint.as_str()));
    let mut attempts = entry.attempts.clone();
    attempts.remove(&entry.secret.to_string());
    Ok(store.put(&entry.issuer.account, &kept::account_secret(entry, registered, &attempts)).await?)
}

async fn obtain(store: &Store, entry: &Entry) -> Result<(), Box<dyn std::error::Error>> {
    let (chain, private) = order::order(entry).await?;
    let certificate = kept::certificate(chain.as_bytes(), &entry.issuer.server);
    let certificate = certificate.ok_or("the authority gave something that is no certificate")?;
    // Else it would be ordered again at once, for ever.
    if let Some(reason) = plan::lacking(entry, &certificate, jiff::Timestamp::now().as_second()) {
        return Err(format!("the authority gave a certificate that does not do: {reason:?}").into());
    }
    if entry.held == Held::Foreign {
        return Err("the Secret is somebody else's".into());
    }
    Ok(store.put(&entry.secret, &kept::certificate_secret(entry, &chain, &private)).await?)
}

impl Store {
    /// Keeps a Secret, instead of what was kept under its name before.
    async fn put(&self, key: &Key, secret: &Value) -> Result<(), StoreError> {
        match self {
            Self::Directory(path) => {
                write(path, key, secret).map_err(|source| StoreError::File { path: path.clone(), source })
            }
            Self::Cluster(client) => {
                let (namespace, name) = (&key.namespace, &key.name);
                let request = Request::builder()
                    .method(Method::PATCH)
                    .uri(format!(
                        "/api/v1/namespaces/{namespace}/secrets/{name}?fieldManager=mainstay-gateway&force=true"
                    ))
                    .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
                    .body(secret.to_string().into_bytes())
                    .map_err(|error| StoreError::Request(key.to_string(), error))?;
                let written = client.request::<Value>(request).await.map(drop);
                written.map_err(|error| StoreError::Api(key.to_string(), Box::new(error)))
            }
        }
    }
}

/// Writes the file as a whole, so that a power cut leaves the old or the new one.
fn write(directory: &Path, key: &Key, secret: &Value) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let name = format!("{}.{}.json", key.namespace, key.name);
    let next = directory.join(format!(".{name}.next"));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(format!("{secret:#}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, directory.join(name))?;
    fs::File::open(directory)?.sync_all()
}
