//! Redis 7, and servers that speak as it does.
//!
//! A write is acknowledged by one server and sent to the replicas afterwards: "acknowledged" here means that `WAIT n` answered,
//! with `n` the number of the Database's synchronous members. For such writes the same holds as for PostgreSQL's commits. What is
//! written without `WAIT` may be lost with its primary; `min-replicas-to-write` refuses writes while fewer replicas are connected.
//!
//! The append-only file is always on. A member that receives from nobody is the replica of an address where nobody listens: a
//! Redis that is nobody's replica would accept writes. Positions are in [`info`].
//!
//! # Guarantees
//! - After `follow(None)` nothing more is received: Redis closes the connection within the command.
//! - A member becomes writable only in `promote`, or when it is started as primary.
//!
//! # Deliberately absent
//! Cluster mode, modules' data, encryption.
//!
//! Sources: <https://redis.io/docs/latest/operate/oss_and_stack/management/replication/>, <https://redis.io/docs/latest/commands/wait/>,
//! <https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/>.

mod info;
mod resp;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Ending, Engine, Observation, Rebuild, ServerCommand, Source, Standby, Start, Synchronous, User};
use crate::core::{MemberId, Role};
use info::{Mark, Replication};
use resp::{Connection, Reply, RespError};

/// How long one command of the steward may take.
const COMMAND: Duration = Duration::from_secs(2);
/// For how long writes wait for a switchover, in milliseconds, if it does not come.
const PAUSE_MS: &str = "2000";
/// Where nobody listens, for a replica that shall receive nothing.
const NOBODY: (&str, &str) = ("127.0.0.1", "1");
/// Parameters a user may not set, because the steward does.
const MANAGED: [&str; 13] = [
    "appendonly",
    "bind",
    "daemonize",
    "dir",
    "masterauth",
    "min-replicas-max-lag",
    "min-replicas-to-write",
    "port",
    "replica-announce-ip",
    "replica-read-only",
    "replicaof",
    "requirepass",
    "supervised",
];

/// Where one member's Redis is, and what it should be like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The member; the name it announces to its primary.
    pub member: MemberId,
    /// The data directory. Its parent must be writable too.
    pub data: PathBuf,
    /// Where `redis-server` is.
    pub programs: PathBuf,
    /// Addresses to listen on; `*` for all.
    pub listen: String,
    /// The port.
    pub port: u16,
    /// Password of the default user, and of replication.
    pub password: String,
    /// Parameters of the user's.
    pub parameters: BTreeMap<String, String>,
    /// User and group to run as, when the steward is root.
    pub user: Option<(u32, u32)>,
    /// Users of people's; they may do everything but administer the server.
    pub users: Vec<User>,
}

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// A command.
    #[error(transparent)]
    Command(#[from] RespError),
    /// It took too long.
    #[error("Redis has not answered within {COMMAND:?}")]
    Deadline,
    /// A file could not be written or read.
    #[error("cannot read or write {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The Lease does not say yet which database this is.
    #[error("the Lease does not say which database is to be copied")]
    Nameless,
    /// There is no randomness.
    #[error("this machine gives no random bytes for the identity of the data")]
    Random,
}

type Result<T> = std::result::Result<T, RedisError>;

/// The engine.
#[derive(Debug)]
pub struct Redis {
    settings: Settings,
    connection: RefCell<Option<Connection>>,
    synchronous: RefCell<Synchronous>,
    /// Where the append-only file ended when the server was started.
    recovered: Cell<u64>,
    /// Under which replication id how much had been written before.
    base: RefCell<Option<(String, u64)>>,
}

impl Redis {
    /// The engine with these settings.
    pub fn new(settings: Settings) -> Self {
        let connection = RefCell::default();
        Self {
            settings,
            connection,
            synchronous: RefCell::default(),
            recovered: Cell::new(0),
            base: RefCell::default(),
        }
    }

    /// One command, over the connection kept open or a new one.
    async fn call(&self, command: &[&str]) -> Result<Reply> {
        let kept = self.connection.borrow_mut().take();
        let answer = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect(&format!("127.0.0.1:{}", self.settings.port)).await?,
            };
            let answer = connection.call(command).await;
            if matches!(answer, Ok(_) | Err(RespError::Refused { .. })) {
                *self.connection.borrow_mut() = Some(connection);
            }
            Ok(answer?)
        };
        tokio::time::timeout(COMMAND, answer).await.map_err(|_| RedisError::Deadline)?
    }

    async fn connect(&self, address: &str) -> Result<Connection> {
        Ok(Connection::open(address, Some(&self.settings.password)).await?)
    }

    async fn replication(&self) -> Result<Replication> {
        let answer = self.call(&["INFO", "replication"]).await?;
        Ok(Replication::parse(answer.text().unwrap_or_default()))
    }

    /// What it has: see [`info`].
    async fn position(&self, seen: &Replication) -> Result<u64> {
        let known = self.base.borrow().clone();
        let counts = |history: &str| seen.histories.iter().any(|it| it == history);
        let mut base = known.filter(|(history, _)| counts(history)).map(|(_, base)| base);
        if base.is_none() {
            let answer = self.call(&["GET", info::KEY]).await?;
            let mark = answer.text().and_then(Mark::parse).filter(|mark| counts(&mark.history));
            base = mark.map(|mark| mark.base);
        }
        let base = match base {
            Some(base) => base,
            // Started from its file, and never a replica of anybody since.
            None if seen.primary => self.recovered.get(),
            None => return Ok(self.recovered.get()),
        };
        *self.base.borrow_mut() = Some((seen.histories[0].clone(), base));
        Ok(base + seen.offset)
    }

    async fn set(&self, name: &str, value: &str) -> Result<()> {
        self.call(&["CONFIG", "SET", name, value]).await.map(drop)
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        let at = |source| RedisError::File { path: path.to_owned(), source };
        fs::write(path, text).map_err(at)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(at)?;
        match self.settings.user {
            Some((user, group)) => std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(at),
            None => Ok(()),
        }
    }

    fn identity(&self) -> PathBuf {
        self.settings.data.join("mainstay-system")
    }

    /// An empty data directory with this identity.
    fn begin(&self, system: &str) -> Result<()> {
        let data = &self.settings.data;
        let at = |source| RedisError::File { path: data.clone(), source };
        match fs::remove_dir_all(data) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(at(source)),
            _ => {}
        }
        fs::create_dir_all(data).map_err(at)?;
        fs::set_permissions(data, fs::Permissions::from_mode(0o700)).map_err(at)?;
        if let Some((user, group)) = self.settings.user {
            std::os::unix::fs::chown(data, Some(user), Some(group)).map_err(at)?;
        }
        self.write(&self.identity(), system)
    }

    fn configuration(&self, start: &Start) -> String {
        let settings = &self.settings;
        let mut text = String::from("# Written by Mainstay; set parameters in the Database.\n");
        let mut line = |name: &str, value: &str| {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = writeln!(text, "{name} \"{quoted}\"");
        };
        line("appendfsync", "everysec");
        line("repl-backlog-size", "64mb");
        line("repl-diskless-sync-delay", "0");
        line("save", "");
        let own = settings.parameters.iter().filter(|(name, _)| !MANAGED.contains(&name.as_str()));
        for (name, value) in own {
            line(name, value);
        }
        line("appendonly", "yes");
        line("bind", &settings.listen);
        line("dir", &settings.data.display().to_string());
        line("port", &settings.port.to_string());
        line("protected-mode", "no");
        line("requirepass", &settings.password);
        line("masterauth", &settings.password);
        line("replica-announce-ip", settings.member.as_str());
        line("replica-read-only", "yes");
        line("min-replicas-max-lag", "2");
        line("repl-ping-replica-period", "1");
        line("repl-timeout", "5");
        let (count, source) = match start {
            Start::Primary(synchronous) => (synchronous.count, None),
            Start::Replica(source) => (0, Some(place(source.as_ref()))),
        };
        line("min-replicas-to-write", &count.to_string());
        if let Some((host, port)) = source {
            let _ = writeln!(text, "replicaof {host} {port}");
        }
        for User { name, password, .. } in &settings.users {
            let _ = writeln!(text, "user {name} on >{password} ~* &* +@all -@admin");
        }
        text
    }
}

/// Host and port of a source, or of nobody.
fn place(source: Option<&Source>) -> (String, String) {
    let known = source.and_then(|it| it.address.rsplit_once(':'));
    let (host, port) = known.unwrap_or(NOBODY);
    (host.to_owned(), port.to_owned())
}

impl Engine for Redis {
    type Error = RedisError;

    fn initialised(&self) -> bool {
        self.identity().exists()
    }

    async fn initialise(&self) -> Result<()> {
        use ring::rand::SecureRandom as _;
        let mut random = [0_u8; 8];
        ring::rand::SystemRandom::new().fill(&mut random).map_err(|_| RedisError::Random)?;
        self.begin(&u64::from_ne_bytes(random).to_string())
    }

    async fn system(&self) -> Result<String> {
        let path = self.identity();
        fs::read_to_string(&path).map_err(|source| RedisError::File { path, source })
    }

    fn command(&self, start: &Start) -> Result<ServerCommand> {
        *self.connection.borrow_mut() = None;
        *self.base.borrow_mut() = None;
        let files = self.settings.data.join("appendonlydir");
        let recovered = info::recovered(&files).map_err(|source| RedisError::File { path: files, source })?;
        self.recovered.set(recovered);
        if let Start::Primary(synchronous) = start {
            *self.synchronous.borrow_mut() = synchronous.clone();
        }
        let path = self.settings.data.join("mainstay.conf");
        self.write(&path, &self.configuration(start))?;
        Ok(ServerCommand {
            program: self.settings.programs.join("redis-server"),
            arguments: vec![path.display().to_string()],
            environment: Vec::new(),
            user: self.settings.user,
        })
    }

    async fn probe(&self, deadline: Duration) -> Result<Observation> {
        let look = async {
            let seen = self.replication().await?;
            let offset = self.position(&seen).await?;
            let mut synchronous = self.synchronous.borrow().clone();
            if seen.primary {
                let mark = Mark { history: seen.histories[0].clone(), base: offset - seen.offset, position: offset };
                // With too few replicas it is refused like any other write.
                match self.call(&["SET", info::KEY, &mark.text()]).await {
                    Ok(_) | Err(RedisError::Command(RespError::Refused { .. })) => {}
                    Err(error) => return Err(error),
                }
                let answer = self.call(&["CONFIG", "GET", "min-replicas-to-write"]).await?;
                let count = answer.texts().get(1).and_then(|it| it.parse().ok());
                synchronous.count = count.unwrap_or(usize::MAX);
            }
            let base = offset.saturating_sub(seen.offset);
            let standbys = seen.replicas.iter().map(|(name, offset)| Standby {
                member: MemberId::new(name.as_str()),
                offset: base + offset,
                streaming: true,
            });
            Ok(Observation {
                role: if seen.primary { Role::Primary } else { Role::Replica },
                offset,
                applied: offset,
                receiving: seen.receiving,
                standbys: if seen.primary { standbys.collect() } else { Vec::new() },
                synchronous,
            })
        };
        tokio::time::timeout(deadline, look).await.map_err(|_| RedisError::Deadline)?
    }

    async fn promote(&self, synchronous: &Synchronous, _: &BTreeSet<MemberId>) -> Result<u64> {
        let began = self.position(&self.replication().await?).await?;
        self.synchronise(synchronous).await?;
        self.call(&["REPLICAOF", "NO", "ONE"]).await?;
        Ok(began)
    }

    async fn follow(&self, source: Option<&Source>) -> Result<()> {
        let (host, port) = place(source);
        self.call(&["REPLICAOF", &host, &port]).await.map(drop)
    }

    async fn synchronise(&self, synchronous: &Synchronous) -> Result<()> {
        self.set("min-replicas-to-write", &synchronous.count.to_string()).await?;
        *self.synchronous.borrow_mut() = synchronous.clone();
        Ok(())
    }

    async fn serve(&self, _: &BTreeSet<MemberId>) -> Result<()> {
        Ok(())
    }

    async fn rebuild(&self, _: &Source, _: Rebuild, system: Option<&str>) -> Result<()> {
        *self.connection.borrow_mut() = None;
        // The copy itself Redis makes when it follows.
        self.begin(system.ok_or(RedisError::Nameless)?)
    }

    async fn prepare_switchover(&self) -> Result<()> {
        Ok(())
    }

    async fn quiesce(&self) -> Result<Ending> {
        // Clients that write are kept waiting until their connections end. By its signal Redis would wait for its replicas to say
        // how far they are, which they do once a second.
        self.call(&["CLIENT", "PAUSE", PAUSE_MS, "WRITE"]).await?;
        let seen = self.replication().await?;
        Ok(Ending::After(self.position(&seen).await?))
    }

    fn stop_signal(&self) -> i32 {
        // Waits for the replicas, up to `shutdown-timeout`.
        nix::libc::SIGTERM
    }
}
