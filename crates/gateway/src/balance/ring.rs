//! Ketama: a ring of points; a key belongs to the next point clockwise (Karger et al. 1997; Ketama, 2007).

use crate::table::hash::{mix, stable};

/// Points of an endpoint of average weight: spreads load within about 10 %.
const POINTS: u32 = 160;

/// A ring.
#[derive(Debug)]
pub(crate) struct Ring(Vec<(u64, usize)>);

impl Ring {
    /// A ring over endpoints by name, so that an endpoint keeps its points whoever comes or goes.
    pub(crate) fn new(names: &[String], weights: &[u32]) -> Self {
        let mut points = Vec::new();
        for (host, name) in names.iter().enumerate() {
            let seed = stable(name.as_bytes());
            let count = POINTS.saturating_mul(weights.get(host).copied().unwrap_or(1)).min(POINTS * 64);
            points.extend((0..u64::from(count)).map(|number| (mix(seed ^ mix(number + 1)), host)));
        }
        points.sort_unstable();
        Self(points)
    }

    /// The first usable endpoint from the key's place on.
    pub(crate) fn pick(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.0.partition_point(|(point, _)| *point < hash);
        let (before, after) = self.0.split_at(start);
        after.iter().chain(before).map(|(_, host)| *host).find(|host| usable(*host))
    }
}
