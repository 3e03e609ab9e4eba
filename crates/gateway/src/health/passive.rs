//! Outlier detection: an endpoint that fails is left out for a while.

use std::time::{Duration, Instant};

use crate::table::settings::OutlierSettings;

/// Answers over which the error share is measured.
const WINDOW: u32 = 100;
/// First pause after a refused connection: long enough to spare the next requests, short enough not to miss a restart.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);

/// What an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer that is no server error.
    Good,
    /// A 5xx, a reset or a timeout.
    Bad,
    /// No connection: refused, unreachable.
    Refused,
    /// It has requests but answers none, while others do.
    Stalled,
    /// It answers much later than the others.
    Slow,
}

/// The record of one endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Passive {
    consecutive: u32,
    /// The last outcomes, newest in bit 0; a set bit is an error.
    history: u128,
    seen: u32,
    ejections: u32,
    until: Option<Instant>,
    last_return: Option<Instant>,
}

/// How many endpoints an upstream has, and how many are out: what caps ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ejections {
    pub(crate) hosts: usize,
    pub(crate) ejected: usize,
}

impl Ejections {
    /// Whether one more may be ejected: not above the cap (but always one, of two or more), and never the last.
    fn may_eject(self, max_percent: u8) -> bool {
        let cap = (self.hosts * usize::from(max_percent) / 100).max(1);
        self.ejected < cap && self.ejected + 1 < self.hosts
    }
}

impl Passive {
    /// Whether the endpoint is left out at `now`.
    pub(crate) fn ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// Whether the last that was asked of it went well.
    pub(crate) fn is_well(&self) -> bool {
        self.seen > 0 && self.consecutive == 0
    }

    /// When it comes back.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// When it last came back; slow start counts from there.
    pub(crate) fn last_return(&self) -> Option<Instant> {
        self.last_return
    }

    /// Takes in an outcome; answers whether the endpoint's state has changed.
    pub(crate) fn note(
        &mut self,
        outcome: Outcome,
        now: Instant,
        settings: &OutlierSettings,
        others: Ejections,
    ) -> bool {
        if let Some(until) = self.until
            && until <= now
        {
            self.until = None;
            self.last_return = Some(until);
        }
        let bad = outcome != Outcome::Good;
        self.history = (self.history << 1) | u128::from(bad);
        self.seen = (self.seen + 1).min(WINDOW);
        if !bad {
            self.consecutive = 0;
            // A good spell as long as the last ejection forgives it.
            if self.ejections > 0
                && self
                    .last_return
                    .is_some_and(|back| now.duration_since(back) >= settings.base_ejection * self.ejections)
            {
                self.ejections -= 1;
                self.last_return = Some(now);
            }
            return false;
        }
        self.consecutive += 1;
        let pause = match outcome {
            Outcome::Refused => self.pause(REFUSED_PAUSE, settings),
            Outcome::Stalled | Outcome::Slow => self.pause(settings.base_ejection, settings),
            _ if self.too_many_errors(settings) => self.pause(settings.base_ejection, settings),
            _ => return false,
        };
        // What cannot be connected to is no help to anyone: only the cap's last host is kept for it.
        let useless = matches!(outcome, Outcome::Refused | Outcome::Stalled);
        let capped = if useless { 100 } else { settings.max_ejection_percent };
        if self.ejected(now) || !others.may_eject(capped) {
            return false;
        }
        self.until = Some(now + pause);
        self.ejections += 1;
        self.consecutive = 0;
        self.history = 0;
        self.seen = 0;
        true
    }

    fn pause(&self, base: Duration, settings: &OutlierSettings) -> Duration {
        (base * (self.ejections + 1)).min(settings.max_ejection.max(base))
    }

    fn too_many_errors(&self, settings: &OutlierSettings) -> bool {
        let errors = (self.history & ((1 << WINDOW) - 1)).count_ones();
        let share = settings.error_percent > 0
            && self.seen >= WINDOW.min(20)
            && errors * 100 >= self.seen * u32::from(settings.error_percent);
        share || (settings.consecutive_errors > 0 && self.consecutive >= settings.consecutive_errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Ejections = Ejections { hosts: 3, ejected: 0 };

    #[test]
    fn a_refused_connection_ejects_at_once_and_longer_each_time() {
        let (settings, start) = (OutlierSettings::default(), Instant::now());
        let mut host = Passive::default();
        assert!(host.note(Outcome::Refused, start, &settings, THREE));
        assert!(host.ejected(start + Duration::from_millis(249)));
        assert!(!host.ejected(start + Duration::from_millis(250)));
        let again = start + Duration::from_millis(300);
        assert!(host.note(Outcome::Refused, again, &settings, THREE));
        assert!(host.ejected(again + Duration::from_millis(499)));
        assert!(!host.ejected(again + Duration::from_millis(500)));
    }

    #[test]
    fn errors_in_a_row_eject_and_one_success_starts_the_count_anew() {
        let (settings, now) = (OutlierSettings::default(), Instant::now());
        let mut host = Passive::default();
        let mut note = |outcome| host.note(outcome, now, &settings, THREE);
        assert!((0..4).all(|_| !note(Outcome::Bad)));
        assert!(!note(Outcome::Good));
        assert!((0..4).all(|_| !note(Outcome::Bad)));
        assert!(note(Outcome::Bad));
    }

    #[test]
    fn a_share_of_errors_ejects() {
        let settings = OutlierSettings { error_percent: 40, consecutive_errors: 0, ..OutlierSettings::default() };
        let now = Instant::now();
        let mut host = Passive::default();
        let ejected = (0..40).position(|number| {
            let outcome = if number % 2 == 0 { Outcome::Bad } else { Outcome::Good };
            host.note(outcome, now, &settings, THREE)
        });
        assert_eq!(ejected, Some(20), "from 20 answers on, at the next error");
    }

    #[test]
    fn the_cap_holds_and_the_last_host_stays() {
        let (settings, now) = (OutlierSettings::default(), Instant::now());
        let eject = |outcome, hosts, ejected| {
            let mut host = Passive { consecutive: 10, ..Passive::default() };
            host.note(outcome, now, &settings, Ejections { hosts, ejected })
        };
        assert!(eject(Outcome::Bad, 4, 1));
        assert!(!eject(Outcome::Bad, 4, 2), "half of them is the cap");
        assert!(eject(Outcome::Refused, 4, 2), "but who refuses is avoided");
        assert!(!eject(Outcome::Refused, 4, 3), "unless it is the last");
        assert!(!eject(Outcome::Refused, 1, 0));
        assert!(eject(Outcome::Bad, 2, 0), "one of two may always go");
    }
}
