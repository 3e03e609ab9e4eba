//! Looking: at the Lease, the peers and the server; taking in what was seen; saying how this member stands.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::{Event, FULL_BYTES, Report, Steward, StewardError};
use crate::core::{Peer, Plan, Record, Role, Stage, Written, confirms, standing};
use crate::engine::{Engine, Observation};
use crate::peer::{Answer, Question, ask};

/// Between two probes of the server.
const PROBE: Duration = Duration::from_millis(60);
/// Positions are told this often, in milliseconds.
const POSITION_MS: u64 = 1000;

impl<E: Engine + 'static> Steward<E> {
    /// Starts looking at everything regularly.
    pub(super) fn look_around(&self) -> Vec<JoinHandle<()>> {
        let timing = self.settings.policy.timing.clone();
        let start = self.start;
        let now = move || start.elapsed().as_millis() as u64 + 1;
        let (store, events) = (self.store.clone(), self.events.clone());
        let every = Duration::from_millis((timing.renewal_ms / 4).max(10));
        let limit = Duration::from_millis(timing.request_ms);
        let mut woken = self.looks.subscribe();
        let expiry_ms = self.expiry_ms.clone();
        let mut tasks = vec![tokio::task::spawn_local(async move {
            loop {
                woken.borrow_and_update();
                let asked = now();
                let looked = store.read().await;
                if events.send(Event::Looked(asked, looked)).await.is_err() {
                    return;
                }
                let left = Duration::from_millis(expiry_ms.get().saturating_sub(now()));
                let pause = if left.is_zero() { every } else { every.min(left) };
                let _ = tokio::time::timeout(pause, woken.changed()).await;
            }
        })];
        for (id, address) in self.settings.peers.clone() {
            let (secret, events) = (self.secret.clone(), self.events.clone());
            let mut woken = self.looks.subscribe();
            tasks.push(tokio::task::spawn_local(async move {
                loop {
                    woken.borrow_and_update();
                    let asked = now();
                    let answer = ask(&address.steward, &secret, &Question::Standing, limit).await;
                    if let Some(Answer::Standing(standing)) = answer
                        && events.send(Event::Heard(id.clone(), asked, *standing)).await.is_err()
                    {
                        return;
                    }
                    let _ = tokio::time::timeout(every, woken.changed()).await;
                }
            }));
        }
        let (engine, events) = (self.engine.clone(), self.events.clone());
        let limit = Duration::from_millis(timing.hung_ms);
        tasks.push(tokio::task::spawn_local(async move {
            loop {
                let asked = now();
                let seen = engine.probe(limit).await;
                if let Err(error) = &seen {
                    tracing::trace!(%error, "the server does not answer");
                }
                if events.send(Event::Probed(asked, seen.ok())).await.is_err() {
                    return;
                }
                tokio::time::sleep(PROBE).await;
            }
        }));
        tasks
    }

    /// Asks the peers to stand by this primary while the Lease cannot be renewed.
    pub(super) fn ask_to_confirm(&mut self) {
        let now = self.now_ms();
        let timing = &self.settings.policy.timing;
        let late = self.lease.written_ms.is_some_and(|at| now >= at + 2 * timing.renewal_ms);
        let Some(epoch) = self.lease.record.as_ref().map(|it| it.epoch) else { return };
        if !late || now < self.confirm_ms + timing.renewal_ms / 2 {
            return;
        }
        self.confirm_ms = now;
        let limit = Duration::from_millis(timing.request_ms);
        for (id, address) in self.settings.peers.clone() {
            let (secret, events) = (self.secret.clone(), self.events.clone());
            let question = Question::Confirm { holder: self.settings.member.clone(), epoch };
            tokio::task::spawn_local(async move {
                if let Some(Answer::Confirmed(true)) = ask(&address.steward, &secret, &question, limit).await {
                    let _ = events.send(Event::Confirmed(id, now, epoch)).await;
                }
            });
        }
    }

    /// Has the peers look at once: at what this member has just written, or at how it stands now.
    pub(super) fn nudge(&self, question: &Question) {
        let limit = Duration::from_millis(self.settings.policy.timing.request_ms);
        for address in self.settings.peers.values() {
            let (address, secret, question) = (address.steward.clone(), self.secret.clone(), question.clone());
            tokio::task::spawn_local(async move {
                let _ = ask(&address, &secret, &question, limit).await;
            });
        }
    }

    /// Answers a peer.
    pub(super) fn answer(&mut self, question: &Question) -> Answer {
        match question {
            Question::Standing => Answer::Standing(Box::new(standing(&self.view()))),
            Question::Look => {
                self.looks.send_modify(|count| *count += 1);
                Answer::Looking
            }
            Question::Written(record) => {
                let now = self.now_ms();
                let paused = self.lease.record.as_ref().is_some_and(|it| it.paused);
                self.lease.saw(Record { paused, ..(**record).clone() }, now);
                // What it writes next must replace the object as the API has it.
                self.looks.send_modify(|count| *count += 1);
                Answer::Looking
            }
            Question::Confirm { holder, epoch } => {
                let confirmed = confirms(&self.view(), holder, *epoch);
                if confirmed {
                    self.lease.pledged_until_ms = self.now_ms() + self.settings.policy.timing.ttl_ms;
                }
                Answer::Confirmed(confirmed)
            }
        }
    }

    /// Takes in what came back.
    pub(super) fn take_in(&mut self, event: Event) -> Result<(), StewardError> {
        let now = self.now_ms();
        match event {
            Event::Looked(asked, Ok(look)) => {
                self.lease.answered(asked);
                let known = self.lease.record.as_ref().map_or(0, |it| it.renewal);
                // A look that was overtaken by a write of this member's says nothing new.
                if let Some(look) = look.filter(|look| look.record.renewal >= known) {
                    self.handover = look.handover;
                    let paused = look.record.paused;
                    self.lease.saw(look.record, now);
                    if let Some(record) = &mut self.lease.record {
                        record.paused = paused;
                    }
                }
            }
            Event::Looked(_, Err(error)) => tracing::debug!(error, "the Lease could not be read"),
            Event::Wrote(sent, record, written) => {
                tracing::debug!(?written, renewal = record.renewal, took_ms = now - sent, "wrote the Lease");
                let known = self.lease.record.clone();
                self.lease.end(record, sent, written, now);
                if known.as_ref().map(|it| it.epoch) != self.lease.record.as_ref().map(|it| it.epoch) {
                    // Who was asked for is answered by this; the Lease does not ask any more.
                    self.handover = None;
                }
                // Who holds it, since when, and whether it is open: that others wait for.
                let news = |it: &Record| (it.holder.clone(), it.epoch, it.opened());
                if written == Written::Done
                    && let Some(record) = &self.lease.record
                    && known.as_ref().map(news) != Some(news(record))
                {
                    self.nudge(&Question::Written(Box::new(record.clone())));
                }
            }
            Event::Heard(id, asked, standing) => {
                self.peers.insert(id, Peer { standing: Some(standing), heard_ms: asked });
            }
            Event::Confirmed(id, asked, epoch) => {
                if self.lease.record.as_ref().is_some_and(|record| record.epoch == epoch) {
                    let since = self.lease.confirmed.entry(id).or_default();
                    *since = asked.max(*since);
                }
            }
            Event::Probed(asked, seen) => {
                self.look_at_disk();
                let running = self.process.exists() && !self.process.stopped();
                let Some(seen) = seen.filter(|_| running) else { return Ok(()) };
                // What was asked before an action ended may be about the time before it.
                if self.job.is_none() && asked >= self.done_ms {
                    self.observe(asked, seen);
                } else if self.observed.is_some() {
                    self.answered_ms = self.answered_ms.max(asked);
                }
            }
            Event::Prepared => self.prepared = self.preparing,
            Event::Quiet(ending) if self.stopping && self.process.exists() => self.quiet(ending),
            Event::Quiet(_) => {}
            Event::Did(job, action, outcome) => {
                if job == self.jobs {
                    self.did(&action, outcome)?;
                }
            }
        }
        Ok(())
    }

    /// Looks whether the disk is full. What cannot be found out is not so.
    fn look_at_disk(&mut self) {
        let Some(folder) = self.settings.state.parent() else { return };
        let Ok(disk) = nix::sys::statvfs::statvfs(folder) else { return };
        let free = disk.blocks_available() * disk.fragment_size();
        let full = free < if self.full { 2 * FULL_BYTES } else { FULL_BYTES };
        if full != self.full {
            tracing::warn!(full, free_bytes = free, "the disk");
        }
        self.full = full;
    }

    pub(super) fn observe(&mut self, asked: u64, seen: Observation) {
        if !self.process.exists() || self.process.stopped() {
            return;
        }
        if seen.role == Role::Primary {
            self.rising = false;
            // The rule for commits came into force no later than this.
            if self.since == u64::MAX {
                self.since = seen.offset;
            }
        }
        let hungry = seen.role == Role::Replica && self.follows.is_some() && !seen.receiving;
        self.starved_since_ms = hungry.then(|| self.starved_since_ms.unwrap_or(asked));
        self.answered_ms = asked;
        self.observed = Some(seen);
    }

    /// A server that has ended leaves nothing of what was known of it.
    pub(super) fn notice_death(&mut self) -> Result<(), StewardError> {
        if self.process.exists() && !self.process.runs() {
            tracing::warn!("the server has ended");
            if self.observed.is_none() {
                // It did not even start; what it wrote to its log says why.
                self.retry_at_ms = self.now_ms() + 200;
            }
            self.cancel();
            self.forget_server();
            // Its children may be left.
            self.process.fence()?;
        }
        Ok(())
    }

    pub(super) fn forget_server(&mut self) {
        self.observed = None;
        self.follows = None;
        self.rising = false;
        self.starved_since_ms = None;
    }

    /// Tells people, when something changed.
    pub(super) fn tell(&mut self, plan: &Plan, ready: &Rc<Cell<bool>>) {
        let record = self.lease.record.as_ref();
        let open = record.is_some_and(Record::opened);
        let standbys = self.observed.as_ref().map_or(&[][..], |seen| &seen.standbys);
        let replica = standbys.iter().any(|it| it.streaming);
        if let Some(steps) =
            self.timeline.note(plan.stage, plan.tenure, open, replica, self.start.elapsed().as_millis() as u64)
        {
            tracing::info!("took over: {steps}");
        }
        let waits = self.observed.as_ref().is_some_and(|seen| seen.synchronous.count > 0);
        let usable = match plan.stage {
            // Where commits wait for a replica, clients may come before the epoch is open: replicas follow only then.
            Stage::Primary => open || waits,
            Stage::Following => true,
            _ => false,
        };
        let refusal = plan.refusal.as_ref().map(ToString::to_string);
        let lags = match &self.observed {
            Some(seen) if plan.stage == Stage::Primary => {
                self.standbys(seen).into_iter().map(|it| (it.member, seen.offset.saturating_sub(it.offset))).collect()
            }
            _ => BTreeMap::new(),
        };
        let report = Report {
            stage: plan.stage,
            tenure: plan.tenure,
            why: plan.row.why.text().to_owned(),
            epoch: record.map_or(0, |it| it.epoch),
            holder: record.and_then(|it| it.holder.clone()),
            refusal,
            position: self.view().position(),
            lags,
            ready: usable,
        };
        ready.set(usable);
        let still = |it: &Report| Report { position: None, lags: BTreeMap::new(), ..it.clone() };
        let same = self.said.as_ref().is_some_and(|said| still(said) == still(&report));
        // Where everybody is changes all the time, and is told now and then.
        if same && (self.said.as_ref() == Some(&report) || self.now_ms() < self.said_ms + POSITION_MS) {
            return;
        }
        if !same {
            let why = report.refusal.as_ref().map_or(String::new(), |it| format!(": {it}"));
            let holder = report.holder.as_ref().map(ToString::to_string);
            tracing::info!(stage = ?report.stage, lease = ?report.tenure, epoch = report.epoch, ?holder, "{}{why}", report.why);
        }
        (self.said, self.said_ms) = (Some(report.clone()), self.now_ms());
        self.report.send_replace(Some(report));
    }
}
