//! Restart back-off of one container, as the kubelet counts it. Pure.
//!
//! The first restart is immediate; the next waits 10 s counted from the last exit, then 20 s, 40 s, up to 5 minutes. A
//! container that ran for ten minutes since its last start begins anew.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::pod::clock::later;

/// The first wait.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// The longest wait.
pub const MAX: SignedDuration = SignedDuration::from_secs(300);
/// After running this long a container's history is forgotten.
pub const RESET_AFTER: SignedDuration = SignedDuration::from_secs(600);

/// How long the next restart has to wait.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The wait that the next restart owes, in milliseconds; none before the first restart.
    wait_ms: Option<i64>,
    /// When the wait was last raised: the last restart.
    raised_at: Option<Timestamp>,
}

impl Backoff {
    /// When a container that ended at `ended_at` may start again, and the wait that this follows from.
    pub fn due(&self, ended_at: Timestamp) -> (Timestamp, SignedDuration) {
        let wait = if self.expired(ended_at) { SignedDuration::ZERO } else { self.wait() };
        (later(ended_at, wait), wait)
    }

    /// Notes a restart at `now` of a container that had ended at `ended_at`: the next one waits longer.
    pub fn raise(&mut self, ended_at: Timestamp, now: Timestamp) {
        let next = match self.wait_ms {
            Some(_) if !self.expired(ended_at) => (self.wait() * 2).clamp(INITIAL, MAX),
            _ => INITIAL,
        };
        self.wait_ms = Some(next.as_millis() as i64);
        self.raised_at = Some(now);
    }

    fn wait(&self) -> SignedDuration {
        SignedDuration::from_millis(self.wait_ms.unwrap_or(0)).clamp(SignedDuration::ZERO, MAX)
    }

    fn expired(&self, ended_at: Timestamp) -> bool {
        self.raised_at.is_none_or(|raised| ended_at.duration_since(raised) > RESET_AFTER)
    }
}

/// A duration as Go prints it, which is what the kubelet's messages hold: `10s`, `1m20s`, `5m0s`.
pub fn go_seconds(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_waits_longer_each_time() {
        let mut backoff = Backoff::default();
        let mut now = Timestamp::UNIX_EPOCH;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let (due, wait) = backoff.due(now);
            waits.push(go_seconds(wait));
            now = due;
            backoff.raise(now, now);
        }
        assert_eq!(waits, ["0s", "10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
    }

    #[test]
    fn ten_quiet_minutes_are_a_new_beginning() {
        let mut backoff = Backoff::default();
        let start = Timestamp::UNIX_EPOCH;
        backoff.raise(start, start);
        backoff.raise(start, start);
        let (_, wait) = backoff.due(later(start, RESET_AFTER));
        assert_eq!(wait.as_secs(), 20);
        let end = later(start, RESET_AFTER + SignedDuration::from_secs(1));
        assert_eq!(backoff.due(end), (end, SignedDuration::ZERO));
        backoff.raise(end, end);
        assert_eq!(backoff.due(end).1.as_secs(), 10);
    }
}
