//! When each request is due: decided before the load begins, and never by how the answers come.
//!
//! That is what makes coordinated omission impossible: a server that stands still for a second does not slow the asking, and
//! every request of that second carries its wait in its latency, which counts from the moment it was due.
//!
//! Without think time a session is one request. With it, sessions arrive, and each asks `steps` times, `think` apart, whatever
//! has been answered by then; the rate asked for is reached when the first sessions end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far apart requests (or sessions) arrive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// All equally far.
    #[default]
    Uniform,
    /// As independent users come: exponentially distributed distances (a Poisson process).
    Poisson,
}

/// One request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// Nanoseconds after the beginning.
    pub at_ns: u64,
    /// Which session sends it.
    pub session: u64,
    /// Which of the session's requests it is, from 0.
    pub step: u32,
}

/// All requests, in the order in which they are due. Without end.
#[derive(Debug)]
pub struct Schedule {
    /// Requests per second.
    rate: f64,
    arrivals: Arrivals,
    steps: u32,
    think_ns: u64,
    random: fastrand::Rng,
    sessions: u64,
    next_arrival_ns: u64,
    following: BinaryHeap<Reverse<Due>>,
}

impl Schedule {
    /// `rate` requests per second, in sessions of `steps` requests that are `think` apart.
    pub fn new(rate: f64, arrivals: Arrivals, steps: u32, think: Duration, seed: u64) -> Self {
        Self {
            rate,
            arrivals,
            steps: steps.max(1),
            think_ns: think.as_nanos() as u64,
            random: fastrand::Rng::with_seed(seed),
            sessions: 0,
            next_arrival_ns: 0,
            following: BinaryHeap::new(),
        }
    }

    /// How many requests a session makes.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    fn arrive(&mut self) -> Due {
        let due = Due { at_ns: self.next_arrival_ns, session: self.sessions, step: 0 };
        self.sessions += 1;
        let apart_ns = f64::from(self.steps) * 1e9 / self.rate;
        self.next_arrival_ns = match self.arrivals {
            // From the beginning each time, so that rounding does not add up.
            Arrivals::Uniform => (self.sessions as f64 * apart_ns) as u64,
            Arrivals::Poisson => due.at_ns + (-(1.0 - self.random.f64()).ln() * apart_ns) as u64,
        };
        due
    }
}

impl Iterator for Schedule {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        let waiting = self.following.peek().map(|Reverse(due)| due.at_ns);
        let due = match waiting {
            Some(at_ns) if at_ns < self.next_arrival_ns => self.following.pop().map(|Reverse(due)| due)?,
            _ => self.arrive(),
        };
        if due.step + 1 < self.steps {
            self.following.push(Reverse(Due { at_ns: due.at_ns + self.think_ns, step: due.step + 1, ..due }));
        }
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(schedule: Schedule, seconds: u64) -> Vec<Due> {
        schedule.take_while(|due| due.at_ns < seconds * 1_000_000_000).collect()
    }

    #[test]
    fn uniform_requests_neither_drift_nor_bunch() {
        let all = within(Schedule::new(333.0, Arrivals::Uniform, 1, Duration::ZERO, 1), 300);
        assert_eq!(all.len(), 99_900);
        let apart = all.windows(2).map(|pair| pair[1].at_ns - pair[0].at_ns);
        assert!(apart.clone().all(|ns| (3_003_002..=3_003_004).contains(&ns)));
    }

    #[test]
    fn poisson_keeps_the_rate_and_is_the_same_for_the_same_seed() {
        let all = |seed| within(Schedule::new(1000.0, Arrivals::Poisson, 1, Duration::ZERO, seed), 100);
        let counted = all(7).len() as f64;
        // 100,000 expected with a standard deviation of 316.
        assert!((counted - 100_000.0).abs() < 1500.0, "{counted}");
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
    }

    #[test]
    fn sessions_think_and_the_rate_is_reached_once_the_first_have_ended() {
        let all = within(Schedule::new(100.0, Arrivals::Uniform, 5, Duration::from_secs(1), 1), 20);
        assert!(all.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
        let in_second = |second: u64| all.iter().filter(|due| due.at_ns / 1_000_000_000 == second).count();
        assert_eq!((in_second(0), in_second(10), in_second(19)), (20, 100, 100));
        let of_first: Vec<u64> = all.iter().filter(|due| due.session == 0).map(|due| due.at_ns / 1_000_000).collect();
        assert_eq!(of_first, [0, 1000, 2000, 3000, 4000]);
    }
}
