//! Pressure on a node's processors and memory: a pod beside those that are there, as a noisy neighbour is.
//!
//! It is put onto the node past the scheduler, so the pressure is there whether or not there is room. It asks for a quarter of
//! a processor: enough that its busy processes compete with others as equals, where a pod without requests would yield.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::api::{LOOK, failed, insist, is_gone, no_effect};
use super::{EFFECT_PATIENCE, FaultError, FaultKind};
use crate::resource::FaultSettings;

/// Where the pod is made.
const NAMESPACE: &str = "default";
/// Busy processes, unless the settings say otherwise.
const WORKERS: u32 = 2;
/// The image, unless the settings name another: any with `sh`, `head` and `tail`.
const IMAGE: &str = "mainstay.dev/host";

/// The pod that makes the pressure.
pub(super) fn pod(kind: FaultKind, node: &str, settings: &FaultSettings) -> Pod {
    let script = if kind == FaultKind::MemoryPressure {
        // What has no line ends is held whole until its end, which is put off.
        format!("{{ head -c {}m /dev/zero; sleep 86400; }} | tail", settings.megabytes.unwrap_or_default())
    } else {
        let workers = settings.workers.unwrap_or(WORKERS);
        format!("for worker in $(seq {workers}); do while :; do :; done & done; wait")
    };
    let pod: Value = json!({
        "metadata": {"name": format!("drill-{kind}-{node}"), "namespace": NAMESPACE, "labels": {"mainstay.dev/drill": "pressure"}},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "pressure",
                "image": settings.image.as_deref().unwrap_or(IMAGE),
                "command": ["sh", "-c", script],
                "resources": {"requests": {"cpu": "250m"}},
            }],
        },
    });
    serde_json::from_value(pod).unwrap_or_default()
}

/// Makes the pod and waits until it runs.
pub(super) async fn start(client: &Client, pod: Pod) -> Result<String, FaultError> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    pods.create(&PostParams::default(), &pod).await.map_err(failed(format!("create pod {namespace}/{name}")))?;
    let since = Instant::now();
    loop {
        let now = insist(&format!("get pod {namespace}/{name}"), async || pods.get(&name).await).await?;
        let phase = now.status.and_then(|status| status.phase).unwrap_or_default();
        if phase == "Running" {
            return Ok(format!("pod/{namespace}/{name} is running"));
        }
        if since.elapsed() > EFFECT_PATIENCE || phase == "Failed" {
            return Err(no_effect(format!("the pressure of pod {name}"), format!("it is {phase}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Takes the pod away; one that is gone is fine.
pub(super) async fn end(client: &Client, namespace: &str, name: &str) -> Result<(), FaultError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    let ask = async || match pods.delete(name, &at_once).await {
        Err(error) if is_gone(&error) => Ok(()),
        other => other.map(drop),
    };
    insist(&format!("delete pod {namespace}/{name}"), ask).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_on_its_node_whatever_else_is() {
        let settings = FaultSettings { megabytes: Some(64), ..FaultSettings::default() };
        let pod = pod(FaultKind::MemoryPressure, "node-2", &settings);
        let spec = pod.spec.clone().unwrap_or_default();
        assert_eq!(pod.name_any(), "drill-memory-pressure-node-2");
        assert_eq!(spec.node_name.as_deref(), Some("node-2"));
        let command = spec.containers.first().and_then(|container| container.command.clone()).unwrap_or_default();
        assert!(command.last().is_some_and(|script| script.contains("head -c 64m")), "{command:?}");
    }
}
