//! What the nodes of an instance can be told: how large they are, and what they do when they run out of something or shut down.
//!
//! Every value is optional: what is not said is as it was before, or the default. Kept in `instance.json`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use mainstay_model::quantity::Quantity;
use mainstay_node::{NodeConfig, PIDS_MAX, Thresholds};
use serde::{Deserialize, Serialize};

/// The values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeTuning {
    /// Processors that each node says it has, such as 2 or 1500m (default the machine's, or as before)
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_cpu: Option<String>,
    /// Memory that each node says it has, such as 2Gi; it counts as used up when its pods use so much (default the machine's,
    /// or as before)
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_memory: Option<String>,
    /// Pods that each node takes (default 110, or as before)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=500))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_pods: Option<u32>,
    /// From where on a node evicts pods; what is not named keeps its default (default
    /// memory.available<100Mi,nodefs.available<10% but no more than 4Gi,nodefs.inodesFree<5%,pid.available<5%, or as before)
    #[arg(long, value_name = "SIGNAL<AMOUNT,...", value_parser = thresholds)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eviction_hard: Option<String>,
    /// Most processes and threads of a container; 0 for no limit (default 4096, or as before)
    #[arg(long, value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<u64>,
    /// Seconds that pods get, in order of priority and with their hooks, when a node shuts down; 0 for a plain end (default 0, or
    /// as before)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_grace: Option<u64>,
}

fn quantity(text: &str) -> Result<String, String> {
    let quantity: Quantity = text.parse().map_err(|_| "it is not a quantity, such as 2, 500m or 2Gi".to_owned())?;
    if quantity.is_zero() || quantity.is_negative() {
        Err("it must be more than zero".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn thresholds(text: &str) -> Result<String, String> {
    text.parse::<Thresholds>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl NodeTuning {
    /// What is said here, else what was before.
    pub fn or(&self, before: &Self) -> Self {
        let text = |now: &Option<String>, before: &Option<String>| now.clone().or_else(|| before.clone());
        Self {
            node_cpu: text(&self.node_cpu, &before.node_cpu),
            node_memory: text(&self.node_memory, &before.node_memory),
            node_pods: self.node_pods.or(before.node_pods),
            eviction_hard: text(&self.eviction_hard, &before.eviction_hard),
            pids_max: self.pids_max.or(before.pids_max),
            shutdown_grace: self.shutdown_grace.or(before.shutdown_grace),
        }
    }

    /// As an agent is told.
    pub fn apply(&self, config: &mut NodeConfig) {
        let pods = self.node_pods.map(|pods| pods.to_string());
        let own = [("cpu", self.node_cpu.clone()), ("memory", self.node_memory.clone()), ("pods", pods)];
        let given = own.into_iter().filter_map(|(name, amount)| Some((name.to_owned(), amount?)));
        config.capacity = given.collect::<BTreeMap<_, _>>();
        config.eviction = self.eviction_hard.as_ref().and_then(|text| text.parse().ok()).unwrap_or_default();
        config.pids_max = self.pids_max.unwrap_or(PIDS_MAX);
        config.shutdown_grace = self.grace();
    }

    /// How long pods get when a node shuts down.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_not_said_is_as_before_and_nonsense_is_refused() {
        let before = NodeTuning { node_memory: Some("1Gi".to_owned()), node_pods: Some(300), ..NodeTuning::default() };
        let now = NodeTuning { node_pods: Some(10), shutdown_grace: Some(7), ..NodeTuning::default() }.or(&before);
        assert_eq!((now.node_memory.as_deref(), now.node_pods), (Some("1Gi"), Some(10)));
        assert_eq!(now.grace(), Duration::from_secs(7));
        assert!(quantity("1Gi").is_ok() && quantity("much").is_err() && quantity("0").is_err());
        assert!(thresholds("memory.available<5%").is_ok() && thresholds("cpu<5%").is_err());
    }
}
