//! What became of each request, one small record each: verdict, live view and report are all computed from these.
//!
//! Exact records instead of a histogram: a drill is minutes long, 24 bytes a request are affordable, and quantiles over any
//! window of time can be asked for afterwards. [`SAMPLES_MAX`] is the limit.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most requests of one load: 120 MB of records.
pub const SAMPLES_MAX: usize = 5_000_000;

/// Why a request was not answered as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The generator had too many in flight already: its own limit, not the service's fault alone.
    NotSent,
    /// Nobody listens, or there is no way there.
    Refused,
    /// No connection in time.
    ConnectTimeout,
    /// No answer in time.
    Timeout,
    /// The server's certificate is not to be trusted: run out, for another name, or by somebody unknown.
    Certificate,
    /// The connection ended before the whole answer was there.
    Broken,
    /// An answer that says no: a status of 400 or above.
    Status(u16),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent => formatter.write_str("not sent, too many in flight"),
            Self::Refused => formatter.write_str("connection refused"),
            Self::ConnectTimeout => formatter.write_str("no connection in time"),
            Self::Timeout => formatter.write_str("no answer in time"),
            Self::Certificate => formatter.write_str("certificate refused"),
            Self::Broken => formatter.write_str("connection broke off"),
            Self::Status(status) => write!(formatter, "status {status}"),
        }
    }
}

/// How many there are of each, by their words.
pub(crate) fn count(failures: impl Iterator<Item = Failure>) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for failure in failures {
        *kinds.entry(failure.to_string()).or_default() += 1;
    }
    kinds
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When it was due, in microseconds after the load's beginning.
    pub due_us: u64,
    /// From when it was due until its last byte was there or it was given up.
    pub latency_us: u32,
    /// How much later than due the generator sent it: the generator's own fault.
    pub lag_us: u32,
    /// How often it was tried; more than once only where the plan allows it.
    pub tries: u8,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

impl Sample {
    /// When it ended, in microseconds after the load's beginning.
    pub fn done_us(&self) -> u64 {
        self.due_us + u64::from(self.latency_us)
    }
}

/// The samples so far, in the order in which the requests ended. Shared between the generator and those who look.
#[derive(Debug, Default)]
pub struct Recording(Mutex<Vec<Sample>>);

impl Recording {
    /// Notes one; beyond [`SAMPLES_MAX`] nothing is noted any more.
    pub(crate) fn note(&self, sample: Sample) {
        let mut samples = self.lock();
        if samples.len() < SAMPLES_MAX {
            samples.push(sample);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// A copy of those from number `from` on.
    pub fn since(&self, from: usize) -> Vec<Sample> {
        self.lock().get(from..).unwrap_or_default().to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Latencies of answered requests at some quantiles, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were answered.
    pub count: u64,
    /// Half were faster.
    pub p50_us: u32,
    /// 90 of 100 were faster.
    pub p90_us: u32,
    /// 99 of 100 were faster.
    pub p99_us: u32,
    /// 999 of 1000 were faster.
    pub p999_us: u32,
    /// The slowest.
    pub max_us: u32,
}

impl Latency {
    /// Of the answered ones among `samples`.
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let answered = samples.into_iter().filter(|sample| sample.failure.is_none());
        let mut all: Vec<u32> = answered.map(|sample| sample.latency_us).collect();
        all.sort_unstable();
        Self {
            count: all.len() as u64,
            p50_us: quantile(&all, 0.5),
            p90_us: quantile(&all, 0.9),
            p99_us: quantile(&all, 0.99),
            p999_us: quantile(&all, 0.999),
            max_us: all.last().copied().unwrap_or_default(),
        }
    }
}

/// The smallest value that at least a share `q` of the sorted values do not exceed (nearest rank); 0 without values.
pub fn quantile(sorted: &[u32], q: f64) -> u32 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The longest time without an answer, of all the time until `end`.
///
/// Counted from one answered request's end to the next one's: what somebody who looks at the service sees.
pub fn longest_gap(samples: &[Sample], from_us: u64, until_us: u64) -> Duration {
    let mut ends: Vec<u64> = samples.iter().filter(|sample| sample.failure.is_none()).map(Sample::done_us).collect();
    ends.retain(|end| (from_us..until_us).contains(end));
    ends.sort_unstable();
    ends.push(until_us);
    let mut last = from_us;
    let gaps = ends.into_iter().map(|end| end - std::mem::replace(&mut last, end));
    Duration::from_micros(gaps.max().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(due_us: u64, latency_us: u32) -> Sample {
        Sample { due_us, latency_us, lag_us: 0, tries: 1, failure: None }
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let hundred: Vec<u32> = (1..=100).collect();
        let got = [0.0, 0.5, 0.99, 0.999, 1.0].map(|q| quantile(&hundred, q));
        assert_eq!(got, [1, 50, 99, 100, 100]);
        assert_eq!((quantile(&[], 0.5), quantile(&[7], 0.99)), (0, 7));
    }

    #[test]
    fn the_longest_gap_is_between_answers_and_knows_both_ends() {
        let failed = Sample { failure: Some(Failure::Timeout), ..answered(200_000, 10) };
        let all = [answered(0, 1000), answered(100_000, 1000), failed, answered(400_000, 1000)];
        assert_eq!(longest_gap(&all, 0, 500_000), Duration::from_millis(300));
        assert_eq!(longest_gap(&all, 0, 2_000_000), Duration::from_millis(1_599));
        assert_eq!(longest_gap(&[], 0, 7), Duration::from_micros(7));
    }
}
