//! Rise and fall of active checks.

/// Whether an endpoint passes its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Active {
    healthy: bool,
    /// Outcomes in a row that speak against the present state.
    against: u32,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckOutcome {
    /// It answered as it should.
    Pass,
    /// It did not, or not in time.
    Fail,
}

impl Active {
    /// As the endpoint was found before; healthy if it was not, because a gateway that starts has traffic to serve before its
    /// first check.
    pub(crate) fn new(healthy: bool) -> Self {
        Self { healthy, against: 0 }
    }

    /// Whether the endpoint is healthy.
    pub(crate) fn healthy(self) -> bool {
        self.healthy
    }

    /// Takes in an outcome: `fall` failures in a row make it unhealthy, `rise` successes in a row healthy again.
    pub(crate) fn note(&mut self, outcome: CheckOutcome, rise: u32, fall: u32) {
        let passed = outcome == CheckOutcome::Pass;
        if passed == self.healthy {
            self.against = 0;
            return;
        }
        self.against += 1;
        if self.against >= if passed { rise } else { fall } {
            *self = Self { healthy: passed, against: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_and_rises_after_so_many_in_a_row() {
        let mut active = Active::new(true);
        let mut run = |outcomes: &str| {
            for outcome in outcomes.chars() {
                active.note(if outcome == '+' { CheckOutcome::Pass } else { CheckOutcome::Fail }, 2, 3);
            }
            active.healthy()
        };
        assert!(run("--+--"));
        assert!(!run("-"));
        assert!(!run("+-+"));
        assert!(run("+"));
    }
}
