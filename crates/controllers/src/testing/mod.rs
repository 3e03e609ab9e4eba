//! A cluster in memory for tests: an API server, processes that see it through caches, plans carried out at once, an agent
//! that makes pods ready.
#![allow(clippy::unwrap_used)]

mod conversations;
pub(crate) mod golden;
mod looks;
pub(crate) mod sight;
pub(crate) mod store;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use mainstay_informer::ObjectKey;
use mainstay_model::patch::merge;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::sight::Sight;
use self::store::{Id, Refused, Store};
use crate::action::{Action, Attempt, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::driver::Controller;
use crate::object::{is_ready, is_terminating, name, phase};

/// Longer than any test: what is held back is not seen before it is released.
const HELD: u64 = 1;

/// A typed object from JSON.
pub(crate) fn typed<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// The cluster.
pub(crate) struct World {
    pub(crate) store: Store,
    /// What each process of the controllers sees; there is one unless a test starts another.
    pub(crate) sights: Vec<Sight>,
    pub(crate) now: Timestamp,
    pub(crate) monotonic: Duration,
    /// Refuse every creation of a pod with this message.
    pub(crate) refuse_pods: Option<String>,
    /// What others do after the next plan was made and before it is carried out.
    pub(crate) meanwhile: Vec<Action>,
    /// How many actions of the next plan are carried out before the process dies.
    pub(crate) dies_after: Option<usize>,
}

/// How one look at a key went.
pub(crate) struct Look {
    pub(crate) plan: Plan,
    /// How many of the plan's actions were carried out.
    pub(crate) done: usize,
    /// What the API server said to the next one.
    pub(crate) stopped: Option<Stopped>,
}

/// Why a plan was not carried out to its end.
pub(crate) enum Stopped {
    /// The world is not as the plan took it to be.
    Conflict(Target),
    /// In words.
    Refused(String),
    /// The process is no more.
    Died,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            store: Store::default(),
            sights: vec![Sight::default()],
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            monotonic: Duration::ZERO,
            refuse_pods: None,
            meanwhile: Vec::new(),
            dies_after: None,
        };
        world.put(&Object::of(&typed::<Namespace>(json!({"metadata": {"name": "shop"}}))));
        world
    }

    /// What the first process sees.
    pub(crate) fn caches(&self) -> &Caches {
        &self.sights[0].caches
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += SignedDuration::try_from(time).unwrap();
        self.monotonic += time;
    }

    /// The process sees no change of a kind any more, or all of them again.
    pub(crate) fn hold(&mut self, process: usize, kind: &str, held: bool) {
        self.sights[process].lags.insert(kind.to_owned(), if held { HELD } else { 0 });
        self.tell();
    }

    /// What has been written reaches the caches.
    fn tell(&mut self) {
        for sight in &mut self.sights {
            sight.catch_up(&self.store, 0);
        }
    }

    /// Applies a manifest: the spec is replaced, the status stays.
    pub(crate) fn apply(&mut self, mut manifest: Value) {
        let resource = mainstay_model::resource::known(manifest["kind"].as_str().unwrap());
        if resource.namespaced && manifest["metadata"]["namespace"].is_null() {
            manifest["metadata"]["namespace"] = json!("shop");
        }
        manifest["apiVersion"] = json!(resource.api_version());
        let text = |field: &str| manifest["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = ObjectKey::new(text("namespace"), text("name"));
        let target = Target { resource, key, uid: None };
        let old = self.get(&target);
        if let Some(status) = old.as_ref().and_then(|old| old.get("status").cloned()) {
            manifest["status"] = status;
        }
        let generation = old.as_ref().and_then(|old| old["metadata"]["generation"].as_i64()).unwrap_or(0);
        if let Some(old) = &old {
            manifest["metadata"] = merge(&old["metadata"], &manifest["metadata"]).unwrap();
        }
        manifest["metadata"]["generation"] = json!(generation + 1);
        self.put(&Object { target, value: manifest });
    }

    pub(crate) fn get(&self, target: &Target) -> Option<Value> {
        self.store.get(&target.resource.kind, &target.key).cloned()
    }

    /// Writes an object, whatever was there.
    pub(crate) fn put(&mut self, object: &Object) {
        let id: Id = (object.target.resource.kind.clone(), object.target.key.clone());
        self.store.put(id, object.value.clone(), self.now);
        self.tell();
    }

    /// One action of someone.
    pub(crate) fn act(&mut self, action: &Action) -> Result<Option<(Target, Option<Value>)>, Refused> {
        let done = self.store.act(action, self.now);
        self.tell();
        done
    }

    /// One look of the first process' controller at one key.
    pub(crate) fn look<C: Controller>(&mut self, controller: &C, key: &C::Key, attempt: &mut Attempt) -> Plan {
        let looked = self.look_as(0, controller, key, attempt);
        note(attempt, looked.stopped.as_ref());
        looked.plan
    }

    /// One look of a process' controller at one key, carried out as the executor does: in order, up to the first refusal; own
    /// writes are seen at once.
    pub(crate) fn look_as<C: Controller>(
        &mut self,
        process: usize,
        controller: &C,
        key: &C::Key,
        attempt: &Attempt,
    ) -> Look {
        let now = Now { wall: self.now, monotonic: self.monotonic };
        let plan = controller.plan(&self.sights[process].caches, key, attempt, now);
        // The process hears of what others do only when it is through.
        for action in std::mem::take(&mut self.meanwhile) {
            self.store.act(&action, self.now).unwrap();
        }
        let dies_after = self.dies_after.take();
        let mut look = Look { plan, done: 0, stopped: None };
        for action in &look.plan.actions {
            if dies_after == Some(look.done) {
                look.stopped = Some(Stopped::Died);
                break;
            }
            look.stopped = self.carry_out(process, action);
            if look.stopped.is_some() {
                break;
            }
            look.done += 1;
        }
        self.tell();
        look
    }

    /// One request of a process, and what it learns by it.
    fn carry_out(&mut self, process: usize, action: &Action) -> Option<Stopped> {
        if let (Some(message), Action::Create(object)) = (&self.refuse_pods, action)
            && object.target.resource.kind == "Pod"
        {
            return Some(Stopped::Refused(message.clone()));
        }
        let done = self.store.act(action, self.now);
        let caches = &self.sights[process].caches;
        let learn = |target: &Target, value: Option<Value>| match value {
            Some(value) => caches.observe(&target.resource.kind, value),
            None => caches.observe_deleted(&target.resource.kind, &target.key),
        };
        let target = match (done, target_of(action)) {
            (Ok(Some((target, value))), _) => {
                learn(&target, value);
                return None;
            }
            (Err(Refused::Missing), Some(target))
                if matches!(action, Action::Delete { .. } | Action::DeleteSame(..)) =>
            {
                learn(target, None);
                return None;
            }
            (Err(Refused::Missing | Refused::Conflict), Some(target)) => target.clone(),
            (Err(Refused::Remaining(count)), _) => return Some(Stopped::Refused(format!("{count} remain"))),
            (Err(_), _) => return Some(Stopped::Refused("refused".to_owned())),
            (Ok(None), _) => return None,
        };
        learn(&target, self.store.get(&target.resource.kind, &target.key).cloned());
        Some(Stopped::Conflict(target))
    }

    /// A process that comes up, and sees what is there.
    pub(crate) fn restart(&mut self, process: usize) {
        while self.sights.len() <= process {
            self.sights.push(Sight::default());
        }
        self.sights[process] = Sight::default();
        self.tell();
    }

    /// An eviction that must be granted, or must not be: the pod says which by what becomes of it.
    pub(crate) fn evict(&mut self, pod: &ObjectKey) {
        let _ = self.store.evict(pod, self.now);
        self.tell();
    }

    /// Every node but these renews its Lease.
    pub(crate) fn renew_leases(&mut self, silent: &BTreeSet<String>) {
        let now = self.now.to_string();
        let leases: Vec<Id> = self.store.objects.keys().filter(|(kind, _)| kind == "Lease").cloned().collect();
        for id in leases.iter().filter(|(_, key)| !silent.contains(&key.name)) {
            self.store.change(id, &json!({}), |lease| lease["spec"]["renewTime"] = json!(now)).unwrap();
        }
        self.tell();
    }

    /// Changes a pod's JSON as an agent or the scheduler would.
    pub(crate) fn change_pod(&mut self, pod: &Pod, change: impl FnOnce(&mut Value)) {
        let id = ("Pod".to_owned(), ObjectKey::of(pod));
        self.store.change(&id, &json!({}), change).unwrap();
        self.tell();
    }

    /// The agent: binds and starts a pod and reports it ready.
    pub(crate) fn start_pod(&mut self, pod: &Pod) {
        let now = self.now.to_string();
        self.change_pod(pod, |pod| {
            if pod["spec"]["nodeName"].is_null() {
                pod["spec"]["nodeName"] = json!("node-1");
            }
            pod["status"] = json!({"phase": "Running", "podIP": "10.0.0.1", "startTime": now, "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": now}]});
        });
    }

    /// The agent: a pod that is being deleted has stopped.
    pub(crate) fn stop_pod(&mut self, pod: &Pod) {
        let now = self.now.to_string();
        self.change_pod(pod, |pod| {
            let meta = &mut pod["metadata"];
            if meta["deletionTimestamp"].is_null() {
                meta["deletionTimestamp"] = json!(now);
            }
            meta["deletionGracePeriodSeconds"] = json!(0);
        });
    }

    /// The agent: a pod's one container has ended with a code.
    pub(crate) fn end_pod(&mut self, pod: &Pod, code: i32) {
        let now = self.now.to_string();
        self.change_pod(pod, |pod| {
            if pod["spec"]["nodeName"].is_null() {
                pod["spec"]["nodeName"] = json!("node-1");
            }
            let ended = json!({"exitCode": code, "finishedAt": now});
            let container = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": ended}});
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            pod["status"] = json!({"phase": phase, "containerStatuses": [container]});
        });
    }

    /// All pods, by name.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.store.all("Pod").map(|pod| Arc::new(typed(pod.clone()))).collect()
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

/// Keeps account of how attempts went, as the driver does: a conflict is no failure.
pub(crate) fn note(attempt: &mut Attempt, stopped: Option<&Stopped>) {
    match stopped {
        None => *attempt = Attempt::default(),
        Some(Stopped::Refused(message)) => {
            attempt.failures += 1;
            attempt.error = Some(message.clone());
        }
        Some(Stopped::Conflict(_) | Stopped::Died) => {}
    }
}

fn target_of(action: &Action) -> Option<&Target> {
    match action {
        Action::Create(object)
        | Action::Replace(object)
        | Action::ReplaceStatus(object)
        | Action::Approve(object)
        | Action::Finalize(object) => Some(&object.target),
        Action::Scale(target, _)
        | Action::Patch(target, _)
        | Action::Delete { target, .. }
        | Action::DeleteSame(target, _)
        | Action::ExpectGone(target)
        | Action::ExpectSame(target, _) => Some(target),
        Action::DeleteAll(..) | Action::ExpectNone(..) | Action::Note(_) => None,
    }
}
