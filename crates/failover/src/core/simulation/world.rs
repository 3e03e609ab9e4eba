//! The world: steps time, carries messages, does what members decide, and breaks things.

use std::fmt::Write as _;

use fastrand::Rng;

use super::ledger::Ledger;
use super::member::{Member, Process, Seen};
use super::network::{Message, Network, Place};
use crate::core::{Action, MemberId, Peer, Policy, Position, Record, Tenure, Written, confirms, decide, standing};

/// One step.
const STEP_MS: u64 = 10;
/// Faults happen until then; after that all is healed.
const FAULTS_MS: u64 = 16_000;
/// By then writes must be acknowledged again.
const END_MS: u64 = 30_000;
/// A request without an answer for so long is given up.
const REQUEST_MS: u64 = 300;

#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) members: usize,
    pub(super) synchronous: usize,
    pub(super) strict: bool,
}

pub(super) struct World {
    now: u64,
    random: Rng,
    policy: Policy,
    members: Vec<Member>,
    network: Network,
    /// The Lease, newest last; old ones for stale reads.
    lease: Vec<Record>,
    ledger: Ledger,
    written: u64,
    connections: u64,
    heal_at: u64,
    acknowledged_at: u64,
    trace: bool,
}

impl World {
    pub(super) fn new(seed: u64, options: Options) -> Self {
        let mut random = Rng::with_seed(seed);
        let ids: Vec<MemberId> = (0..options.members).map(|i| MemberId::new(format!("db-{i}"))).collect();
        let mut clock = || (random.u64(0..1_000_000), random.u64(996..=1004));
        let mut members: Vec<Member> = ids.iter().map(|id| Member::new(id.clone(), clock())).collect();
        for member in &mut members {
            let others = ids.iter().filter(|id| **id != member.id);
            member.peers = others.map(|id| (id.clone(), Peer::default())).collect();
        }
        let policy = Policy { synchronous: options.synchronous, strict: options.strict, ..Policy::default() };
        let ledger = Ledger::new(options.synchronous > 0);
        let network = Network::new();
        let trace = std::env::var("MAINSTAY_SEED").is_ok();
        Self {
            now: 0,
            random,
            policy,
            members,
            network,
            lease: Vec::new(),
            ledger,
            written: 0,
            connections: 0,
            heal_at: 0,
            acknowledged_at: 0,
            trace,
        }
    }

    /// Lives the whole life. How many epochs there were, and acknowledged writes.
    pub(super) fn run(mut self) -> (u64, u64) {
        while self.now < END_MS {
            self.now += STEP_MS;
            self.faults();
            while let Some((from, to, message)) = self.network.next(self.now) {
                self.deliver(from, to, message);
            }
            for index in 0..self.members.len() {
                self.step(index);
                self.server(index);
            }
            self.exclusive();
        }
        let late = END_MS - self.acknowledged_at;
        assert!(
            late < 3_000,
            "no write acknowledged in the last {late} ms although all is healed: {}",
            self.describe()
        );
        for member in self.members.iter().filter(|it| it.writable()) {
            self.ledger.holds_all(member.log.as_deref().unwrap_or_default(), "the last primary ends");
        }
        (self.ledger.epochs(), self.ledger.writes())
    }

    fn describe(&self) -> String {
        let mut text = format!("{:?}", self.lease.last());
        for member in &self.members {
            let plan = decide(&member.view(&self.policy, self.now));
            let (stage, tenure, why) = (plan.stage, plan.tenure, plan.row.why);
            let _ = write!(text, "\n{} {stage:?} {tenure:?} {why:?} {:?} {}", member.id, plan.refusal, member.length());
        }
        text
    }

    /// Never two that accept writes, unless one of the stewards is being held.
    fn exclusive(&self) {
        let awake = |it: &&Member| it.writable() && it.paused_until <= self.now && it.server_paused_until <= self.now;
        let writable: Vec<_> = self.members.iter().filter(awake).map(|it| it.id.as_str()).collect();
        assert!(
            writable.len() <= 1,
            "{writable:?} accept writes at the same time at {}: {}",
            self.now,
            self.describe()
        );
    }

    fn faults(&mut self) {
        if self.now >= FAULTS_MS {
            self.network.cut.clear();
            self.network.loss = 0;
            self.network.delay_ms = 5;
            let now = self.now;
            for member in &mut self.members {
                member.paused_until = member.paused_until.min(now);
                member.server_paused_until = member.server_paused_until.min(now);
                if !member.up {
                    member.start(now);
                }
            }
            return;
        }
        if self.now >= self.heal_at {
            self.network.cut.clear();
            self.network.loss = 0;
            self.network.delay_ms = 5;
        }
        if self.now < 1_500 || self.random.u64(0..60) != 0 {
            return;
        }
        let index = self.random.usize(0..self.members.len());
        let span = self.random.u64(50..4_000);
        let now = self.now;
        let kind = self.random.u64(0..9);
        if self.trace {
            println!("{now} fault {kind} at db-{index} for {span}");
        }
        match kind {
            0 => self.members[index].crash(),
            1 => {
                for member in self.members.iter_mut().filter(|it| !it.up) {
                    member.start(now);
                }
            }
            // The server alone dies.
            2 => self.members[index].process = Process::None,
            3 => self.members[index].paused_until = now + span,
            4 => {
                self.members[index].paused_until = now + span;
                self.members[index].server_paused_until = now + span;
            }
            5 => self.isolate(index, span),
            6 => self.cut_some(span),
            7 => {
                self.network.loss = self.random.u64(5..60);
                self.network.delay_ms = self.random.u64(10..600);
                self.heal_at = now + span;
            }
            _ => self.cut_api(span),
        }
    }

    fn places(&self) -> Vec<Place> {
        self.members.iter().map(|it| Some(it.id.clone())).chain([None]).collect()
    }

    fn isolate(&mut self, index: usize, span: u64) {
        let alone = Some(self.members[index].id.clone());
        let others = self.places().into_iter().filter(|it| *it != alone);
        self.network.cut.extend(others.map(|it| (alone.clone(), it)));
        self.heal_at = self.now + span;
    }

    fn cut_some(&mut self, span: u64) {
        let places = self.places();
        for (i, one) in places.iter().enumerate() {
            for other in &places[i + 1..] {
                if self.random.bool() {
                    self.network.cut.insert((one.clone(), other.clone()));
                }
            }
        }
        self.heal_at = self.now + span;
    }

    fn cut_api(&mut self, span: u64) {
        let members = self.places().into_iter().flatten();
        self.network.cut.extend(members.map(|it| (Some(it), None)));
        self.heal_at = self.now + span;
    }

    fn send(&mut self, from: &Place, to: &Place, message: Message) {
        self.network.send(&mut self.random, self.now, from, to, message);
    }

    fn index(&self, id: &MemberId) -> usize {
        self.members.iter().position(|it| it.id == *id).expect("a member")
    }

    fn deliver(&mut self, from: Place, to: Place, message: Message) {
        let now = self.now;
        let Some(id) = &to else { return self.api(&from, message) };
        let index = self.index(id);
        let member = &mut self.members[index];
        let streamed = matches!(message, Message::Pull(..) | Message::Push(..));
        let held = if streamed { member.server_paused_until } else { member.paused_until };
        if !member.up {
            return;
        }
        if held > now {
            // It arrives when the process runs again.
            return self.network.hold(held, from, to, message);
        }
        let clock = member.clock(now);
        match (message, from) {
            (Message::Ask(at), from) => {
                // A steward that has not published since its promise says nothing of its position.
                let answer = standing(&member.view(&self.policy, now));
                self.send(&to, &from, Message::Answer(at, answer));
            }
            (Message::Answer(at, standing), Some(from)) => {
                let peer = member.peers.entry(from).or_default();
                if at >= peer.heard_ms {
                    *peer = Peer { standing: Some(standing), heard_ms: at };
                }
            }
            (Message::Confirm(at, epoch), Some(holder))
                if confirms(&member.view(&self.policy, now), &holder, epoch) =>
            {
                member.lease.pledged_until_ms = clock + self.policy.timing.ttl_ms;
                self.send(&to, &Some(holder), Message::Confirmed(at, epoch));
            }
            (Message::Confirmed(at, epoch), Some(from))
                if member.lease.record.as_ref().is_some_and(|record| record.epoch == epoch) =>
            {
                let since = member.lease.confirmed.entry(from).or_default();
                *since = at.max(*since);
            }
            (Message::Reading(at, record), None) => {
                member.lease.answered(at);
                if let Some(record) = record {
                    member.lease.saw(record, clock);
                }
            }
            (Message::Wrote(at, record, done), None)
                if member.lease.writing && member.lease.attempted_ms == Some(at) =>
            {
                let written = if done { Written::Done } else { Written::Conflict };
                member.lease.end(record.clone(), at, written, clock);
                member.read_ms = 0;
                if done {
                    self.tell(index, &record);
                }
            }
            (Message::Told(record), Some(_)) => member.lease.saw(record, clock),
            (Message::Pull(connection, epoch, offset), Some(from)) => {
                self.pulled(index, from, connection, epoch, offset);
            }
            (Message::Push(connection, at, entries), _) => member.pushed(connection, at, entries),
            _ => {}
        }
    }

    /// What a member wrote to the Lease, to all others.
    fn tell(&mut self, index: usize, record: &Record) {
        let me = Some(self.members[index].id.clone());
        let peers: Vec<MemberId> = self.members[index].peers.keys().cloned().collect();
        for peer in peers {
            self.send(&me, &Some(peer), Message::Told(record.clone()));
        }
    }

    fn pulled(&mut self, index: usize, from: MemberId, connection: u64, wanted: u64, offset: u64) {
        let now = self.now;
        let member = &mut self.members[index];
        let (Process::Primary { epoch, seen, .. }, Some(log)) = (&mut member.process, &member.log) else { return };
        if *epoch != wanted {
            return;
        }
        seen.insert(from.clone(), Seen { offset, at: now });
        let entries = log.iter().skip(offset as usize).take(50).copied().collect();
        let me = Some(member.id.clone());
        self.send(&me, &Some(from), Message::Push(connection, offset, entries));
    }

    /// The API server: linearizable writes; reads may be stale.
    fn api(&mut self, from: &Place, message: Message) {
        match message {
            Message::Read(at) => {
                let stale = if self.random.u64(0..20) == 0 { self.random.usize(0..4) } else { 0 };
                let record = self.lease.len().checked_sub(1 + stale).and_then(|it| self.lease.get(it)).cloned();
                // Before there was a Lease, none is what there is.
                let record = record.or_else(|| self.lease.first().cloned());
                self.send(&None, from, Message::Reading(at, record));
            }
            Message::Write(at, expected, record) => {
                let done = self.lease.last().map(|it| it.renewal) == expected;
                if done {
                    if self.trace {
                        println!("{} lease {record:?}", self.now);
                    }
                    self.lease.push(record.clone());
                }
                self.send(&None, from, Message::Wrote(at, record, done));
            }
            _ => {}
        }
    }

    /// A steward's turn.
    fn step(&mut self, index: usize) {
        let now = self.now;
        let member = &mut self.members[index];
        if !member.up || member.paused_until > now {
            return;
        }
        let clock = member.clock(now);
        let hung = member.server_paused_until > now && !matches!(member.process, Process::None);
        member.silent_since_ms = hung.then(|| member.silent_since_ms.unwrap_or(clock));
        if let Some(at) = member.lease.attempted_ms.filter(|at| member.lease.writing && clock > at + REQUEST_MS) {
            let sent = member.sent.clone();
            member.lease.end(sent, at, Written::Unknown, clock);
        }
        let plan = decide(&self.members[index].view(&self.policy, now));
        if plan.action == Action::Fence {
            return self.act(index, plan.action);
        }
        let done = self.members[index].job.as_ref().is_some_and(|job| job.0 <= now);
        if done {
            if let Some((_, action)) = self.members[index].job.take() {
                self.finish(index, action);
            }
            return self.ask(index, false);
        }
        if self.trace && plan.action != Action::Wait {
            println!("{now} db-{index} {:?} {:?} {:?}: {:?}", plan.stage, plan.tenure, plan.row.why, plan.action);
        }
        if let Some(record) = plan.renew {
            self.write(index, record);
        }
        let confirm = plan.tenure == Tenure::Mine;
        self.act(index, plan.action);
        self.ask(index, confirm);
    }

    fn write(&mut self, index: usize, record: Record) {
        let clock = self.members[index].clock(self.now);
        let member = &mut self.members[index];
        let expected = member.lease.record.as_ref().map(|it| it.renewal);
        member.lease.begin(record.clone(), clock);
        member.sent = record.clone();
        let me = Some(member.id.clone());
        self.send(&me, &None, Message::Write(clock, expected, record));
    }

    fn act(&mut self, index: usize, action: Action) {
        let took = match &action {
            Action::Wait => return,
            Action::Write(record) => return self.write(index, record.clone()),
            Action::Fence => {
                let member = &mut self.members[index];
                member.process = Process::None;
                member.server_paused_until = 0;
                member.job = None;
                return;
            }
            Action::StopToRebuild(how) => {
                self.members[index].process = Process::None;
                self.members[index].rebuild = Some(*how);
                return;
            }
            Action::Rebuild(..) | Action::Initialise => self.random.u64(50..1_500),
            Action::StartPrimary(..) | Action::StartReplica | Action::Promote(..) => self.random.u64(10..300),
            _ => self.random.u64(0..60),
        };
        self.members[index].job = Some((self.now + took, action));
    }

    /// What a member's work came to.
    fn finish(&mut self, index: usize, action: Action) {
        let now = self.now;
        self.connections += 1;
        let connection = self.connections;
        let member = &mut self.members[index];
        let running = !matches!(member.process, Process::None);
        match action {
            Action::Initialise => member.log = Some(Vec::new()),
            Action::StartReplica if !running => {
                member.rebuild = None;
                member.process = Process::Replica { source: None, connection };
            }
            Action::StandStill(promise) if running => {
                member.process = Process::Replica { source: None, connection };
                member.promise = member.promise.max(Some(promise));
            }
            Action::Follow(holder, lineage) if running => {
                member.lineage = lineage;
                member.process = Process::Replica { source: Some((holder, lineage.epoch)), connection };
            }
            Action::Synchronise(to) => {
                let length = member.length();
                if let Process::Primary { synchronous, since, .. } = &mut member.process {
                    (*synchronous, *since) = (to, length);
                }
            }
            Action::StartPrimary(synchronous, lineage) if !running => {
                member.began = Some(lineage.from);
                self.rise(index, synchronous, lineage);
            }
            Action::Promote(synchronous, lineage) if running => {
                let length = member.length();
                member.began = Some(Position { offset: lineage.from.offset.min(length), ..lineage.from });
                self.rise(index, synchronous, lineage);
            }
            Action::Rebuild(holder, lineage, _) => {
                // A clone needs the source to the end.
                let from = self.index(&holder);
                let (me, source) = (Some(self.members[index].id.clone()), &self.members[from]);
                let epoch = matches!(source.process, Process::Primary { epoch, .. } if epoch == lineage.epoch);
                if epoch && source.server_paused_until <= now && !self.network.is_cut(&me, &Some(holder)) {
                    let log = source.log.clone();
                    let member = &mut self.members[index];
                    (member.log, member.lineage, member.rebuild) = (log, lineage, None);
                }
            }
            _ => {}
        }
    }

    fn rise(&mut self, index: usize, synchronous: crate::engine::Synchronous, lineage: crate::core::Lineage) {
        let member = &mut self.members[index];
        member.lineage = lineage;
        let (since, seen) = (member.length(), std::collections::BTreeMap::new());
        let acknowledged = since;
        member.process = Process::Primary { epoch: lineage.epoch, synchronous, since, seen, acknowledged };
        let log = member.log.clone().unwrap_or_default();
        self.ledger.promoted(&member.id.clone(), lineage.epoch, &log);
    }

    /// What a steward asks others regularly.
    fn ask(&mut self, index: usize, confirm: bool) {
        let member = &self.members[index];
        let clock = member.clock(self.now);
        let (me, ids) = (Some(member.id.clone()), member.peers.keys().cloned().collect::<Vec<_>>());
        if clock >= member.asked_ms + 100 {
            self.members[index].asked_ms = clock;
            for id in &ids {
                self.send(&me, &Some(id.clone()), Message::Ask(clock));
            }
        }
        if clock >= self.members[index].read_ms + 100 {
            self.members[index].read_ms = clock;
            self.send(&me, &None, Message::Read(clock));
        }
        let member = &self.members[index];
        let late = member.lease.written_ms.is_some_and(|at| clock >= at + 2 * self.policy.timing.renewal_ms);
        let epoch = member.lease.record.as_ref().map_or(0, |it| it.epoch);
        if confirm && late && clock >= member.confirmed_ms + 100 {
            self.members[index].confirmed_ms = clock;
            for id in &ids {
                self.send(&me, &Some(id.clone()), Message::Confirm(clock, epoch));
            }
        }
    }

    /// The server's own life: clients write, replicas pull, commits are acknowledged.
    fn server(&mut self, index: usize) {
        let now = self.now;
        let me = Some(self.members[index].id.clone());
        let member = &mut self.members[index];
        if member.server_paused_until > now {
            return;
        }
        match (&mut member.process, &mut member.log) {
            (Process::Replica { source: Some((source, epoch)), connection }, Some(log)) => {
                let (to, pull) = (Some(source.clone()), Message::Pull(*connection, *epoch, log.len() as u64));
                if (now / STEP_MS).is_multiple_of(3) {
                    self.send(&me, &to, pull);
                }
            }
            (Process::Primary { epoch, synchronous, seen, acknowledged, .. }, Some(log)) => {
                if (now / STEP_MS).is_multiple_of(2) {
                    self.written += 1;
                    log.push((*epoch, self.written));
                }
                let mut have: Vec<u64> =
                    synchronous.standbys.iter().map(|id| seen.get(id).map_or(0, |it| it.offset)).collect();
                have.sort_unstable_by(|a, b| b.cmp(a));
                let until = match synchronous.count {
                    0 => log.len() as u64,
                    count => have.get(count - 1).copied().unwrap_or(0),
                };
                while *acknowledged < until.min(log.len() as u64) {
                    let entry = log[*acknowledged as usize];
                    if entry.0 == *epoch {
                        self.ledger.acknowledged(entry, *acknowledged);
                        self.acknowledged_at = now;
                    }
                    *acknowledged += 1;
                }
            }
            _ => {}
        }
    }
}
