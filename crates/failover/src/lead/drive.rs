//! Carries out what [`Holder`] decides: requests, processes, timers.

use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::decide::{Action, Holder, Input, Outcome, Stage, Timing};
use super::event::{Event, Format};
use super::guard::now;
use super::lease::{LeaseApi, record};
use super::program::Program;

/// What to lead, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who this is; a random part is added, so that each start is a holder of its own.
    pub identity: String,
    /// How fast it all goes.
    pub timing: Timing,
    /// Run by `sh -c` before the program, when the lease is held.
    pub pre: Option<String>,
    /// Run by `sh -c` after the program.
    pub post: Option<String>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How events are told.
    pub format: Format,
}

/// Why nothing could be led.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// This process cannot become the one that orphans fall to.
    #[error("cannot become a subreaper: {0}")]
    Subreaper(#[source] nix::errno::Errno),
    /// Signals.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] io::Error),
    /// The guard.
    #[error("cannot start {command}: {source}")]
    Start {
        /// The program.
        command: String,
        /// What the system said.
        source: io::Error,
    },
}

type Request = Pin<Box<dyn Future<Output = Input> + Send>>;
type Shown = Pin<Box<dyn Stream<Item = Option<Lease>> + Send>>;

/// Stands by, leads, hands over; answers the exit code of the program.
///
/// # Errors
/// See [`LeadError`].
pub async fn run(client: Client, settings: Settings) -> Result<i32, LeadError> {
    set_child_subreaper(true).map_err(LeadError::Subreaper)?;
    let identity = format!("{}_{:08x}", settings.identity, fastrand::u32(..));
    let api: Api<Lease> = Api::namespaced(client, &settings.namespace);
    let shown = watcher::watch_object(api.clone(), &settings.name).default_backoff();
    let lease = LeaseApi { api, name: settings.name.clone(), identity: identity.clone(), ttl: settings.timing.ttl };
    let hooks = (settings.pre.is_some(), settings.post.is_some());
    let listen = |kind| signal(kind).map_err(LeadError::Signals);
    let driver = Driver {
        holder: Holder::new(settings.timing, identity.clone(), hooks),
        shown: shown.filter_map(async |shown| shown.ok()).boxed(),
        terminate: listen(SignalKind::terminate())?,
        interrupt: listen(SignalKind::interrupt())?,
        request: None,
        program: None,
        lease,
        identity,
        settings,
    };
    driver.run().await
}

struct Driver {
    holder: Holder,
    settings: Settings,
    identity: String,
    lease: LeaseApi,
    shown: Shown,
    terminate: Signals,
    interrupt: Signals,
    request: Option<Request>,
    program: Option<Program>,
}

impl Driver {
    async fn run(mut self) -> Result<i32, LeadError> {
        let mut input = Input::Tick;
        loop {
            for action in self.holder.step(input, now()) {
                if let Some(code) = self.act(action)? {
                    return Ok(code);
                }
            }
            if let (Some(program), Some(until)) = (&mut self.program, self.holder.fence()) {
                program.until(until);
            }
            input = self.next().await;
        }
    }

    /// Waits for the next thing to happen.
    async fn next(&mut self) -> Input {
        let left = self.holder.wake().map(|at| at.saturating_sub(now()));
        let timer = pin!(tokio::time::sleep(left.unwrap_or_default()));
        tokio::select! {
            input = async { self.request.as_mut().unwrap_or(&mut never()).await }, if self.request.is_some() => {
                self.request = None;
                input
            }
            code = ended(&mut self.program), if self.program.is_some() => {
                self.program = None;
                Input::Ended(code)
            }
            Some(lease) = self.shown.next() => Input::Watched(lease.as_ref().map(record)),
            _ = self.terminate.recv() => Input::Terminate,
            _ = self.interrupt.recv() => Input::Terminate,
            () = timer, if left.is_some() => Input::Tick,
        }
    }

    /// Carries out one action; answers the exit code when it was the last.
    fn act(&mut self, action: Action) -> Result<Option<i32>, LeadError> {
        let lease = self.lease.clone();
        let attempt = self.settings.timing.attempt();
        match action {
            Action::Read => {
                self.request = Some(Box::pin(async move {
                    let answer = tokio::time::timeout(attempt, lease.read()).await;
                    Input::Read(answer.unwrap_or_else(|_| Err(silence(attempt))))
                }));
            }
            Action::Write(claim, version, epoch) => {
                let sent = now();
                self.request = Some(Box::pin(async move {
                    let answer = tokio::time::timeout(attempt, lease.write(claim, version.as_deref(), epoch)).await;
                    Input::Wrote { sent, outcome: answer.unwrap_or_else(|_| Outcome::Unknown(silence(attempt))) }
                }));
            }
            Action::Run(stage, epoch) => self.start(stage, epoch)?,
            Action::Stop => self.with_program(|program| program.signal(Signal::SIGTERM as i32)),
            Action::Kill => self.with_program(Program::kill),
            Action::Say(event) => self.say(&event),
            Action::Exit(code) => return Ok(Some(code)),
        }
        Ok(None)
    }

    fn with_program(&mut self, act: impl FnOnce(&mut Program)) {
        if let Some(program) = &mut self.program {
            act(program);
        }
    }

    fn start(&mut self, stage: Stage, epoch: u64) -> Result<(), LeadError> {
        let shell =
            |text: &Option<String>| ["sh", "-c", text.as_deref().unwrap_or_default()].map(str::to_owned).to_vec();
        let command = match stage {
            Stage::Pre => shell(&self.settings.pre),
            Stage::Program => self.settings.command.clone(),
            Stage::Post => shell(&self.settings.post),
        };
        let variables = [
            ("MAINSTAY_LEAD_LEASE", format!("{}/{}", self.settings.namespace, self.settings.name)),
            ("MAINSTAY_LEAD_IDENTITY", self.identity.clone()),
            ("MAINSTAY_LEAD_EPOCH", epoch.to_string()),
        ];
        let until = self.holder.fence().unwrap_or(Duration::ZERO);
        let failed = |source| LeadError::Start { command: command.join(" "), source };
        self.program = Some(Program::start(&command, &variables, until).map_err(failed)?);
        Ok(())
    }

    fn say(&self, event: &Event) {
        event.tell(
            self.settings.format,
            &format!("{}/{}", self.settings.namespace, self.settings.name),
            &self.identity,
        );
    }
}

fn silence(attempt: Duration) -> String {
    format!("no answer for {attempt:?}")
}

async fn ended(program: &mut Option<Program>) -> i32 {
    match program {
        Some(program) => program.ended().await,
        None => std::future::pending().await,
    }
}

fn never() -> Request {
    Box::pin(std::future::pending())
}
