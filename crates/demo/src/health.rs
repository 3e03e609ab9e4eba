//! The switches behind `/healthz`, `/livez`, `/readyz` and `/startupz`, and the latency added to answers.
//!
//! Shared by all connections of the one thread; atomics rather than a lock so that a handler holds nothing while it
//! waits. Stopping wins over every switch: a program that is going away is never ready again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Longest latency that can be asked for, in milliseconds.
pub(crate) const LATENCY_MS_MAX: u64 = 600_000;

/// What the program says about itself. See `POST /control`.
#[derive(Debug)]
pub(crate) struct Health {
    started_at: Instant,
    start_delay: Duration,
    live: AtomicBool,
    ready: AtomicBool,
    started: AtomicBool,
    stopping: AtomicBool,
    latency_ms: AtomicU64,
    probe_latency_ms: AtomicU64,
}

/// The state of all switches, as `GET /control` shows it.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // they are independent switches, not a state
pub(crate) struct Switches {
    pub(crate) live: bool,
    pub(crate) ready: bool,
    pub(crate) started: bool,
    pub(crate) stopping: bool,
    pub(crate) latency_ms: u64,
    pub(crate) probe_latency_ms: u64,
}

/// Why `POST /control` was refused; nothing has been changed then.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ControlError {
    #[error("no switch named {0:?}; there are live, ready, started (true or false), latency_ms and probe_latency_ms")]
    UnknownSwitch(String),
    #[error("{switch}={value:?}: expected true or false")]
    NotBoolean { switch: String, value: String },
    #[error("{switch}={value:?}: expected milliseconds from 0 to {LATENCY_MS_MAX}")]
    NotMilliseconds { switch: String, value: String },
}

/// One switch turned to one position, already checked.
enum Change {
    Live(bool),
    Ready(bool),
    Started(bool),
    Latency(u64),
    ProbeLatency(u64),
}

impl Health {
    /// Everything healthy, except that the program does not count as started for `start_delay_ms`.
    pub(crate) fn new(start_delay_ms: u64) -> Self {
        Self {
            started_at: Instant::now(),
            start_delay: Duration::from_millis(start_delay_ms),
            live: AtomicBool::new(true),
            ready: AtomicBool::new(true),
            started: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            latency_ms: AtomicU64::new(0),
            probe_latency_ms: AtomicU64::new(0),
        }
    }

    /// How long the program has been running.
    pub(crate) fn uptime(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// Readiness fails from here on, whatever the switch says.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// The state of all switches now. `ready` is what `/readyz` answers: the switch, and started, and not stopping.
    pub(crate) fn switches(&self) -> Switches {
        let started = self.started.load(Relaxed) && self.uptime() >= self.start_delay;
        let stopping = self.stopping.load(Relaxed);
        Switches {
            live: self.live.load(Relaxed),
            ready: self.ready.load(Relaxed) && started && !stopping,
            started,
            stopping,
            latency_ms: self.latency_ms.load(Relaxed),
            probe_latency_ms: self.probe_latency_ms.load(Relaxed),
        }
    }

    /// Applies a query such as `ready=false&latency_ms=20`: all of it, or none if any part is wrong.
    pub(crate) fn control(&self, query: &str) -> Result<(), ControlError> {
        let changes = form_urlencoded::parse(query.as_bytes())
            .map(|(switch, value)| parse_change(&switch, &value))
            .collect::<Result<Vec<_>, _>>()?;
        for change in changes {
            match change {
                Change::Live(on) => self.live.store(on, Relaxed),
                Change::Ready(on) => self.ready.store(on, Relaxed),
                Change::Started(on) => self.started.store(on, Relaxed),
                Change::Latency(ms) => self.latency_ms.store(ms, Relaxed),
                Change::ProbeLatency(ms) => self.probe_latency_ms.store(ms, Relaxed),
            }
        }
        Ok(())
    }
}

fn parse_change(switch: &str, value: &str) -> Result<Change, ControlError> {
    match switch {
        "live" => Ok(Change::Live(boolean(switch, value)?)),
        "ready" => Ok(Change::Ready(boolean(switch, value)?)),
        "started" => Ok(Change::Started(boolean(switch, value)?)),
        "latency_ms" => Ok(Change::Latency(milliseconds(switch, value)?)),
        "probe_latency_ms" => Ok(Change::ProbeLatency(milliseconds(switch, value)?)),
        other => Err(ControlError::UnknownSwitch(other.to_owned())),
    }
}

fn boolean(switch: &str, value: &str) -> Result<bool, ControlError> {
    value.parse().map_err(|_| ControlError::NotBoolean { switch: switch.to_owned(), value: value.to_owned() })
}

fn milliseconds(switch: &str, value: &str) -> Result<u64, ControlError> {
    match value.parse() {
        Ok(ms) if ms <= LATENCY_MS_MAX => Ok(ms),
        _ => Err(ControlError::NotMilliseconds { switch: switch.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_refused_control_changes_nothing() {
        let health = Health::new(0);
        let error = health.control("ready=false&latency_ms=soon").unwrap_err();
        assert_eq!(error, ControlError::NotMilliseconds { switch: "latency_ms".into(), value: "soon".into() });
        assert!(health.switches().ready);
        assert!(health.control("speed=9").is_err());
        assert!(health.control("latency_ms=600001").is_err());
    }

    #[test]
    fn switches_turn_both_ways() {
        let health = Health::new(0);
        health.control("ready=false&live=false&latency_ms=7").unwrap();
        let off = health.switches();
        assert!(!off.ready && !off.live && off.started);
        assert_eq!(off.latency_ms, 7);
        health.control("ready=true&live=true").unwrap();
        assert!(health.switches().ready);
    }

    #[test]
    fn neither_starting_nor_stopping_is_ready() {
        assert!(!Health::new(60_000).switches().ready);
        let health = Health::new(0);
        health.stop();
        health.control("ready=true").unwrap();
        assert!(!health.switches().ready);
        assert!(health.switches().live);
    }
}
