//! One attempt, or two beside each other: the first good answer counts.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::forward::{Answer, AttemptError, Counted, Forward};
use crate::health::{Signal, Ticket};
use crate::upstream::Host;

type Outcome = Result<Answer, AttemptError>;

/// An attempt's place among those that wait at an endpoint.
pub(super) struct Waiting {
    host: Rc<Host>,
    ticket: Ticket,
    answered: bool,
}

impl Waiting {
    /// Begins to wait.
    pub(super) fn new(host: &Rc<Host>, now: Instant, deadline: Option<Instant>, hedge_at: Option<Instant>) -> Self {
        let ticket = host.pending.borrow_mut().enter(now, deadline, hedge_at);
        Self { host: host.clone(), ticket, answered: false }
    }

    fn signal(&self, cx: &Context<'_>) -> Option<Signal> {
        self.host.pending.borrow_mut().poll(self.ticket, cx.waker())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let answered = self.answered.then(Instant::now);
        self.host.pending.borrow_mut().leave(self.ticket, answered);
    }
}

/// A second attempt.
struct Second<'a> {
    index: usize,
    waiting: Waiting,
    attempt: Pin<Box<dyn Future<Output = Outcome> + 'a>>,
    #[allow(dead_code, reason = "held for its drop")]
    counted: Counted<'a>,
}

/// What is known while attempts run.
pub(super) struct Race<'a, 'b> {
    forward: &'a Forward<'a>,
    tried: &'b mut Vec<usize>,
    first: usize,
    waiting: Option<Waiting>,
    /// What the first attempt came to, while the second still runs.
    lost: Option<Outcome>,
    second: Option<Second<'a>>,
    doubled: bool,
}

impl<'a, 'b> Race<'a, 'b> {
    /// Runs an attempt at `first`, and perhaps one beside it; answers whose outcome counts.
    pub(super) async fn run(
        forward: &'a Forward<'a>,
        first: usize,
        tried: &'b mut Vec<usize>,
        now: Instant,
    ) -> (usize, Outcome) {
        let waiting = Some(forward.wait_at(first, now));
        let mut attempt = pin!(forward.attempt(first));
        let mut race = Self { forward, tried, first, waiting, lost: None, second: None, doubled: false };
        poll_fn(|cx| race.poll(attempt.as_mut(), cx)).await
    }

    fn poll(
        &mut self,
        attempt: Pin<&mut impl Future<Output = Outcome>>,
        cx: &mut Context<'_>,
    ) -> Poll<(usize, Outcome)> {
        if self.waiting.is_some()
            && let Poll::Ready(outcome) = attempt.poll(cx)
        {
            if let Some(waiting) = &mut self.waiting {
                waiting.answered = outcome.is_ok();
            }
            self.waiting = None;
            if self.second.is_none() || self.forward.is_wanted(&outcome) {
                return Poll::Ready((self.first, outcome));
            }
            self.lost = Some(outcome);
        }
        while let Some(signal) = self.waiting.as_ref().and_then(|it| it.signal(cx)) {
            match signal {
                Signal::TimedOut => {
                    self.waiting = None;
                    if self.second.is_none() {
                        return Poll::Ready((self.first, Err(AttemptError::TimedOut)));
                    }
                    self.lost = Some(Err(AttemptError::TimedOut));
                }
                Signal::Hedge | Signal::Stalled => self.double(signal),
            }
        }
        self.poll_second(cx)
    }

    /// Starts the second attempt. For a stalled endpoint it is not a question of budget: it takes the place of the first, and
    /// the endpoint gets no more requests, so that the load does not grow.
    fn double(&mut self, signal: Signal) {
        let forward = self.forward;
        let retry = forward.retry;
        let affordable = signal == Signal::Stalled || forward.group.may_retry(retry.budget_percent, retry.budget_min);
        if self.doubled || !affordable || !forward.may_double() {
            return;
        }
        let Some(index) =
            forward.group.pick(self.tried, forward.hash, Instant::now()).filter(|it| !self.tried.contains(it))
        else {
            return;
        };
        self.doubled = true;
        self.tried.push(index);
        forward.metrics.hedges.add(1);
        let waiting = forward.wait_at(index, Instant::now());
        let counted = Counted::new(&forward.group.retries);
        self.second = Some(Second { index, waiting, attempt: Box::pin(forward.attempt(index)), counted });
    }

    fn poll_second(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Outcome)> {
        let Some(second) = &mut self.second else { return Poll::Pending };
        let index = second.index;
        let outcome = match second.attempt.as_mut().poll(cx) {
            Poll::Ready(outcome) => {
                second.waiting.answered = outcome.is_ok();
                outcome
            }
            Poll::Pending => loop {
                match second.waiting.signal(cx) {
                    None => return Poll::Pending,
                    Some(Signal::TimedOut) => break Err(AttemptError::TimedOut),
                    // There is no third attempt beside a second; its time limit ends it.
                    Some(_) => {}
                }
            },
        };
        self.second = None;
        match self.lost.take() {
            _ if self.forward.is_wanted(&outcome) => {
                if let Some(waiting) = &self.waiting {
                    self.forward.group.outdone(&waiting.host, Instant::now());
                }
                Poll::Ready((index, outcome))
            }
            // Both failed: an answer is better than none, and the first says more than the second.
            Some(Err(_)) => Poll::Ready((index, outcome)),
            Some(lost) => Poll::Ready((self.first, lost)),
            // The first still runs and may yet answer.
            None => Poll::Pending,
        }
    }
}
