//! The four rate algorithms for one key. Pure: time is nanoseconds since any fixed moment.
//!
//! # Guarantees
//! - Token bucket: over any interval t at most `burst + t * requests / period` are admitted.
//! - Leaky bucket: two admitted requests are at least `period / requests` apart; at most `queue` wait.
//! - Sliding window: no interval of `period` holds more than `requests`.
//! - Fixed window: no aligned window holds more than `requests`.

use std::collections::VecDeque;

use crate::api::policy::LimitAlgorithm;
use crate::table::settings::LimitSettings;

/// What a limit says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Whether it may go, perhaps after waiting.
    pub(crate) admitted: bool,
    /// How long an admitted one waits, or a refused one should before it asks again, in nanoseconds.
    pub(crate) wait_ns: u64,
    /// Requests that could follow at once.
    pub(crate) remaining: u64,
    /// Until the limit is as if nothing had been, in nanoseconds.
    pub(crate) reset_ns: u64,
}

/// One key's state.
#[derive(Debug, Clone)]
pub(crate) enum Rate {
    /// Token and leaky bucket: the theoretical arrival time of the next request (GCRA; ITU-T I.371).
    Arrival(u64),
    /// The times of the last admitted requests.
    Log(VecDeque<u64>),
    /// The window's number, and how many it has had.
    Count { window: u64, count: u64 },
}

impl Rate {
    /// A key that has had no request.
    pub(crate) fn new(algorithm: LimitAlgorithm) -> Self {
        match algorithm {
            LimitAlgorithm::TokenBucket | LimitAlgorithm::LeakyBucket => Self::Arrival(0),
            LimitAlgorithm::SlidingWindow => Self::Log(VecDeque::new()),
            LimitAlgorithm::FixedWindow => Self::Count { window: 0, count: 0 },
        }
    }

    /// Whether the state is as new, so that it can be forgotten.
    pub(crate) fn is_idle(&self, settings: &LimitSettings, now: u64) -> bool {
        let period = settings.period.as_nanos() as u64;
        match self {
            Self::Arrival(at) => *at <= now,
            Self::Log(times) => times.back().is_none_or(|last| now.saturating_sub(*last) >= period),
            Self::Count { window, .. } => *window != now / period,
        }
    }

    /// A request asks.
    pub(crate) fn ask(&mut self, settings: &LimitSettings, now: u64) -> Decision {
        let period = settings.period.as_nanos() as u64;
        // Rounded up: rounding down would admit one too many in the long run.
        let step = period.div_ceil(settings.requests.max(1));
        match self {
            Self::Arrival(at) if settings.algorithm == LimitAlgorithm::LeakyBucket => {
                let wait = at.saturating_sub(now);
                let queue = settings.queue.saturating_mul(step);
                let admitted = wait <= queue;
                if admitted {
                    *at = now.max(*at) + step;
                }
                let wait_ns = if admitted { wait } else { wait - queue };
                let reset_ns = at.saturating_sub(now);
                Decision { admitted, wait_ns, remaining: queue.saturating_sub(reset_ns) / step, reset_ns }
            }
            Self::Arrival(at) => {
                let room = settings.burst.saturating_mul(step);
                let next = now.max(*at) + step;
                let admitted = next - now <= room;
                if admitted {
                    *at = next;
                }
                let reset_ns = at.saturating_sub(now);
                let wait_ns = if admitted { 0 } else { next - now - room };
                Decision { admitted, wait_ns, remaining: room.saturating_sub(reset_ns) / step, reset_ns }
            }
            Self::Log(times) => {
                while times.front().is_some_and(|first| now.saturating_sub(*first) >= period) {
                    times.pop_front();
                }
                let admitted = (times.len() as u64) < settings.requests;
                if admitted {
                    times.push_back(now);
                }
                let until = |time: Option<&u64>| time.map_or(0, |time| (time + period).saturating_sub(now));
                let wait_ns = if admitted { 0 } else { until(times.front()) };
                Decision {
                    admitted,
                    wait_ns,
                    remaining: settings.requests - times.len() as u64,
                    reset_ns: until(times.back()),
                }
            }
            Self::Count { window, count } => {
                let current = now / period;
                if *window != current {
                    (*window, *count) = (current, 0);
                }
                let admitted = *count < settings.requests;
                *count += u64::from(admitted);
                let reset_ns = (current + 1) * period - now;
                Decision {
                    admitted,
                    wait_ns: if admitted { 0 } else { reset_ns },
                    remaining: settings.requests - *count,
                    reset_ns,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    pub(crate) fn settings(
        algorithm: LimitAlgorithm,
        requests: u64,
        period_ms: u64,
        burst: u64,
        queue: u64,
    ) -> LimitSettings {
        LimitSettings {
            key: String::new(),
            algorithm,
            requests,
            period: Duration::from_millis(period_ms),
            burst,
            queue,
            parts: vec![],
            when_headers: vec![],
            redis: None,
        }
    }

    /// The times at which requests were let through, in nanoseconds.
    fn admitted(settings: &LimitSettings, gaps: &[u64]) -> Vec<u64> {
        let (mut rate, mut now, mut times) = (Rate::new(settings.algorithm), 1_000_000_000_000, Vec::new());
        for gap in gaps {
            now += gap;
            let decision = rate.ask(settings, now);
            if decision.admitted {
                times.push(now + decision.wait_ns);
            }
        }
        times
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn no_window_holds_more_than_its_limit(
            requests in 1_u64..20, period_ms in 1_u64..50, gaps in prop::collection::vec(0_u64..20_000_000, 0..200)
        ) {
            let period = period_ms * 1_000_000;
            let times = admitted(&settings(LimitAlgorithm::SlidingWindow, requests, period_ms, 0, 0), &gaps);
            for (at, first) in times.iter().enumerate() {
                prop_assert!(times[at..].iter().filter(|time| **time < first + period).count() as u64 <= requests);
            }
            let times = admitted(&settings(LimitAlgorithm::FixedWindow, requests, period_ms, 0, 0), &gaps);
            for time in &times {
                prop_assert!(times.iter().filter(|other| *other / period == time / period).count() as u64 <= requests);
            }
        }

        #[test]
        fn buckets_keep_their_rate(
            requests in 1_u64..20, period_ms in 1_u64..50, burst in 1_u64..30, queue in 0_u64..10,
            gaps in prop::collection::vec(0_u64..5_000_000, 0..200)
        ) {
            let period = u128::from(period_ms) * 1_000_000;
            let times = admitted(&settings(LimitAlgorithm::TokenBucket, requests, period_ms, burst, 0), &gaps);
            for (at, first) in times.iter().enumerate() {
                for (more, last) in times[at..].iter().enumerate() {
                    let refilled = u128::from(last - first) * u128::from(requests) / period;
                    prop_assert!((more as u128) < u128::from(burst) + refilled);
                }
            }
            let times = admitted(&settings(LimitAlgorithm::LeakyBucket, requests, period_ms, 0, queue), &gaps);
            for pair in times.windows(2) {
                prop_assert!(u128::from(pair[1] - pair[0]) * u128::from(requests) >= period);
            }
        }

        #[test]
        fn a_steady_client_below_the_limit_is_never_refused(requests in 1_u64..20, period_ms in 1_u64..50) {
            let gap = (period_ms * 1_000_000).div_ceil(requests);
            for algorithm in [LimitAlgorithm::TokenBucket, LimitAlgorithm::LeakyBucket, LimitAlgorithm::SlidingWindow, LimitAlgorithm::FixedWindow] {
                let times = admitted(&settings(algorithm, requests, period_ms, 1, 0), &vec![gap; 100]);
                prop_assert_eq!(times.len(), 100, "{:?}", algorithm);
            }
        }
    }

    #[test]
    fn n_are_admitted_at_once_and_not_one_more() {
        let at_once = vec![0; 50];
        for algorithm in [LimitAlgorithm::TokenBucket, LimitAlgorithm::SlidingWindow, LimitAlgorithm::FixedWindow] {
            assert_eq!(admitted(&settings(algorithm, 7, 1000, 7, 0), &at_once).len(), 7, "{algorithm:?}");
        }
        assert_eq!(
            admitted(&settings(LimitAlgorithm::LeakyBucket, 7, 1000, 0, 3), &at_once).len(),
            4,
            "one now, three wait"
        );
    }

    #[test]
    fn what_is_left_and_when_to_come_back_is_said() {
        let bucket = settings(LimitAlgorithm::TokenBucket, 10, 1000, 2, 0);
        let mut rate = Rate::new(bucket.algorithm);
        let said = |it: Decision| (it.admitted, it.remaining, it.wait_ns / 1_000_000, it.reset_ns / 1_000_000);
        let now = 5_000_000_000;
        assert_eq!(said(rate.ask(&bucket, now)), (true, 1, 0, 100));
        assert_eq!(said(rate.ask(&bucket, now)), (true, 0, 0, 200));
        assert_eq!(said(rate.ask(&bucket, now + 30_000_000)), (false, 0, 70, 170));
        assert_eq!(said(rate.ask(&bucket, now + 100_000_000)), (true, 0, 0, 200));
    }
}
