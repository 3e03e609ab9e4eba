//! PostgreSQL 13 to 18.
//!
//! Streaming replication with one physical slot for each member, synchronous commits by `synchronous_standby_names = ANY k (...)`,
//! `pg_promote`, `pg_rewind` or `pg_basebackup`. The server runs with a configuration file of ours ([`files`]); changes while it runs
//! are written there and reloaded. Positions are write-ahead log locations (LSN) as numbers.
//!
//! # Guarantees
//! - A position is told only after the server has replayed all the log it has: until then it does not answer.
//! - After `follow(None)` nothing more is received: the server has passed the configuration without a source on to its processes,
//!   and after that the startup process is seen waiting, with no receiver there, over several looks. Before it starts a receiver
//!   again it reads the configuration; between that and the starting lie microseconds, and between the looks far more.
//! - After `synchronise` no commit is acknowledged by the old rule: the sender processes of replicas that no longer count are ended, and
//!   the others' rule was at least as strict (who is added to the rule is added for everybody's next wait).
//! - `restart_after_crash` is off: when a server process crashes, the postmaster ends, and the steward decides whether restarting it
//!   or handing over is better.
//!
//! # Deliberately absent
//! Logical replication slots are not carried over to a new primary (PostgreSQL 17 can do it itself: `sync_replication_slots`).
//!
//! Sources: <https://www.postgresql.org/docs/current/runtime-config-replication.html>,
//! <https://www.postgresql.org/docs/current/warm-standby.html>, <https://www.postgresql.org/docs/current/app-pgrewind.html>.

mod files;
mod restore;
mod session;
mod tools;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::{Engine, Observation, Rebuild, ServerCommand, Source, Standby, Start, Synchronous, User};
use crate::core::{MemberId, Role};
use session::Session;

/// The name by which connections that copy files are known.
const COPY: &str = "mainstay copy";
/// How long one statement of the steward may take.
const STATEMENT: Duration = Duration::from_secs(2);
/// Between two looks at something that is awaited.
const LOOK: Duration = Duration::from_millis(3);
/// Looks at a receiver that is gone, one after the other.
const LOOKS_GONE: usize = 3;
/// How long a new database may take.
const CREATE: Duration = Duration::from_secs(30);
/// How long a promotion may take.
const PROMOTE: Duration = Duration::from_secs(10);

/// Where one member's PostgreSQL is, and what it should be like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The member; its `application_name` and the name of its slot.
    pub member: MemberId,
    /// The data directory. Its parent must be writable too: a clone is made beside it.
    pub data: PathBuf,
    /// Where `postgres`, `initdb` and `pg_rewind` are.
    pub programs: PathBuf,
    /// Directory of the Unix socket.
    pub socket: PathBuf,
    /// Addresses to listen on, as in `listen_addresses`.
    pub listen: String,
    /// The port.
    pub port: u16,
    /// Password of the superuser `postgres`, and of `replicator`.
    pub password: String,
    /// Parameters of the user's.
    pub parameters: BTreeMap<String, String>,
    /// Lines for `pg_hba.conf` before ours.
    pub access: Vec<String>,
    /// User and group to run as, when the steward is root.
    pub user: Option<(u32, u32)>,
    /// Users of people's.
    pub users: Vec<User>,
    /// Where a new database comes from, if not from nothing.
    pub restore: Option<Restore>,
}

/// A backup that a new database is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// For the shell: fills the directory `$PGDATA` with a copy of a server's files.
    pub command: String,
    /// `recovery_target_time`; to the end of the archived log where there is none.
    pub until: Option<String>,
}

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The server does not answer.
    #[error("PostgreSQL on {socket} does not accept a connection of the steward")]
    Connect {
        /// The socket's directory.
        socket: PathBuf,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A statement failed.
    #[error("PostgreSQL refused `{statement}`")]
    Statement {
        /// Which.
        statement: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// It took too long.
    #[error("PostgreSQL has not finished within {0:?}: {1}")]
    Deadline(Duration, &'static str),
    /// An answer that PostgreSQL 13 to 18 does not give.
    #[error("PostgreSQL answered something unexpected to `{0}`")]
    Answer(String),
    /// A file could not be written or read.
    #[error("cannot read or write {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program could not be run.
    #[error("cannot run {program}; is PostgreSQL installed there?")]
    Run {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: String,
        /// The end of what it said.
        output: String,
    },
}

type Result<T> = std::result::Result<T, PostgresError>;

/// The engine.
#[derive(Debug)]
pub struct Postgres {
    settings: Settings,
    session: RefCell<Option<Session>>,
    /// What was written into the configuration last.
    wanted: RefCell<Wanted>,
}

/// What the configuration says that changes while the server runs.
#[derive(Debug, Clone, Default)]
struct Wanted {
    synchronous: Synchronous,
    source: Option<Source>,
}

impl Postgres {
    /// The engine with these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, session: RefCell::default(), wanted: RefCell::default() }
    }

    /// Changes what is wanted, writes it down and has the server read it.
    async fn change(&self, change: impl FnOnce(&mut Wanted)) -> Result<()> {
        change(&mut self.wanted.borrow_mut());
        let wanted = self.wanted.borrow().clone();
        files::write_configuration(&self.settings, &wanted)?;
        self.session().await?.run("SELECT pg_reload_conf()").await
    }

    /// The session kept open, or a new one.
    async fn session(&self) -> Result<Session> {
        if let Some(open) = self.session.borrow().as_ref().filter(|session| session.open()) {
            return Ok(open.clone());
        }
        let new = Session::connect(&self.settings).await?;
        *self.session.borrow_mut() = Some(new.clone());
        Ok(new)
    }

    async fn observe(&self) -> Result<Observation> {
        let session = self.session().await?;
        let mut row = session.row(OBSERVE).await?;
        // Without a source it must have replayed all of its own log before its position means anything.
        while self.wanted.borrow().source.is_none() && row.first().is_some_and(|it| it == "t") {
            if row.get(5).is_some_and(|it| it == "t") {
                break;
            }
            tokio::time::sleep(LOOK).await;
            row = session.row(OBSERVE).await?;
        }
        let [recovery, offset, applied, receiving, names, _] = &row[..] else {
            return Err(PostgresError::Answer(OBSERVE.to_owned()));
        };
        let role = if recovery == "t" { Role::Replica } else { Role::Primary };
        let standbys = if role == Role::Primary { session.rows(STANDBYS).await? } else { Vec::new() };
        let wanted = self.wanted.borrow().synchronous.clone();
        // Somebody else's setting is none of ours: it is seen as different from whatever is wanted.
        let synchronous =
            if *names == files::names(&wanted) { wanted } else { Synchronous { count: usize::MAX, ..wanted } };
        Ok(Observation {
            role,
            offset: number(offset)?,
            applied: number(applied)?,
            receiving: receiving == "t",
            standbys: standbys.iter().map(|row| standby(row)).collect::<Result<_>>()?,
            synchronous,
        })
    }
}

/// Role, how much is on disk, how much is applied, whether a receiver works, and the rule for commits.
const OBSERVE: &str = "SELECT pg_is_in_recovery(), \
    CASE WHEN pg_is_in_recovery() THEN greatest(pg_wal_lsn_diff(coalesce(pg_last_wal_receive_lsn(), '0/0'), '0/0'), \
        pg_wal_lsn_diff(coalesce(pg_last_wal_replay_lsn(), '0/0'), '0/0')) \
        ELSE pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0') END, \
    CASE WHEN pg_is_in_recovery() THEN pg_wal_lsn_diff(coalesce(pg_last_wal_replay_lsn(), '0/0'), '0/0') \
        ELSE pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0') END, \
    EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
    current_setting('synchronous_standby_names'), \
    EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event IN \
        ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream', 'RecoveryWalAll'))";

/// Whether nothing is received by a server that knows that it has no source, and all that was received is applied.
const STANDS_STILL: &str = "SELECT current_setting('primary_conninfo') = '' AND NOT EXISTS (SELECT FROM pg_stat_wal_receiver) \
    AND EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event = 'RecoveryRetrieveRetryInterval')";

const STANDBYS: &str = "SELECT application_name, coalesce(pg_wal_lsn_diff(flush_lsn, '0/0'), 0), state = 'streaming' \
    FROM pg_stat_replication WHERE usename = 'replicator' AND application_name <> 'mainstay copy'";

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| PostgresError::Answer(text.to_owned()))
}

fn standby(row: &[String]) -> Result<Standby> {
    match row {
        [name, offset, streaming] => {
            Ok(Standby { member: MemberId::new(name), offset: number(offset)?, streaming: streaming == "t" })
        }
        _ => Err(PostgresError::Answer(STANDBYS.to_owned())),
    }
}

/// Waits until a statement answers true.
async fn until(session: &Session, statement: &str, limit: Duration, what: &'static str) -> Result<()> {
    let look = async {
        while session.row(statement).await?.first().is_none_or(|it| it != "t") {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    tokio::time::timeout(limit, look).await.map_err(|_| PostgresError::Deadline(limit, what))?
}

impl Engine for Postgres {
    type Error = PostgresError;

    fn initialised(&self) -> bool {
        self.settings.data.join("PG_VERSION").exists() && !files::incomplete(&self.settings).exists()
    }

    async fn initialise(&self) -> Result<()> {
        match &self.settings.restore {
            Some(wanted) => restore::restore(&self.settings, wanted).await,
            None => tools::initialise(&self.settings).await,
        }
    }

    async fn system(&self) -> Result<String> {
        tools::system(&self.settings).await
    }

    fn command(&self, start: &Start) -> Result<ServerCommand> {
        *self.session.borrow_mut() = None;
        let (synchronous, source) = match start {
            Start::Primary(synchronous) => (synchronous.clone(), None),
            Start::Replica(source) => (Synchronous::default(), source.clone()),
        };
        let wanted = Wanted { synchronous, source };
        files::prepare(&self.settings, &wanted, matches!(start, Start::Replica(_)))?;
        *self.wanted.borrow_mut() = wanted;
        let data = self.settings.data.display().to_string();
        let configuration = format!("config_file={}", files::configuration(&self.settings).display());
        Ok(ServerCommand {
            program: self.settings.programs.join("postgres"),
            arguments: vec!["-D".to_owned(), data, "-c".to_owned(), configuration],
            environment: Vec::new(),
            user: self.settings.user,
        })
    }

    async fn probe(&self, deadline: Duration) -> Result<Observation> {
        let seen = match tokio::time::timeout(deadline, self.observe()).await {
            Ok(seen) => seen,
            Err(_) => Err(PostgresError::Deadline(deadline, "a look at its state")),
        };
        if seen.is_err() {
            *self.session.borrow_mut() = None;
        }
        seen
    }

    async fn promote(&self, synchronous: &Synchronous, replicas: &BTreeSet<MemberId>) -> Result<u64> {
        self.change(|wanted| {
            wanted.synchronous = synchronous.clone();
            wanted.source = None;
        })
        .await?;
        let session = self.session().await?;
        let names = files::names(synchronous).replace('\'', "''");
        let loaded = format!("SELECT current_setting('synchronous_standby_names') = '{names}'");
        until(&session, &loaded, STATEMENT, "reading its configuration").await?;
        session.run("SELECT pg_promote(false)").await?;
        // Meanwhile: the end of the log is being copied for the new timeline.
        self.serve(replicas).await?;
        until(&session, "SELECT NOT pg_is_in_recovery()", PROMOTE, "a promotion").await?;
        files::newest_switch(&self.settings)
    }

    async fn follow(&self, source: Option<&Source>) -> Result<()> {
        self.change(|wanted| wanted.source = source.cloned()).await?;
        let session = self.session().await?;
        if source.is_some() {
            return session.run(DROP_SLOTS).await;
        }
        let gone = async {
            let mut looks = 0;
            while looks < LOOKS_GONE {
                tokio::time::sleep(LOOK).await;
                let still = session.row(STANDS_STILL).await?.first().is_some_and(|it| it == "t");
                looks = if still { looks + 1 } else { 0 };
            }
            Ok(())
        };
        tokio::time::timeout(STATEMENT, gone)
            .await
            .map_err(|_| PostgresError::Deadline(STATEMENT, "to end its receiver"))?
    }

    async fn synchronise(&self, synchronous: &Synchronous) -> Result<()> {
        let before = self.wanted.borrow().synchronous.clone();
        self.change(|wanted| wanted.synchronous = synchronous.clone()).await?;
        // A new connection is a child of the postmaster, and shows what the postmaster has read.
        let fresh = Session::connect(&self.settings).await?;
        let names = files::names(synchronous).replace('\'', "''");
        let loaded = format!("SELECT current_setting('synchronous_standby_names') = '{names}'");
        until(&fresh, &loaded, STATEMENT, "reading its configuration").await?;
        for member in before.standbys.difference(&synchronous.standbys) {
            let name = member.as_str().replace('\'', "''");
            let end =
                format!("SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = '{name}'");
            fresh.run(&end).await?;
        }
        Ok(())
    }

    async fn serve(&self, replicas: &BTreeSet<MemberId>) -> Result<()> {
        let session = self.session().await?;
        let known = session.rows("SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical'").await?;
        let known: BTreeSet<String> = known.into_iter().flatten().collect();
        for slot in replicas.iter().map(files::slot).filter(|slot| !known.contains(slot)) {
            session.run(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)")).await?;
        }
        Ok(())
    }

    async fn admit(&self) -> Result<()> {
        let session = self.session().await?;
        for User { name, database, password } in &self.settings.users {
            let known = format!(
                "SELECT (SELECT count(*) FROM pg_roles WHERE rolname = '{name}'), \
                (SELECT count(*) FROM pg_database WHERE datname = '{database}')"
            );
            let known = session.row(&known).await?;
            let missing = |column: usize| known.get(column).is_some_and(|it| it == "0");
            if missing(0) {
                let password = password.replace('\'', "''");
                session.run(&format!("CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'")).await?;
            }
            if missing(1) {
                session.run_within(&format!("CREATE DATABASE \"{database}\" OWNER \"{name}\""), CREATE).await?;
            }
        }
        Ok(())
    }

    async fn rebuild(&self, source: &Source, how: Rebuild, _: Option<&str>) -> Result<()> {
        *self.session.borrow_mut() = None;
        tools::rebuild(&self.settings, source, how).await
    }

    async fn prepare_switchover(&self) -> Result<()> {
        self.session().await?.run_within("CHECKPOINT", Duration::from_secs(60)).await
    }

    fn stop_signal(&self) -> i32 {
        // Fast shutdown: https://www.postgresql.org/docs/current/server-shutdown.html
        nix::libc::SIGINT
    }
}

/// Slots of the time as primary would keep log for ever.
const DROP_SLOTS: &str = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
    WHERE slot_type = 'physical' AND NOT active AND slot_name LIKE 'mainstay\\_%' AND pg_is_in_recovery()";
