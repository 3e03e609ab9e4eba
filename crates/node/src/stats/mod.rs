//! What the node's pods use: sampled from their control groups, told in the kubelet's words.
//!
//! Flow: every [`PERIOD`] the groups of all running containers are read ([`sample`]); two readings make a rate. The agent's
//! server tells them as `/stats/summary` ([`summary`]), from which the API server makes `metrics.k8s.io`, and as Prometheus
//! text ([`resource_metrics`], [`agent_metrics`]).
//!
//! A container that was read once is rated from its start, so that a new pod can be judged within one period.
//!
//! Deliberately absent: what containers and volumes take on disk.

mod prometheus;
mod summary;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use mainstay_runtime::cgroup::{Cgroups, NodeCgroup, Usage};
use tokio::time::MissedTickBehavior;

pub use self::prometheus::{agent_metrics, resource_metrics};
pub use self::summary::summary;
use crate::context::{Context, PodView};
use crate::pod::clock::Clock;

/// How often the groups are read.
pub const PERIOD: Duration = Duration::from_secs(5);

/// One reading, and the rate since the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// When.
    pub at: Timestamp,
    /// What.
    pub usage: Usage,
    /// CPU in billionths of a core, on average since the reading before.
    pub nano_cores: Option<u64>,
    /// Over which time that is the average.
    pub window: Duration,
}

impl Reading {
    /// A reading after another one, or after the start.
    fn after(before: Option<(Timestamp, u64)>, at: Timestamp, usage: Usage) -> Self {
        let window = before.and_then(|(then, _)| Duration::try_from(at.duration_since(then)).ok()).unwrap_or_default();
        let used = before.map_or(0, |(_, used)| usage.cpu_usage_ns.saturating_sub(used));
        let nano_cores = (!window.is_zero()).then(|| (u128::from(used) * 1_000_000_000 / window.as_nanos()) as u64);
        Self { at, usage, nano_cores, window }
    }
}

/// The network traffic of a pod since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes received, and receptions that failed.
    pub received: (u64, u64),
    /// Bytes sent, and sendings that failed.
    pub sent: (u64, u64),
}

/// The newest readings.
#[derive(Debug, Default, Clone)]
pub struct Readings {
    /// Of the node: all of its pods together.
    pub node: Option<Reading>,
    /// Of containers, by id.
    pub containers: HashMap<String, Reading>,
    /// Of pods, by uid.
    pub traffic: HashMap<String, Traffic>,
}

/// The newest readings, shared.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Arc<Readings>>);

impl Stats {
    /// The newest readings.
    pub fn now(&self) -> Arc<Readings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, readings: Readings) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(readings);
    }
}

/// Reads all groups, for ever.
pub async fn sample(context: Arc<Context>) {
    let Ok(cgroups) = Cgroups::detect() else { return };
    let mut beat = tokio::time::interval(PERIOD);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let pods: Vec<(String, PodView)> =
            context.with_views(|views| views.iter().map(|(uid, view)| (uid.clone(), view.clone())).collect());
        let (instance, node) = (context.config.instance.clone(), context.config.name.clone());
        let (before, cgroups, clock) = (context.stats.now(), cgroups.clone(), context.clock);
        // Hundreds of containers are a thousand small files.
        let read = tokio::task::spawn_blocking(move || read(&cgroups.node(&instance, &node), &pods, &before, clock));
        if let Ok(readings) = read.await {
            context.stats.put(readings);
        }
    }
}

fn read(group: &NodeCgroup, pods: &[(String, PodView)], before: &Readings, clock: Clock) -> Readings {
    let point = |reading: &Reading| (reading.at, reading.usage.cpu_usage_ns);
    let mut readings = Readings::default();
    for (uid, view) in pods {
        let of_pod = group.pod(uid);
        for container in view.containers.values() {
            let Some(id) = &container.running else { continue };
            let last = before.containers.get(id).map(point).or_else(|| container.since.map(|since| (since, 0)));
            let reading = Reading::after(last, clock.now(), of_pod.container_usage(id));
            readings.containers.insert(id.clone(), reading);
        }
        if let Some(process) = view.sandbox {
            let text = std::fs::read_to_string(format!("/proc/{process}/net/dev")).unwrap_or_default();
            readings.traffic.extend(traffic(&text).map(|traffic| (uid.clone(), traffic)));
        }
    }
    readings.node = Some(Reading::after(before.node.as_ref().map(point), clock.now(), group.usage()));
    readings
}

/// The line of `eth0` in `/proc/PID/net/dev`: eight numbers of what was received, eight of what was sent.
fn traffic(text: &str) -> Option<Traffic> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"))?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let at = |index: usize| numbers.get(index).copied();
    Some(Traffic { received: (at(0)?, at(2)?), sent: (at(8)?, at(10)?) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn two_readings_make_a_rate() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let used = |nanoseconds: u64| Usage { cpu_usage_ns: nanoseconds, ..Usage::default() };
        let first = Reading::after(Some((at(10), 0)), at(12), used(1_000_000_000));
        assert_eq!((first.nano_cores, first.window), (Some(500_000_000), Duration::from_secs(2)));
        let second = Reading::after(Some((first.at, first.usage.cpu_usage_ns)), at(17), used(1_500_000_000));
        assert_eq!(second.nano_cores, Some(100_000_000));
        // A group that was made anew counts from zero.
        assert_eq!(Reading::after(Some((at(17), 5)), at(18), used(1)).nano_cores, Some(0));
        assert_eq!(Reading::after(None, at(18), used(1)).nano_cores, None);
    }

    #[test]
    fn traffic_is_that_of_the_pods_own_link() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n  \
                    eth0: 100 2 1 0 0 0 0 0 200 3 4 0 0 0 0 0\n";
        assert_eq!(traffic(text), Some(Traffic { received: (100, 1), sent: (200, 4) }));
        assert_eq!(traffic("lo: 1"), None);
    }
}
