//! A machine of the simulation: an agent that starts and stops what it is told, containers that run on without it, and the
//! shims' fence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_informer::ObjectKey;
use mainstay_model::fencing::{Fence, STOP_AFTER, runs_once};
use serde_json::{Value, json};

use crate::testing::store::Store;

/// How long a container takes to start, and to stop, in milliseconds.
const START_MS: u64 = 200;
const STOP_MS: u64 = 300;

struct Run {
    pod: Value,
    /// Ready from then on.
    ready_at: u64,
    /// Stops by then.
    stopping: Option<u64>,
}

pub(super) struct Machine {
    pub(super) name: String,
    /// The rate of its clock against the simulation's.
    rate: f64,
    runs: BTreeMap<String, Run>,
    /// Uids its shims have stopped for good.
    fenced: BTreeSet<String>,
    /// By its own clock: when it sent what was acknowledged last.
    acknowledged: Option<f64>,
    /// Answers on their way: (arrives at, sent at by the own clock).
    answers: Vec<(u64, f64)>,
    next_renewal: u64,
    /// Until then: cut off, agent dead, machine dead.
    pub(super) cut_until: u64,
    pub(super) agentless_until: u64,
    pub(super) dead_until: u64,
    /// How long requests and answers take.
    pub(super) latency_ms: u64,
}

impl Machine {
    pub(super) fn new(name: String, rate: f64) -> Self {
        Self {
            name,
            rate,
            runs: BTreeMap::new(),
            fenced: BTreeSet::new(),
            acknowledged: None,
            answers: Vec::new(),
            next_renewal: 0,
            cut_until: 0,
            agentless_until: 0,
            dead_until: 0,
            latency_ms: 5,
        }
    }

    /// Everything on it stops at once.
    pub(super) fn die(&mut self, until: u64) {
        self.dead_until = until;
        self.runs.clear();
        (self.acknowledged, self.answers) = (None, Vec::new());
    }

    /// Uids and names of what runs.
    pub(super) fn running(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.runs.iter().map(|(uid, run)| (uid, &run.pod))
    }

    /// One moment.
    pub(super) fn step(&mut self, store: &mut Store, now: u64, wall: jiff::Timestamp) {
        if now < self.dead_until {
            return;
        }
        let own = now as f64 * self.rate;
        self.keep_promise(own);
        self.runs.retain(|_, run| run.stopping.is_none_or(|at| at > now));
        if now < self.agentless_until {
            return;
        }
        let arrived: Vec<f64> = self.answers.iter().filter(|(at, _)| *at <= now).map(|(_, sent)| *sent).collect();
        self.answers.retain(|(at, _)| *at > now);
        if now < self.cut_until {
            return;
        }
        for sent in arrived {
            self.acknowledged = Some(self.acknowledged.unwrap_or(0.0).max(sent));
        }
        if now >= self.next_renewal {
            self.renew(store, now, own);
        }
        self.follow(store, now, wall);
    }

    /// The shims: whoever must not run twice stops when the last acknowledged renewal was sent too long ago.
    fn keep_promise(&mut self, own: f64) {
        let since =
            self.acknowledged.map_or(Duration::MAX, |sent| Duration::from_secs_f64((own - sent).max(0.0) / 1000.0));
        if !(Fence { stop_after: STOP_AFTER }).is_over(since) {
            return;
        }
        let over: Vec<String> =
            self.runs.iter().filter(|(_, run)| runs_once(&run.pod)).map(|(uid, _)| uid.clone()).collect();
        for uid in over {
            self.runs.remove(&uid);
            self.fenced.insert(uid);
        }
    }

    fn renew(&mut self, store: &mut Store, now: u64, own: f64) {
        self.next_renewal = now + 250;
        let id = ("Lease".to_owned(), ObjectKey::new("kube-node-lease", &self.name));
        let renewed = store.change(&id, &json!({}), |lease| {
            let time = jiff::Timestamp::from_millisecond(1_700_000_000_000 + now as i64).unwrap();
            lease["spec"]["renewTime"] = json!(time.to_string());
        });
        if renewed.is_ok() {
            self.answers.push((now + self.latency_ms, own));
        }
        // The agent corrects what was said of it while it was away.
        let id = ("Node".to_owned(), ObjectKey::new("", &self.name));
        if store.objects.get(&id).is_some_and(|node| node["status"]["conditions"][0]["status"] != "True") {
            let ready = json!([{"type": "Ready", "status": "True"}]);
            let _ = store.change(&id, &json!({}), |node| node["status"]["conditions"] = ready);
        }
    }

    /// Does what the API says about the pods bound here.
    fn follow(&mut self, store: &mut Store, now: u64, wall: jiff::Timestamp) {
        let bound: Vec<Value> =
            store.all("Pod").filter(|pod| pod["spec"]["nodeName"] == self.name.as_str()).cloned().collect();
        let text = |pod: &Value, field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
        for (uid, run) in &mut self.runs {
            if !bound.iter().any(|pod| text(pod, "uid") == *uid) {
                run.stopping.get_or_insert(now);
            }
        }
        for pod in bound {
            let uid = text(&pod, "uid");
            let id = ("Pod".to_owned(), ObjectKey::new(text(&pod, "namespace"), text(&pod, "name")));
            let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            let fresh = self.acknowledged.is_some();
            match self.runs.get_mut(&uid) {
                _ if !pod["metadata"]["deletionTimestamp"].is_null() => match self.runs.get_mut(&uid) {
                    Some(run) => drop(run.stopping.get_or_insert(now + STOP_MS)),
                    None => drop(store.delete(&id, Some(&uid), true, wall)),
                },
                None if self.fenced.contains(&uid) && !ended => {
                    let _ = store.change(&id, &pod["metadata"], |pod| {
                        pod["status"] = json!({"phase": "Failed", "reason": "NodeFenced"});
                    });
                }
                None if !ended && !self.fenced.contains(&uid) && (fresh || !runs_once(&pod)) => {
                    self.runs.insert(uid, Run { pod, ready_at: now + START_MS, stopping: None });
                }
                Some(run) if run.ready_at <= now => Self::report(store, &id, &pod, wall),
                _ => {}
            }
        }
        let ended: Vec<String> = self
            .runs
            .iter()
            .filter(|(_, run)| run.ready_at <= now && run.pod["metadata"]["labels"]["app"] == "job")
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in ended {
            self.runs.remove(&uid);
        }
    }

    /// A job's pod has succeeded; any other is ready.
    fn report(store: &mut Store, id: &crate::testing::store::Id, pod: &Value, wall: jiff::Timestamp) {
        let is_job = pod["metadata"]["labels"]["app"] == "job";
        let ready = pod["status"]["conditions"][0]["status"] == "True";
        if is_job || !ready {
            let condition = json!([{"type": "Ready", "status": "True", "lastTransitionTime": wall.to_string()}]);
            let phase = if is_job { "Succeeded" } else { "Running" };
            let status =
                json!({"phase": phase, "podIP": "10.0.0.1", "conditions": if is_job { json!([]) } else { condition }});
            let _ = store.change(id, &pod["metadata"], |pod| pod["status"] = status);
        }
    }
}
