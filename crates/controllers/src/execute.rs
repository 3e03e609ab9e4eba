//! Carrying out actions: one HTTP request each, the answer goes into the caches.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use mainstay_model::meta;
use mainstay_model::resource::{self, Resource};
use serde_json::{Value, json};

use crate::action::{Action, Note, Object, Plan, Propagation, Target};
use crate::caches::Caches;

/// Requests of one plan that are under way at once.
const CONCURRENT_MAX: usize = 32;
/// Events of one controller under way at once; above it they are dropped.
const NOTES_MAX: usize = 64;
/// Controllers whose pods have generated names: they tell of what they delete.
const OWNERS: &[&str] = &["replicaset-controller", "daemonset-controller", "job-controller"];

/// Why a plan was not carried out to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    /// The world is not as the plan took it to be; the caches are up to date now.
    #[error("{0} has changed meanwhile")]
    Conflict(Target),
    /// Something has to go first.
    #[error("{count} {plural} remain in namespace {namespace}")]
    Remaining { count: usize, plural: &'static str, namespace: String },
    /// The API server said no.
    #[error("the API server refused to {action}: {source}")]
    Refused { action: String, source: Box<kube::core::Status> },
    /// The API server was not reached, or its answer not understood.
    #[error("request to {action} failed: {source}")]
    Request { action: String, source: kube::Error },
}

/// Hands for all controllers.
#[derive(Clone)]
pub(crate) struct Executor {
    client: Client,
    caches: Caches,
    /// Name of the controller, for events.
    component: &'static str,
    notes: Arc<tokio::sync::Semaphore>,
}

impl Executor {
    pub(crate) fn new(client: Client, caches: Caches, component: &'static str) -> Self {
        Self { client, caches, component, notes: Arc::new(tokio::sync::Semaphore::new(NOTES_MAX)) }
    }

    /// Carries out a plan. After earlier failures, groups of creations grow 1, 2, 4, ... so that a server that refuses
    /// them all is not asked hundreds of times.
    pub(crate) async fn run(&self, plan: &Plan, careful: bool) -> Result<(), Stopped> {
        let mut rest = plan.actions.as_slice();
        while let Some(first) = rest.first() {
            let alike = rest.iter().take_while(|action| is_together(first, action)).count().max(1);
            let (group, after) = rest.split_at(alike);
            rest = after;
            let creating = matches!(first, Action::Create(_));
            let done = self.run_group(group, careful && creating).await;
            if let (Err(Stopped::Refused { source, .. }), Action::Create(object), false) = (&done, first, careful) {
                self.tell_refusal(&object.value, &source.message);
            }
            done?;
        }
        Ok(())
    }

    async fn run_group(&self, group: &[Action], careful: bool) -> Result<(), Stopped> {
        let mut batch_max = if careful { 1 } else { group.len() };
        let mut rest = group;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(batch_max.min(rest.len()));
            rest = after;
            batch_max *= 2;
            // All of a batch are waited for: what was created must be in the cache before the next look.
            let mut waiting: Vec<BoxFuture<'_, _>> = batch.iter().map(|action| self.act(action).boxed()).collect();
            let mut running: FuturesUnordered<_> = waiting.drain(..CONCURRENT_MAX.min(batch.len())).collect();
            let mut result = Ok(());
            while let Some(ended) = running.next().await {
                result = result.and(ended);
                running.extend(waiting.pop());
            }
            result?;
        }
        Ok(())
    }

    async fn act(&self, action: &Action) -> Result<(), Stopped> {
        match action {
            Action::Create(object) => {
                let path = object.target.resource.path(Some(&object.target.key.namespace), None);
                self.write(Method::POST, &path, "application/json", &object.value, action, &object.target).await
            }
            Action::Replace(object) => self.put(object, None, action).await,
            Action::ReplaceStatus(object) => self.put(object, Some("status"), action).await,
            Action::Approve(object) => self.put(object, Some("approval"), action).await,
            Action::Scale(target, replicas) => {
                let patch = json!({"spec": {"replicas": replicas}});
                let path = target.path(Some("scale"));
                let sent = self.send(Method::PATCH, &path, "application/merge-patch+json", Some(&patch)).await;
                sent.map(drop).map_err(|error| stopped(action, error))
            }
            Action::Finalize(object) => self.put(object, Some("finalize"), action).await,
            Action::Patch(target, patch) => {
                let path = target.path(None);
                self.write(Method::PATCH, &path, "application/merge-patch+json", patch, action, target).await
            }
            Action::Delete { target, grace_seconds, propagation } => {
                let options = delete_options(target, *propagation, *grace_seconds, None);
                self.write(Method::DELETE, &target.path(None), "application/json", &options, action, target).await
            }
            Action::DeleteSame(target, revision) => {
                let options = delete_options(target, Propagation::Background, None, Some(revision));
                self.write(Method::DELETE, &target.path(None), "application/json", &options, action, target).await
            }
            Action::DeleteAll(resource, namespace) => self.delete_all(resource, namespace, action).await,
            Action::ExpectNone(resource, namespace) => self.expect_none(resource, namespace, action).await,
            Action::ExpectGone(target) => self.expect_gone(target, action).await,
            Action::ExpectSame(target, revision) => {
                let found = self.refresh(target, action).await?;
                let same = found.is_some_and(|object| meta::resource_version(&object) == revision);
                if same { Ok(()) } else { Err(Stopped::Conflict(target.clone())) }
            }
            Action::Note(note) => {
                self.note(note);
                Ok(())
            }
        }
    }

    async fn put(&self, object: &Object, subresource: Option<&str>, action: &Action) -> Result<(), Stopped> {
        let path = object.target.path(subresource);
        self.write(Method::PUT, &path, "application/json", &object.value, action, &object.target).await
    }

    /// One writing request; a conflict brings the cache up to date and says so.
    async fn write(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: &Value,
        action: &Action,
        target: &Target,
    ) -> Result<(), Stopped> {
        let (creating, deleting) = (method == Method::POST, method == Method::DELETE);
        match self.send(method, path, media_type, Some(body)).await {
            Ok(answer) if is_ended(&answer) || (deleting && is_gone(&answer)) => {
                self.tell_end(&answer, deleting);
                self.caches.observe_deleted(&target.resource.kind, &target.key);
                Ok(())
            }
            Ok(answer) => {
                if creating && answer["metadata"]["generateName"].is_string() {
                    self.tell_owner(&answer, "SuccessfulCreate", format!("Created pod: {}", meta::name(&answer)));
                }
                self.tell_end(&answer, deleting);
                self.caches.observe(&target.resource.kind, answer);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 && !creating => {
                self.caches.observe_deleted(&target.resource.kind, &target.key);
                if deleting { Ok(()) } else { Err(Stopped::Conflict(target.clone())) }
            }
            Err(kube::Error::Api(status)) if status.code == 409 && (!creating || status.reason == "AlreadyExists") => {
                self.refresh(target, action).await?;
                Err(Stopped::Conflict(target.clone()))
            }
            Err(error) => Err(stopped(action, error)),
        }
    }

    /// Brings the cache up to date about one object.
    async fn refresh(&self, target: &Target, action: &Action) -> Result<Option<Value>, Stopped> {
        match self.send(Method::GET, &target.path(None), "", None).await {
            Ok(object) => {
                self.caches.observe(&target.resource.kind, object.clone());
                Ok(Some(object))
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.caches.observe_deleted(&target.resource.kind, &target.key);
                Ok(None)
            }
            Err(error) => Err(stopped(action, error)),
        }
    }

    async fn expect_gone(&self, target: &Target, action: &Action) -> Result<(), Stopped> {
        let found = self.refresh(target, action).await?;
        let same = |object: &Value| target.uid.as_deref().is_none_or(|uid| meta::uid(object) == uid);
        if found.as_ref().is_some_and(same) { Err(Stopped::Conflict(target.clone())) } else { Ok(()) }
    }

    async fn delete_all(&self, resource: &Resource, namespace: &str, action: &Action) -> Result<(), Stopped> {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
        let path = resource.path(Some(namespace), None);
        let sent = self.send(Method::DELETE, &path, "application/json", Some(&options)).await;
        sent.map(drop).map_err(|error| stopped(action, error))
    }

    async fn expect_none(&self, resource: &'static Resource, namespace: &str, action: &Action) -> Result<(), Stopped> {
        let path = resource.path(Some(namespace), None);
        let list = self.send(Method::GET, &path, "", None).await.map_err(|error| stopped(action, error))?;
        match list["items"].as_array().map_or(0, Vec::len) {
            0 => Ok(()),
            count => Err(Stopped::Remaining { count, plural: &resource.plural, namespace: namespace.to_owned() }),
        }
    }

    /// What becomes of a pod shows at its owner: `kubectl describe` is where people look for it. (A StatefulSet tells of its
    /// pods itself, by their names.)
    fn tell_owner(&self, pod: &Value, reason: &'static str, message: String) {
        let Some(owner) = meta::controller_of(pod).filter(|_| meta::kind(pod) == "Pod") else { return };
        let text = |field: &str| owner[field].as_str().map(str::to_owned);
        let regarding = ObjectReference {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            namespace: meta::namespace(pod).map(str::to_owned),
            ..ObjectReference::default()
        };
        self.note(&Note { regarding, warning: reason.starts_with("Failed"), reason, message });
    }

    /// A pod that its owner has given up.
    fn tell_end(&self, pod: &Value, deleting: bool) {
        if deleting && OWNERS.contains(&self.component) && pod["metadata"]["generateName"].is_string() {
            self.tell_owner(pod, "SuccessfulDelete", format!("Deleted pod: {}", meta::name(pod)));
        }
    }

    /// A pod that the API server did not take; told once, not with every attempt.
    fn tell_refusal(&self, pod: &Value, refusal: &str) {
        let name = meta::name(pod);
        let message = match meta::controller_of(pod) {
            Some(owner) if owner["kind"] == "StatefulSet" => {
                let set = owner["name"].as_str().unwrap_or_default();
                format!("create Pod {name} in StatefulSet {set} failed error: {refusal}")
            }
            _ => format!("Error creating: {refusal}"),
        };
        self.tell_owner(pod, "FailedCreate", message);
    }

    /// Sends an Event in the background; nobody waits for it and its failure changes nothing.
    fn note(&self, note: &Note) {
        let Ok(permit) = self.notes.clone().try_acquire_owned() else { return };
        let event = event(note, self.component, Timestamp::now());
        let path = resource::known("Event").path(event["metadata"]["namespace"].as_str(), None);
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = this.send(Method::POST, &path, "application/json", Some(&event)).await {
                tracing::debug!(%error, "event not recorded");
            }
            drop(permit);
        });
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Option<&Value>,
    ) -> Result<Value, kube::Error> {
        let mut request = Request::builder().method(method).uri(path).header("accept", "application/json");
        if body.is_some() {
            request = request.header("content-type", media_type);
        }
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(kube::Error::SerdeError)?,
            None => Vec::new(),
        };
        let request = request.body(bytes).map_err(kube::Error::HttpError)?;
        let text = self.client.request_text(request).await?;
        serde_json::from_str(&text).map_err(kube::Error::SerdeError)
    }
}

fn delete_options(
    target: &Target,
    propagation: Propagation,
    grace_seconds: Option<u32>,
    revision: Option<&String>,
) -> Value {
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation.as_str()});
    if let Some(uid) = &target.uid {
        options["preconditions"]["uid"] = json!(uid);
    }
    if let Some(revision) = revision {
        options["preconditions"]["resourceVersion"] = json!(revision);
    }
    if let Some(seconds) = grace_seconds {
        options["gracePeriodSeconds"] = json!(seconds);
    }
    options
}

/// Neighbours that may go out at the same time.
fn is_together(a: &Action, b: &Action) -> bool {
    matches!(
        (a, b),
        (Action::Create(_), Action::Create(_))
            | (Action::Delete { .. }, Action::Delete { .. })
            | (Action::DeleteAll(..), Action::DeleteAll(..))
            | (Action::ReplaceStatus(_), Action::ReplaceStatus(_))
            | (Action::ExpectNone(..), Action::ExpectNone(..))
            | (Action::ExpectSame(..), Action::ExpectSame(..))
    )
}

/// Whether the answer to a DELETE says that the object is gone: a `Status`, or the object as it last was.
fn is_gone(answer: &Value) -> bool {
    meta::kind(answer) == "Status" || !meta::is_being_deleted(answer)
}

/// Whether an object is being deleted and nothing holds it any more: the write that took its last finalizer away has
/// removed it, and what the API server answers is its last state. Kept, it would never leave the cache, because the
/// watch may have told of its end already.
fn is_ended(answer: &Value) -> bool {
    let namespace_holds = !meta::list_at(answer, "spec.finalizers").is_empty() && meta::kind(answer) == "Namespace";
    meta::is_being_deleted(answer)
        && meta::finalizers(answer).is_empty()
        && meta::i64_at(answer, "metadata.deletionGracePeriodSeconds").unwrap_or(0) == 0
        && !namespace_holds
}

fn stopped(action: &Action, error: kube::Error) -> Stopped {
    let action = action.to_string();
    match error {
        kube::Error::Api(source) => Stopped::Refused { action, source },
        source => Stopped::Request { action, source },
    }
}

/// An Event object; cluster-scoped objects' events live in `default`.
fn event(note: &Note, component: &str, now: Timestamp) -> Value {
    let regarding = &note.regarding;
    let namespace = regarding.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".to_owned());
    let name = regarding.name.as_deref().unwrap_or_default();
    let time = meta::format_time(now);
    json!({
        "kind": "Event", "apiVersion": "v1",
        "metadata": {"name": format!("{name}.{:x}", now.as_nanosecond()), "namespace": namespace},
        "involvedObject": regarding, "reason": note.reason, "message": note.message,
        "type": if note.warning { "Warning" } else { "Normal" },
        "source": {"component": component}, "reportingComponent": component, "reportingInstance": "",
        "firstTimestamp": time, "lastTimestamp": time, "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_nothing_holds_any_more_has_ended() {
        let pod = |meta: Value| json!({"kind": "Pod", "metadata": meta});
        let time = "2026-01-01T00:00:00Z";
        for (object, ended) in [
            (pod(json!({})), false),
            (pod(json!({"deletionTimestamp": time, "deletionGracePeriodSeconds": 0})), true),
            (pod(json!({"deletionTimestamp": time, "deletionGracePeriodSeconds": 30})), false),
            (pod(json!({"deletionTimestamp": time, "finalizers": ["orphan"]})), false),
        ] {
            assert_eq!(is_ended(&object), ended, "{object}");
        }
        let mut namespace = json!({"kind": "Namespace", "metadata": {"deletionTimestamp": time}, "spec": {"finalizers": ["kubernetes"]}});
        assert!(!is_ended(&namespace));
        namespace["spec"]["finalizers"] = json!([]);
        assert!(is_ended(&namespace));
        assert!(is_gone(&json!({"kind": "Status"})));
    }
}
