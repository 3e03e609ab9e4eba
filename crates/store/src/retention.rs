//! How far back revisions are kept: a pure function of what was seen when.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Revision;

/// How many points of time are remembered within the time revisions are kept.
const SAMPLES: u32 = 60;

/// Remembers which revision was present when.
#[derive(Debug)]
pub(crate) struct Retention {
    keep_for: Duration,
    keep_revisions: u64,
    /// Ascending in both.
    samples: VecDeque<(Duration, Revision)>,
}

impl Retention {
    pub(crate) fn new(keep_for: Duration, keep_revisions: u64) -> Self {
        Self { keep_for, keep_revisions, samples: VecDeque::new() }
    }

    /// How often it is worth calling [`Self::target`].
    pub(crate) fn interval(&self) -> Duration {
        self.keep_for / SAMPLES
    }

    /// Notes that `revision` is present at `now` (since any fixed moment), and returns the revision up to which history
    /// is no longer kept: what was present `keep_for` ago, or `keep_revisions` back, whichever is later.
    pub(crate) fn target(&mut self, now: Duration, revision: Revision) -> Revision {
        let due = self.samples.back().is_none_or(|(last, _)| now >= *last + self.interval());
        if due {
            self.samples.push_back((now, revision));
        }
        // The front is the youngest sample that is old enough.
        while self.samples.get(1).is_some_and(|(taken, _)| *taken + self.keep_for <= now) {
            self.samples.pop_front();
        }
        let by_age = match self.samples.front() {
            Some((taken, revision)) if *taken + self.keep_for <= now => *revision,
            _ => 0,
        };
        by_age.max(revision.saturating_sub(self.keep_revisions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn keeps_by_age() {
        let mut retention = Retention::new(60 * SECOND, 1_000_000);
        for second in 0..60 {
            assert_eq!(retention.target(second * SECOND, 100 + u64::from(second)), 0);
        }
        assert_eq!(retention.target(60 * SECOND, 160), 100);
        assert_eq!(retention.target(61 * SECOND, 161), 101);
        assert_eq!(retention.target(1000 * SECOND, 161), 161);
        assert!(retention.samples.len() <= 61);
    }

    #[test]
    fn keeps_by_number() {
        let mut retention = Retention::new(60 * SECOND, 1000);
        assert_eq!(retention.target(Duration::ZERO, 500), 0);
        assert_eq!(retention.target(SECOND, 1500), 500);
    }
}
