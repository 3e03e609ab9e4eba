//! MariaDB 10.11 and later, as `mysql`.
//!
//! Replication by GTID in one domain, in strict mode, so that a position is one number that counts transactions; what a replica has
//! received into its relay log counts. Commits wait for one replica (semi-synchronous, before the engine commits: `AFTER_SYNC`, and
//! without any time after which they would stop to wait). Which replica that is MariaDB does not let anybody choose, so all members vote.
//!
//! # Guarantees
//! - After `follow(None)` nothing more is received: the thread that receives has ended, and nothing but `follow` starts it.
//! - A replica that died with acknowledged transactions in its relay log, not yet applied, has them again before its position is told
//!   ([`tools::recover`]): MariaDB itself throws such a relay log away, because it counts on the primary still having them.
//! - A primary that comes back keeps what is in its log, acknowledged or not (`init-rpl-role` is not `SLAVE`): it cannot know. Where
//!   that is more than the new primary had when it began, these are errant transactions: by its position it
//!   [does not continue](crate::core::Record::continues) the new epoch, and is cloned.
//! - People's superuser may not write on a replica: it lacks `READ ONLY ADMIN`, which only the steward's own user has.
//!
//! # Deliberately absent
//! MySQL by Oracle, whose GTIDs are sets; more than one synchronous replica, which MariaDB cannot wait for; several domains; a copy by
//! files (`mariadb-backup` can only copy on the machine itself): a clone is a dump, taken in one transaction and loaded anew.
//!
//! Sources: <https://mariadb.com/kb/en/gtid/>, <https://mariadb.com/kb/en/semisynchronous-replication/>,
//! <https://mariadb.com/kb/en/authentication-plugin-unix-socket/>.

mod files;
mod tools;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{Ending, Engine, Observation, Rebuild, ServerCommand, Source, Standby, Start, Synchronous, User};
use crate::core::{MemberId, Role};
use wire::{Connection, Row, WireError};

/// How long one statement of the steward may take.
const STATEMENT: Duration = Duration::from_secs(2);
/// How long what was received may take to be applied before a promotion.
const APPLY: Duration = Duration::from_secs(10);
/// Between two looks at something that is awaited.
const LOOK: Duration = Duration::from_millis(5);
/// The steward's own user; only from this machine, and only by the socket.
const STEWARD: &str = "mainstay";

/// Where one member's MariaDB is, and what it should be like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The member; the name it reports to its primary.
    pub member: MemberId,
    /// All members: their server numbers are their places in this set, from 1.
    pub members: BTreeSet<MemberId>,
    /// The data directory. Its parent must be writable too.
    pub data: PathBuf,
    /// Where `mariadbd` is; the client programs are there too, or in `../bin`.
    pub programs: PathBuf,
    /// Directory of the Unix socket.
    pub socket: PathBuf,
    /// Addresses to listen on; `*` for all.
    pub listen: String,
    /// The port.
    pub port: u16,
    /// Password of `root`, and of replication.
    pub password: String,
    /// Parameters of the user's.
    pub parameters: BTreeMap<String, String>,
    /// User and group to run as, when the steward is root.
    pub user: Option<(u32, u32)>,
    /// Users of people's.
    pub users: Vec<User>,
}

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum MysqlError {
    /// A statement.
    #[error(transparent)]
    Statement(#[from] WireError),
    /// It took too long.
    #[error("MariaDB has not finished within {0:?}: {1}")]
    Deadline(Duration, &'static str),
    /// An answer without what it must have.
    #[error("MariaDB did not say its {0}")]
    Answer(&'static str),
    /// A file could not be written or read.
    #[error("cannot read or write {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program could not be run.
    #[error("cannot run {program}; is MariaDB installed there?")]
    Run {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: String,
        /// The end of what it said.
        output: String,
    },
    /// The Lease does not say yet which database this is.
    #[error("the Lease does not say which database is to be copied")]
    Nameless,
    /// There is no randomness.
    #[error("this machine gives no random bytes for the identity of the data")]
    Random,
}

type Result<T> = std::result::Result<T, MysqlError>;

/// The engine.
#[derive(Debug)]
pub struct Mysql {
    settings: Settings,
    connection: RefCell<Option<Connection>>,
    /// What a relay log of before the start had is applied, or there was none.
    recovered: Cell<bool>,
    synchronous: RefCell<Synchronous>,
}

impl Mysql {
    /// The engine with these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, connection: RefCell::default(), recovered: Cell::new(false), synchronous: RefCell::default() }
    }

    /// One statement, over the connection kept open or a new one.
    async fn query(&self, statement: &str) -> Result<Vec<Row>> {
        let kept = self.connection.borrow_mut().take();
        let answer = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => Connection::open(&files::socket(&self.settings), STEWARD, &self.settings.password).await?,
            };
            let answer = connection.query(statement).await;
            if matches!(answer, Ok(_) | Err(WireError::Refused { .. })) {
                *self.connection.borrow_mut() = Some(connection);
            }
            Ok(answer?)
        };
        let answered = tokio::time::timeout(STATEMENT, answer).await;
        answered.map_err(|_| MysqlError::Deadline(STATEMENT, "a statement of the steward"))?
    }

    async fn all(&self, statements: &[&str]) -> Result<()> {
        for statement in statements {
            self.query(statement).await?;
        }
        Ok(())
    }

    async fn observe(&self) -> Result<Observation> {
        let now = self.query(OBSERVE).await?.pop().ok_or(MysqlError::Answer("state"))?;
        let is_replica = now.get("ro").is_some_and(|it| it != "0");
        if is_replica && !self.recovered.get() {
            tools::recover(&self.settings, text(&now, "gtid")).await?;
            self.all(&["RESET SLAVE ALL"]).await?;
            self.recovered.set(true);
            return Box::pin(self.observe()).await;
        }
        let applied = count(text(&now, "gtid"));
        let received = self.query("SHOW SLAVE STATUS").await?.pop().unwrap_or_default();
        let runs = |key: &str| received.get(key).is_some_and(|it| it == "Yes");
        let mut synchronous = self.synchronous.borrow().clone();
        if !is_replica {
            synchronous.count = usize::from(now.get("semi").is_some_and(|it| it == "1"));
        }
        let hosts = if is_replica { Vec::new() } else { self.query("SHOW SLAVE HOSTS").await? };
        // How far each is, it says itself.
        let standby = |row: &Row| Standby { member: MemberId::new(text(row, "Host")), offset: 0, streaming: true };
        Ok(Observation {
            role: if is_replica { Role::Replica } else { Role::Primary },
            offset: applied.max(count(text(&received, "Gtid_IO_Pos"))),
            applied,
            receiving: runs("Slave_IO_Running") && runs("Slave_SQL_Running"),
            standbys: hosts.iter().map(standby).collect(),
            synchronous,
        })
    }

    /// An empty data directory, marked as one that is being made.
    fn begin(&self) -> Result<()> {
        let (settings, data) = (&self.settings, &self.settings.data);
        let at = |source| MysqlError::File { path: data.clone(), source };
        match fs::remove_dir_all(data) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(at(source)),
            _ => {}
        }
        fs::create_dir_all(data).map_err(at)?;
        files::own(settings, data, 0o700)
    }

    async fn make(&self, system: &str, source: Option<&Source>) -> Result<()> {
        *self.connection.borrow_mut() = None;
        self.begin()?;
        tools::initialise(&self.settings).await?;
        if let Some(source) = source {
            tools::load(&self.settings, source).await?;
        }
        tools::settle(&self.settings).await?;
        // Last: with it, there is a database.
        files::write(&self.settings, &files::identity(&self.settings), system)
    }
}

/// Role, position and rule for commits.
const OBSERVE: &str = "SELECT @@GLOBAL.read_only AS ro, @@GLOBAL.gtid_binlog_pos AS gtid, \
    @@GLOBAL.rpl_semi_sync_master_enabled AS semi";

fn text<'a>(row: &'a Row, key: &str) -> &'a str {
    row.get(key).map(String::as_str).unwrap_or_default()
}

/// How many transactions a position says there were: `0-2-105` is 105, whoever made them. Of several domains, the sum.
fn count(position: &str) -> u64 {
    let number = |gtid: &str| gtid.rsplit('-').next()?.trim().parse::<u64>().ok();
    position.split(',').filter_map(number).sum()
}

/// A text in a statement.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

impl Engine for Mysql {
    type Error = MysqlError;

    fn initialised(&self) -> bool {
        files::identity(&self.settings).exists()
    }

    async fn initialise(&self) -> Result<()> {
        use ring::rand::SecureRandom as _;
        let mut random = [0_u8; 8];
        ring::rand::SystemRandom::new().fill(&mut random).map_err(|_| MysqlError::Random)?;
        self.make(&u64::from_ne_bytes(random).to_string(), None).await
    }

    async fn system(&self) -> Result<String> {
        let path = files::identity(&self.settings);
        fs::read_to_string(&path).map_err(|source| MysqlError::File { path, source })
    }

    fn command(&self, start: &Start) -> Result<ServerCommand> {
        *self.connection.borrow_mut() = None;
        self.recovered.set(matches!(start, Start::Primary(_)));
        if let Start::Primary(synchronous) = start {
            *self.synchronous.borrow_mut() = synchronous.clone();
        }
        let path = files::configuration(&self.settings);
        files::write(&self.settings, &path, &files::text(&self.settings, start))?;
        Ok(ServerCommand {
            program: self.settings.programs.join("mariadbd"),
            arguments: vec![format!("--defaults-file={}", path.display())],
            environment: Vec::new(),
            user: self.settings.user,
        })
    }

    async fn probe(&self, deadline: Duration) -> Result<Observation> {
        let late = |_| MysqlError::Deadline(deadline, "a look at its state");
        // A relay log of before the start may be long.
        let deadline = if self.recovered.get() { deadline } else { tools::RECOVER };
        tokio::time::timeout(deadline, self.observe()).await.map_err(late)?
    }

    async fn promote(&self, synchronous: &Synchronous, _: &BTreeSet<MemberId>) -> Result<u64> {
        let drained = async {
            loop {
                let status = self.query("SHOW SLAVE STATUS").await?.pop().unwrap_or_default();
                let now = self.query(OBSERVE).await?.pop().unwrap_or_default();
                let applied = count(text(&now, "gtid"));
                if applied >= count(text(&status, "Gtid_IO_Pos")) {
                    return Ok::<u64, MysqlError>(applied);
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let drained = tokio::time::timeout(APPLY, drained).await;
        let began = drained.map_err(|_| MysqlError::Deadline(APPLY, "to apply what it received"))??;
        self.all(&["STOP SLAVE", "RESET SLAVE ALL"]).await?;
        self.synchronise(synchronous).await?;
        self.all(&["SET GLOBAL read_only = 0"]).await?;
        Ok(began)
    }

    async fn follow(&self, source: Option<&Source>) -> Result<()> {
        let Some(source) = source else {
            return self.all(&["SET GLOBAL rpl_semi_sync_slave_enabled = 0", "STOP SLAVE IO_THREAD"]).await;
        };
        let (host, port) = files::place(source);
        let (host, password) = (quoted(host), quoted(&self.settings.password));
        // What is in its own log is all it has: what it only received goes, and comes again from here.
        let change = format!(
            "CHANGE MASTER TO MASTER_HOST = {host}, MASTER_PORT = {port}, MASTER_USER = 'replicator', \
             MASTER_PASSWORD = {password}, MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = 0.5"
        );
        self.all(&[
            "STOP SLAVE",
            "SET GLOBAL gtid_slave_pos = @@GLOBAL.gtid_binlog_pos",
            &change,
            "SET GLOBAL rpl_semi_sync_master_enabled = 0",
            "SET GLOBAL rpl_semi_sync_slave_enabled = 1",
            "START SLAVE",
        ])
        .await
    }

    async fn synchronise(&self, synchronous: &Synchronous) -> Result<()> {
        let count = usize::from(synchronous.count > 0);
        self.query(&format!("SET GLOBAL rpl_semi_sync_master_enabled = {count}")).await?;
        *self.synchronous.borrow_mut() = synchronous.clone();
        Ok(())
    }

    async fn serve(&self, _: &BTreeSet<MemberId>) -> Result<()> {
        Ok(())
    }

    async fn admit(&self) -> Result<()> {
        for User { name, database, password } in &self.settings.users {
            let known = format!("SELECT 1 AS known FROM mysql.user WHERE User = '{name}'");
            if self.query(&known).await?.is_empty() {
                let password = quoted(password);
                self.all(&[
                    &format!("CREATE DATABASE IF NOT EXISTS `{database}`"),
                    &format!("CREATE USER '{name}'@'%' IDENTIFIED BY {password}"),
                    &format!("GRANT ALL PRIVILEGES ON `{database}`.* TO '{name}'@'%'"),
                ])
                .await?;
            }
        }
        Ok(())
    }

    async fn rebuild(&self, source: &Source, _: Rebuild, system: Option<&str>) -> Result<()> {
        self.make(system.ok_or(MysqlError::Nameless)?, Some(source)).await
    }

    async fn prepare_switchover(&self) -> Result<()> {
        Ok(())
    }

    async fn quiesce(&self) -> Result<Ending> {
        // Waits for commits under way. Where those waited for a replica, nothing is in its log that nobody else has.
        self.all(&["SET GLOBAL read_only = 1"]).await?;
        if self.synchronous.borrow().count > 0 {
            return Ok(Ending::Now);
        }
        let now = self.query(OBSERVE).await?.pop().unwrap_or_default();
        Ok(Ending::After(count(text(&now, "gtid"))))
    }

    fn knows_standbys(&self) -> bool {
        false
    }

    fn stop_signal(&self) -> i32 {
        nix::libc::SIGTERM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_transactions() {
        assert_eq!(count("0-2-105"), 105);
        assert_eq!(count(""), 0);
        assert_eq!(count("0-1-10,3-1-5"), 15);
        assert_eq!(quoted(r"it's \ it"), r"'it''s \\ it'");
    }
}
