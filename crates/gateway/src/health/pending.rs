//! Attempts that wait for an answer: their time limits, and whether their endpoint is stalled.
//!
//! One table per endpoint and core, looked through by a tick every few milliseconds while anything waits. So a request costs
//! no timer of its own, only a slot.

use std::task::Waker;
use std::time::{Duration, Instant};

/// What the tick tells an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Its own time limit is over.
    TimedOut,
    /// It is time for a second attempt beside it.
    Hedge,
    /// Its endpoint answers nobody: a second attempt is overdue.
    Stalled,
}

/// A waiting attempt's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(usize);

#[derive(Debug)]
struct Waiting {
    deadline: Option<Instant>,
    hedge_at: Option<Instant>,
    signal: Option<Signal>,
    stall_told: bool,
    waker: Option<Waker>,
}

/// The attempts waiting at one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    slots: Vec<Option<Waiting>>,
    free: Vec<usize>,
    count: usize,
    /// When the endpoint last answered anybody, or began to have somebody waiting.
    progress: Option<Instant>,
    /// When it last answered.
    answered: Option<Instant>,
}

impl Pending {
    /// Attempts that wait.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// When the endpoint last answered.
    pub(crate) fn answered(&self) -> Option<Instant> {
        self.answered
    }

    /// An attempt begins to wait.
    pub(crate) fn enter(&mut self, now: Instant, deadline: Option<Instant>, hedge_at: Option<Instant>) -> Ticket {
        if self.count == 0 {
            self.progress = Some(now);
        }
        self.count += 1;
        let waiting = Waiting { deadline, hedge_at, signal: None, stall_told: false, waker: None };
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(waiting);
                Ticket(slot)
            }
            None => {
                self.slots.push(Some(waiting));
                Ticket(self.slots.len() - 1)
            }
        }
    }

    /// An attempt waits no longer; `answered` says whether it got an answer.
    pub(crate) fn leave(&mut self, ticket: Ticket, answered: Option<Instant>) {
        if self.slots[ticket.0].take().is_some() {
            self.free.push(ticket.0);
            self.count -= 1;
        }
        if let Some(now) = answered {
            self.progress = Some(now);
            self.answered = Some(now);
        }
    }

    /// Takes the signal of an attempt, or leaves its waker to be woken with one.
    pub(crate) fn poll(&mut self, ticket: Ticket, waker: &Waker) -> Option<Signal> {
        let waiting = self.slots[ticket.0].as_mut()?;
        let signal = waiting.signal.take();
        if signal.is_none() && waiting.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            waiting.waker = Some(waker.clone());
        }
        signal
    }

    /// Whether the endpoint is stalled at `now`: somebody has waited for `limit` without any progress, while another
    /// endpoint (`others_answered`) has answered since.
    pub(crate) fn stalled(&self, now: Instant, limit: Duration, others_answered: Option<Instant>) -> bool {
        self.count > 0
            && self.progress.is_some_and(|since| {
                now.duration_since(since) >= limit && others_answered.is_some_and(|answer| answer > since)
            })
    }

    /// Signals every attempt whose time has come, and all of them if the endpoint is `stalled`.
    pub(crate) fn tick(&mut self, now: Instant, stalled: bool) {
        for waiting in self.slots.iter_mut().flatten() {
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            let signal = if due(waiting.deadline) {
                Signal::TimedOut
            } else if stalled && !waiting.stall_told {
                waiting.stall_told = true;
                waiting.hedge_at = None;
                Signal::Stalled
            } else if due(waiting.hedge_at) {
                waiting.hedge_at = None;
                Signal::Hedge
            } else {
                continue;
            };
            waiting.signal = Some(signal);
            if let Some(waker) = waiting.waker.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_stalled_only_if_others_answer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let limit = Duration::from_millis(100);
        let mut pending = Pending::default();
        assert!(!pending.stalled(at(500), limit, Some(at(400))), "nobody waits");
        let first = pending.enter(at(500), None, None);
        let second = pending.enter(at(550), None, None);
        assert!(!pending.stalled(at(599), limit, Some(at(590))));
        assert!(!pending.stalled(at(600), limit, Some(at(400))), "the others are silent, too");
        assert!(pending.stalled(at(600), limit, Some(at(590))));
        pending.leave(first, Some(at(600)));
        assert!(!pending.stalled(at(650), limit, Some(at(640))), "it has answered");
        assert!(pending.stalled(at(700), limit, Some(at(690))));
        pending.leave(second, None);
        assert!(!pending.stalled(at(900), limit, Some(at(890))));
    }

    #[test]
    fn each_signal_is_given_once_and_in_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let waker = Waker::noop();
        let mut pending = Pending::default();
        let ticket = pending.enter(start, Some(at(300)), Some(at(50)));
        let mut signals = Vec::new();
        for ms in (10..=320).step_by(10) {
            pending.tick(at(ms), ms >= 100);
            signals.extend(pending.poll(ticket, waker).map(|signal| (ms, signal)));
        }
        assert_eq!(signals[..3], [(50, Signal::Hedge), (100, Signal::Stalled), (300, Signal::TimedOut)]);
    }
}
