//! Holders, an API server and the network between them, by one seed: whatever is lost, late, stopped or down, never two
//! programs at once, and a program again soon after all is well.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use super::decide::{Action, Claim, Holder, Input, Outcome, Record, Stage, Timing};

const SEEDS: u64 = 2_000;
const HOLDERS: usize = 3;
/// How long faults happen, in milliseconds.
const FAULTS_UNTIL: u64 = 30_000;
/// The longest a fault lasts.
const FAULT_MAX: u64 = 6_000;
/// How long it goes on when the last fault is over.
const CALM: u64 = 8_000;
/// How soon after the last fault a program runs again: a ttl to see that nobody renews, and requests.
const AGAIN_MAX: u64 = 3_000;

const fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// Something under way in the network.
#[derive(Debug, Clone)]
enum Message {
    Read,
    Write(Claim, Option<String>, u64, Duration),
    /// To the request with this number.
    Answer(Input),
    /// What the watch or the guard says.
    Tell(Input),
    GiveUp(u64),
}

struct Runs {
    /// The guard's deadline on the holder's own clock.
    until: Duration,
    stage: Stage,
    ends_at: u64,
    code: i32,
}

struct Site {
    holder: Holder,
    runs: Option<Runs>,
    /// Stopped (SIGSTOP) until this time; its guard is not.
    stopped_until: u64,
    /// Its own clock: offset, and speed in parts per thousand.
    offset: u64,
    speed: u64,
    /// Which request is under way; answers to others are lost.
    request: u64,
    dead_until: u64,
    life: u64,
}

struct World {
    random: fastrand::Rng,
    now: u64,
    sites: Vec<Site>,
    lease: Option<Record>,
    version: u64,
    down_until: u64,
    /// By time, then by number: what arrives when; the site, its life and its request.
    arrivals: BTreeMap<(u64, u64), (usize, u64, u64, Message)>,
    count: u64,
    timing: Timing,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let timing = Timing::new(ms(1500), ms(300), ms(500)).unwrap();
        let sites = (0..HOLDERS).map(|number| Site {
            holder: Holder::new(timing, format!("{number}-0"), (number == 1, number == 2)),
            runs: None,
            stopped_until: 0,
            offset: random.u64(0..1_000_000),
            speed: random.u64(960..1040),
            request: 0,
            dead_until: 0,
            life: 0,
        });
        let sites = sites.collect();
        let arrivals = BTreeMap::new();
        Self {
            random,
            now: 0,
            sites,
            lease: None,
            version: 0,
            down_until: 0,
            arrivals,
            count: 0,
            timing,
            log: Vec::new(),
        }
    }

    fn clock(&self, site: usize) -> Duration {
        ms(self.sites[site].offset + self.now * self.sites[site].speed / 1000)
    }

    fn send(&mut self, site: usize, delay: u64, message: Message) {
        let (life, request) = (self.sites[site].life, self.sites[site].request);
        self.count += 1;
        self.arrivals.insert((self.now + delay, self.count), (site, life, request, message));
    }

    /// Messages are late now and then, and some are lost while there are faults.
    fn delay(&mut self) -> Option<u64> {
        match self.random.u8(..) {
            _ if self.now > FAULTS_UNTIL => Some(1),
            0..8 => None,
            8..20 => Some(self.random.u64(100..3000)),
            _ => Some(self.random.u64(1..10)),
        }
    }

    fn step(&mut self, site: usize, input: Input) {
        let now = self.clock(site);
        let actions = self.sites[site].holder.step(input, now);
        for action in actions {
            self.act(site, action, now);
        }
        let here = &mut self.sites[site];
        if let (Some(runs), Some(until)) = (&mut here.runs, here.holder.fence()) {
            runs.until = until;
        }
    }

    fn act(&mut self, site: usize, action: Action, now: Duration) {
        match action {
            Action::Read => self.request(site, Message::Read),
            Action::Write(claim, version, epoch) => self.request(site, Message::Write(claim, version, epoch, now)),
            Action::Run(stage, _) => {
                let lasts =
                    if stage == Stage::Program { self.random.u64(500..20_000) } else { self.random.u64(1..400) };
                let until = self.sites[site].holder.fence().unwrap();
                let code = i32::from(self.random.u8(..) < 20);
                self.sites[site].runs = Some(Runs { until, stage, ends_at: self.now + lasts, code });
                self.log.push(format!("{} site {site} runs {stage:?}", self.now));
                self.check();
            }
            Action::Stop => {
                let takes = self.random.u64(1..800);
                if let Some(runs) = &mut self.sites[site].runs {
                    runs.ends_at = runs.ends_at.min(self.now + takes);
                }
            }
            Action::Kill => {
                if let Some(runs) = &mut self.sites[site].runs {
                    runs.ends_at = self.now;
                }
            }
            Action::Say(event) => self.log.push(format!("{} site {site} {event:?}", self.now)),
            Action::Exit(code) => {
                self.log.push(format!("{} site {site} exits {code}", self.now));
                assert!(self.sites[site].runs.is_none());
                self.restart(site, 200);
            }
        }
    }

    fn request(&mut self, site: usize, message: Message) {
        self.sites[site].request += 1;
        let request = self.sites[site].request;
        if let Some(delay) = self.delay() {
            self.send(site, delay, message);
        }
        let patience = u64::try_from(self.timing.attempt().as_millis()).unwrap();
        self.send(site, patience, Message::GiveUp(request));
    }

    fn restart(&mut self, site: usize, after: u64) {
        let here = &mut self.sites[site];
        here.life += 1;
        here.request += 1;
        here.dead_until = self.now + after;
        here.holder = Holder::new(self.timing, format!("{site}-{}", here.life), (site == 1, site == 2));
    }

    /// Never two at once: hooks after a lost lease are the exception that the documentation names.
    fn check(&self) {
        let running =
            self.sites.iter().filter(|site| site.runs.as_ref().is_some_and(|runs| runs.stage == Stage::Program));
        assert!(running.count() <= 1, "two programs at {} ms\n{}", self.now, self.log.join("\n"));
    }

    fn arrive(&mut self, site: usize, life: u64, request: u64, message: Message) {
        let up = self.now >= self.down_until;
        let answer = match message {
            Message::Read if up => Input::Read(Ok(self.lease.clone())),
            Message::Write(claim, version, epoch, sent) if up => {
                Input::Wrote { sent, outcome: self.write(site, life, claim, version.as_deref(), epoch, sent) }
            }
            Message::Read | Message::Write(..) => return,
            Message::Answer(input) => {
                if self.sites[site].life == life && self.sites[site].request == request {
                    self.sites[site].request += 1;
                    self.step(site, input);
                }
                return;
            }
            Message::Tell(input) => {
                if self.sites[site].life == life {
                    self.step(site, input);
                }
                return;
            }
            Message::GiveUp(number) => {
                if self.sites[site].life == life && self.sites[site].request == number {
                    self.sites[site].request += 1;
                    let sent = self.clock(site);
                    let outcome = Outcome::Unknown("silence".to_owned());
                    self.step(site, Input::Wrote { sent, outcome });
                }
                return;
            }
        };
        if let Some(delay) = self.delay() {
            self.count += 1;
            self.arrivals.insert((self.now + delay, self.count), (site, life, request, Message::Answer(answer)));
        }
    }

    fn write(
        &mut self,
        site: usize,
        life: u64,
        claim: Claim,
        version: Option<&str>,
        epoch: u64,
        sent: Duration,
    ) -> Outcome {
        if self.lease.as_ref().map(|lease| lease.version.as_str()) != version {
            return Outcome::Conflict;
        }
        self.version += 1;
        let holder = if claim == Claim::Release { String::new() } else { format!("{site}-{life}") };
        let renewed = format!("{sent:?}");
        let record = Record { version: self.version.to_string(), holder, renewed, ttl: self.timing.ttl, epoch };
        self.lease = Some(record.clone());
        for other in 0..HOLDERS {
            if let Some(delay) = self.delay() {
                self.send(other, delay, Message::Tell(Input::Watched(Some(record.clone()))));
            }
        }
        Outcome::Written(record)
    }

    fn fault(&mut self) {
        let site = self.random.usize(..HOLDERS);
        let lasts = self.random.u64(100..FAULT_MAX);
        match self.random.u8(..80) {
            0..20 => self.sites[site].stopped_until = self.now + lasts,
            20..40 => self.down_until = self.now + lasts,
            40..60 => {
                self.log.push(format!("{} site {site} is killed", self.now));
                self.sites[site].runs = None;
                self.restart(site, lasts);
            }
            60..80 if self.now >= self.sites[site].stopped_until => self.step(site, Input::Terminate),
            _ => {}
        }
    }

    /// When something happens next.
    fn next(&self, fault: u64) -> u64 {
        let at = |site: &Site, clock: Duration| {
            let clock = u64::try_from(clock.as_millis()).unwrap();
            (clock.saturating_sub(site.offset) * 1000).div_ceil(site.speed)
        };
        let wakes = self.sites.iter().filter_map(|site| {
            let wake = at(site, site.holder.wake()?);
            Some(wake.max(site.stopped_until).max(site.dead_until))
        });
        let ends = self.sites.iter().filter_map(|site| {
            let runs = site.runs.as_ref()?;
            Some(runs.ends_at.min(at(site, runs.until)))
        });
        let arrives = self.arrivals.keys().next().map(|key| key.0);
        wakes.chain(ends).chain(arrives).chain([fault]).min().unwrap().max(self.now + 1)
    }

    fn run(&mut self) {
        let (mut last_running, mut fault) = (0, 0);
        while self.now < FAULTS_UNTIL + FAULT_MAX + CALM {
            self.now = self.next(fault);
            if self.now >= fault {
                fault = u64::MAX;
                if self.now < FAULTS_UNTIL {
                    self.fault();
                    fault = self.now + self.random.u64(50..1500);
                }
            }
            for site in 0..HOLDERS {
                self.guard(site);
                if self.now >= self.sites[site].stopped_until && self.now >= self.sites[site].dead_until {
                    let now = self.clock(site);
                    if self.sites[site].holder.wake().is_some_and(|at| at <= now) {
                        self.step(site, Input::Tick);
                    }
                }
            }
            while let Some(entry) = self.arrivals.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (site, life, request, message) = entry.remove();
                let asleep = self.now < self.sites[site].stopped_until || self.now < self.sites[site].dead_until;
                match message {
                    Message::Answer(_) | Message::Tell(_) | Message::GiveUp(_) if asleep => {
                        self.count += 1;
                        let later = self.sites[site].stopped_until.max(self.sites[site].dead_until).max(self.now + 1);
                        self.arrivals.insert((later, self.count), (site, life, request, message));
                    }
                    message => self.arrive(site, life, request, message),
                }
            }
            if self.sites.iter().any(|site| site.runs.is_some()) {
                last_running = self.now;
            }
            let idle = self.now.saturating_sub((FAULTS_UNTIL + FAULT_MAX).max(last_running));
            assert!(idle < AGAIN_MAX, "nothing runs at {} ms\n{}", self.now, self.log.join("\n"));
        }
    }

    /// The guard kills on time although its holder is stopped; what ended is told when the holder wakes.
    fn guard(&mut self, site: usize) {
        let now = self.clock(site);
        let here = &mut self.sites[site];
        let Some(runs) = &here.runs else { return };
        let killed = now >= runs.until;
        if !killed && self.now < runs.ends_at {
            return;
        }
        let code = if killed { 137 } else { runs.code };
        here.runs = None;
        self.log.push(format!("{} site {site} ended {code}", self.now));
        let wakes = here.stopped_until.saturating_sub(self.now);
        self.send(site, wakes, Message::Tell(Input::Ended(code)));
    }
}

#[test]
fn never_two_programs_and_always_one_again() {
    for seed in 0..SEEDS {
        let result = std::panic::catch_unwind(|| World::new(seed).run());
        assert!(result.is_ok(), "seed {seed}");
    }
}
