//! A concurrency limit that follows latency (after Netflix's concurrency-limits, "gradient"). Pure.
//!
//! While answers take as long as the best of late, the limit grows by about its square root per window; when they take
//! longer than tolerated, it shrinks by the ratio. What is best is measured anew every half minute, at a quarter of the limit
//! for one window (as Envoy's adaptive concurrency does): a best that is only ever remembered would go stale, and one that is
//! slowly forgotten would let an overload that lasts raise the limit.

use std::time::{Duration, Instant};

use crate::table::settings::AdaptiveSettings;

/// A window's length, and the fewest answers in one that say anything.
const WINDOW: Duration = Duration::from_millis(100);
const SAMPLES_MIN: u32 = 10;
/// Windows until the best is measured for the first time, and from then on.
const FIRST_PROBE: u32 = 10;
const NEXT_PROBE: u32 = 300;

/// The limit.
#[derive(Debug)]
pub(crate) struct Gradient {
    settings: AdaptiveSettings,
    limit: f64,
    best_s: f64,
    sum_s: f64,
    samples: u32,
    peak: u32,
    since: Instant,
    /// Windows until the next probe.
    probe_in: u32,
    /// The limit to go back to after a probe.
    probing: Option<f64>,
}

impl Gradient {
    /// Starts at a moderate limit.
    pub(crate) fn new(settings: AdaptiveSettings, now: Instant) -> Self {
        let limit = f64::from(settings.min.max(20).min(settings.max));
        Self {
            settings,
            limit,
            best_s: f64::INFINITY,
            sum_s: 0.0,
            samples: 0,
            peak: 0,
            since: now,
            probe_in: FIRST_PROBE,
            probing: None,
        }
    }

    /// Requests that may run at once.
    pub(crate) fn limit(&self) -> u32 {
        match self.probing {
            Some(limit) => (limit / 4.0).max(f64::from(self.settings.min)) as u32,
            None => self.limit as u32,
        }
    }

    /// Takes in an answer: how long it took, and how many ran at once.
    pub(crate) fn note(&mut self, took: Duration, in_flight: u32, now: Instant) {
        self.sum_s += took.as_secs_f64();
        self.samples += 1;
        self.peak = self.peak.max(in_flight);
        if now.duration_since(self.since) < WINDOW || self.samples < SAMPLES_MIN {
            return;
        }
        let mean = (self.sum_s / f64::from(self.samples)).max(1e-6);
        if self.probing.take().is_some() {
            self.best_s = mean;
            (self.sum_s, self.samples, self.peak, self.since) = (0.0, 0, 0, now);
            return;
        }
        self.best_s = self.best_s.min(mean);
        let tolerated = self.best_s * (1.0 + f64::from(self.settings.tolerance_percent) / 100.0);
        let gradient = (tolerated / mean).clamp(0.5, 1.0);
        // A limit that is not used says nothing about whether more would be good.
        let used = f64::from(self.peak) >= self.limit * 0.5;
        let room = if used && gradient >= 1.0 { self.limit.sqrt() } else { 0.0 };
        let wanted = self.limit * gradient + room;
        self.limit = wanted.clamp(f64::from(self.settings.min), f64::from(self.settings.max));
        (self.sum_s, self.samples, self.peak, self.since) = (0.0, 0, 0, now);
        self.probe_in -= 1;
        if self.probe_in == 0 {
            (self.probe_in, self.probing) = (NEXT_PROBE, Some(self.limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that takes 10 ms for up to `capacity` at once, and longer in proportion above.
    #[test]
    fn the_limit_settles_near_the_capacity() {
        for capacity in [10.0, 50.0, 200.0] {
            let settings = AdaptiveSettings { min: 4, max: 1000, tolerance_percent: 100 };
            let mut now = Instant::now();
            let mut gradient = Gradient::new(settings, now);
            let mut last = Vec::new();
            for round in 0..3000 {
                let running = f64::from(gradient.limit());
                let took = Duration::from_secs_f64(0.010 * (running / capacity).max(1.0));
                for _ in 0..20 {
                    gradient.note(took, gradient.limit(), now);
                }
                now += Duration::from_millis(100);
                if round >= 2000 {
                    last.push(running);
                }
            }
            let mean = last.iter().sum::<f64>() / last.len() as f64;
            assert!((capacity * 0.8..capacity * 4.5).contains(&mean), "capacity {capacity}: {mean}");
        }
    }

    #[test]
    fn an_unused_limit_does_not_grow() {
        let settings = AdaptiveSettings { min: 4, max: 1000, tolerance_percent: 100 };
        let mut now = Instant::now();
        let mut gradient = Gradient::new(settings, now);
        for _ in 0..1000 {
            gradient.note(Duration::from_millis(10), 1, now);
            now += Duration::from_millis(20);
        }
        assert_eq!(gradient.limit(), 20);
    }
}
