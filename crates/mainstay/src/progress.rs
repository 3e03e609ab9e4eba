//! What runs, what does not, and why: in words, from the objects alone. Pure.
//!
//! Used by `mainstay up`, which waits until nothing is left to wait for, and by `mainstay status`.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod, Service};
use serde::Serialize;

/// How one thing stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Kind, namespace and name.
    pub what: String,
    /// Where it runs, if it runs somewhere.
    pub node: Option<String>,
    /// `None` when all is well, else what it waits for.
    pub waits_for: Option<String>,
}

impl Standing {
    /// Whether there is nothing to wait for.
    pub fn is_well(&self) -> bool {
        self.waits_for.is_none()
    }
}

/// How a node stands.
pub fn node(node: &Node) -> Standing {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.clone().find(|condition| condition.type_ == "Ready");
    let waits_for = match ready {
        None => Some("has not reported yet".to_owned()),
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(sentence("not ready", ready.reason.as_deref(), ready.message.as_deref())),
    };
    Standing { what: format!("node/{}", node.metadata.name.as_deref().unwrap_or_default()), node: None, waits_for }
}

/// How a deployment stands: all its replicas updated and available.
pub fn deployment(deployment: &Deployment) -> Standing {
    let meta = &deployment.metadata;
    let wanted = deployment.spec.replicas.unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let seen = status.observed_generation.unwrap_or(0) >= meta.generation.unwrap_or(0);
    let (updated, available) = (status.updated_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
    let total = status.replicas.unwrap_or(0);
    let waits_for = if !seen {
        Some("is being taken up".to_owned())
    } else if updated < wanted {
        Some(format!("{updated} of {wanted} replicas have the latest template"))
    } else if total > updated {
        Some(format!("{} old replicas are still ending", total - updated))
    } else if available < wanted {
        Some(format!("{available} of {wanted} replicas are available"))
    } else {
        None
    };
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let what = format!("deployment/{namespace}/{}", meta.name.as_deref().unwrap_or_default());
    Standing { what, node: None, waits_for }
}

/// How a pod stands: Ready, or through with its work.
pub fn pod(pod: &Pod) -> Standing {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let what = format!("pod/{namespace}/{}", meta.name.as_deref().unwrap_or_default());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    Standing { what, node, waits_for: pod_waits_for(pod) }
}

fn pod_waits_for(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("is ending".to_owned());
    }
    if status.phase.as_deref() == Some("Succeeded") {
        return None;
    }
    let condition = |name: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == name);
    if condition("Ready").is_some_and(|ready| ready.status == "True") {
        return None;
    }
    if status.phase.as_deref() == Some("Failed") {
        return Some(sentence("failed", status.reason.as_deref(), status.message.as_deref()));
    }
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
        let scheduled = condition("PodScheduled");
        let message = scheduled.and_then(|condition| condition.message.as_deref());
        return Some(message.map_or("waits for a node".to_owned(), |message| format!("fits no node: {message}")));
    }
    let init = status.init_container_statuses.iter().flatten().find(|container| !is_done(container));
    let containers = status.container_statuses.iter().flatten();
    let blocking = init.or_else(|| containers.clone().find(|container| !container.ready));
    match blocking {
        None => Some("waits for its node to start it".to_owned()),
        Some(container) => Some(container_waits_for(container)),
    }
}

fn is_done(container: &ContainerStatus) -> bool {
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    container.ready || ended.is_some_and(|ended| ended.exit_code == 0)
}

fn container_waits_for(container: &ContainerStatus) -> String {
    let name = &container.name;
    let state = container.state.clone().unwrap_or_default();
    if let Some(waiting) = state.waiting {
        return match waiting.reason.as_deref() {
            Some("ContainerCreating" | "PodInitializing") | None => format!("container {name} is being created"),
            reason => sentence(&format!("container {name} waits"), reason, waiting.message.as_deref()),
        };
    }
    if let Some(ended) = state.terminated {
        let how = format!("container {name} ended with exit code {}", ended.exit_code);
        return sentence(&how, ended.reason.as_deref(), ended.message.as_deref());
    }
    if container.started == Some(true) {
        format!("container {name} runs but is not ready: its readiness probe has not succeeded")
    } else {
        format!("container {name} starts: its startup probe has not succeeded")
    }
}

/// How a service stands: one that wants a load-balancer address waits for it.
pub fn service(service: &Service) -> Option<Standing> {
    let wants = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    let meta = &service.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let what = format!("service/{namespace}/{}", meta.name.as_deref().unwrap_or_default());
    let waits_for = load_balancer_address(service).is_none().then(|| "waits for an address".to_owned());
    wants.then_some(Standing { what, node: None, waits_for })
}

/// The address of a service of type LoadBalancer.
pub fn load_balancer_address(service: &Service) -> Option<String> {
    let balancer = service.status.as_ref()?.load_balancer.as_ref()?;
    balancer.ingress.as_ref()?.first()?.ip.clone()
}

fn sentence(what: &str, reason: Option<&str>, message: Option<&str>) -> String {
    match (reason.filter(|r| !r.is_empty()), message.filter(|m| !m.is_empty())) {
        (Some(reason), Some(message)) => format!("{what}: {reason}: {message}"),
        (Some(text), None) | (None, Some(text)) => format!("{what}: {text}"),
        (None, None) => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn waits(value: serde_json::Value) -> Option<String> {
        pod(&serde_json::from_value(value).unwrap()).waits_for
    }

    #[test]
    fn a_pod_says_what_it_waits_for() {
        assert_eq!(waits(json!({"spec": {"containers": []}})).unwrap(), "waits for a node");
        let full = json!({"spec": {"containers": []}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."}]}});
        assert!(waits(full).unwrap().contains("Insufficient cpu"));
        let crash = json!({"spec": {"nodeName": "n", "containers": []}, "status": {"containerStatuses": [
            {"name": "c", "ready": false, "image": "", "imageID": "", "restartCount": 2,
             "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}}]}});
        assert_eq!(waits(crash).unwrap(), "container c waits: CrashLoopBackOff: back-off 10s");
        let ready = json!({"spec": {"nodeName": "n", "containers": []}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(waits(ready), None);
    }

    #[test]
    fn a_deployment_waits_for_its_replicas() {
        let half = json!({"metadata": {"name": "d", "namespace": "n", "generation": 2}, "spec": {"replicas": 3, "selector": {}, "template": {}},
            "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 1}});
        let standing = deployment(&serde_json::from_value(half).unwrap());
        assert_eq!(standing.waits_for.unwrap(), "1 of 3 replicas are available");
    }
}
