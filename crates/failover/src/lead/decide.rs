//! What a holder does next: a state machine that knows neither clock nor network nor processes.
//!
//! | phase | why it ends | then |
//! |---|---|---|
//! | standby | the lease is ours | preparing, or running without a pre-hook |
//! | preparing | the hook succeeded / failed | running / releasing |
//! | running | the program ended / we are to stop / the lease is lost | cleaning / stopping / stopping, killed |
//! | stopping | the program ended | cleaning; without a post-hook: releasing, or standby if the lease was lost |
//! | cleaning | the hook ended | releasing, or standby if the lease was lost |
//! | releasing | the lease is free, or ran out | done |
//!
//! Time is the time since boot, sleep included. One request is under way at a time.

use std::time::Duration;

use super::event::Event;

/// The part of the ttl at its end in which nothing of the holder runs any more: time to kill, and for clocks to differ.
const MARGIN_PART: u32 = 5;
/// Renewals that must fit into the time that is left of a ttl.
const RENEWALS_MIN: u32 = 3;
/// Shorter ttls are below what processes and networks can keep.
const TTL_MIN: Duration = Duration::from_millis(100);
/// Longer ones are no failover.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// Why a ttl and a renewal period do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// The ttl is out of range.
    #[error("ttl {0:?} is not between 100 ms and 1 h")]
    Ttl(Duration),
    /// Too few renewals would fit.
    #[error(
        "renew {renew:?} is not between 1 ms and {max:?}: three renewals must fit into four fifths of the ttl {ttl:?}"
    )]
    Renew {
        /// What was asked for.
        renew: Duration,
        /// The ttl.
        ttl: Duration,
        /// The longest renewal period for it.
        max: Duration,
    },
}

/// How fast it all goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Without a change of the Lease for so long, others take it.
    pub ttl: Duration,
    /// How often the holder renews.
    pub renew: Duration,
    /// How long the program has to stop after SIGTERM, and a post-hook to run.
    pub grace: Duration,
}

impl Timing {
    /// Checks the relation.
    ///
    /// # Errors
    /// When fewer than three renewals fit into the time a claim is good.
    pub fn new(ttl: Duration, renew: Duration, grace: Duration) -> Result<Self, TimingError> {
        let timing = Self { ttl, renew, grace };
        let max = timing.valid() / RENEWALS_MIN;
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(TimingError::Ttl(ttl));
        }
        if renew < Duration::from_millis(1) || renew > max {
            return Err(TimingError::Renew { renew, ttl, max });
        }
        Ok(timing)
    }

    /// How long a claim is good, from when it was sent.
    pub fn valid(&self) -> Duration {
        self.ttl.saturating_sub(self.ttl / MARGIN_PART)
    }

    /// How long one request may take: a second one must fit into what is left.
    pub fn attempt(&self) -> Duration {
        self.valid().saturating_sub(self.renew) / 2
    }
}

/// What the Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its revision, for compare-and-swap.
    pub version: String,
    /// Who holds it; empty when nobody does.
    pub holder: String,
    /// When the holder says it renewed: only ever compared for being the same.
    pub renewed: String,
    /// The ttl that its holder uses.
    pub ttl: Duration,
    /// Grows with each new holder.
    pub epoch: u64,
}

/// What to write into the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It becomes ours.
    Take,
    /// It stays ours.
    Renew,
    /// Nobody's.
    Release,
}

/// What came of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is as we wrote it.
    Written(Record),
    /// Somebody else wrote in between.
    Conflict,
    /// No answer, or an error: it may have been written or not.
    Unknown(String),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Nothing but time went by.
    Tick,
    /// The watch shows the Lease; `None`: there is none.
    Watched(Option<Record>),
    /// A read was answered.
    Read(Result<Option<Record>, String>),
    /// A write that was sent at this time was answered.
    Wrote {
        /// When it was sent.
        sent: Duration,
        /// What came of it.
        outcome: Outcome,
    },
    /// The program or hook and all that it started is gone; its exit code (128 and the signal's number for a signal).
    Ended(i32),
    /// We are asked to stop.
    Terminate,
}

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The hook before the program.
    Pre,
    /// The program.
    Program,
    /// The hook after it.
    Post,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the Lease.
    Read,
    /// Write it if its revision is still this one (`None`: if there is none), with this epoch.
    Write(Claim, Option<String>, u64),
    /// Start this; it may run until [`Holder::fence`].
    Run(Stage, u64),
    /// SIGTERM to what runs.
    Stop,
    /// SIGKILL to what runs.
    Kill,
    /// Tell people.
    Say(Event),
    /// End with this code.
    Exit(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Standby,
    Preparing,
    Running,
    Stopping { kill_at: Option<Duration> },
    Cleaning { kill_at: Option<Duration> },
    Releasing,
    Done,
}

#[derive(Debug, Clone)]
struct Seen {
    record: Option<Record>,
    /// When it was first seen to say so.
    since: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    until: Duration,
    epoch: u64,
}

/// One holder.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // facts that hold or not, each independent of the others
pub struct Holder {
    timing: Timing,
    /// Who this is: another one after each start, because what an earlier life left running is not known.
    identity: String,
    hooks: (bool, bool),
    phase: Phase,
    seen: Option<Seen>,
    held: Option<Held>,
    /// A request is under way.
    busy: bool,
    /// What was seen may be outdated: read before writing.
    stale: bool,
    /// No request before this time.
    next: Duration,
    /// The lease was lost while something ran.
    lost: bool,
    /// The last request failed, and people know it.
    unreachable: bool,
    /// The highest epoch ever seen.
    epoch: u64,
    terminate: bool,
    code: i32,
    actions: Vec<Action>,
}

impl Holder {
    /// A holder that has seen nothing yet; `hooks`: whether there is a pre- and a post-hook.
    pub fn new(timing: Timing, identity: String, hooks: (bool, bool)) -> Self {
        Self {
            timing,
            identity,
            hooks,
            phase: Phase::Standby,
            seen: None,
            held: None,
            busy: false,
            stale: true,
            next: Duration::ZERO,
            lost: false,
            unreachable: false,
            epoch: 0,
            terminate: false,
            code: 0,
            actions: Vec::new(),
        }
    }

    /// Takes note of what happened and says what to do.
    pub fn step(&mut self, input: Input, now: Duration) -> Vec<Action> {
        // First of all: whoever lost time has lost the lease, whatever else happened meanwhile.
        self.expire(now);
        let ended = self.absorb(input, now);
        self.advance(ended, now);
        self.request(now);
        std::mem::take(&mut self.actions)
    }

    /// When what runs must be dead, whoever else still lives.
    pub fn fence(&self) -> Option<Duration> {
        match (self.phase, self.held) {
            (Phase::Cleaning { kill_at: Some(at) }, None) => Some(at),
            (_, held) => held.map(|held| held.until),
        }
    }

    /// When to look again without anything happening.
    pub fn wake(&self) -> Option<Duration> {
        let kill_at = match self.phase {
            Phase::Stopping { kill_at } | Phase::Cleaning { kill_at } => kill_at,
            _ => None,
        };
        let until = self.held.map(|held| held.until);
        [kill_at, until, self.request_at()].into_iter().flatten().min()
    }

    fn expire(&mut self, now: Duration) {
        if self.held.is_some_and(|held| now >= held.until) {
            self.lose("no renewal was acknowledged in time");
        }
    }

    fn lose(&mut self, why: &str) {
        self.held = None;
        self.stale = true;
        if matches!(self.phase, Phase::Preparing | Phase::Running | Phase::Stopping { .. }) {
            self.lost = true;
            self.say(Event::Lost { reason: why.to_owned() });
        }
    }

    fn say(&mut self, event: Event) {
        self.actions.push(Action::Say(event));
    }

    /// The exit code, if something ended.
    fn absorb(&mut self, input: Input, now: Duration) -> Option<i32> {
        match input {
            Input::Tick => {}
            Input::Watched(Some(record)) => self.see(Some(record), now),
            // A watch can be late; that there is none now has to be asked for.
            Input::Watched(None) => self.stale = true,
            Input::Read(Ok(record)) => {
                (self.busy, self.stale, self.unreachable) = (false, false, false);
                self.see(record, now);
            }
            Input::Read(Err(reason)) => self.retry(reason, now),
            Input::Wrote { sent, outcome } => self.wrote(sent, outcome, now),
            Input::Ended(code) => return Some(code),
            Input::Terminate => self.terminate = true,
        }
        None
    }

    fn retry(&mut self, reason: String, now: Duration) {
        (self.busy, self.stale) = (false, true);
        self.next = now + self.timing.renew / 3;
        if !std::mem::replace(&mut self.unreachable, true) {
            self.say(Event::Unreachable { reason });
        }
    }

    fn wrote(&mut self, sent: Duration, outcome: Outcome, now: Duration) {
        match outcome {
            Outcome::Written(record) => {
                (self.busy, self.unreachable) = (false, false);
                self.next = sent + self.timing.renew;
                if self.phase == Phase::Releasing {
                    self.say(Event::Released);
                }
                let ours = record.holder == self.identity;
                let until = sent + self.timing.valid();
                // An answer that comes too late claims nothing; the record is ours, so it can be written again.
                self.held = (ours && now < until).then_some(Held { until, epoch: record.epoch });
                self.see(Some(record), now);
            }
            Outcome::Conflict => (self.busy, self.stale, self.next) = (false, true, now),
            Outcome::Unknown(reason) => self.retry(reason, now),
        }
    }

    fn see(&mut self, record: Option<Record>, now: Duration) {
        if let (Some(Seen { record: Some(known), .. }), Some(new)) = (&self.seen, &record)
            && is_older(&new.version, &known.version)
        {
            return;
        }
        self.epoch = self.epoch.max(record.as_ref().map_or(0, |record| record.epoch));
        let said =
            |record: &Option<Record>| record.as_ref().map(|it| (it.holder.clone(), it.renewed.clone(), it.epoch));
        let other = record.as_ref().filter(|it| it.holder != self.identity).map(|it| it.holder.clone());
        let since = match &self.seen {
            Some(seen) if said(&seen.record) == said(&record) => seen.since,
            _ => {
                if let (Phase::Standby, Some(holder)) = (self.phase, &other)
                    && !holder.is_empty()
                    && self.seen.as_ref().and_then(|seen| seen.record.as_ref()).is_none_or(|it| it.holder != *holder)
                {
                    self.say(Event::Standby { holder: holder.clone() });
                }
                now
            }
        };
        self.seen = Some(Seen { record, since });
        if let Some(holder) = other
            && self.held.is_some()
        {
            self.lose(&format!("the Lease was given to {holder:?}"));
        }
    }

    fn advance(&mut self, ended: Option<i32>, now: Duration) {
        let held = self.held.is_some();
        match self.phase {
            Phase::Standby if self.terminate && !self.busy => self.finish(),
            Phase::Standby if held => {
                self.say(Event::Leading { epoch: self.epoch() });
                self.lost = false;
                if self.hooks.0 {
                    self.start(Phase::Preparing, Stage::Pre);
                } else {
                    self.start(Phase::Running, Stage::Program);
                }
            }
            Phase::Preparing if ended == Some(0) && held && !self.terminate => {
                self.start(Phase::Running, Stage::Program);
            }
            Phase::Preparing if ended.is_some() => {
                self.code = ended.unwrap_or_default();
                self.say(Event::Ended { stage: "pre-hook", code: self.code });
                self.finish();
            }
            Phase::Running | Phase::Stopping { .. } if ended.is_some() => {
                self.program_ended(ended.unwrap_or_default(), now);
            }
            Phase::Cleaning { .. } if ended.is_some() => self.finish(),
            Phase::Preparing | Phase::Running if !held => {
                self.phase = Phase::Stopping { kill_at: None };
                self.actions.push(Action::Kill);
            }
            Phase::Preparing | Phase::Running if self.terminate => {
                self.phase = Phase::Stopping { kill_at: Some(now + self.timing.grace) };
                self.say(Event::Stopping);
                self.actions.push(Action::Stop);
            }
            Phase::Stopping { kill_at: Some(at) } if !held || now >= at => {
                self.phase = Phase::Stopping { kill_at: None };
                self.actions.push(Action::Kill);
            }
            Phase::Cleaning { kill_at: Some(at) } if now >= at => {
                self.phase = Phase::Cleaning { kill_at: None };
                self.actions.push(Action::Kill);
            }
            Phase::Releasing if !held => self.exit(),
            _ => {}
        }
    }

    fn start(&mut self, phase: Phase, stage: Stage) {
        self.phase = phase;
        self.actions.push(Action::Run(stage, self.epoch()));
    }

    fn program_ended(&mut self, code: i32, now: Duration) {
        self.say(Event::Ended { stage: "program", code });
        self.code = code;
        if self.hooks.1 {
            self.start(Phase::Cleaning { kill_at: Some(now + self.timing.grace) }, Stage::Post);
        } else {
            self.finish();
        }
    }

    /// Nothing runs any more.
    fn finish(&mut self) {
        if self.held.is_some() {
            self.phase = Phase::Releasing;
        } else if self.lost && !self.terminate {
            self.phase = Phase::Standby;
        } else {
            self.exit();
        }
    }

    fn exit(&mut self) {
        self.phase = Phase::Done;
        // What was stopped or killed by a signal, because this was told to stop, ended as it should.
        if self.terminate && self.code > 128 {
            self.code = 0;
        }
        self.actions.push(Action::Exit(self.code));
    }

    /// The epoch of what runs.
    fn epoch(&self) -> u64 {
        self.held.map_or(self.epoch, |held| held.epoch)
    }

    /// The next request, if it is time for one.
    fn request(&mut self, now: Duration) {
        if self.request_at().is_none_or(|at| now < at) {
            return;
        }
        self.busy = true;
        let action = if self.stale || self.seen.is_none() {
            Action::Read
        } else if let Some(held) = self.held {
            let claim = if self.phase == Phase::Releasing { Claim::Release } else { Claim::Renew };
            Action::Write(claim, self.version(), held.epoch)
        } else {
            Action::Write(Claim::Take, self.version(), self.epoch + 1)
        };
        self.actions.push(action);
    }

    /// When the next request is to be sent; `None`: not before something happens.
    fn request_at(&self) -> Option<Duration> {
        let standby = self.phase == Phase::Standby && !self.terminate;
        match self.held {
            _ if self.busy || self.phase == Phase::Done => None,
            Some(_) if self.phase == Phase::Releasing && !self.stale => Some(Duration::ZERO),
            Some(_) => Some(self.next),
            None if standby => Some(self.next.max(self.free_at())),
            None => None,
        }
    }

    fn version(&self) -> Option<String> {
        self.seen.as_ref().and_then(|seen| seen.record.as_ref()).map(|record| record.version.clone())
    }

    /// When the Lease may be taken, or has to be read before.
    fn free_at(&self) -> Duration {
        let Some(seen) = self.seen.as_ref().filter(|_| !self.stale) else { return Duration::ZERO };
        match &seen.record {
            // Nobody knows whether its holder still runs: a Lease that was deleted was not released.
            None => seen.since + self.timing.ttl,
            Some(record) if record.holder.is_empty() || record.holder == self.identity => Duration::ZERO,
            Some(record) => seen.since + self.timing.ttl.max(record.ttl),
        }
    }
}

/// Whether one revision is older than another, where both are numbers (Kubernetes API concepts, resource versions).
fn is_older(new: &str, known: &str) -> bool {
    matches!((new.parse::<u64>(), known.parse::<u64>()), (Ok(new), Ok(known)) if new < known)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn timing() -> Timing {
        Timing::new(Duration::from_millis(1500), Duration::from_millis(300), Duration::from_secs(5)).unwrap()
    }

    #[test]
    fn the_relation_of_ttl_and_renewal_is_checked() {
        let ms = Duration::from_millis;
        assert_eq!(timing().valid(), ms(1200));
        assert_eq!(timing().attempt(), ms(450));
        assert!(Timing::new(ms(1500), ms(400), ms(0)).is_ok());
        let refused = Timing::new(ms(1500), ms(401), ms(0)).unwrap_err().to_string();
        assert!(refused.contains("400ms"), "{refused}");
        assert_eq!(Timing::new(ms(50), ms(10), ms(0)), Err(TimingError::Ttl(ms(50))));
    }

    #[test]
    fn a_lease_that_nobody_knows_of_is_created_after_one_ttl() {
        let mut holder = Holder::new(timing(), "me".into(), (false, false));
        let ms = Duration::from_millis;
        assert_eq!(holder.step(Input::Tick, ms(0)), [Action::Read]);
        assert!(holder.step(Input::Read(Ok(None)), ms(10)).is_empty());
        assert_eq!(holder.wake(), Some(ms(1510)));
        assert!(holder.step(Input::Tick, ms(1509)).is_empty());
        assert_eq!(holder.step(Input::Tick, ms(1510)), [Action::Write(Claim::Take, None, 1)]);
    }
}
