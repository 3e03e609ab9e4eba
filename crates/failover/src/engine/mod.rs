//! What a steward must know of a database: one file for each engine answers these questions.
//!
//! Contract: every method has a deadline of its own and may fail; the steward looks again and decides anew, so each must be
//! repeatable. Methods that work on files ([`Engine::initialise`], [`Engine::rebuild`], [`Engine::command`]) are called only
//! while the server does not run; the others only while it does.

pub mod mysql;
pub mod postgres;
pub mod redis;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::{MemberId, Role};

/// What a running server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Whether it accepts writes.
    pub role: Role,
    /// How much it has: for a replica, the furthest of what is on disk and what is applied.
    pub offset: u64,
    /// How much of that is applied, and can be read.
    pub applied: u64,
    /// Where it receives from, when it does: as [`Source::address`] of the last [`Engine::follow`].
    pub receiving: bool,
    /// The replicas connected to it.
    pub standbys: Vec<Standby>,
    /// What is in force for commits.
    pub synchronous: Synchronous,
}

/// A replica as its primary sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standby {
    /// Which member.
    pub member: MemberId,
    /// What it has on disk.
    pub offset: u64,
    /// It has caught up once and receives as writes are made.
    pub streaming: bool,
}

/// A commit is acknowledged when `count` of these replicas have it on disk. `count` 0: at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Synchronous {
    /// Whose answer counts.
    pub standbys: BTreeSet<MemberId>,
    /// How many answers it takes. More than there are standbys: no commit is acknowledged.
    pub count: usize,
}

/// From whom to receive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// Which member.
    pub member: MemberId,
    /// `host:port` of its database.
    pub address: String,
    /// Its epoch.
    pub epoch: u64,
}

/// As what a server is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// To accept writes, acknowledged by these rules from the first one on.
    Primary(Synchronous),
    /// To wait or receive, and accept no write.
    Replica(Option<Source>),
}

/// How to make the files those of the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// Go back to the common past, if the engine can; otherwise [`Rebuild::Clone`] is tried next.
    Rewind,
    /// Copy everything.
    Clone,
}

/// A user of people's, and the database that is theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name: a letter, then letters, digits and underscores, all small.
    pub name: String,
    /// The database it owns; Redis has none.
    pub database: String,
    /// The password.
    pub password: String,
}

/// How a primary is ended for a switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By its stop signal, which sees to all that is needed.
    Signal,
    /// It accepts no writes any more, and is killed as soon as a replica has this much.
    After(u64),
    /// The same, and replicas have everything already.
    Now,
}

/// The program to run, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Environment beyond the steward's.
    pub environment: Vec<(String, String)>,
    /// Run as this user, by number, when the steward is root.
    pub user: Option<(u32, u32)>,
}

/// One database.
#[allow(async_fn_in_trait)] // stewards run on one thread
pub trait Engine {
    /// Why something did not work.
    type Error: std::error::Error + 'static;

    /// Whether there is a database in the data directory (complete: an interrupted clone is none).
    fn initialised(&self) -> bool;

    /// Makes an empty database with its users.
    async fn initialise(&self) -> Result<(), Self::Error>;

    /// The identity of the data, the same on all members of one database.
    async fn system(&self) -> Result<String, Self::Error>;

    /// Writes the configuration for this start, and says what to run.
    fn command(&self, start: &Start) -> Result<ServerCommand, Self::Error>;

    /// Asks the server for everything. An error within `deadline` means that it does not answer.
    async fn probe(&self, deadline: Duration) -> Result<Observation, Self::Error>;

    /// Makes a replica the primary; returns once it accepts writes. The offset at which its own writes begin: all before is
    /// shared with the last primary. `synchronous` is in force before the first write. Does what [`Engine::serve`] does on the way.
    async fn promote(&self, synchronous: &Synchronous, replicas: &BTreeSet<MemberId>) -> Result<u64, Self::Error>;

    /// Receives from `source`; from nobody when `None`, and then nothing more is received once this returns.
    async fn follow(&self, source: Option<&Source>) -> Result<(), Self::Error>;

    /// Changes whose answers a commit needs. Returns once every later acknowledgement keeps to it.
    async fn synchronise(&self, synchronous: &Synchronous) -> Result<(), Self::Error>;

    /// Makes what the primary keeps for its replicas right for exactly these members (slots, users).
    async fn serve(&self, replicas: &BTreeSet<MemberId>) -> Result<(), Self::Error>;

    /// Makes people's users and their databases, where they are missing. Only on a primary.
    async fn admit(&self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Makes the files those of `source`, whose data has the identity `system`.
    async fn rebuild(&self, source: &Source, how: Rebuild, system: Option<&str>) -> Result<(), Self::Error>;

    /// Gets a switchover ready, so that it is short: for example writes dirty pages out.
    async fn prepare_switchover(&self) -> Result<(), Self::Error>;

    /// Ends writing for a switchover, where there is a faster way than the stop signal, and says how to go on.
    async fn quiesce(&self) -> Result<Ending, Self::Error> {
        Ok(Ending::Signal)
    }

    /// Whether [`Observation::standbys`] says how much each has; if not, what they say themselves is taken.
    fn knows_standbys(&self) -> bool {
        true
    }

    /// The signal upon which the server ends all connections, sends the rest of its log to its replicas and ends.
    fn stop_signal(&self) -> i32;
}
