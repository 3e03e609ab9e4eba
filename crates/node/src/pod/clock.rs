//! The clock of pod life: wall time that never jumps.
//!
//! Everything that decides takes `now` as an argument. The driver reads it here: the wall clock at the agent's start plus
//! the monotonic time since, so that a stepped system clock neither kills pods nor stops their probes. Deliberately
//! absent: following later corrections of the wall clock; a restart of the agent does.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// No wait is longer: ten years, so that sums never leave the range of a timestamp.
const WAIT_MAX: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// Reads the time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Timestamp,
    started: Instant,
}

impl Clock {
    /// A clock that agrees with the wall clock now.
    pub fn start() -> Self {
        Self { wall: Timestamp::now(), started: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        later(self.wall, SignedDuration::try_from(self.started.elapsed()).unwrap_or(WAIT_MAX))
    }

    /// When it was started.
    pub fn started(&self) -> Timestamp {
        self.wall
    }

    /// How long to sleep until `at`; zero if that has passed.
    pub fn until(&self, at: Timestamp) -> Duration {
        Duration::try_from(at.duration_since(self.now())).unwrap_or(Duration::ZERO)
    }
}

/// `time + wait`, with the wait limited to ten years either way.
pub fn later(time: Timestamp, wait: SignedDuration) -> Timestamp {
    time.checked_add(wait.clamp(-WAIT_MAX, WAIT_MAX)).unwrap_or(time)
}

/// Seconds as they stand in an object: absent is `default`, negative is zero.
pub fn seconds(value: Option<impl Into<i64>>, default: i64) -> SignedDuration {
    SignedDuration::from_secs(value.map_or(default, Into::into).max(0)).min(WAIT_MAX)
}

/// The earlier of two optional times.
pub fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
