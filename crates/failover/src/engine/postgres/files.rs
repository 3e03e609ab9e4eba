//! The files PostgreSQL reads: its configuration, who may connect, and whether it is a replica.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{PostgresError, Result, Settings, Wanted};
use crate::core::MemberId;
use crate::engine::{Source, Synchronous};

/// Parameters a user may not set, because the steward does.
const MANAGED: [&str; 19] = [
    "config_file",
    "data_directory",
    "hba_file",
    "hot_standby",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_target_timeline",
    "restart_after_crash",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_log_hints",
    "wal_receiver_timeout",
    "wal_retrieve_retry_interval",
    "wal_sender_timeout",
    "fsync",
    "full_page_writes",
];

/// Brings log files back from an archive.
pub(super) const RESTORE: &str = "restore_command";

/// What is set unless the user sets it.
const DEFAULTS: [(&str, &str); 6] = [
    ("wal_level", "replica"),
    ("max_wal_senders", "16"),
    ("max_replication_slots", "16"),
    ("wal_keep_size", "256MB"),
    ("max_slot_wal_keep_size", "4GB"),
    ("password_encryption", "scram-sha-256"),
];

/// How often a replica tries to reach its source: a new primary's log begins with the end of the old one's, and between the two
/// it pauses for so long. Without a source there is nothing to try.
const RETRY: [&str; 2] = ["1s", "20ms"];

/// What is set always. A lost connection is noticed by both sides within seconds.
const FIXED: [(&str, &str); 8] = [
    ("hot_standby", "on"),
    ("wal_log_hints", "on"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("restart_after_crash", "off"),
    ("recovery_target_timeline", "latest"),
    ("wal_receiver_timeout", "3s"),
    ("wal_sender_timeout", "3s"),
];

/// Our configuration file.
pub(super) fn configuration(settings: &Settings) -> PathBuf {
    settings.data.join("mainstay.conf")
}

/// Exists while the data directory is being made.
pub(super) fn incomplete(settings: &Settings) -> PathBuf {
    settings.data.with_extension("incomplete")
}

/// The name of a member's slot.
pub(super) fn slot(member: &MemberId) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    format!("mainstay_{}", member.as_str().chars().map(plain).collect::<String>())
}

/// The value of `synchronous_standby_names`.
pub(super) fn names(synchronous: &Synchronous) -> String {
    if synchronous.count == 0 {
        return String::new();
    }
    let names: Vec<_> =
        synchronous.standbys.iter().map(|id| format!("\"{}\"", id.as_str().replace('"', "\"\""))).collect();
    // Nobody is called that: with nobody left to answer, no commit is acknowledged.
    let names = if names.is_empty() { "\"(nobody)\"".to_owned() } else { names.join(", ") };
    format!("ANY {} ({names})", synchronous.count)
}

/// Where libpq finds the password: not in the configuration, whose changes the server writes to its log.
fn password_file(settings: &Settings) -> PathBuf {
    settings.data.with_extension("pgpass")
}

/// Host and port of a member's server.
pub(super) fn place(source: &Source) -> (&str, u16) {
    let known = source.address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    known.unwrap_or((&source.address, 5432))
}

/// How to reach a member's server, as this user, and by what name it knows the connection.
pub(super) fn conninfo(settings: &Settings, source: &Source, user: &str, name: &str) -> String {
    let (host, port) = place(source);
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    format!(
        "host={} port={port} user={user} passfile={} application_name={} dbname=postgres connect_timeout=2 sslmode=prefer \
         keepalives_idle=1 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=3000",
        quoted(host),
        quoted(&password_file(settings).display().to_string()),
        quoted(name)
    )
}

/// All files for a start.
pub(super) fn prepare(settings: &Settings, wanted: &Wanted, replica: bool) -> Result<()> {
    let password = settings.password.replace('\\', "\\\\").replace(':', "\\:");
    write(settings, &password_file(settings), &format!("*:*:*:*:{password}\n"))?;
    write_configuration(settings, wanted)?;
    let mut access = String::from("# Written by Mainstay.\n");
    for line in &settings.access {
        let _ = writeln!(access, "{line}");
    }
    access +=
        "local all all scram-sha-256\nhost replication replicator all scram-sha-256\nhost all all all scram-sha-256\n";
    write(settings, &settings.data.join("mainstay_hba.conf"), &access)?;
    scrub(settings)?;
    let signal = settings.data.join("standby.signal");
    if replica {
        return write(settings, &signal, "");
    }
    remove(&signal)
}

/// The configuration, replaced as a whole.
pub(super) fn write_configuration(settings: &Settings, wanted: &Wanted) -> Result<()> {
    let mut text = String::from("# Written by Mainstay; set parameters in the Database.\n");
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
    };
    for (name, value) in DEFAULTS {
        line(name, value);
    }
    let own = settings.parameters.iter().filter(|(name, _)| !MANAGED.contains(&name.as_str()));
    // Who promised to receive nothing gets nothing from an archive either.
    for (name, value) in own.filter(|it| it.0 != RESTORE || wanted.source.is_some()) {
        line(name, value);
    }
    for (name, value) in FIXED {
        line(name, value);
    }
    line("listen_addresses", &settings.listen);
    line("port", &settings.port.to_string());
    line("unix_socket_directories", &settings.socket.display().to_string());
    line("hba_file", &settings.data.join("mainstay_hba.conf").display().to_string());
    line("synchronous_standby_names", &names(&wanted.synchronous));
    let source = wanted.source.as_ref();
    line("wal_retrieve_retry_interval", RETRY[usize::from(source.is_some())]);
    line(
        "primary_conninfo",
        &source.map_or(String::new(), |it| conninfo(settings, it, "replicator", settings.member.as_str())),
    );
    line("primary_slot_name", &source.map_or(String::new(), |_| slot(&settings.member)));
    write(settings, &configuration(settings), &text)
}

/// What ALTER SYSTEM wrote comes after ours and would win.
fn scrub(settings: &Settings) -> Result<()> {
    let path = settings.data.join("postgresql.auto.conf");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let ours = |line: &&str| {
        let name = line.split(['=', ' ']).next().unwrap_or_default().trim().to_ascii_lowercase();
        MANAGED.contains(&name.as_str())
    };
    let kept: String = text.lines().filter(|line| !ours(line)).flat_map(|line| [line, "\n"]).collect();
    if kept == text { Ok(()) } else { write(settings, &path, &kept) }
}

/// Where the newest timeline began: the last line of the newest history file, `parent<tab>location<tab>reason`.
pub(super) fn newest_switch(settings: &Settings) -> Result<u64> {
    let folder = settings.data.join("pg_wal");
    let at = |source| PostgresError::File { path: folder.clone(), source };
    let entries = fs::read_dir(&folder).map_err(at)?.filter_map(std::result::Result::ok);
    let history = |path: &PathBuf| path.extension().is_some_and(|it| it == "history");
    let newest = entries.map(|it| it.path()).filter(history).max();
    let path = newest.ok_or_else(|| PostgresError::Answer("a timeline history file".to_owned()))?;
    let text = fs::read_to_string(&path).map_err(|source| PostgresError::File { path: path.clone(), source })?;
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    let place = line.and_then(|line| line.split('\t').nth(1)).and_then(location);
    place.ok_or_else(|| PostgresError::Answer(path.display().to_string()))
}

/// `16/B374D848` as a number.
fn location(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

/// Writes a file whole or not at all, readable by the server and nobody else.
pub(super) fn write(settings: &Settings, path: &Path, text: &str) -> Result<()> {
    let at = |source| PostgresError::File { path: path.to_owned(), source };
    let new = path.with_extension("new");
    let write = || {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        if let Some((user, group)) = settings.user {
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
        fs::rename(&new, path)
    };
    write().map_err(at)
}

pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(PostgresError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        let synchronous = Synchronous { standbys: ["db-1".into(), "db-2".into()].into(), count: 1 };
        assert_eq!(names(&synchronous), r#"ANY 1 ("db-1", "db-2")"#);
        assert_eq!(names(&Synchronous { count: 1, ..Synchronous::default() }), r#"ANY 1 ("(nobody)")"#);
        assert_eq!(names(&Synchronous::default()), "");
        assert_eq!(slot(&"Orders-db.2".into()), "mainstay_orders_db_2");
    }

    #[test]
    fn locations_are_numbers() {
        assert_eq!(location("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(location("nonsense"), None);
    }
}
