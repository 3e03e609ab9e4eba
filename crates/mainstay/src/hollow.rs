//! Hollow nodes: agents that only answer, for work at a scale that one machine cannot run.
//!
//! They register, say that they are ready, and call every pod bound to them Running and Ready; nothing is ever started. They
//! renew no Lease (thousands would keep a store busy with nothing else) and say so by an annotation, so that nobody
//! takes them for dead.

use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use mainstay_informer::{Cache, Scope};
use serde_json::json;

/// The annotation of a Node that renews no Lease.
pub use mainstay_controllers::HOLLOW;

/// The beginning of every hollow node's name.
const PREFIX: &str = "hollow-";
/// Requests under way at once.
const CONCURRENT_MAX: usize = 128;

/// Registers `count` nodes over three zones and answers for them, for ever.
pub async fn run(client: Client, count: u32) {
    let nodes: Api<Node> = Api::all(client.clone());
    let register = |index: u32| {
        let nodes = nodes.clone();
        async move {
            if let Err(error) = nodes.create(&PostParams::default(), &node(index)).await
                && !matches!(&error, kube::Error::Api(status) if status.code == 409)
            {
                tracing::warn!(%error, index, "a hollow node is not registered");
            }
        }
    };
    futures::stream::iter(0..count).map(register).buffer_unordered(CONCURRENT_MAX).collect::<()>().await;
    let pods = Cache::<Pod>::new();
    let mut changes = pods.subscribe();
    let watch = pods.clone().run(client.clone(), Scope::default());
    let answers = async {
        loop {
            let due: Vec<Arc<Pod>> = changes.changed().await.into_iter().filter_map(|change| change.after).collect();
            let due = due.into_iter().filter(|pod| is_ours(pod));
            futures::stream::iter(due)
                .map(|pod| answer(&client, pod))
                .buffer_unordered(CONCURRENT_MAX)
                .collect::<()>()
                .await;
        }
    };
    tokio::join!(watch, answers);
}

fn is_ours(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.is_some_and(|node| node.starts_with(PREFIX))
}

/// Says what an agent would say next about a pod.
async fn answer(client: &Client, pod: Arc<Pod>) {
    let (space, name) =
        (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default());
    let api: Api<Pod> = Api::namespaced(client.clone(), space);
    let uid = pod.metadata.uid.clone();
    let result = if pod.metadata.deletion_timestamp.is_some() {
        let preconditions = Some(Preconditions { uid, resource_version: None });
        let now = DeleteParams { grace_period_seconds: Some(0), preconditions, ..DeleteParams::default() };
        api.delete(name, &now).await.map(drop)
    } else if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending") {
        let now = Timestamp::now();
        let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": mainstay_model::meta::format_time(now)});
        let conditions: Vec<_> =
            ["PodScheduled", "Initialized", "ContainersReady", "Ready"].iter().map(|kind| condition(kind)).collect();
        let status =
            json!({"phase": "Running", "conditions": conditions, "startTime": mainstay_model::meta::format_time(now)});
        let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "status": status}));
        api.patch_status(name, &PatchParams::default(), &patch).await.map(drop)
    } else {
        Ok(())
    };
    if let Err(error) = result {
        tracing::debug!(pod = name, %error, "a hollow node's answer was refused");
    }
}

fn node(index: u32) -> Node {
    let name = format!("{PREFIX}{index}");
    let room = json!({"cpu": "16", "memory": "64Gi", "pods": "110"});
    let value = json!({
        "metadata": {
            "name": name, "annotations": {HOLLOW: "true"},
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": format!("zone-{}", index % 3)},
        },
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Hollow", "message": "nothing runs here"}],
        },
    });
    serde_json::from_value(value).unwrap_or_default()
}
