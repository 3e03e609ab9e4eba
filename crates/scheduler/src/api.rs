//! The scheduler's requests: bindings, refusals, events.

use http::{Method, Request};
use jiff::Timestamp;
use kube::Client;
use mainstay_model::meta::format_time;
use mainstay_model::resource::known;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Semaphore;

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
