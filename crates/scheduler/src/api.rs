//! The scheduler's requests: bindings, refusals, events.

use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use mainstay_informer::ObjectKey;
use mainstay_model::meta::format_time;
use mainstay_model::resource::known;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Semaphore;

use crate::core::PodFacts;
use crate::pending::Waiting;

/// Events under way at once; above it they are dropped.
const NOTES_MAX: usize = 64;

#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    component: String,
    notes: Arc<Semaphore>,
}

impl Api {
    pub(crate) fn new(client: Client, component: String) -> Self {
        Self { client, component, notes: Arc::new(Semaphore::new(NOTES_MAX)) }
    }

    /// Binds the pod; the API server refuses if it is bound already or another of its name.
    pub(crate) async fn bind(&self, pod: &Waiting, node: &str) -> Result<(), kube::Error> {
        let (namespace, name) = names(pod);
        let path = format!("{}/binding", known("Pod").path(Some(namespace), Some(name)));
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"namespace": namespace, "name": name, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        self.send(Method::POST, &path, "application/json", &binding).await
    }

    /// Names the node that a pod waits for until others have left it.
    pub(crate) async fn nominate(&self, pod: &Waiting, node: &str) -> Result<(), kube::Error> {
        let (namespace, name) = names(pod);
        let path = format!("{}/status", known("Pod").path(Some(namespace), Some(name)));
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": node}});
        self.send(Method::PATCH, &path, "application/merge-patch+json", &patch).await
    }

    /// Makes a pod go for a more important one; its owner can tell from the condition that it was not its fault.
    pub(crate) async fn displace(&self, victim: &Pod, by: &Waiting) -> Result<(), kube::Error> {
        let meta = &victim.metadata;
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let path = known("Pod").path(Some(namespace), Some(name));
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", self.component),
            "lastTransitionTime": format_time(Timestamp::now()),
        });
        let patch = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [condition]}});
        let status = format!("{path}/status");
        self.send(Method::PATCH, &status, "application/strategic-merge-patch+json", &patch).await?;
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": meta.uid}});
        self.send(Method::DELETE, &path, "application/json", &options).await?;
        let facts = Arc::new(PodFacts::of(victim));
        let about = Waiting::new(facts, meta.uid.clone().unwrap_or_default(), 0, Timestamp::UNIX_EPOCH, String::new());
        let node = victim.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        self.note(&about, false, "Preempted", &format!("Preempted by pod {} on node {node}", by.uid));
        Ok(())
    }

    /// Tells the binder of a claim for which node a volume is wanted.
    pub(crate) async fn select_node(&self, claim: &ObjectKey, node: &str) -> Result<(), kube::Error> {
        let path = known("PersistentVolumeClaim").path(Some(&claim.namespace), Some(&claim.name));
        let patch = json!({"metadata": {"annotations": {crate::claims::SELECTED_NODE: node}}});
        self.send(Method::PATCH, &path, "application/merge-patch+json", &patch).await
    }

    /// Asks for a pod's eviction; the API server refuses if a budget does not allow it.
    pub(crate) async fn evict(&self, pod: &Pod) -> Result<(), kube::Error> {
        let meta = &pod.metadata;
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let path = format!("{}/eviction", known("Pod").path(Some(namespace), Some(name)));
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"namespace": namespace, "name": name},
            "deleteOptions": {"preconditions": {"uid": meta.uid}},
        });
        self.send(Method::POST, &path, "application/json", &eviction).await
    }

    /// Writes into the pod's status that no node would take it, unless the pod has changed since: it may be bound by now.
    pub(crate) async fn refused(&self, pod: &Waiting, message: &str) -> Result<(), kube::Error> {
        let (namespace, name) = names(pod);
        let path = format!("{}/status", known("Pod").path(Some(namespace), Some(name)));
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": format_time(Timestamp::now()),
        });
        let patch = json!({"metadata": {"uid": pod.uid, "resourceVersion": pod.revision}, "status": {"conditions": [condition]}});
        self.send(Method::PATCH, &path, "application/strategic-merge-patch+json", &patch).await
    }

    /// Records an Event in the background.
    pub(crate) fn note(&self, pod: &Waiting, warning: bool, reason: &str, message: &str) {
        let Ok(permit) = self.notes.clone().try_acquire_owned() else { return };
        let (namespace, name) = names(pod);
        let now = Timestamp::now();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"namespace": namespace, "name": format!("{name}.{:x}", now.as_nanosecond())},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": pod.uid,
            },
            "type": if warning { "Warning" } else { "Normal" }, "reason": reason, "message": message,
            "source": {"component": self.component}, "reportingComponent": self.component, "reportingInstance": "",
            "firstTimestamp": format_time(now), "lastTimestamp": format_time(now), "count": 1,
        });
        let path = known("Event").path(Some(namespace), None);
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = this.send(Method::POST, &path, "application/json", &event).await {
                tracing::debug!(%error, "event not recorded");
            }
            drop(permit);
        });
    }

    async fn send(&self, method: Method, path: &str, media_type: &str, body: &Value) -> Result<(), kube::Error> {
        let request = Request::builder().method(method).uri(path).header("content-type", media_type);
        let body = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
        let request = request.body(body).map_err(kube::Error::HttpError)?;
        self.client.request_text(request).await.map(drop)
    }
}

fn names(pod: &Waiting) -> (&str, &str) {
    pod.facts.key.split_once('/').unwrap_or(("", &pod.facts.key))
}
