//! When a probe is due and what its results mean. Pure; carrying one out is in `prober`.
//!
//! Attempts on the *beat* (`initialDelaySeconds`, then every `periodSeconds`) count as Kubernetes documents them. Between
//! the container's start and the first success of a startup or readiness probe there are *quick* attempts as well, 10,
//! 20, 40, 80… ms after each other; a quick success counts, a quick failure does not. So a program that is ready at
//! once is Ready within tens of milliseconds, and one that is slow is judged exactly as Kubernetes judges it.
//!
//! Source: <https://kubernetes.io/docs/tasks/configure-pod-container/configure-liveness-readiness-startup-probes/>.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use crate::pod::clock::{later, seconds};

/// The first wait between quick attempts.
const QUICK_FIRST: SignedDuration = SignedDuration::from_millis(10);

/// Which of a container's three probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Until it succeeds, the others wait; when it fails, the container is restarted.
    Startup,
    /// When it fails, the container is restarted.
    Liveness,
    /// Whether the container takes traffic.
    Readiness,
}

impl ProbeKind {
    /// As the kubelet's events begin: `Liveness probe failed: …`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What the results so far amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Neither threshold has been reached yet.
    Unknown,
    /// The success threshold was reached last.
    Passing,
    /// The failure threshold was reached last.
    Failing,
}

/// One probe of one running container.
#[derive(Debug, Clone)]
pub struct Probe {
    kind: ProbeKind,
    period: SignedDuration,
    timeout: SignedDuration,
    success_threshold: u32,
    failure_threshold: u32,
    beat_at: Timestamp,
    /// The next quick attempt and the wait after it; none once it is over.
    quick: Option<(Timestamp, SignedDuration)>,
    /// An attempt is under way; whether it was on the beat.
    in_flight: Option<bool>,
    successes: u32,
    failures: u32,
    verdict: Verdict,
}

impl Probe {
    /// The probe of a container that started (or whose startup probe passed) at `since`.
    pub fn new(kind: ProbeKind, spec: &core::Probe, since: Timestamp) -> Self {
        let period = seconds(spec.period_seconds, 10).max(SignedDuration::from_secs(1));
        let delay = seconds(spec.initial_delay_seconds, 0);
        let first = later(since, delay);
        let quick = (kind != ProbeKind::Liveness).then_some((later(first, QUICK_FIRST), QUICK_FIRST * 2));
        Self {
            kind,
            period,
            timeout: seconds(spec.timeout_seconds, 1).max(SignedDuration::from_secs(1)),
            success_threshold: threshold(spec.success_threshold, 1),
            failure_threshold: threshold(spec.failure_threshold, 3),
            // Without a delay, an attempt in the instant of the start would only ever measure exec time.
            beat_at: if delay.is_zero() { later(first, period) } else { first },
            quick,
            in_flight: None,
            successes: 0,
            failures: 0,
            verdict: Verdict::Unknown,
        }
    }

    /// What the results so far amount to.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// How long one attempt may take.
    pub fn timeout(&self) -> SignedDuration {
        self.timeout
    }

    /// When the next attempt is due; none while one is under way.
    pub fn next_at(&self) -> Option<Timestamp> {
        if self.in_flight.is_some() {
            return None;
        }
        Some(self.quick.map_or(self.beat_at, |(at, _)| at.min(self.beat_at)))
    }

    /// Begins an attempt if one is due.
    pub fn begin(&mut self, now: Timestamp) -> bool {
        if self.next_at().is_none_or(|at| at > now) {
            return false;
        }
        let on_beat = self.beat_at <= now;
        if on_beat {
            // Beats that were missed are not made up for.
            let missed = now.duration_since(self.beat_at).as_millis() / self.period.as_millis();
            self.beat_at = later(self.beat_at, self.period * (missed as i32).saturating_add(1));
        }
        self.in_flight = Some(on_beat);
        true
    }

    /// Takes in an attempt's result. Returns whether it counted.
    pub fn finish(&mut self, success: bool, now: Timestamp) -> bool {
        let on_beat = self.in_flight.take().unwrap_or(false);
        if let Some((_, wait)) = self.quick.filter(|_| !on_beat) {
            let next = (later(now, wait), wait * 2);
            self.quick = (next.1 <= self.period * 2).then_some(next);
        }
        if success {
            (self.successes, self.failures) = (self.successes.saturating_add(1), 0);
            if self.successes >= self.success_threshold {
                (self.verdict, self.quick) = (Verdict::Passing, None);
            }
        } else if on_beat {
            (self.successes, self.failures) = (0, self.failures.saturating_add(1));
            if self.failures >= self.failure_threshold {
                self.verdict = Verdict::Failing;
            }
        } else {
            self.successes = 0;
        }
        success || on_beat
    }

    /// Which probe this is.
    pub fn kind(&self) -> ProbeKind {
        self.kind
    }
}

fn threshold(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        later(Timestamp::UNIX_EPOCH, SignedDuration::from_millis(ms))
    }

    /// Runs the probe for `until` ms; `answer` says whether an attempt at a time succeeds. Returns times in ms of all attempts.
    fn attempts(probe: &mut Probe, until: i64, answer: impl Fn(i64) -> bool) -> Vec<i64> {
        let mut times = Vec::new();
        while let Some(next) = probe.next_at().filter(|next| *next <= at(until)) {
            assert!(probe.begin(next));
            times.push(next.as_millisecond());
            probe.finish(answer(next.as_millisecond()), next);
        }
        times
    }

    fn spec(delay: i32, period: i32, failures: i32) -> core::Probe {
        core::Probe {
            initial_delay_seconds: Some(delay),
            period_seconds: Some(period),
            failure_threshold: Some(failures),
            ..core::Probe::default()
        }
    }

    #[test]
    fn ready_at_once_is_seen_within_tens_of_milliseconds() {
        let mut probe = Probe::new(ProbeKind::Readiness, &spec(0, 10, 3), at(0));
        let times = attempts(&mut probe, 30_000, |ms| ms >= 25);
        assert_eq!(times, [10, 30, 10_000, 20_000, 30_000]);
        assert_eq!(probe.verdict(), Verdict::Passing);
    }

    #[test]
    fn quick_failures_do_not_count() {
        let mut probe = Probe::new(ProbeKind::Startup, &spec(0, 1, 2), at(0));
        let times = attempts(&mut probe, 1_999, |_| false);
        assert_eq!(times, [10, 30, 70, 150, 310, 630, 1000, 1270]);
        assert_eq!(probe.verdict(), Verdict::Unknown);
        attempts(&mut probe, 2_000, |_| false);
        assert_eq!(probe.verdict(), Verdict::Failing);
    }

    #[test]
    fn liveness_has_only_the_beat() {
        let mut probe = Probe::new(ProbeKind::Liveness, &spec(3, 5, 2), at(0));
        assert_eq!(attempts(&mut probe, 14_000, |ms| ms < 8_000), [3_000, 8_000, 13_000]);
        assert_eq!(probe.verdict(), Verdict::Failing);
    }

    #[test]
    fn one_attempt_at_a_time_and_missed_beats_are_dropped() {
        let mut probe = Probe::new(ProbeKind::Liveness, &spec(0, 1, 1), at(0));
        assert!(!probe.begin(at(999)));
        assert!(probe.begin(at(3_500)));
        assert!(!probe.begin(at(9_000)));
        probe.finish(true, at(3_600));
        assert_eq!(probe.next_at(), Some(at(4_000)));
    }

    #[test]
    fn success_threshold_needs_them_in_a_row() {
        let mut probe =
            Probe::new(ProbeKind::Readiness, &core::Probe { success_threshold: Some(2), ..spec(0, 1, 1) }, at(0));
        attempts(&mut probe, 100, |ms| ms != 30);
        assert_eq!(probe.verdict(), Verdict::Unknown);
        attempts(&mut probe, 400, |_| true);
        assert_eq!(probe.verdict(), Verdict::Passing);
    }
}
