//! What the control plane of an instance can be told about scheduling and about silent nodes.
//!
//! Every value is optional: what is not said is as it was before, or the default. Kept in `instance.json`.

use std::fmt;
use std::time::Duration;

use clap::{Args, ValueEnum};
use mainstay_controllers::HeartbeatSettings;
use mainstay_scheduler::core::Strategy;
use serde::{Deserialize, Serialize};

/// The values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
#[serde(default, rename_all = "camelCase")]
pub struct Tuning {
    /// After a failed node has come back, evict one pod every so many seconds that its spread wants there, within
    /// PodDisruptionBudgets; 0 for never (default never, or as before)
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebalance_every: Option<u64>,
    /// Which nodes get pods first (default emptiest, or as before)
    #[arg(long, value_name = "WHICH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fill: Option<Fill>,
    /// Milliseconds of silence after which a node's pods leave the endpoints (default 1000, or as before)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1_000..=600_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_suspect_ms: Option<u64>,
    /// Milliseconds of silence after which a node is given up and its pods are replaced (default 2500, or as before)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1_000..=600_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_dead_ms: Option<u64>,
}

/// Which nodes get pods first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// Load is spread over all nodes.
    Emptiest,
    /// Few nodes are used.
    Fullest,
}

impl Tuning {
    /// What is said here, else what was before.
    pub fn or(&self, before: &Self) -> Self {
        Self {
            rebalance_every: self.rebalance_every.or(before.rebalance_every),
            fill: self.fill.or(before.fill),
            node_suspect_ms: self.node_suspect_ms.or(before.node_suspect_ms),
            node_dead_ms: self.node_dead_ms.or(before.node_dead_ms),
        }
    }

    /// Every value as it is in force, with the defaults filled in.
    pub fn in_force(&self) -> Self {
        let heartbeat = self.heartbeat();
        let millis = |time: Duration| u64::try_from(time.as_millis()).ok();
        Self {
            rebalance_every: Some(self.rebalance_every.unwrap_or(0)),
            fill: Some(self.fill.unwrap_or(Fill::Emptiest)),
            node_suspect_ms: millis(heartbeat.suspect_after),
            node_dead_ms: millis(heartbeat.dead_after),
        }
    }

    /// When a silent node is given up; never before it is suspected.
    pub fn heartbeat(&self) -> HeartbeatSettings {
        let default = HeartbeatSettings::default();
        let suspect_after = self.node_suspect_ms.map_or(default.suspect_after, Duration::from_millis);
        let dead_after = self.node_dead_ms.map_or(default.dead_after, Duration::from_millis);
        HeartbeatSettings { suspect_after, dead_after: dead_after.max(suspect_after) }
    }

    /// The scheduler's settings but for who leads.
    pub fn scheduler(&self) -> mainstay_scheduler::Settings {
        let strategy = match self.fill {
            Some(Fill::Fullest) => Strategy::MostAllocated,
            Some(Fill::Emptiest) | None => Strategy::LeastAllocated,
        };
        let rebalance_every = self.rebalance_every.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        mainstay_scheduler::Settings { strategy, rebalance_every, ..mainstay_scheduler::Settings::default() }
    }
}

impl fmt::Display for Tuning {
    /// For people: what is said, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fill = if self.fill == Some(Fill::Fullest) { "fullest" } else { "emptiest" };
        let heartbeat = self.heartbeat();
        let (suspect, dead) = (heartbeat.suspect_after.as_millis(), heartbeat.dead_after.as_millis());
        write!(f, "fill {fill}, nodes suspected after {suspect} ms and given up after {dead} ms, ")?;
        match self.scheduler().rebalance_every {
            Some(every) => write!(f, "rebalancing every {} s", every.as_secs()),
            None => f.write_str("no rebalancing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_as_before() {
        let before = Tuning { rebalance_every: Some(30), node_dead_ms: Some(5_000), ..Tuning::default() };
        let now = Tuning { rebalance_every: Some(0), node_suspect_ms: Some(6_000), ..Tuning::default() }.or(&before);
        assert_eq!(now.scheduler().rebalance_every, None);
        assert_eq!(now.heartbeat().dead_after, Duration::from_secs(6), "not given up before it is suspected");
        assert_eq!(before.scheduler().rebalance_every, Some(Duration::from_secs(30)));
        assert_eq!(
            now.in_force().to_string(),
            "fill emptiest, nodes suspected after 6000 ms and given up after 6000 ms, no rebalancing"
        );
    }
}
