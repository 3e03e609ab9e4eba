//! Acting: one action on the server at a time, one write of the Lease at a time.

use std::rc::Rc;
use std::time::Duration;

use super::{Event, Outcome, Steward, StewardError};
use crate::core::{Action, Lineage, MemberId, Peer, Plan, Position, Record, Stage, Tenure};
use crate::engine::{Ending, Engine, Source, Start};
use crate::peer::Question;

/// After an action failed, the next one waits so long.
const RETRY_MS: u64 = 100;
/// How long replicas may take to have all that a quiet primary has.
const CATCH_UP_MS: u64 = 1000;
/// How often they are asked meanwhile.
const CATCH_UP_ASK_MS: u64 = 25;
/// For so long a member that could not be promoted leaves it to others.
const FAILED_MS: u64 = 10_000;
/// For the look at the server after an action.
const PROBE: Duration = Duration::from_secs(1);

impl<E: Engine + 'static> Steward<E> {
    /// Carries out a plan.
    pub(super) fn carry_out(&mut self, plan: Plan) -> Result<(), StewardError> {
        if let Some(record) = plan.renew {
            self.write(record);
        }
        if plan.tenure == Tenure::Mine {
            self.ask_to_confirm();
        }
        self.prepare_handover(plan.tenure);
        self.end_when_caught_up();
        if !matches!(plan.action, Action::Wait) {
            let what = format!("{:?}", plan.action);
            tracing::debug!(why = plan.row.why.text(), "{}", what.chars().take(200).collect::<String>());
        }
        match plan.action {
            // A primary that has just started sees to its replicas.
            Action::Wait if plan.stage == Stage::Primary && !self.served && self.job.is_none() => {
                self.begin(Action::Wait)?;
            }
            Action::Wait => {}
            Action::Write(record) => self.write(record),
            Action::Fence => self.fence()?,
            Action::StopToRebuild(how) => {
                self.fence()?;
                self.rebuild = Some(how);
            }
            Action::Stop => self.stop(),
            Action::StartReplica => self.start(&Start::Replica(None), false)?,
            Action::StartPrimary(synchronous, lineage) => {
                self.keep_lineage(lineage)?;
                self.began = Some(lineage.from);
                self.start(&Start::Primary(synchronous), true)?;
            }
            action => self.begin(action)?,
        }
        Ok(())
    }

    fn write(&mut self, record: Record) {
        let sent = self.now_ms();
        self.lease.begin(record.clone(), sent);
        let (store, events) = (self.store.clone(), self.events.clone());
        tokio::task::spawn_local(async move {
            let written = store.write(&record).await;
            let _ = events.send(Event::Wrote(sent, record, written)).await;
        });
    }

    /// Kills the server, now.
    fn fence(&mut self) -> Result<(), StewardError> {
        self.cancel();
        let begin = self.now_ms();
        self.process.fence()?;
        self.forget_server();
        tracing::info!(took_ms = self.now_ms() - begin, "killed the server");
        Ok(())
    }

    fn start(&mut self, start: &Start, rising: bool) -> Result<(), StewardError> {
        self.forget_server();
        self.rebuild = None;
        self.stopping = false;
        self.quiet = None;
        self.served = false;
        match self.engine.command(start) {
            Ok(command) => self.process.start(&command)?,
            Err(error) => {
                self.failed(&error.to_string());
                return Ok(());
            }
        }
        self.rising = rising;
        self.since = u64::MAX;
        self.done_ms = self.now_ms();
        Ok(())
    }

    /// Ends the server in order.
    fn stop(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        let (engine, events) = (self.engine.clone(), self.events.clone());
        tokio::task::spawn_local(async move {
            let ending = engine.quiesce().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "writing could not be ended before the stop");
                Ending::Signal
            });
            let _ = events.send(Event::Quiet(ending)).await;
        });
    }

    /// Writing has ended.
    pub(super) fn quiet(&mut self, ending: Ending) {
        match ending {
            Ending::Signal => self.process.signal(self.engine.stop_signal()),
            Ending::Now => self.process.signal(nix::libc::SIGKILL),
            Ending::After(offset) => {
                self.quiet = Some((offset, self.now_ms()));
                self.quiet_asked_ms = 0;
            }
        }
    }

    /// Kills a server that accepts nothing any more, once a replica has all it has. One that takes too long is signalled instead.
    fn end_when_caught_up(&mut self) {
        let Some((offset, since)) = self.quiet else { return };
        let epoch = self.lease.record.as_ref().map(|record| record.epoch);
        let has_all = |peer: &Peer| {
            let standing = peer.standing.as_ref().filter(|it| it.follows == epoch);
            standing.and_then(|it| it.position).is_some_and(|position| position.offset >= offset)
        };
        let now = self.now_ms();
        if self.peers.values().any(has_all) {
            self.process.signal(nix::libc::SIGKILL);
        } else if now > since + CATCH_UP_MS {
            self.process.signal(self.engine.stop_signal());
        } else {
            // They are asked at once, and soon again.
            if now >= self.quiet_asked_ms + CATCH_UP_ASK_MS {
                self.quiet_asked_ms = now;
                self.looks.send_modify(|count| *count += 1);
            }
            return;
        }
        self.quiet = None;
    }

    fn failed(&mut self, error: &str) {
        tracing::warn!(error, "an action did not work; trying again");
        self.retry_at_ms = self.now_ms() + RETRY_MS;
    }

    fn keep_lineage(&mut self, lineage: Lineage) -> Result<(), StewardError> {
        let path = self.settings.state.clone();
        self.state.set_lineage(lineage).map_err(|source| StewardError::State { path, source })
    }

    /// Begins an action that takes its time.
    fn begin(&mut self, action: Action) -> Result<(), StewardError> {
        match &action {
            Action::Promote(_, lineage) => {
                self.keep_lineage(*lineage)?;
                self.rising = true;
            }
            Action::Follow(_, lineage) => self.keep_lineage(*lineage)?,
            _ => {}
        }
        let source = match &action {
            Action::Follow(holder, lineage) | Action::Rebuild(holder, lineage, _) => {
                let Some(source) = self.source(holder, lineage) else {
                    self.failed(&format!("no address of {holder} is known"));
                    return Ok(());
                };
                Some(source)
            }
            _ => None,
        };
        let wanted = self.lease.record.as_ref().and_then(|it| it.system.clone());
        self.jobs += 1;
        let (job, engine, events, others) = (self.jobs, self.engine.clone(), self.events.clone(), self.others());
        self.job = Some(tokio::task::spawn_local(async move {
            let outcome = match perform(&engine, &action, source, wanted, others).await {
                Ok(outcome) => outcome,
                Err(error) => Outcome { failed: Some(error), ..Outcome::default() },
            };
            let _ = events.send(Event::Did(job, Box::new(action), outcome)).await;
        }));
        Ok(())
    }

    /// Gives up the action under way.
    pub(super) fn cancel(&mut self) {
        self.jobs += 1;
        if let Some(job) = self.job.take() {
            job.abort();
        }
    }

    /// An action has ended.
    pub(super) fn did(&mut self, action: &Action, outcome: Outcome) -> Result<(), StewardError> {
        self.job = None;
        self.done_ms = self.now_ms();
        if let Some(error) = outcome.failed {
            if matches!(action, Action::Promote(..)) {
                // Whether it rises now is not known: it must not.
                self.fence()?;
                self.failed_until_ms = self.now_ms() + FAILED_MS;
            }
            self.failed(&error);
            return Ok(());
        }
        self.system = outcome.system.or(self.system.take());
        let mut promised = false;
        match action {
            Action::StandStill(promise) => {
                let path = self.settings.state.clone();
                self.state.promise_too(*promise).map_err(|source| StewardError::State { path, source })?;
                self.follows = None;
                promised = true;
            }
            Action::Follow(_, lineage) => self.follows = Some(lineage.epoch),
            Action::Promote(_, lineage) => {
                let offset = outcome.began.unwrap_or(u64::MAX).min(lineage.from.offset);
                self.began = Some(Position { offset, ..lineage.from });
                self.since = u64::MAX;
                self.served = false;
            }
            Action::Wait => self.served = true,
            Action::Rebuild(_, lineage, _) => {
                self.keep_lineage(*lineage)?;
                self.rebuild = None;
            }
            Action::Synchronise(_) => {
                self.since = outcome.observed.as_ref().map_or(u64::MAX, |seen| seen.offset);
            }
            _ => {}
        }
        if let Some(seen) = outcome.observed {
            self.observe(self.now_ms(), seen);
        }
        if promised {
            // Only now: whoever asks is told the promise together with the position taken after it.
            self.nudge(&Question::Look);
        }
        Ok(())
    }

    /// A switchover is short if the server is ready for it.
    fn prepare_handover(&mut self, tenure: Tenure) {
        if self.handover.is_none() || tenure != Tenure::Mine {
            (self.preparing, self.prepared) = (false, false);
        } else if !self.preparing && self.job.is_none() {
            self.preparing = true;
            let (engine, events) = (self.engine.clone(), self.events.clone());
            tokio::task::spawn_local(async move {
                if let Err(error) = engine.prepare_switchover().await {
                    tracing::warn!(%error, "the server could not be prepared for the switchover");
                }
                let _ = events.send(Event::Prepared).await;
            });
        }
    }
}

/// Does it, and looks at the server afterwards.
async fn perform<E: Engine>(
    engine: &Rc<E>,
    action: &Action,
    source: Option<Source>,
    wanted: Option<String>,
    others: std::collections::BTreeSet<MemberId>,
) -> Result<Outcome, String> {
    let text = |error: E::Error| {
        let why = std::error::Error::source(&error).map_or(String::new(), |it| format!(": {it}"));
        format!("{error}{why}")
    };
    let mut outcome = Outcome::default();
    match action {
        Action::Initialise => {
            engine.initialise().await.map_err(text)?;
            outcome.system = Some(engine.system().await.map_err(text)?);
            return Ok(outcome);
        }
        Action::Rebuild(_, _, how) => {
            // Only files of this database are thrown away.
            if engine.initialised() {
                let own = engine.system().await.map_err(text)?;
                if wanted.as_ref().is_some_and(|it| *it != own) {
                    return Err(format!("there is another database ({own}) in the data directory; move it away"));
                }
            }
            let source = source.ok_or("no source")?;
            engine.rebuild(&source, *how, wanted.as_deref()).await.map_err(text)?;
            return Ok(outcome);
        }
        Action::Promote(synchronous, _) => {
            outcome.began = Some(engine.promote(synchronous, &others).await.map_err(text)?);
        }
        Action::StandStill(_) => engine.follow(None).await.map_err(text)?,
        Action::Follow(..) => engine.follow(source.as_ref()).await.map_err(text)?,
        Action::Synchronise(synchronous) => {
            engine.synchronise(synchronous).await.map_err(text)?;
            engine.serve(&others).await.map_err(text)?;
        }
        Action::Wait => {
            engine.serve(&others).await.map_err(text)?;
            engine.admit().await.map_err(text)?;
        }
        _ => {}
    }
    outcome.observed = Some(engine.probe(PROBE).await.map_err(text)?);
    Ok(outcome)
}
