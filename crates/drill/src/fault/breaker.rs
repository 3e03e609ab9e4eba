//! Makes faults and undoes them, with the journal in between.
//!
//! Guarantee: whatever is broken stands in the journal before it is broken, and is struck only once it is undone. Undoing goes on
//! past what fails, and what failed stays in the journal.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use kube::{Client, ResourceExt as _};

use super::journal::{Journal, Undo};
use super::{Fault, FaultError, FaultKind, Hands, Machine, Target, TargetSpec, api, certificate, pressure};
use crate::load::tls::Tls;

/// Where the load asks over TLS, and how.
pub type ServedAt = (SocketAddr, Tls);

/// The hands, and what they have done.
pub struct Breaker {
    client: Client,
    machine: Option<Arc<dyn Machine>>,
    journal: Journal,
    served_at: Option<ServedAt>,
}

impl Breaker {
    /// With the API, on an embedded instance with the machine, too. What an earlier drill left in the journal is still there.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn new(client: Client, machine: Option<Arc<dyn Machine>>, journal: &Path) -> Result<Self, FaultError> {
        Ok(Self { client, machine, journal: Journal::open(journal)?, served_at: None })
    }

    /// Where to look whether a certificate is served.
    pub fn look_at(&mut self, served_at: Option<ServedAt>) {
        self.served_at = served_at;
    }

    /// Whether the fault can be made here.
    ///
    /// # Errors
    /// Why not.
    pub fn can(&self, kind: FaultKind, target: &TargetSpec) -> Result<(), FaultError> {
        let refuse = |reason: &str| {
            Err(FaultError::Hands { fault: kind, target: target.to_string(), reason: reason.to_owned() })
        };
        match kind.hands(target) {
            Hands::Nobody(reason) => refuse(reason),
            Hands::Machine if self.machine.is_none() => refuse(
                "the Kubernetes API has no such thing; it needs the machine below, as with an instance of `mainstay up` here",
            ),
            _ => Ok(()),
        }
    }

    /// What is broken now.
    pub fn entries(&self) -> &[Undo] {
        self.journal.entries()
    }

    /// Makes a fault; answers with what shows that it has taken effect.
    ///
    /// # Errors
    /// When it cannot be made or does not take effect; what was begun stands in the journal.
    pub async fn make(&mut self, fault: &Fault) -> Result<String, FaultError> {
        match (fault.kind, &fault.target) {
            (FaultKind::Kill, Target::Pod(namespace, name)) if self.machine.is_none() => {
                api::kill_pod(&self.client, namespace, name).await
            }
            (FaultKind::BadRelease | FaultKind::Rollout, Target::Deployment(namespace, name)) => {
                self.release(fault, namespace, name).await
            }
            (FaultKind::Drain, Target::Node(node)) => {
                self.journal.add(Undo::Uncordon { node: node.clone() })?;
                api::set_cordon(&self.client, node, true).await?;
                api::drain(&self.client, node).await
            }
            (FaultKind::CpuPressure | FaultKind::MemoryPressure, Target::Node(node)) => {
                let pod = pressure::pod(fault.kind, node, &fault.settings);
                let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
                self.journal.add(Undo::Pod { namespace, name })?;
                pressure::start(&self.client, pod).await
            }
            (FaultKind::CertificateExpiry, Target::Secret(namespace, name)) => self.expire(namespace, name).await,
            _ => self.by_machine(fault).await,
        }
    }

    async fn expire(&mut self, namespace: &str, name: &str) -> Result<String, FaultError> {
        let pair = certificate::read(&self.client, namespace, name).await?;
        let (expired, der) = certificate::expired(&pair, jiff::Timestamp::now(), namespace, name)?;
        self.journal.add(Undo::Certificate { namespace: namespace.to_owned(), name: name.to_owned(), pair })?;
        certificate::put(&self.client, namespace, name, &expired).await?;
        certificate::shows(self.served_at.as_ref(), &der).await
    }

    async fn release(&mut self, fault: &Fault, namespace: &str, name: &str) -> Result<String, FaultError> {
        let template = api::template(&self.client, namespace, name).await?;
        let changed = if fault.kind == FaultKind::Rollout {
            // Nothing to undo: the same version, once more.
            api::restarted_template(&template, jiff::Timestamp::now())
        } else {
            let bad = api::bad_template(&template, &fault.settings)
                .map_err(|reason| FaultError::Target { target: fault.target.to_string(), reason })?;
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            self.journal.add(Undo::Template { namespace, name, template: template.clone() })?;
            bad
        };
        api::set_template(&self.client, namespace, name, &changed).await?;
        api::release_shows(&self.client, namespace, name).await
    }

    async fn by_machine(&mut self, fault: &Fault) -> Result<String, FaultError> {
        let Some(machine) = self.machine.clone() else {
            let (kind, target) = (fault.kind, fault.target.to_string());
            return Err(FaultError::Hands { fault: kind, target, reason: "there is no machine to do it".to_owned() });
        };
        // A killed pod is started again by its agent: there is nothing to undo.
        if !matches!((fault.kind, &fault.target), (FaultKind::Kill, Target::Pod(..))) {
            self.journal.add(Undo::Machine { fault: fault.clone() })?;
        }
        let (doing, done) = (format!("{} {}", fault.kind, fault.target), fault.clone());
        blocking(doing, move || machine.make(&done)).await
    }

    /// Undoes everything that stands in the journal, in reverse order; answers with how much that was.
    ///
    /// # Errors
    /// The first thing that could not be undone; the others are.
    pub async fn undo_all(&mut self) -> Result<usize, FaultError> {
        let (mut undone, mut first) = (0, None);
        for entry in self.journal.entries().to_vec().iter().rev() {
            match self.undo(entry).await {
                Ok(()) => {
                    self.journal.strike(entry)?;
                    undone += 1;
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(undone), Err)
    }

    async fn undo(&self, entry: &Undo) -> Result<(), FaultError> {
        match entry {
            Undo::Machine { fault } => {
                let Some(machine) = self.machine.clone() else {
                    return Err(FaultError::Hands {
                        fault: fault.kind,
                        target: fault.target.to_string(),
                        reason: "it was made on the machine of an instance; name its --data-dir".to_owned(),
                    });
                };
                let (doing, fault) = (format!("undo {} {}", fault.kind, fault.target), fault.clone());
                blocking(doing, move || machine.undo(&fault)).await
            }
            Undo::Template { namespace, name, template } => {
                api::set_template(&self.client, namespace, name, template).await
            }
            Undo::Pod { namespace, name } => pressure::end(&self.client, namespace, name).await,
            Undo::Certificate { namespace, name, pair } => certificate::put(&self.client, namespace, name, pair).await,
            Undo::Uncordon { node } => api::set_cordon(&self.client, node, false).await,
        }
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    doing: String,
    work: impl FnOnce() -> Result<T, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
) -> Result<T, FaultError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|source| FaultError::Machine { doing, source }),
        Err(lost) => Err(FaultError::Machine { doing, source: lost.into() }),
    }
}
