//! Telling the world: labels and annotations of the member's pod. Services choose by the label, so the switch of the endpoints is
//! this write; `kubectl get pods -L mainstay.dev/role` shows it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use crate::core::{Role, Stage};
use crate::steward::Report;

/// `primary`, `replica`, or absent while the server is neither.
pub const ROLE: &str = "mainstay.dev/role";
/// What the steward does and why, in words.
pub const REASON: &str = "mainstay.dev/steward";
/// The epoch and position it has, `epoch/offset`.
pub const POSITION: &str = "mainstay.dev/position";

/// Between two tries.
const RETRY: Duration = Duration::from_millis(200);
/// For one try.
const LIMIT: Duration = Duration::from_secs(2);

/// Keeps the pod's labels as the steward reports, until the steward ends. What changes while a write is under way is written after it.
pub async fn publish(client: Client, namespace: &str, pod: &str, mut reports: watch::Receiver<Option<Report>>) {
    let api: Api<Pod> = Api::namespaced(client, namespace);
    while reports.changed().await.is_ok() {
        loop {
            let Some(report) = reports.borrow_and_update().clone() else { break };
            let patch = patch(&report);
            let params = PatchParams::default();
            let done = tokio::time::timeout(LIMIT, api.patch_metadata(pod, &params, &Patch::Merge(&patch))).await;
            match done {
                Ok(Ok(_)) => break,
                Ok(Err(error)) => tracing::debug!(%error, pod, "the pod could not be labelled"),
                Err(_) => tracing::debug!(pod, "the pod could not be labelled in time"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn patch(report: &Report) -> serde_json::Value {
    let role = match report.stage {
        Stage::Primary if report.ready => Some(Role::Primary),
        Stage::Following => Some(Role::Replica),
        _ => None,
    };
    let position = report.position.map(|it| format!("{}/{}", it.epoch, it.offset));
    json!({"metadata": {
        "labels": {ROLE: role.map(Role::as_str)},
        "annotations": {REASON: report.why, POSITION: position},
    }})
}
