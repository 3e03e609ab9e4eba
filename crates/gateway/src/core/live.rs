//! A configuration as it is published to the cores, and as a core holds it.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use crate::api::policy::BreakerScope;
use crate::breaker::SharedBreaker;
use crate::cache::Store;
use crate::limit::{Gate, Limiter, SharedLimits};
use crate::metrics::RuleMetrics;
use crate::registry::Registry;
use crate::table::{Rule, Table};
use crate::upstream::Group;

/// A published configuration.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) table: Table,
    /// Counts configurations of this process.
    pub(crate) version: u64,
    /// Cores that have taken it over.
    pub(crate) taken: AtomicUsize,
}

/// A configuration on one core. Requests hold the one they began with.
pub(crate) struct CoreTable {
    pub(crate) live: Arc<Live>,
    pub(crate) groups: Vec<Rc<Group>>,
    pub(crate) rules: Vec<RuleState>,
}

/// What a rule has besides its settings.
pub(crate) struct RuleState {
    pub(crate) metrics: Arc<RuleMetrics>,
    pub(crate) limiters: Vec<Arc<Limiter>>,
    /// For each limit the Redis it is shared through, if it is.
    pub(crate) shared_limits: Vec<Option<Rc<SharedLimits>>>,
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) cache: Option<Arc<Store>>,
    /// Requests so far, for the exact split.
    pub(crate) split: Cell<u32>,
    split_step: u32,
}

impl CoreTable {
    /// Takes a configuration over; what it has in common with the one before keeps its state.
    pub(crate) fn new(
        live: Arc<Live>,
        before: Option<&Self>,
        registry: &Registry,
        zone: Option<&Arc<str>>,
        now: Instant,
    ) -> Self {
        let known: HashMap<&str, &Rc<Group>> =
            before.into_iter().flat_map(|it| &it.groups).map(|group| (group.spec.key.as_str(), group)).collect();
        let kept: HashSet<&str> = live.table.upstreams.iter().map(|it| it.key.as_str()).collect();
        let gone: HashMap<&str, &Rc<Group>> =
            known.values().filter(|it| !kept.contains(it.spec.key.as_str())).map(|it| (it.spec.base(), *it)).collect();
        let groups = live
            .table
            .upstreams
            .iter()
            .map(|spec| match known.get(spec.key.as_str()) {
                Some(group) if group.spec.endpoints == spec.endpoints => (*group).clone(),
                other => {
                    let (one, each) = breakers(spec, registry);
                    let other = other.or_else(|| gone.get(spec.base()).filter(|it| it.spec.is_reached_like(spec)));
                    Group::new(spec.clone(), other.map(|it| &***it), registry, one, each, zone.cloned(), now)
                }
            })
            .collect();
        let rules = live.table.rules.iter().map(|rule| RuleState::new(rule, registry)).collect();
        Self { live, groups, rules }
    }
}

fn breakers(spec: &crate::table::Upstream, registry: &Registry) -> (Option<SharedBreaker>, Vec<SharedBreaker>) {
    let Some(settings) = &spec.settings.breaker else { return (None, Vec::new()) };
    match settings.scope {
        BreakerScope::Upstream => (Some(registry.shared.breaker(&spec.key, settings)), Vec::new()),
        BreakerScope::Endpoint => {
            let each = spec
                .endpoints
                .iter()
                .map(|it| registry.shared.breaker(&format!("{}|{}", spec.key, it.address), settings));
            (None, each.collect())
        }
    }
}

impl RuleState {
    fn new(rule: &Rule, registry: &Registry) -> Self {
        let settings = &rule.settings;
        Self {
            metrics: registry.rule(&rule.name),
            limiters: settings.limits.iter().map(|it| registry.shared.limiter(it)).collect(),
            shared_limits: settings.limits.iter().map(|it| it.redis.as_deref().map(SharedLimits::at)).collect(),
            gate: settings.concurrency.as_ref().map(|it| registry.shared.gate(it)),
            cache: settings.cache.map(|it| registry.shared.cache(&rule.name, it)),
            split: Cell::new(0),
            split_step: split_step(rule.backends.weight_total),
        }
    }

    /// The next point of the split: over `total` requests, every point once, and far apart from one to the next.
    pub(crate) fn split_point(&self, total: u32) -> u32 {
        let point = self.split.get();
        self.split.set(((u64::from(point) + u64::from(self.split_step)) % u64::from(total.max(1))) as u32);
        point
    }
}

/// A step near the golden section of `total` that has no divisor in common with it, so that it visits every number below.
fn split_step(total: u32) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let start = (f64::from(total) * 0.618_033_988) as u32;
    (start.max(1)..=total.max(1)).find(|step| gcd(*step, total) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_visits_every_point_once() {
        for total in [1, 2, 3, 7, 10, 100, 101, 1000, 9973] {
            let step = u64::from(split_step(total));
            let mut seen: Vec<u64> = (0..u64::from(total)).map(|n| n * step % u64::from(total)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..u64::from(total)), "{total}");
        }
    }
}
