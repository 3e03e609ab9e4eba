//! How fast the platform under the pods notices and repairs: the times of Mainstay's own engine, and of Kubernetes.
//!
//! All times in seconds since the failure. Nothing here is measured; each figure is a setting, with its source beside it.

use serde::Serialize;

/// The program's own time from start to its first successful probe, where neither annotation nor option says: seconds.
pub const PROGRAM_START_S: f64 = 1.0;

/// More successes in a row than anybody asks a probe for.
const SUCCESSES_MAX: f64 = 1000.0;

/// What happens when, on one platform.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Engine {
    /// Its name on the command line.
    pub name: &'static str,
    /// Silence of a node after which its pods leave the endpoints.
    pub suspect_s: f64,
    /// Silence of a node after which its pods are evicted, where they tolerate it no longer.
    pub dead_s: f64,
    /// How long pods stay on a dead node when they do not say.
    pub toleration_s: f64,
    /// Silence after which a pod that must not run twice is replaced; `None`: only when somebody removes the node.
    pub once_s: Option<f64>,
    /// From a process's death to its pod leaving the endpoints.
    pub notice_s: f64,
    /// The first wait between the attempts of startup and readiness probes, doubling, that a platform makes besides those
    /// that the probe asks for; `None`: only those.
    pub quick_probe_s: Option<f64>,
    /// From an eviction to the container's start on another node: controller, scheduler, sandbox, image at hand.
    pub start_s: f64,
    /// Whether the nodes of a dark zone are given up one after the other, and how long after each other.
    pub zone_step_s: f64,
    /// Whether a volume whose class is not known stays on its node (or else in its zone).
    pub is_storage_local: bool,
}

impl Engine {
    /// The embedded engine. Sources: `HeartbeatSettings` and `fencing` (docs/guide/survive-a-node-failure.md); start times as
    /// `cargo xtask bench up` measures them.
    pub const fn mainstay() -> Self {
        Self {
            name: "mainstay",
            suspect_s: 1.0,
            dead_s: 2.5,
            toleration_s: 0.0,
            // `Fence::replace_after` of the default promise.
            once_s: Some(3.06),
            notice_s: 0.1,
            // docs/pod-life.md: quick attempts until the first success.
            quick_probe_s: Some(0.01),
            start_s: 0.3,
            zone_step_s: 0.0,
            is_storage_local: true,
        }
    }

    /// Kubernetes with its defaults. Sources: `--node-monitor-grace-period` 50 s and `--node-eviction-rate` 0.1
    /// (<https://kubernetes.io/docs/reference/command-line-tools-reference/kube-controller-manager/>), tolerations of 300 s
    /// (<https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions>), a pod's
    /// start within 5 s (<https://github.com/kubernetes/community/blob/master/sig-scalability/slos/pod_startup_latency.md>);
    /// pods of a StatefulSet stay (<https://kubernetes.io/docs/tasks/run-application/force-delete-stateful-set-pod/>).
    pub const fn kubernetes() -> Self {
        Self {
            name: "kubernetes",
            suspect_s: 50.0,
            dead_s: 50.0,
            toleration_s: 300.0,
            once_s: None,
            notice_s: 1.0,
            quick_probe_s: None,
            start_s: 5.0,
            zone_step_s: 10.0,
            is_storage_local: false,
        }
    }

    /// Whether, and how much later, the pods of each dead node of a zone are evicted: `dead` of the zone's `nodes` are silent,
    /// and some other zone lives or not. `None`: not at all, since the fault is then more likely not theirs.
    ///
    /// Source: <https://kubernetes.io/docs/concepts/architecture/nodes/#rate-limits-on-eviction>; the embedded engine has
    /// the same table without the first column's delay.
    pub fn eviction_delay_s(&self, nodes: usize, dead: usize, others_live: bool) -> Option<f64> {
        const LARGE: usize = 50;
        let most = dead > 2 && dead as f64 >= 0.55 * nodes as f64;
        let is_dark = dead == nodes;
        match (is_dark && others_live, most) {
            (true, _) | (_, false) => Some(self.zone_step_s),
            (false, true) if nodes > LARGE => Some(100.0),
            (false, true) => None,
        }
    }
}

/// When a pod of this template is Ready, in seconds after its containers' start: its program needs `program_s`, and the
/// probes look only now and then, or at the beginning quickly as well (see [`Engine::quick_probe_s`]). Init containers count
/// with `program_s` each.
pub fn ready_after_s(pod_spec: &serde_json::Value, program_s: f64, quick_s: Option<f64>) -> f64 {
    use mainstay_model::meta::list_at;
    let is_sidecar = |c: &&serde_json::Value| c["restartPolicy"] == "Always";
    let inits = list_at(pod_spec, "initContainers").iter().filter(|container| !is_sidecar(container)).count();
    let ready = list_at(pod_spec, "containers").iter().map(|container| {
        let started =
            container.get("startupProbe").map_or(program_s, |probe| first_success_s(probe, program_s, quick_s));
        container.get("readinessProbe").map_or(started, |probe| first_success_s(probe, started, quick_s))
    });
    inits as f64 * program_s + ready.fold(program_s, f64::max)
}

/// When a probe has succeeded often enough, if it can succeed from `from_s` on.
fn first_success_s(probe: &serde_json::Value, from_s: f64, quick_s: Option<f64>) -> f64 {
    let number = |name: &str, default: f64| probe[name].as_f64().unwrap_or(default);
    let (first, period) = (number("initialDelaySeconds", 0.0), number("periodSeconds", 10.0).max(1.0));
    let needed = number("successThreshold", 1.0).clamp(1.0, SUCCESSES_MAX) as usize;
    let ticks = ((from_s - first) / period).ceil().max(0.0);
    let beats = (0..needed).map(|beat| first + (ticks + beat as f64) * period);
    // The waits double until they are as long as the period.
    let waits = quick_s.into_iter().flat_map(|wait| std::iter::successors(Some(wait), |wait| Some(wait * 2.0)));
    let quick = waits.take_while(|wait| *wait <= period).scan(first, |at, wait| {
        *at += wait;
        Some(*at)
    });
    let mut attempts: Vec<f64> = quick.filter(|at| *at >= from_s).chain(beats).collect();
    attempts.sort_by(f64::total_cmp);
    attempts.get(needed - 1).copied().unwrap_or(from_s)
}

/// How long a container has to fail its liveness probe before it is killed; `None` without one.
pub fn killed_after_s(container: &serde_json::Value) -> Option<f64> {
    let probe = container.get("livenessProbe").filter(|probe| probe.is_object())?;
    let number = |name: &str, default: f64| probe[name].as_f64().unwrap_or(default);
    Some(number("periodSeconds", 10.0) * number("failureThreshold", 3.0) + number("timeoutSeconds", 1.0))
}

/// When a container that is killed again and again during an outage of `outage_s` runs once more: each life lasts
/// `life_s`, and restarts wait 0, 10, 20, … up to 300 s (the kubelet's back-off).
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>.
pub fn back_after_s(outage_s: f64, life_s: f64) -> f64 {
    let (mut now, mut wait) = (life_s, 0.0_f64);
    // The waits grow to 300 s, so this ends after outage/300 + 6 rounds.
    while now + wait < outage_s {
        now += wait + life_s.max(1.0);
        wait = if wait == 0.0 { 10.0 } else { (wait * 2.0).min(300.0) };
    }
    if outage_s < life_s { outage_s } else { now + wait }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn probes_decide_when_a_pod_is_ready() {
        let probe = |period: i64, delay: i64| json!({"periodSeconds": period, "initialDelaySeconds": delay});
        let spec = |container: serde_json::Value| json!({"containers": [container]});
        for (container, program, ready) in [
            (json!({}), 0.4, 0.4),
            (json!({"readinessProbe": probe(1, 0)}), 0.4, 1.0),
            (json!({"readinessProbe": probe(5, 10)}), 0.4, 10.0),
            (json!({"readinessProbe": probe(5, 10)}), 12.0, 15.0),
            (json!({"startupProbe": probe(1, 0), "readinessProbe": probe(1, 0)}), 1.0, 1.0),
            (json!({"startupProbe": probe(3, 0), "readinessProbe": probe(5, 0)}), 1.0, 5.0),
            (json!({"readinessProbe": {"periodSeconds": 2, "successThreshold": 3}}), 0.0, 4.0),
        ] {
            let got = ready_after_s(&spec(container.clone()), program, None);
            assert!((got - ready).abs() < 1e-9, "{container}: {got}");
        }
        let with_init = json!({"initContainers": [{}, {"restartPolicy": "Always"}], "containers": [{}]});
        assert!((ready_after_s(&with_init, 2.0, None) - 4.0).abs() < 1e-9);
        // 10, 30, 70, 150, 310 ms after the start; then the beat.
        for (container, program, ready) in [
            (json!({"readinessProbe": probe(1, 0)}), 0.2, 0.31),
            (json!({"readinessProbe": probe(5, 10)}), 0.2, 10.0),
            (json!({"readinessProbe": probe(1, 0)}), 0.9, 1.0),
            (json!({"readinessProbe": {"periodSeconds": 1, "successThreshold": 2}}), 0.0, 0.01),
        ] {
            let got = ready_after_s(&spec(container.clone()), program, Some(0.01));
            assert!((got - ready).abs() < 1e-9, "{container}: {got}");
        }
    }

    #[test]
    fn a_liveness_probe_on_a_dependency_outlives_the_outage() {
        for (outage, back) in [(5.0, 5.0), (16.0, 16.0), (20.0, 41.0), (60.0, 76.0)] {
            let got = back_after_s(outage, 16.0);
            assert!(got >= outage && got <= back + 20.0, "{outage}: {got}");
        }
        let probe = json!({"livenessProbe": {"periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 1}});
        assert_eq!(killed_after_s(&probe), Some(16.0));
        assert_eq!(killed_after_s(&json!({})), None);
    }

    #[test]
    fn evictions_stop_when_most_of_the_only_zone_is_silent() {
        let engine = Engine::mainstay();
        for (nodes, dead, others, delay) in [
            (3, 1, true, Some(0.0)),
            (3, 3, true, Some(0.0)),
            (4, 3, true, None),
            (3, 2, false, Some(0.0)),
            (3, 3, false, None),
            (100, 60, true, Some(100.0)),
        ] {
            assert_eq!(engine.eviction_delay_s(nodes, dead, others), delay, "{nodes} {dead} {others}");
        }
    }
}
