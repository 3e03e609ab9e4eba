//! Circuit breaker (Nygard, "Release It!"): stop asking who fails, and try again carefully. Pure; time is an argument.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::table::settings::BreakerSettings;

/// A breaker that cores share.
pub(crate) type SharedBreaker = Arc<Mutex<Breaker>>;

/// Calls a window holds at most, whatever it is configured to.
const CALLS_MAX: usize = 10_000;

/// A circuit.
#[derive(Debug)]
pub(crate) struct Breaker {
    settings: BreakerSettings,
    state: State,
    calls: VecDeque<Call>,
    failed: u32,
    slow: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// So many probes were let through, and so many came back well.
    HalfOpen {
        sent: u32,
        good: u32,
        since: Instant,
    },
}

#[derive(Debug, Clone, Copy)]
struct Call {
    at: Instant,
    failed: bool,
    slow: bool,
}

/// Whether a call may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The circuit is closed.
    Call,
    /// It is half open, and this call is a probe.
    Probe,
    /// It is open, for so long.
    Refused(Duration),
}

impl Breaker {
    /// A closed circuit.
    pub(crate) fn new(settings: BreakerSettings) -> Self {
        Self { settings, state: State::Closed, calls: VecDeque::new(), failed: 0, slow: 0 }
    }

    /// Its settings: a breaker with the same ones is kept over a reload.
    pub(crate) fn settings(&self) -> &BreakerSettings {
        &self.settings
    }

    /// For people: closed, open or half-open.
    pub(crate) fn shown(&self, now: Instant) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { until } if until > now => "open",
            _ => "half-open",
        }
    }

    /// Asks to call.
    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match &mut self.state {
            State::Closed => Admission::Call,
            State::Open { until } if *until > now => Admission::Refused(*until - now),
            State::Open { .. } => {
                self.state = State::HalfOpen { sent: 1, good: 0, since: now };
                Admission::Probe
            }
            // Probes that never came back must not keep it half open for ever.
            State::HalfOpen { sent, good, since } if now.duration_since(*since) > self.settings.open_time => {
                (*sent, *good, *since) = (1, 0, now);
                Admission::Probe
            }
            State::HalfOpen { sent, .. } if *sent < self.settings.probes => {
                *sent += 1;
                Admission::Probe
            }
            State::HalfOpen { .. } => Admission::Refused(Duration::from_millis(100)),
        }
    }

    /// Takes in what a call came to.
    pub(crate) fn note(&mut self, admitted: Admission, now: Instant, failed: bool, took: Duration) {
        let slow = took >= self.settings.slow_after && self.settings.slow_percent.is_some();
        match (self.state, admitted) {
            (State::HalfOpen { .. }, Admission::Probe) if failed || slow => self.open(now),
            (State::HalfOpen { sent, good, since }, Admission::Probe) => {
                let good = good + 1;
                self.state = State::HalfOpen { sent, good, since };
                if good >= self.settings.probes {
                    self.state = State::Closed;
                    self.forget();
                }
            }
            (State::Closed, _) => {
                self.push(Call { at: now, failed, slow });
                if self.tripped() {
                    self.open(now);
                }
            }
            // A call from before the circuit opened says nothing new.
            _ => {}
        }
    }

    fn push(&mut self, call: Call) {
        self.calls.push_back(call);
        self.failed += u32::from(call.failed);
        self.slow += u32::from(call.slow);
        let calls_max = self.settings.window_calls.map_or(CALLS_MAX, |it| (it as usize).min(CALLS_MAX));
        let too_old =
            |first: &Call| self.settings.window_time.is_some_and(|window| call.at.duration_since(first.at) >= window);
        while self.calls.len() > calls_max || self.calls.front().is_some_and(too_old) {
            if let Some(gone) = self.calls.pop_front() {
                self.failed -= u32::from(gone.failed);
                self.slow -= u32::from(gone.slow);
            }
        }
    }

    fn tripped(&self) -> bool {
        let calls = self.calls.len() as u32;
        let share =
            |count: u32, percent: Option<u8>| percent.is_some_and(|percent| count * 100 >= calls * u32::from(percent));
        let by_count = self.settings.failures.is_some_and(|failures| self.failed >= failures);
        let enough = calls >= self.settings.min_calls;
        by_count
            || (enough
                && (share(self.failed, self.settings.failure_percent) || share(self.slow, self.settings.slow_percent)))
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open { until: now + self.settings.open_time };
        self.forget();
    }

    fn forget(&mut self) {
        self.calls.clear();
        (self.failed, self.slow) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> BreakerSettings {
        BreakerSettings {
            scope: crate::api::policy::BreakerScope::Upstream,
            failure_percent: None,
            failures: None,
            slow_percent: None,
            slow_after: Duration::from_millis(100),
            window_calls: Some(20),
            window_time: None,
            min_calls: 10,
            open_time: Duration::from_secs(5),
            probes: 2,
        }
    }

    /// Makes calls until one is refused; how many were made.
    fn calls_until_open(breaker: &mut Breaker, now: Instant, mut call: impl FnMut(u32) -> (bool, u64)) -> u32 {
        for number in 0..1000 {
            let admitted = breaker.admit(now);
            if let Admission::Refused(_) = admitted {
                return number;
            }
            let (failed, ms) = call(number);
            breaker.note(admitted, now, failed, Duration::from_millis(ms));
        }
        1000
    }

    #[test]
    fn it_opens_by_share_count_and_slowness() {
        let now = Instant::now();
        let mut by_share = Breaker::new(BreakerSettings { failure_percent: Some(50), ..settings() });
        assert_eq!(calls_until_open(&mut by_share, now, |_| (true, 1)), 10, "not before min_calls");
        let mut below = Breaker::new(BreakerSettings { failure_percent: Some(60), ..settings() });
        assert_eq!(calls_until_open(&mut below, now, |number| (number % 2 == 0, 1)), 1000);
        let mut by_count = Breaker::new(BreakerSettings { failures: Some(3), ..settings() });
        assert_eq!(calls_until_open(&mut by_count, now, |number| (number % 5 == 0, 1)), 11);
        let mut by_slowness = Breaker::new(BreakerSettings { slow_percent: Some(100), ..settings() });
        assert_eq!(calls_until_open(&mut by_slowness, now, |_| (false, 100)), 10);
    }

    #[test]
    fn a_time_window_forgets() {
        let start = Instant::now();
        let window = BreakerSettings {
            failures: Some(3),
            window_calls: None,
            window_time: Some(Duration::from_secs(1)),
            ..settings()
        };
        let mut breaker = Breaker::new(window);
        for ms in [0, 600, 1100, 1700] {
            breaker.note(Admission::Call, start + Duration::from_millis(ms), true, Duration::ZERO);
            assert_eq!(breaker.shown(start + Duration::from_millis(ms)), "closed", "{ms}");
        }
        breaker.note(Admission::Call, start + Duration::from_millis(1800), true, Duration::ZERO);
        assert_eq!(breaker.shown(start + Duration::from_millis(1800)), "open");
    }

    #[test]
    fn half_open_lets_few_probes_through_and_all_must_succeed() {
        let start = Instant::now();
        let mut breaker = Breaker::new(BreakerSettings { failures: Some(1), ..settings() });
        breaker.note(Admission::Call, start, true, Duration::ZERO);
        let later = start + Duration::from_secs(5);
        assert_eq!(breaker.admit(start + Duration::from_secs(4)), Admission::Refused(Duration::from_secs(1)));
        assert_eq!(breaker.admit(later), Admission::Probe);
        assert_eq!(breaker.admit(later), Admission::Probe);
        assert!(matches!(breaker.admit(later), Admission::Refused(_)));
        breaker.note(Admission::Probe, later, false, Duration::ZERO);
        assert_eq!(breaker.shown(later), "half-open");
        breaker.note(Admission::Probe, later, false, Duration::ZERO);
        assert_eq!(breaker.shown(later), "closed");
        breaker.note(Admission::Call, later, true, Duration::ZERO);
        let again = later + Duration::from_secs(5);
        assert_eq!(breaker.admit(again), Admission::Probe);
        breaker.note(Admission::Probe, again, true, Duration::ZERO);
        assert_eq!(breaker.shown(again), "open");
    }
}
