//! Which endpoints may be chosen: health, panic, priority levels, zones.

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostFacts {
    /// Not failing its checks, not ejected.
    pub(crate) healthy: bool,
    /// 0 is used first.
    pub(crate) priority: u8,
    /// In the gateway's own zone.
    pub(crate) local: bool,
    pub(crate) weight: u32,
}

/// The endpoints that may be chosen, and why these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) hosts: Vec<usize>,
    /// So few were healthy that health was ignored.
    pub(crate) panic: bool,
    /// No endpoint is healthy (whether or not panic lets them be tried).
    pub(crate) none_healthy: bool,
}

/// Chooses the level and, within it, the endpoints.
///
/// The first priority level in which the healthy share reaches `panic_percent` is used; below it, the next is tried, and
/// if no level reaches it, the first level that has any healthy endpoint; and if there is none, the first level as a
/// whole, if panic is allowed (`panic_percent` above 0). Zone-aware selection keeps to the own zone if that has at least
/// its fair share of the healthy weight, else all zones are used: traffic spills over.
pub(crate) fn select(facts: &[HostFacts], panic_percent: u8, zone_aware: bool) -> Selection {
    let mut levels: Vec<u8> = facts.iter().filter(|it| it.weight > 0).map(|it| it.priority).collect();
    levels.sort_unstable();
    levels.dedup();
    let of = |level: u8, healthy: bool| -> Vec<usize> {
        let wanted = |it: &HostFacts| it.priority == level && it.weight > 0 && (it.healthy || !healthy);
        facts.iter().enumerate().filter(|(_, it)| wanted(it)).map(|(host, _)| host).collect()
    };
    let enough = |level: &&u8| {
        let (healthy, all) = (of(**level, true).len(), of(**level, false).len());
        healthy > 0 && healthy * 100 >= all * usize::from(panic_percent)
    };
    if let Some(level) = levels.iter().find(enough) {
        let hosts = of(*level, true);
        return Selection { hosts: if zone_aware { near(facts, hosts) } else { hosts }, ..Selection::default() };
    }
    let some_healthy = levels.iter().find(|level| !of(**level, true).is_empty());
    match (some_healthy, levels.first()) {
        // Too few are healthy: they would drown in the load of all, so that it is spread over all (Envoy's panic mode).
        (Some(level), _) => Selection { hosts: of(*level, false), panic: true, none_healthy: false },
        (None, Some(level)) if panic_percent > 0 => {
            Selection { hosts: of(*level, false), panic: true, none_healthy: true }
        }
        _ => Selection { none_healthy: true, ..Selection::default() },
    }
}

/// The hosts of the own zone, if they are at least 70 % of what their share of all weight would be when all are healthy.
fn near(facts: &[HostFacts], healthy: Vec<usize>) -> Vec<usize> {
    let near: Vec<usize> = healthy.iter().copied().filter(|host| facts[*host].local).collect();
    let weight = |hosts: &[usize]| hosts.iter().map(|host| u64::from(facts[*host].weight)).sum::<u64>();
    let configured: Vec<usize> =
        (0..facts.len()).filter(|host| facts[*host].local && facts[*host].weight > 0).collect();
    if near.is_empty() || weight(&near) * 100 < weight(&configured) * 70 { healthy } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(healthy: bool, priority: u8, local: bool) -> HostFacts {
        HostFacts { healthy, priority, local, weight: 1 }
    }

    #[test]
    fn levels_are_used_in_order_and_spill_over() {
        let mut facts = vec![host(true, 0, false), host(true, 0, false), host(true, 1, false)];
        assert_eq!(select(&facts, 50, false).hosts, [0, 1]);
        facts[0].healthy = false;
        assert_eq!(select(&facts, 50, false).hosts, [1]);
        facts[1].healthy = false;
        assert_eq!(select(&facts, 50, false).hosts, [2]);
        facts[2].healthy = false;
        assert_eq!(select(&facts, 50, false), Selection { hosts: vec![0, 1], panic: true, none_healthy: true });
        assert_eq!(select(&facts, 0, false), Selection { hosts: vec![], panic: false, none_healthy: true });
    }

    #[test]
    fn below_the_threshold_health_is_ignored() {
        let facts = [host(true, 0, false), host(false, 0, false), host(false, 0, false)];
        assert_eq!(select(&facts, 50, false), Selection { hosts: vec![0, 1, 2], panic: true, none_healthy: false });
        assert_eq!(select(&facts, 30, false).hosts, [0]);
        assert_eq!(select(&facts, 0, false).hosts, [0]);
    }

    #[test]
    fn the_own_zone_first_and_all_when_it_is_weak() {
        let mut facts = vec![host(true, 0, true), host(true, 0, true), host(true, 0, false), host(true, 0, false)];
        assert_eq!(select(&facts, 50, true).hosts, [0, 1]);
        facts[0].healthy = false;
        assert_eq!(select(&facts, 50, true).hosts, [1, 2, 3]);
        assert_eq!(select(&[host(true, 0, false)], 50, true).hosts, [0]);
    }

    #[test]
    fn weight_zero_gets_nothing() {
        let facts = [HostFacts { weight: 0, ..host(true, 0, false) }, host(true, 0, false)];
        assert_eq!(select(&facts, 50, false).hosts, [1]);
    }
}
