//! How many nodes of a zone are given up at once, and whether their pods are evicted.
//!
//! | of a zone's nodes are dead | evictions |
//! |---|---|
//! | a few | at once |
//! | most: at least 55 %, and more than two | none; in a zone of more than 50 nodes one node every 100 s |
//! | all, others live | at once: the zone is gone, the others take its pods |
//! | all, of every zone | none; then the fault is more likely here |
//!
//! Source: <https://kubernetes.io/docs/concepts/architecture/nodes/#rate-limits-on-eviction>.

use std::collections::BTreeMap;
use std::time::Duration;

const MOST: f64 = 0.55;
const LARGE: usize = 50;
/// In a large zone most of which is dead: the time between two nodes' evictions.
pub(super) const SLOW: Duration = Duration::from_secs(100);

/// Nodes of a zone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Zone {
    pub(super) nodes: usize,
    pub(super) dead: usize,
}

impl Zone {
    fn is_dark(self) -> bool {
        self.nodes > 0 && self.dead == self.nodes
    }
}

/// How fast the pods of a zone's dead nodes are evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At once.
    Normal,
    /// One node every [`SLOW`]; why.
    Slow(String),
    /// Not at all; why.
    Stopped(String),
}

/// The pace for a zone, given all.
pub(super) fn pace(zones: &BTreeMap<String, Zone>, zone: &str) -> Pace {
    let own = zones.get(zone).copied().unwrap_or_default();
    if zones.len() > 1 && zones.values().all(|zone| zone.is_dark()) {
        return Pace::Stopped("no node of any zone is heard".to_owned());
    }
    let most = own.dead > 2 && own.dead as f64 >= MOST * own.nodes as f64;
    if own.is_dark() && zones.len() > 1 || !most {
        return Pace::Normal;
    }
    let why = format!("{} of {} nodes of zone {zone:?} are not heard", own.dead, own.nodes);
    if own.nodes > LARGE { Pace::Slow(why) } else { Pace::Stopped(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let zones = |all: &[(usize, usize)]| {
            let named = all.iter().enumerate();
            named.map(|(index, (nodes, dead))| (index.to_string(), Zone { nodes: *nodes, dead: *dead })).collect()
        };
        for (all, paused) in [
            (&[(3, 1), (3, 0)][..], false),
            (&[(1, 1), (1, 1), (1, 0)], false),
            (&[(3, 3), (3, 0)], false),
            (&[(3, 2), (3, 0)], false),
            (&[(4, 3), (3, 0)], true),
            (&[(10, 5), (3, 0)], false),
            (&[(1, 1), (1, 1)], true),
            (&[(2, 1)], false),
            (&[(3, 3)], true),
        ] {
            assert_eq!(pace(&zones(all), "0") != Pace::Normal, paused, "{all:?}");
        }
        assert!(matches!(pace(&zones(&[(100, 60), (3, 0)]), "0"), Pace::Slow(_)));
    }
}
