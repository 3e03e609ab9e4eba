//! The Lease as the API knows it, and the two requests that are made about it.
//!
//! Writes are merge patches that carry the revision they are based on: the API server refuses them with 409 when somebody
//! else wrote in between, and whatever else is in the Lease (labels, owners) stays.
//!
//! `leaseDurationSeconds` counts whole seconds, so the ttl in use is in an annotation, and the seconds are rounded up.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::decide::{Claim, Outcome, Record};

/// The ttl in milliseconds.
const TTL: &str = "mainstay.dev/ttl-ms";

/// A Lease, and who asks for it.
#[derive(Clone)]
pub(super) struct LeaseApi {
    pub(super) api: Api<Lease>,
    pub(super) name: String,
    pub(super) identity: String,
    pub(super) ttl: Duration,
}

impl LeaseApi {
    pub(super) async fn read(&self) -> Result<Option<Record>, String> {
        let lease = self.api.get_opt(&self.name).await.map_err(|error| error.to_string())?;
        Ok(lease.as_ref().map(record))
    }

    /// Writes the claim if the Lease still has this revision; `None`: if there is no Lease.
    pub(super) async fn write(&self, claim: Claim, version: Option<&str>, epoch: u64) -> Outcome {
        let body = self.body(claim, version, epoch, Timestamp::now());
        let written = match version {
            Some(_) => self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&body)).await,
            None => match serde_json::from_value(body) {
                Ok(lease) => self.api.create(&PostParams::default(), &lease).await,
                Err(error) => return Outcome::Unknown(error.to_string()),
            },
        };
        match written {
            Ok(lease) => Outcome::Written(record(&lease)),
            // Changed, made or deleted in between.
            Err(kube::Error::Api(status))
                if matches!(status.code, 404 | 409) && !is_missing_namespace(&status.message) =>
            {
                Outcome::Conflict
            }
            Err(error) => Outcome::Unknown(error.to_string()),
        }
    }

    fn body(&self, claim: Claim, version: Option<&str>, epoch: u64, now: Timestamp) -> Value {
        let time = format!("{now:.6}");
        let holder = if claim == Claim::Release { "" } else { &self.identity };
        let ttl_ms = self.ttl.as_millis().to_string();
        let mut body = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "annotations": {TTL: ttl_ms}},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self.ttl.as_secs() + u64::from(self.ttl.subsec_nanos() > 0),
                "leaseTransitions": epoch,
                "renewTime": time,
            },
        });
        if let Some(version) = version {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        if claim == Claim::Take {
            body["spec"]["acquireTime"] = json!(time);
        }
        body
    }
}

/// A namespace that is not there is no race: trying again at once would not help.
fn is_missing_namespace(message: &str) -> bool {
    message.contains("namespaces")
}

/// What a Lease says.
pub(super) fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let annotation = lease.metadata.annotations.as_ref().and_then(|all| all.get(TTL)?.parse().ok());
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
    Record {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        ttl: annotation.map_or(Duration::from_secs(seconds), Duration::from_millis),
        epoch: spec.lease_transitions.and_then(|epoch| u64::try_from(epoch).ok()).unwrap_or(0),
    }
}
