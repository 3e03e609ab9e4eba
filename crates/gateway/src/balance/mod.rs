//! Choosing an endpoint.
//!
//! Pure: the balancer sees numbers (weights, requests in flight, latencies) and gives an index back. Randomness is an
//! argument.
//!
//! # Guarantees
//! - An endpoint that is not available or was tried already is never chosen while another is left.
//! - Smooth weighted round robin gives each endpoint exactly its share over one round.
//! - Consistent hashes move only the keys of endpoints that come or go (ring: about 1/n; Maglev: about 1/n and a few more).

mod available;
mod maglev;
mod ring;

pub(crate) use available::{HostFacts, Selection, select};

use maglev::Maglev;
use ring::Ring;

use crate::api::policy::Algorithm;

/// What the balancer sees of the endpoints.
pub(crate) trait Hosts {
    /// Relative share; 0 gets nothing.
    fn weight(&self, host: usize) -> u32;
    /// Requests in flight.
    fn in_flight(&self, host: usize) -> u32;
    /// Expected latency in nanoseconds; 0 if none is known.
    fn latency_ns(&self, host: usize) -> u64;
}

/// An algorithm with its memory.
#[derive(Debug)]
pub(crate) struct Balancer {
    algorithm: Algorithm,
    next: usize,
    /// Of smooth weighted round robin: each endpoint's credit.
    credit: Vec<i64>,
    ring: Option<Ring>,
    maglev: Option<Maglev>,
}

impl Balancer {
    /// A balancer over endpoints with these identities and weights.
    pub(crate) fn new(algorithm: Algorithm, names: &[String], weights: &[u32]) -> Self {
        Self {
            algorithm,
            next: 0,
            credit: vec![0; names.len()],
            ring: matches!(algorithm, Algorithm::RingHash | Algorithm::SourceHash).then(|| Ring::new(names, weights)),
            maglev: (algorithm == Algorithm::Maglev).then(|| Maglev::new(names, weights)),
        }
    }

    /// Whether a key's hash is needed.
    pub(crate) fn needs_hash(&self) -> bool {
        self.ring.is_some() || self.maglev.is_some()
    }

    /// Chooses among `available`, avoiding `tried` while there is another.
    pub(crate) fn pick(
        &mut self,
        hosts: &impl Hosts,
        available: &[usize],
        tried: &[usize],
        hash: u64,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<usize> {
        let untried: Vec<usize>;
        let candidates = if tried.is_empty() {
            available
        } else {
            untried = available.iter().copied().filter(|host| !tried.contains(host)).collect();
            if untried.is_empty() { available } else { &untried }
        };
        if candidates.len() <= 1 {
            return candidates.first().copied();
        }
        match self.algorithm {
            Algorithm::RoundRobin => self.round_robin(hosts, candidates),
            Algorithm::Random => Some(weighted_random(hosts, candidates, random)),
            Algorithm::LeastRequest => {
                // Fewer in flight for the weight; compared crosswise to stay with whole numbers.
                let load = |host| (u64::from(hosts.in_flight(host)) + 1, u64::from(hosts.weight(host)).max(1));
                two_choices(candidates, random, |a, b| load(a).0 * load(b).1 <= load(b).0 * load(a).1)
            }
            Algorithm::PeakEwma => {
                let cost = |host| {
                    let waiting = u128::from(hosts.in_flight(host)) + 1;
                    waiting * u128::from(hosts.latency_ns(host)) / u128::from(hosts.weight(host).max(1))
                };
                two_choices(candidates, random, |a, b| cost(a) <= cost(b))
            }
            Algorithm::RingHash | Algorithm::SourceHash => {
                self.ring.as_ref()?.pick(hash, |host| candidates.contains(&host))
            }
            Algorithm::Maglev => self.maglev.as_ref()?.pick(hash, |host| candidates.contains(&host)),
        }
    }

    fn round_robin(&mut self, hosts: &impl Hosts, candidates: &[usize]) -> Option<usize> {
        let first = hosts.weight(*candidates.first()?);
        if candidates.iter().all(|host| hosts.weight(*host) == first) {
            self.next = self.next.wrapping_add(1);
            return candidates.get(self.next % candidates.len()).copied();
        }
        // Smooth weighted round robin (nginx, 2012): everyone gains its weight, the richest pays the sum.
        let mut sum = 0;
        let mut best = None;
        for host in candidates {
            let weight = i64::from(hosts.weight(*host));
            sum += weight;
            self.credit[*host] += weight;
            if weight > 0 && best.is_none_or(|best: usize| self.credit[*host] > self.credit[best]) {
                best = Some(*host);
            }
        }
        let best = best.or(candidates.first().copied())?;
        self.credit[best] -= sum;
        Some(best)
    }
}

fn weighted_random(hosts: &impl Hosts, candidates: &[usize], random: &mut impl FnMut(u32) -> u32) -> usize {
    let sum: u32 = candidates.iter().fold(0, |sum, host| sum.saturating_add(hosts.weight(*host)));
    if sum == 0 {
        return candidates[random(candidates.len() as u32) as usize];
    }
    let mut point = random(sum);
    for host in candidates {
        let weight = hosts.weight(*host);
        if point < weight {
            return *host;
        }
        point -= weight;
    }
    candidates[0]
}

/// Of two different candidates, the better one (Mitzenmacher 2001, "The power of two choices").
fn two_choices(
    candidates: &[usize],
    random: &mut impl FnMut(u32) -> u32,
    better: impl Fn(usize, usize) -> bool,
) -> Option<usize> {
    let count = candidates.len() as u32;
    let a = random(count);
    let b = (a + 1 + random(count - 1)) % count;
    let (a, b) = (*candidates.get(a as usize)?, *candidates.get(b as usize)?);
    Some(if better(a, b) { a } else { b })
}

/// A new estimate of an exponentially weighted moving average that jumps to peaks and decays over about `decay_ns`
/// (Finagle's peak EWMA).
pub(crate) fn peak_ewma(before_ns: u64, sample_ns: u64, elapsed_ns: u64, decay_ns: u64) -> u64 {
    if sample_ns >= before_ns {
        return sample_ns;
    }
    let keep = (-(elapsed_ns as f64) / decay_ns as f64).exp();
    (before_ns as f64 * keep + sample_ns as f64 * (1.0 - keep)) as u64
}

#[cfg(test)]
mod tests;
