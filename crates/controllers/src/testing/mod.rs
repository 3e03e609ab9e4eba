//! A cluster in memory for tests: the caches as the API server, plans carried out at once, an agent that makes pods ready.
#![allow(clippy::unwrap_used)]

pub(crate) mod golden;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use mainstay_informer::ObjectKey;
use mainstay_model::patch::merge;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::action::{Action, Attempt, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::driver::Controller;
use crate::object::{is_ready, is_terminating, name, phase};

/// A typed object from JSON.
pub(crate) fn typed<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// The cluster. Objects are JSON in the caches; every write gets the next revision.
pub(crate) struct World {
    pub(crate) caches: Caches,
    pub(crate) now: Timestamp,
    revision: u64,
    names: u64,
    /// Refuse every creation of a pod with this message.
    pub(crate) refuse_pods: Option<String>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            caches: Caches::default(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            revision: 1,
            names: 0,
            refuse_pods: None,
        };
        world.put(&Object::of(&typed::<Namespace>(json!({"metadata": {"name": "shop"}}))), None);
        world
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += SignedDuration::try_from(time).unwrap();
    }

    /// Applies a manifest: the spec is replaced, the status stays.
    pub(crate) fn apply(&mut self, mut manifest: Value) {
        let resource = mainstay_model::resource::known(manifest["kind"].as_str().unwrap());
        let namespace = if resource.namespaced { "shop" } else { "" };
        if resource.namespaced {
            manifest["metadata"]["namespace"] = json!(namespace);
        }
        let name = manifest["metadata"]["name"].as_str().unwrap().to_owned();
        let target = Target { resource, key: ObjectKey::new(namespace, name), uid: None };
        let old = self.get(&target);
        if let Some(status) = old.as_ref().map(|old| old["status"].clone()) {
            manifest["status"] = status;
        }
        let generation = old.as_ref().and_then(|old| old["metadata"]["generation"].as_i64()).unwrap_or(0);
        if let Some(old) = &old {
            manifest["metadata"] = merge(&old["metadata"], &manifest["metadata"]).unwrap();
        }
        manifest["metadata"]["generation"] = json!(generation + 1);
        self.put(&Object { target, value: manifest }, None);
    }

    pub(crate) fn get(&self, target: &Target) -> Option<Value> {
        self.caches.value(&target.resource.kind, &target.key)
    }

    /// Writes an object as the API server would.
    pub(crate) fn put(&mut self, object: &Object, name: Option<String>) {
        let mut value = object.value.clone();
        self.revision += 1;
        value["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        if let Some(name) = name {
            value["metadata"]["name"] = json!(name);
        }
        if value["metadata"]["uid"].is_null() {
            value["metadata"]["uid"] = json!(format!("uid-{}", self.revision));
            value["metadata"]["creationTimestamp"] = json!(self.now.to_string());
        }
        self.caches.observe(&object.target.resource.kind, value);
    }

    /// Carries out one action; the error is the API server's refusal.
    pub(crate) fn act(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Create(object) => {
                if let Some(message) = self.refuse_pods.clone().filter(|_| object.target.resource.kind == "Pod") {
                    return Err(message);
                }
                let generated = object.value["metadata"]["generateName"].as_str().map(str::to_owned);
                self.names += 1;
                let name = generated.map(|prefix| format!("{prefix}{:05}", self.names));
                let mut object = object.clone();
                object.value["metadata"]["generation"] = json!(1);
                self.put(&object, name);
            }
            Action::ReplaceStatus(object) => {
                let mut value = self.get(&object.target).unwrap();
                assert_eq!(
                    value["metadata"]["resourceVersion"], object.value["metadata"]["resourceVersion"],
                    "conflict in {action}"
                );
                value["status"] = object.value["status"].clone();
                self.put(&Object { target: object.target.clone(), value }, None);
            }
            Action::Patch(target, patch) => {
                let Some(old) = self.get(target) else { return Ok(()) };
                let mut value = merge(&old, patch).unwrap();
                if let Some(revision) = patch["metadata"]["resourceVersion"].as_str() {
                    assert_eq!(old["metadata"]["resourceVersion"], revision, "conflict in {action}");
                }
                let meta = &value["metadata"];
                let held = meta["finalizers"].as_array().is_some_and(|all| !all.is_empty());
                if !meta["deletionTimestamp"].is_null() && meta["deletionGracePeriodSeconds"] == 0 && !held {
                    self.caches.observe_deleted(&target.resource.kind, &target.key);
                    return Ok(());
                }
                if old["spec"] != value["spec"] {
                    value["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
                }
                self.put(&Object { target: target.clone(), value }, None);
            }
            Action::Delete { target, grace_seconds, .. } => {
                let running = target.resource.kind == "Pod" && *grace_seconds != Some(0);
                match self.get(target) {
                    Some(value) if !value["metadata"]["deletionTimestamp"].is_null() && running => {}
                    Some(mut value) if (running && !value["spec"]["nodeName"].is_null()) || is_held(&value) => {
                        let seconds = if running && !value["spec"]["nodeName"].is_null() { 30 } else { 0 };
                        value["metadata"]["deletionTimestamp"] = json!(self.now.to_string());
                        value["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
                        self.put(&Object { target: target.clone(), value }, None);
                    }
                    Some(_) => self.caches.observe_deleted(&target.resource.kind, &target.key),
                    None => {}
                }
            }
            Action::ExpectGone(target) => {
                let uid = self.get(target).and_then(|found| found["metadata"]["uid"].as_str().map(str::to_owned));
                if uid.is_some() && uid == target.uid {
                    return Err(format!("{target} is there"));
                }
            }
            Action::ExpectSame(target, revision) => {
                let found = self.get(target).unwrap_or_default();
                if found["metadata"]["resourceVersion"] != revision.as_str() {
                    return Err(format!("{target} has changed"));
                }
            }
            Action::Note(_) => {}
            other => panic!("not in this world: {other}"),
        }
        Ok(())
    }

    /// One look of a controller at one key; whether it did anything.
    pub(crate) fn look<C: Controller>(&mut self, controller: &C, key: &C::Key, attempt: &mut Attempt) -> Plan {
        let now = Now { wall: self.now, monotonic: Duration::ZERO };
        let plan = controller.plan(&self.caches, key, attempt, now);
        for action in &plan.actions {
            if let Err(error) = self.act(action) {
                attempt.failures += 1;
                attempt.error = Some(error);
                return plan;
            }
        }
        *attempt = Attempt::default();
        plan
    }

    /// Changes a pod's JSON as an agent or the scheduler would.
    pub(crate) fn change_pod(&mut self, pod: &Pod, change: impl FnOnce(&mut Value)) {
        let object = Object::of(pod);
        let mut value = object.value.clone();
        change(&mut value);
        self.put(&Object { value, ..object }, None);
    }

    /// The agent: binds and starts a pod and reports it ready.
    pub(crate) fn start_pod(&mut self, pod: &Pod) {
        let now = self.now.to_string();
        self.change_pod(pod, |pod| {
            pod["spec"]["nodeName"] = json!("node-1");
            pod["status"] = json!({"phase": "Running", "podIP": "10.0.0.1", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": now}]});
        });
    }

    /// The agent: a pod that is being deleted has stopped.
    pub(crate) fn stop_pod(&mut self, pod: &Pod) {
        if pod.metadata.finalizers.iter().flatten().next().is_none() {
            return self.caches.observe_deleted("Pod", &ObjectKey::of(pod));
        }
        self.change_pod(pod, |pod| pod["metadata"]["deletionGracePeriodSeconds"] = json!(0));
    }

    /// The agent: a pod's one container has ended with a code.
    pub(crate) fn end_pod(&mut self, pod: &Pod, code: i32) {
        let now = self.now.to_string();
        self.change_pod(pod, |pod| {
            pod["spec"]["nodeName"] = json!("node-1");
            let ended = json!({"exitCode": code, "finishedAt": now});
            let container = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": ended}});
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            pod["status"] = json!({"phase": phase, "containerStatuses": [container]});
        });
    }

    /// All pods, by name.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.caches.pods.list();
        pods.sort_by_key(|pod| pod.metadata.name.clone());
        pods
    }

    /// What the pods are, in one line.
    pub(crate) fn shown(&self) -> String {
        let one = |pod: &Arc<Pod>| {
            let state = match () {
                () if is_terminating(&**pod) => "ending",
                () if is_ready(pod) => "ready",
                () => phase(pod),
            };
            format!("{} {state}", name(&**pod))
        };
        let all: Vec<_> = self.pods().iter().map(one).collect();
        if all.is_empty() { "no pods".to_owned() } else { all.join(", ") }
    }
}

/// Whether a finalizer holds an object.
fn is_held(value: &Value) -> bool {
    value["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}
