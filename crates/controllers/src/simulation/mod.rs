//! Seeded simulation: an API server, controllers, a scheduler and machines, with crashes, delays and partitions.
//!
//! One seed gives one run. In it machines die, agents die, links are cut, watches fall behind by kind, the controllers crash in
//! the middle of a plan, and in some runs two of them act by mistake. All the while:
//!
//! - no two machines run pods of one StatefulSet identity at the same time, in the simulation's own, true time, though no
//!   clock in it runs at the same rate;
//! - evictions never leave fewer ready pods than the budget says (in runs whose machines stay well, with one controller);
//! - a roll never leaves fewer ready pods than the strategy says (in such runs, too; those in which pods are evicted do not
//!   roll, because a budget says nothing about rolls);
//! - no pod is bound where the spread it asks for would be worse than its skew allows, by what the scheduler could see;
//!
//! and when the faults are over, everything comes to be as it was asked for, in the template asked for last, the endpoints are
//! the ready pods, and every result of the Job counts once.
//!
//! `MAINSTAY_SEEDS=2000 cargo test -p mainstay-controllers --release simulation` runs more seeds, `MAINSTAY_SEED=n` one.

#![allow(clippy::unwrap_used)]

mod manager;
mod node;

use std::collections::BTreeMap;

use fastrand::Rng;
use mainstay_informer::ObjectKey;
use mainstay_model::fencing;
use mainstay_model::workload::is_pod_ready;
use serde_json::{Value, json};

use crate::testing::store::Store;
use manager::{Manager, Scheduler};
use node::Machine;

const SEEDS: u64 = 100;
const STEP_MS: u64 = 50;
/// Faults happen until then, and everything must have come to rest some time after.
const FAULTS_MS: u64 = 10_000;
const END_MS: u64 = 90_000;
const MIN_AVAILABLE: usize = 2;
const WEB: u64 = 4;
const DB: u64 = 3;
const FRONT: u64 = 5;
const NODES: u64 = 6;
const COMPLETIONS: u64 = 4;
/// Ready pods that a roll of `web` leaves: a quarter of four may be missing.
const ROLL_READY: usize = 3;

struct Run {
    random: Rng,
    store: Store,
    machines: Vec<Machine>,
    managers: Vec<Manager>,
    scheduler: Scheduler,
    /// Machines and links stay well.
    calm: bool,
    /// When the templates change, if they do.
    rolls_at: Option<u64>,
    /// Ready pods of `web` are counted from when all had been there first.
    was_whole: bool,
    now: u64,
}

fn wall(now: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(1_700_000_000_000 + now as i64).unwrap()
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut rate = || 1.0 + (random.f64() * 2.0 - 1.0) * fencing::DRIFT * 0.99;
        let machines = (0..NODES).map(|i| Machine::new(format!("node-{i}"), rate())).collect();
        let mut managers = vec![Manager::new(0, rate())];
        if seed % 3 == 1 {
            managers.push(Manager::new(0, rate()));
        }
        let calm = seed.is_multiple_of(4) && seed % 3 != 1;
        let rolls = if calm { seed.is_multiple_of(8) } else { !seed.is_multiple_of(5) };
        let rolls_at = rolls.then(|| random.u64(40..160) * STEP_MS);
        let mut run = Self {
            random,
            store: Store::default(),
            machines,
            managers,
            scheduler: Scheduler::default(),
            calm,
            rolls_at,
            was_whole: false,
            now: 0,
        };
        run.begin();
        run
    }

    fn begin(&mut self) {
        let mut create = |kind: &str, value: Value| drop(self.store.create(kind, value, wall(0)).unwrap());
        for i in 0..NODES {
            let name = format!("node-{i}");
            create(
                "Node",
                json!({
                    "metadata": {"name": name, "annotations": {fencing::ANNOTATION: fencing::STOP_AFTER.as_millis().to_string()},
                        "labels": {"topology.kubernetes.io/zone": format!("z{}", i % 3), "kubernetes.io/hostname": name}},
                    "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "20"},
                        "conditions": [{"type": "Ready", "status": "True"}]},
                }),
            );
            create(
                "Lease",
                json!({"metadata": {"name": name, "namespace": "kube-node-lease"},
                "spec": {"renewTime": wall(0).to_string(), "holderIdentity": name}}),
            );
        }
        let template = |app: &str| {
            let unsatisfiable = if app == "front" { "DoNotSchedule" } else { "ScheduleAnyway" };
            let spread = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": unsatisfiable, "labelSelector": {"matchLabels": {"app": app}}}]);
            json!({"metadata": {"labels": {"app": app}}, "spec": {"topologySpreadConstraints": spread,
                "restartPolicy": if app == "job" { "Never" } else { "Always" },
                "containers": [{"name": "main", "image": "v1"}]}})
        };
        let mut workload = |kind: &str, app: &str, spec: Value| {
            let mut own = json!({"selector": {"matchLabels": {"app": app}}, "template": template(app)});
            for (key, value) in spec.as_object().unwrap() {
                own[key] = value.clone();
            }
            create(kind, json!({"metadata": {"name": app, "namespace": "shop"}, "spec": own}));
        };
        workload("Deployment", "web", json!({"replicas": WEB}));
        workload("Deployment", "front", json!({"replicas": FRONT}));
        workload("DaemonSet", "log", json!({}));
        workload("StatefulSet", "db", json!({"replicas": DB, "podManagementPolicy": "Parallel", "serviceName": "db"}));
        workload("Job", "job", json!({"completions": COMPLETIONS, "parallelism": 2, "backoffLimit": 1000}));
        create(
            "Service",
            json!({"metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
        );
        create(
            "PodDisruptionBudget",
            json!({"metadata": {"name": "web", "namespace": "shop"},
            "spec": {"minAvailable": MIN_AVAILABLE, "selector": {"matchLabels": {"app": "web"}}}}),
        );
    }

    /// Something goes wrong, now and then.
    fn disturb(&mut self) {
        let (random, now) = (&mut self.random, self.now);
        let kinds = [
            "Pod",
            "Node",
            "Lease",
            "ReplicaSet",
            "StatefulSet",
            "Job",
            "PodDisruptionBudget",
            "Deployment",
            "DaemonSet",
        ];
        if random.u32(0..20) == 0 {
            let manager = random.usize(0..self.managers.len());
            let lag = random.u64(0..3_000);
            self.managers[manager].sight.lags.insert((*random.choice(kinds.iter()).unwrap()).to_string(), lag);
        }
        if random.u32(0..40) == 0 {
            let lag = random.u64(0..1_500);
            self.scheduler.sight.lags.insert((*random.choice(["Pod", "Node"].iter()).unwrap()).to_string(), lag);
        }
        if self.calm || random.u32(0..25) > 0 {
            return;
        }
        let index = random.usize(0..self.machines.len());
        let until = now + random.u64(200..9_000);
        let machine = &mut self.machines[index];
        machine.latency_ms = random.u64(0..400);
        match random.u8(0..4) {
            0 => machine.die(until),
            1 => machine.agentless_until = until,
            _ => machine.cut_until = until,
        }
    }

    fn calm_down(&mut self) {
        self.managers.iter_mut().for_each(|manager| manager.sight.lags.clear());
        self.scheduler.sight.lags.clear();
        self.machines.iter_mut().for_each(|machine| machine.latency_ms = 5);
    }

    /// A person who drains now and then.
    fn evict(&mut self) -> Result<(), String> {
        if self.random.u32(0..10) > 0 || (self.calm && self.rolls_at.is_some()) {
            return Ok(());
        }
        let web = self.store.all("Pod").filter(|pod| pod["metadata"]["labels"]["app"] == "web");
        let keys: Vec<ObjectKey> =
            web.map(|pod| ObjectKey::new("shop", pod["metadata"]["name"].as_str().unwrap())).collect();
        let Some(key) = self.random.choice(keys) else { return Ok(()) };
        if self.store.evict(&key, wall(self.now)).is_ok() && self.calm {
            let left = self.store.ready("web");
            if left < MIN_AVAILABLE && self.now > 5_000 {
                return Err(format!("the eviction of {key} left {left} ready pods"));
            }
        }
        Ok(())
    }

    /// A person who changes every template.
    fn roll(&mut self) {
        for (kind, app) in [("Deployment", "web"), ("Deployment", "front"), ("StatefulSet", "db"), ("DaemonSet", "log")]
        {
            let id = (kind.to_owned(), ObjectKey::new("shop", app));
            let image = |set: &mut Value| set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("v2");
            self.store.change(&id, &json!({}), image).unwrap();
        }
    }

    /// No identity runs twice, and a roll leaves enough.
    fn check(&mut self) -> Result<(), String> {
        let ready = self.store.ready("web");
        self.was_whole |= ready as u64 == WEB;
        if self.calm && self.rolls_at.is_some() && self.was_whole && ready < ROLL_READY {
            return Err(format!("the roll has left {ready} ready pods at {}", self.now));
        }
        let mut running: BTreeMap<&str, (&String, &str)> = BTreeMap::new();
        for machine in &self.machines {
            for (uid, pod) in machine.running().filter(|(_, pod)| pod["metadata"]["labels"]["app"] == "db") {
                let name = pod["metadata"]["name"].as_str().unwrap();
                if let Some((other, at)) = running.insert(name, (uid, &machine.name)).filter(|(other, _)| *other != uid)
                {
                    return Err(format!("{name} runs as {other} on {at} and as {uid} on {}", machine.name));
                }
            }
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        let number = |kind: &str, name: &str, field: &str| {
            let found = self.store.get(kind, &ObjectKey::new("shop", name));
            found.and_then(|found| found["status"][field].as_u64()).unwrap_or(0)
        };
        let job = self.store.get("Job", &ObjectKey::new("shop", "job")).unwrap();
        let conditions = job["status"]["conditions"].as_array();
        let complete = conditions.into_iter().flatten().any(|condition| condition["type"] == "Complete");
        let is_success =
            |pod: &&Value| pod["metadata"]["labels"]["app"] == "job" && pod["status"]["phase"] == "Succeeded";
        let succeeded = self.store.all("Pod").filter(is_success).count();
        let terminating = self.store.all("Pod").any(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
        let image = if self.rolls_at.is_some() { "v2" } else { "v1" };
        let is_present =
            |pod: &Value| pod["metadata"]["labels"]["app"] == "job" || pod["spec"]["containers"][0]["image"] == image;
        let wanted = [
            ("Deployment", "web", "availableReplicas", WEB),
            ("Deployment", "web", "replicas", WEB),
            ("Deployment", "front", "availableReplicas", FRONT),
            ("Deployment", "front", "replicas", FRONT),
            ("StatefulSet", "db", "readyReplicas", DB),
            ("DaemonSet", "log", "numberAvailable", NODES),
            ("DaemonSet", "log", "updatedNumberScheduled", NODES),
            ("Job", "job", "succeeded", COMPLETIONS),
        ];
        wanted.iter().all(|(kind, name, field, count)| number(kind, name, field) == *count)
            && complete
            && succeeded == COMPLETIONS as usize
            && !terminating
            && self.store.all("Pod").all(is_present)
            && self.endpoints_are_the_ready_pods()
    }

    fn endpoints_are_the_ready_pods(&self) -> bool {
        let slices =
            self.store.all("EndpointSlice").flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let serving = slices.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        let mut serving: Vec<&Value> = serving.map(|endpoint| &endpoint["targetRef"]["uid"]).collect();
        let pods = self.store.all("Pod").filter(|pod| pod["metadata"]["labels"]["app"] == "web" && is_pod_ready(pod));
        let mut ready: Vec<&Value> = pods.map(|pod| &pod["metadata"]["uid"]).collect();
        serving.sort_by_key(|uid| uid.as_str());
        ready.sort_by_key(|uid| uid.as_str());
        serving == ready
    }

    fn play(&mut self) -> Result<(), String> {
        while self.now < END_MS {
            self.now += STEP_MS;
            self.store.time = self.now;
            let (now, at) = (self.now, wall(self.now));
            if now < FAULTS_MS {
                self.disturb();
                self.evict()?;
            } else if now == FAULTS_MS {
                self.calm_down();
            }
            if self.rolls_at == Some(now) {
                self.roll();
            }
            for machine in &mut self.machines {
                machine.step(&mut self.store, now, at);
            }
            for manager in &mut self.managers {
                manager.step(&mut self.store, now, at, &mut self.random);
            }
            self.scheduler.step(&mut self.store, now)?;
            self.check()?;
            if now > FAULTS_MS + 9_500 && self.is_settled() {
                return Ok(());
            }
        }
        let state: Vec<String> = self
            .store
            .all("Pod")
            .map(|pod| {
                format!(
                    "{} {} {} {}",
                    pod["metadata"]["name"],
                    pod["spec"]["nodeName"],
                    pod["status"]["phase"],
                    pod["metadata"]["deletionTimestamp"]
                )
            })
            .collect();
        Err(format!("it does not settle: {state:#?}"))
    }
}

#[test]
fn whatever_fails_it_settles_and_nothing_runs_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("MAINSTAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MAINSTAY_SEEDS").unwrap_or(SEEDS),
    };
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            threads.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().len() >= 3 {
                        return;
                    }
                    if let Err(error) = Run::new(seed).play() {
                        failed.lock().unwrap().push(format!("seed {seed}: {error}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "replay with MAINSTAY_SEED=n: {}", failed.join("\n"));
}
