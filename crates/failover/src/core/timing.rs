//! How long a Lease is good for, to its holder and to the others.
//!
//! # Proof that two holders' times do not overlap
//! The holder counts from `s`, when it **sent** its last acknowledged renewal, and has killed its server by `s + hold + fence`
//! on its clock. Another counts from when it first **saw** that renewal, which is after `s`, and takes the Lease no earlier than
//! `ttl` later on its own clock. If no clock gains or loses more than `d` of the true time, the holder's end is at most
//! `s + (hold + fence)·(1 + d)`, the other's beginning at least `s + ttl·(1 - d)`. [`Timing::check`] therefore demands
//! `(hold + fence)·(1 + d) <= ttl·(1 - d)`. Wall clocks are never compared. A peer's confirmation, with which a primary goes
//! on while the API cannot be reached, is the same contract: the primary counts from when it asked, the peer from when it answered.

use serde::{Deserialize, Serialize};

/// The times of one database. All in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Without a sign of the holder for so long, others may take the Lease.
    pub ttl_ms: u64,
    /// How often the holder renews, and everybody looks.
    pub renewal_ms: u64,
    /// How long a request to the API or a peer may take.
    pub request_ms: u64,
    /// How long killing the server may take.
    pub fence_ms: u64,
    /// Bound of a clock's drift, in thousandths. Ordinary quartz stays below 0.1.
    pub drift_per_mille: u64,
    /// A server that does not answer for so long is hung.
    pub hung_ms: u64,
    /// A replica silent for so long no longer counts for commits.
    pub unhealthy_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self::of(1500, 300)
    }
}

impl Timing {
    /// Times that fit a Lease of `ttl_ms`, renewed every `renewal_ms`.
    pub fn of(ttl_ms: u64, renewal_ms: u64) -> Self {
        let request_ms = (ttl_ms / 4).max(50);
        Self {
            ttl_ms,
            renewal_ms,
            request_ms,
            fence_ms: ttl_ms / 8,
            drift_per_mille: 5,
            hung_ms: ttl_ms,
            unhealthy_ms: ttl_ms,
        }
    }

    /// For how long after sending an acknowledged renewal the holder may let its server accept writes.
    pub fn hold_ms(&self) -> u64 {
        let others = self.ttl_ms * (1000 - self.drift_per_mille.min(1000)) / (1000 + self.drift_per_mille);
        others.saturating_sub(self.fence_ms)
    }

    /// Whether these times can work; otherwise what is wrong and what to do.
    pub fn check(&self) -> Result<(), TimingError> {
        if self.drift_per_mille > 100 {
            return Err(TimingError::Drift(self.drift_per_mille));
        }
        let least_ms = 3 * self.renewal_ms + self.request_ms;
        if self.renewal_ms == 0 || self.ttl_ms < least_ms {
            let Self { ttl_ms, renewal_ms, request_ms, .. } = *self;
            return Err(TimingError::Ttl { ttl_ms, renewal_ms, request_ms, least_ms });
        }
        let least_ms = 2 * self.renewal_ms + self.request_ms;
        if self.hold_ms() < least_ms {
            return Err(TimingError::Hold { hold_ms: self.hold_ms(), least_ms });
        }
        Ok(())
    }
}

/// Times that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// The Lease would run out over one lost renewal.
    #[error(
        "ttl {ttl_ms} ms is too short for a renewal every {renewal_ms} ms and requests of up to {request_ms} ms: set at least {least_ms} ms"
    )]
    Ttl {
        /// The Lease's time.
        ttl_ms: u64,
        /// Between renewals.
        renewal_ms: u64,
        /// For one request.
        request_ms: u64,
        /// What would do.
        least_ms: u64,
    },
    /// What is left to the holder after drift and fencing is too short.
    #[error("the holder of the Lease would have {hold_ms} ms to renew it and needs {least_ms} ms: set a longer ttl")]
    Hold {
        /// What it has.
        hold_ms: u64,
        /// What it needs.
        least_ms: u64,
    },
    /// Nobody's clock is that bad.
    #[error("a drift of {0} in 1000 is too much: set at most 100")]
    Drift(u64),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_and_slow_networks_work() {
        assert_eq!(Timing::default().check(), Ok(()));
        assert_eq!(Timing::of(30_000, 5_000).check(), Ok(()));
        assert!(matches!(Timing::of(1_000, 300).check(), Err(TimingError::Ttl { least_ms: 1150, .. })));
    }

    proptest! {
        #[test]
        fn times_that_pass_never_overlap(ttl in 1_u64..100_000, renewal in 1_u64..30_000, fence in 0_u64..5_000, drift in 0_u64..=100) {
            let timing = Timing { fence_ms: fence, drift_per_mille: drift, ..Timing::of(ttl, renewal) };
            if timing.check().is_ok() {
                // In true time, times 1000: the holder's clock is slow, the other's fast.
                let end = (timing.hold_ms() + fence) * (1000 + drift);
                prop_assert!(end <= ttl * (1000 - drift));
            }
        }
    }
}
