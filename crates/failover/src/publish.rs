//! Telling the world: labels and annotations of the member's pod. Services choose by the label, so the switch of the endpoints is
//! this write; `kubectl get pods -L mainstay.dev/role` shows it.
//!
//! A primary that died left its label behind, and its steward may be as dead as itself: the new primary takes the label off all others.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::core::{Role, Stage, Tenure};
use crate::database::names::{LAGS, POSITION, REASON, REFUSAL, ROLE};
use crate::steward::Report;

/// Between two tries.
const RETRY: Duration = Duration::from_millis(200);
/// For one try.
const LIMIT: Duration = Duration::from_secs(2);

/// Whose pods.
pub struct Pods {
    /// For the API.
    pub client: Client,
    /// Where they are.
    pub namespace: String,
    /// The member's own.
    pub own: String,
    /// The others'.
    pub others: BTreeSet<String>,
}

/// Keeps the pod's labels as the steward reports, until the steward ends. What changes while a write is under way is written after it.
pub async fn publish(pods: Pods, mut reports: watch::Receiver<Option<Report>>) {
    let api: Api<Pod> = Api::namespaced(pods.client.clone(), &pods.namespace);
    let mut stale = BTreeSet::new();
    let mut epoch = 0;
    while reports.changed().await.is_ok() {
        loop {
            let Some(report) = reports.borrow_and_update().clone() else { break };
            // From when it holds the Lease, not only from when it accepts writes: the others certainly do not any more.
            match report.tenure {
                Tenure::Mine if epoch < report.epoch => {
                    epoch = report.epoch;
                    stale.clone_from(&pods.others);
                }
                Tenure::Mine => {}
                _ => stale.clear(),
            }
            // Before its own: for a moment nobody is better than two, of which one is dead.
            let removed = futures::future::join_all(stale.iter().map(|pod| retire(&api, pod))).await;
            let mut removed = removed.into_iter();
            stale.retain(|_| !removed.next().unwrap_or_default());
            let written = write(&api, &pods.own, &patch(&report)).await;
            if written && stale.is_empty() {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Takes the label of a primary off another member's pod; whether it has none now.
async fn retire(api: &Api<Pod>, pod: &str) -> bool {
    let Ok(Ok(found)) = tokio::time::timeout(LIMIT, api.get_metadata_opt(pod)).await else { return false };
    let Some(metadata) = found.map(|it| it.metadata) else { return true };
    let label = metadata.labels.as_ref().and_then(|all| all.get(ROLE));
    if label.map(String::as_str) != Some(Role::Primary.as_str()) {
        return true;
    }
    // Only as it was seen: its steward may say something else by now.
    let seen = metadata.resource_version;
    write(api, pod, &json!({"metadata": {"resourceVersion": seen, "labels": {ROLE: null}}})).await
}

/// Whether it was written.
async fn write(api: &Api<Pod>, pod: &str, patch: &Value) -> bool {
    let params = PatchParams::default();
    match tokio::time::timeout(LIMIT, api.patch_metadata(pod, &params, &Patch::Merge(patch))).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, pod, "the pod could not be labelled");
            false
        }
        Err(_) => {
            tracing::debug!(pod, "the pod could not be labelled in time");
            false
        }
    }
}

fn role(report: &Report) -> Option<Role> {
    match report.stage {
        Stage::Primary if report.ready => Some(Role::Primary),
        Stage::Following => Some(Role::Replica),
        _ => None,
    }
}

fn patch(report: &Report) -> Value {
    let position = report.position.map(|it| format!("{}/{}", it.epoch, it.offset));
    let lags = (!report.lags.is_empty()).then(|| json!(report.lags).to_string());
    json!({"metadata": {
        "labels": {ROLE: role(report).map(Role::as_str)},
        "annotations": {REASON: report.why, REFUSAL: report.refusal, POSITION: position, LAGS: lags},
    }})
}
