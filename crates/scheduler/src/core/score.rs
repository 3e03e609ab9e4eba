//! Which of the nodes that do is best: the weights and formulas of kube-scheduler's default profile.
//!
//! | score | weight | formula (0 to 100) |
//! |---|---|---|
//! | least allocated | 1 | mean over cpu and memory of the free share after the pod |
//! | balanced | 1 | 100 × (1 − deviation of the used shares of cpu and memory) |
//! | spread | 2 | fewer pods of the set in the node's domains, scaled between the best and the worst |
//! | node affinity | 2 | satisfied preferred weights, scaled to the best |
//! | taints | 3 | fewer `PreferNoSchedule` taints, scaled to the worst |
//! | company | 2 | weights of preferred pod affinity and anti-affinity, the pod's own and those of pods there, scaled |
//! | images | 1 | bytes of the pod's images that are there, by the share of nodes that have them, 23 MB to 1 GB per container |
//!
//! Source: <https://kubernetes.io/docs/reference/scheduling/config/#scheduling-plugins>.

use super::facts::PodFacts;
use super::{Prepared, Snapshot};

const SPREAD_WEIGHT: i64 = 2;
const AFFINITY_WEIGHT: i64 = 2;
const TAINT_WEIGHT: i64 = 3;
const FULL: i64 = 100;
const COMPANY_WEIGHT: i64 = 2;
/// Image bytes below which a node gets nothing for them, and above which it gets all, per container.
const IMAGE_BYTES_MIN: i64 = 23 * 1024 * 1024;
const IMAGE_BYTES_MAX: i64 = 1000 * 1024 * 1024;

/// Which nodes are better as far as room goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Empty ones: load is spread.
    #[default]
    LeastAllocated,
    /// Full ones: few nodes are used.
    MostAllocated,
}

impl Snapshot {
    /// The best of the candidates; among equals the one with fewest pods, then the first found.
    pub(super) fn best(&self, pod: &PodFacts, prepared: &Prepared, candidates: &[usize]) -> Option<usize> {
        if let [only] = candidates {
            return Some(*only);
        }
        let mut scores: Vec<i64> = candidates.iter().map(|at| self.room_score(pod, *at)).collect();
        self.add_spread(prepared, candidates, &mut scores);
        self.add_wishes(prepared, candidates, &mut scores);
        self.add_company(prepared, candidates, &mut scores);
        self.add_images(pod, candidates, &mut scores);
        let ranked = candidates.iter().zip(scores).enumerate();
        let best = ranked.max_by_key(|(i, (at, score))| {
            (*score, std::cmp::Reverse(self.nodes[**at].used.pods), std::cmp::Reverse(*i))
        });
        best.map(|(_, (at, _))| *at)
    }

    fn room_score(&self, pod: &PodFacts, at: usize) -> i64 {
        let node = &self.nodes[at];
        let Some(facts) = &node.facts else { return 0 };
        let (cpu_total, memory_total) = (facts.allocatable.cpu_milli, facts.allocatable.memory_bytes);
        let free = |used: i64, total: i64| if total <= 0 { 0 } else { (total - used).max(0) * FULL / total };
        let (cpu_guess, memory_guess) = (node.guess.0 + pod.guess.0, node.guess.1 + pod.guess.1);
        // Bytes times a hundred stay far below the range.
        let empty = i64::midpoint(free(cpu_guess, cpu_total), free(memory_guess, memory_total));
        let least = if self.strategy == Strategy::MostAllocated { FULL - empty } else { empty };
        let share = |used: i64, total: i64| if total <= 0 { 1.0 } else { (used as f64 / total as f64).min(1.0) };
        let cpu = share(node.used.cpu_milli + pod.requests.cpu_milli, cpu_total);
        let memory = share(node.used.memory_bytes + pod.requests.memory_bytes, memory_total);
        let balanced = (1.0 - (cpu - memory).abs() / 2.0) * FULL as f64;
        least + balanced as i64
    }

    fn add_spread(&self, prepared: &Prepared, candidates: &[usize], scores: &mut [i64]) {
        if prepared.soft.is_empty() {
            return;
        }
        let mut crowds = vec![0.0; candidates.len()];
        for id in &prepared.soft {
            let tally = self.derived.tally(*id);
            let (_, domains) = tally.minimum();
            // Few domains say more about each than many do.
            let weight = (domains as f64 + 2.0).ln();
            let worst = tally.counts.iter().copied().max().unwrap_or(0);
            for (crowd, at) in crowds.iter_mut().zip(candidates) {
                *crowd += self.derived.count(*id, *at).unwrap_or(worst) as f64 * weight;
            }
        }
        let most = crowds.iter().copied().fold(0.0, f64::max);
        let least = crowds.iter().copied().fold(f64::MAX, f64::min);
        for (score, crowd) in scores.iter_mut().zip(crowds) {
            let own = if most == 0.0 { FULL as f64 } else { FULL as f64 * (most + least - crowd) / most };
            *score += SPREAD_WEIGHT * own.round() as i64;
        }
    }

    fn add_company(&self, prepared: &Prepared, candidates: &[usize], scores: &mut [i64]) {
        if prepared.preferred.is_empty() && prepared.wishers.is_empty() {
            return;
        }
        let of = |at: &usize| {
            let own =
                prepared.preferred.iter().map(|(tally, weight)| weight * self.derived.count(*tally, *at).unwrap_or(0));
            let theirs = prepared.wishers.iter().map(|wisher| self.derived.wish(*wisher, *at));
            own.chain(theirs).sum::<i64>()
        };
        let raw: Vec<i64> = candidates.iter().map(of).collect();
        let (least, most) = (raw.iter().min().copied().unwrap_or(0), raw.iter().max().copied().unwrap_or(0));
        if most > least {
            for (score, raw) in scores.iter_mut().zip(raw) {
                *score += COMPANY_WEIGHT * (FULL * (raw - least) / (most - least));
            }
        }
    }

    fn add_images(&self, pod: &PodFacts, candidates: &[usize], scores: &mut [i64]) {
        let nodes = self.by_name.len().max(1) as i64;
        let known: Vec<(&String, i64)> =
            pod.images.iter().map(|image| (image, self.derived.nodes_with(image) as i64)).collect();
        if known.iter().all(|(_, count)| *count == 0) {
            return;
        }
        let containers = pod.images.len().max(1) as i64;
        let (low, high) = (IMAGE_BYTES_MIN, IMAGE_BYTES_MAX * containers);
        for (score, at) in scores.iter_mut().zip(candidates) {
            let Some(facts) = &self.nodes[*at].facts else { continue };
            let bytes =
                |(image, count): &(&String, i64)| facts.images.get(*image).copied().unwrap_or(0) / nodes * count;
            let sum = known.iter().map(bytes).sum::<i64>().clamp(low, high);
            *score += FULL * (sum - low) / (high - low);
        }
    }

    fn add_wishes(&self, prepared: &Prepared, candidates: &[usize], scores: &mut [i64]) {
        let shape = self.derived.shape(prepared.shape);
        if !shape.has_wishes {
            return;
        }
        let wishes = || candidates.iter().map(|at| shape.wishes[*at]);
        let most_liked = wishes().map(|(liked, _)| liked).max().unwrap_or(0);
        let most_tainted = wishes().map(|(_, tainted)| tainted).max().unwrap_or(0);
        for (score, (liked, tainted)) in scores.iter_mut().zip(wishes()) {
            if most_liked > 0 {
                *score += AFFINITY_WEIGHT * (FULL * liked / most_liked);
            }
            if most_tainted > 0 {
                *score += TAINT_WEIGHT * (FULL - FULL * tainted / most_tainted);
            }
        }
    }
}
