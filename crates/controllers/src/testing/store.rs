//! The API server of tests: objects with revisions, compare-and-swap, graceful deletion, finalizers, eviction; and a log from
//! which everybody's watch ([`super::sight`]) is fed, late.

use std::collections::BTreeMap;

use jiff::Timestamp;
use mainstay_informer::ObjectKey;
use mainstay_model::patch::merge;
use mainstay_model::selector::LabelSelector;
use mainstay_model::workload::{is_pod_active, is_pod_ready};
use serde_json::{Value, json};

use crate::action::{Action, Propagation, Target};

pub(crate) type Id = (String, ObjectKey);

/// Why a request was not carried out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It has changed, or another of its name is there.
    Conflict,
    Missing,
    Budget,
    /// So many have to go first.
    Remaining(usize),
}

/// What a watch tells.
pub(crate) struct Logged {
    pub(crate) time: u64,
    pub(crate) revision: u64,
    pub(crate) key: ObjectKey,
    /// `None` when it is gone.
    pub(crate) value: Option<Value>,
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<Id, Value>,
    /// By kind.
    pub(crate) logs: BTreeMap<String, Vec<Logged>>,
    /// The present moment, for the log.
    pub(crate) time: u64,
    revision: u64,
    names: u64,
}

impl Store {
    pub(crate) fn get(&self, kind: &str, key: &ObjectKey) -> Option<&Value> {
        self.objects.get(&(kind.to_owned(), key.clone()))
    }

    pub(crate) fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |((own, _), _)| own == kind).map(|(_, value)| value)
    }

    fn write(&mut self, id: Id, mut value: Value) -> Value {
        self.revision += 1;
        value["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.note(&id, Some(value.clone()));
        self.objects.insert(id, value.clone());
        value
    }

    fn remove(&mut self, id: &Id) {
        self.objects.remove(id);
        self.revision += 1;
        self.note(id, None);
    }

    fn note(&mut self, id: &Id, value: Option<Value>) {
        let logged = Logged { time: self.time, revision: self.revision, key: id.1.clone(), value };
        self.logs.entry(id.0.clone()).or_default().push(logged);
    }

    /// Writes an object whatever was there, as tests do.
    pub(crate) fn put(&mut self, id: Id, mut value: Value, now: Timestamp) -> Value {
        if value["metadata"]["uid"].is_null() {
            value["metadata"]["uid"] = json!(format!("uid-r{}", self.revision + 1));
            value["metadata"]["creationTimestamp"] = json!(now.to_string());
        }
        self.write(id, value)
    }

    pub(crate) fn create(&mut self, kind: &str, mut value: Value, now: Timestamp) -> Result<Value, Refused> {
        self.names += 1;
        let meta = &mut value["metadata"];
        if meta["name"].is_null() {
            meta["name"] = json!(format!("{}{:05}", meta["generateName"].as_str().unwrap_or("x-"), self.names));
        }
        meta["uid"] = json!(format!("uid-{}", self.names));
        meta["creationTimestamp"] = json!(now.to_string());
        meta["generation"] = json!(1);
        let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
        let id = (kind.to_owned(), ObjectKey::new(text("namespace"), text("name")));
        if self.objects.contains_key(&id) {
            return Err(Refused::Conflict);
        }
        Ok(self.write(id, value))
    }

    /// Changes an object whose uid and revision are as `expected` says, where it says anything.
    pub(crate) fn change(
        &mut self,
        id: &Id,
        expected: &Value,
        change: impl FnOnce(&mut Value),
    ) -> Result<Value, Refused> {
        let old = self.objects.get(id).ok_or(Refused::Missing)?;
        for field in ["uid", "resourceVersion"] {
            if expected[field].is_string() && expected[field] != old["metadata"][field] {
                return Err(Refused::Conflict);
            }
        }
        let mut new = old.clone();
        change(&mut new);
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        let (meta, kubernetes) = (&new["metadata"], &new["spec"]["finalizers"]);
        let holds = |list: &Value| list.as_array().is_some_and(|all| !all.is_empty());
        let held = holds(&meta["finalizers"]) || (id.0 == "Namespace" && holds(kubernetes));
        if !meta["deletionTimestamp"].is_null() && meta["deletionGracePeriodSeconds"] == 0 && !held {
            self.remove(id);
            return Ok(new);
        }
        Ok(self.write(id.clone(), new))
    }

    pub(crate) fn delete(
        &mut self,
        id: &Id,
        uid: Option<&str>,
        now_grace: bool,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let old = self.objects.get(id).ok_or(Refused::Missing)?;
        if uid.is_some_and(|uid| old["metadata"]["uid"] != uid) {
            return Err(Refused::Conflict);
        }
        let bound = id.0 == "Pod" && !old["spec"]["nodeName"].is_null();
        let grace = if bound && !now_grace { 30 } else { 0 };
        if !old["metadata"]["deletionTimestamp"].is_null() && grace > 0 {
            return Ok(());
        }
        let expected = json!({});
        self.change(id, &expected, |value| {
            value["metadata"]["deletionTimestamp"] = json!(now.to_string());
            value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        })
        .map(drop)
    }

    /// As the API server's eviction: one disruption comes off the budget in the same write that grants it.
    pub(crate) fn evict(&mut self, pod: &ObjectKey, now: Timestamp) -> Result<(), Refused> {
        let id = ("Pod".to_owned(), pod.clone());
        let object = self.objects.get(&id).ok_or(Refused::Missing)?.clone();
        let covers = |budget: &&Value| {
            LabelSelector::from_object(&budget["spec"]["selector"]).is_ok_and(|s| s.matches_object(&object))
        };
        let budget = self.all("PodDisruptionBudget").find(covers).cloned();
        if let Some(budget) = budget.filter(|_| is_pod_active(&object)) {
            let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
            if allowed < 1 {
                return Err(Refused::Budget);
            }
            let name = budget["metadata"]["name"].as_str().unwrap_or_default();
            let own = ("PodDisruptionBudget".to_owned(), ObjectKey::new(&pod.namespace, name));
            self.change(&own, &budget["metadata"].clone(), |budget| {
                budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
                budget["status"]["disruptedPods"][&pod.name] = json!(now.to_string());
            })?;
        }
        self.delete(&id, None, false, now)
    }

    /// Ready pods that a selector chooses.
    pub(crate) fn ready(&self, app: &str) -> usize {
        let is_ready = |pod: &&Value| {
            pod["metadata"]["labels"]["app"] == app
                && is_pod_ready(pod)
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        self.all("Pod").filter(is_ready).count()
    }

    /// One action of a controller; the answer is the object as written, `None` when it is gone.
    pub(crate) fn act(&mut self, action: &Action, now: Timestamp) -> Result<Option<(Target, Option<Value>)>, Refused> {
        let id = |target: &Target| (target.resource.kind.clone(), target.key.clone());
        let answer =
            |store: &Self, target: &Target| Ok(Some((target.clone(), store.objects.get(&id(target)).cloned())));
        match action {
            Action::Create(object) => {
                let made = self.create(&object.target.resource.kind, object.value.clone(), now)?;
                Ok(Some((object.target.clone(), Some(made))))
            }
            Action::Replace(object) => {
                let value = object.value.clone();
                self.change(&id(&object.target), &object.value["metadata"], |old| *old = value)?;
                answer(self, &object.target)
            }
            Action::ReplaceStatus(object) | Action::Approve(object) => {
                let status = object.value["status"].clone();
                self.change(&id(&object.target), &object.value["metadata"], |old| old["status"] = status)?;
                answer(self, &object.target)
            }
            Action::Patch(target, patch) => {
                let new = |old: &mut Value| {
                    let mut patch = patch.clone();
                    for field in ["uid", "resourceVersion"] {
                        if let Some(meta) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
                            meta.remove(field);
                        }
                    }
                    *old = merge(old, &patch).unwrap_or_default();
                };
                self.change(&id(target), &patch["metadata"], new)?;
                answer(self, target)
            }
            Action::Delete { target, grace_seconds, propagation } => {
                if *propagation == Propagation::Foreground {
                    let hold = |value: &mut Value| value["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
                    self.change(&id(target), &json!({"uid": target.uid}), hold)?;
                }
                self.delete(&id(target), target.uid.as_deref(), *grace_seconds == Some(0), now)?;
                answer(self, target)
            }
            Action::Scale(target, replicas) => {
                self.change(&id(target), &json!({}), |old| old["spec"]["replicas"] = json!(replicas))?;
                answer(self, target)
            }
            Action::Finalize(object) => {
                let left = object.value["spec"]["finalizers"].clone();
                self.change(&id(&object.target), &object.value["metadata"], |old| old["spec"]["finalizers"] = left)?;
                answer(self, &object.target)
            }
            Action::DeleteSame(target, revision) => {
                let found = self.objects.get(&id(target)).ok_or(Refused::Missing)?;
                if found["metadata"]["resourceVersion"] != revision.as_str() {
                    return Err(Refused::Conflict);
                }
                self.delete(&id(target), target.uid.as_deref(), false, now)?;
                answer(self, target)
            }
            other => self.act_on_many(other, now),
        }
    }

    /// Deletions of everything, and what is only asked.
    fn act_on_many(&mut self, action: &Action, now: Timestamp) -> Result<Option<(Target, Option<Value>)>, Refused> {
        let id = |target: &Target| (target.resource.kind.clone(), target.key.clone());
        match action {
            Action::DeleteAll(resource, namespace) => {
                for key in self.keys_in(&resource.kind, namespace) {
                    self.delete(&(resource.kind.clone(), key), None, false, now)?;
                }
                Ok(None)
            }
            Action::ExpectNone(resource, namespace) => match self.keys_in(&resource.kind, namespace).len() {
                0 => Ok(None),
                count => Err(Refused::Remaining(count)),
            },
            Action::ExpectSame(target, revision) => {
                let found = self.objects.get(&id(target)).ok_or(Refused::Conflict)?;
                if found["metadata"]["resourceVersion"] == revision.as_str() {
                    Ok(None)
                } else {
                    Err(Refused::Conflict)
                }
            }
            Action::ExpectGone(target) => {
                let uid = self.objects.get(&id(target)).and_then(|found| found["metadata"]["uid"].as_str());
                let same = uid.is_some_and(|uid| target.uid.as_deref().is_none_or(|wanted| wanted == uid));
                if same { Err(Refused::Conflict) } else { Ok(None) }
            }
            _ => Ok(None),
        }
    }

    fn keys_in(&self, kind: &str, namespace: &str) -> Vec<ObjectKey> {
        let all = self.objects.keys().filter(|(own, key)| own == kind && key.namespace == namespace);
        all.map(|(_, key)| key.clone()).collect()
    }
}
