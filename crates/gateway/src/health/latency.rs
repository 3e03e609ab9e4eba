//! Latency outliers: an endpoint that answers, but much later than the others.

use std::time::Duration;

/// Answers before a mean says anything.
const ANSWERS_MIN: u32 = 20;
/// The weight of an answer in the mean is one of so many.
const WEIGHT: i64 = 16;
/// Differences below this are no matter, however many times larger one is than the other.
const DIFFERENCE_MIN_NS: u64 = 1_000_000;

/// The mean latency of one endpoint, the newest answers counting most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MeanLatency {
    mean_ns: u64,
    answers: u32,
}

impl MeanLatency {
    /// Takes in how long an answer's head took.
    pub(crate) fn note(&mut self, took: Duration) {
        let sample = took.as_nanos() as i64;
        let mean = self.mean_ns as i64;
        // The first answers count alike, so that the very first does not stay in it for long.
        let weight = i64::from(self.answers + 1).min(WEIGHT);
        self.mean_ns = (mean + (sample - mean) / weight).max(0) as u64;
        self.answers = self.answers.saturating_add(1);
    }

    /// The mean, once there are enough answers.
    pub(crate) fn known(self) -> Option<u64> {
        (self.answers >= ANSWERS_MIN).then_some(self.mean_ns)
    }
}

/// Whether `own` is more than `factor` times the median of the others.
pub(crate) fn is_outlier(own: MeanLatency, others: impl Iterator<Item = MeanLatency>, factor: f64) -> bool {
    let mut others: Vec<u64> = others.filter_map(MeanLatency::known).collect();
    others.sort_unstable();
    let (Some(own), Some(median)) = (own.known(), others.get(others.len() / 2)) else { return false };
    factor > 0.0 && own as f64 > *median as f64 * factor && own - median >= DIFFERENCE_MIN_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(ms: &[u64]) -> MeanLatency {
        let mut mean = MeanLatency::default();
        for ms in ms {
            mean.note(Duration::from_millis(*ms));
        }
        mean
    }

    #[test]
    fn a_mean_is_known_after_twenty_answers_and_follows() {
        assert_eq!(mean(&[10; 19]).known(), None);
        assert_eq!(mean(&[10; 20]).known(), Some(10_000_000));
        let one_slow = mean(&[[10; 30].as_slice(), &[1000]].concat()).known();
        assert!(one_slow.is_some_and(|it| it < 80_000_000), "{one_slow:?}");
        let all_slow = mean(&[[10; 30].as_slice(), &[1000; 60]].concat()).known();
        assert!(all_slow.is_some_and(|it| it > 900_000_000), "{all_slow:?}");
    }

    #[test]
    fn only_what_is_far_from_the_others_is_an_outlier() {
        let (fast, slow) = (mean(&[10; 20]), mean(&[40; 20]));
        let is = |own, others: &[MeanLatency], factor| is_outlier(own, others.iter().copied(), factor);
        assert!(is(slow, &[fast, fast], 3.0));
        assert!(!is(slow, &[fast, fast], 5.0));
        assert!(!is(slow, &[fast, fast], 0.0), "it is off");
        assert!(!is(slow, &[slow, slow], 3.0), "all are slow");
        assert!(!is(slow, &[mean(&[10; 5])], 3.0), "not enough is known");
        assert!(!is(fast, &[], 3.0));
    }
}
