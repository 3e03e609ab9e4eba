//! The files MariaDB reads.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{MysqlError, Result, Settings};
use crate::engine::{Source, Start};

/// Parameters a user may not set, because the steward does; with underscores.
const MANAGED: [&str; 24] = [
    "bind_address",
    "binlog_format",
    "datadir",
    "gtid_domain_id",
    "gtid_strict_mode",
    "init_rpl_role",
    "innodb_flush_log_at_trx_commit",
    "log_bin",
    "log_slave_updates",
    "pid_file",
    "port",
    "read_only",
    "relay_log",
    "report_host",
    "rpl_semi_sync_master_enabled",
    "rpl_semi_sync_master_timeout",
    "rpl_semi_sync_master_wait_no_slave",
    "rpl_semi_sync_master_wait_point",
    "rpl_semi_sync_slave_enabled",
    "server_id",
    "skip_slave_start",
    "socket",
    "sync_binlog",
    "sync_relay_log",
];

/// What is set unless the user sets it. A week of the log is kept for replicas that were away.
const DEFAULTS: [(&str, &str); 3] =
    [("binlog_expire_logs_seconds", "604800"), ("character_set_server", "utf8mb4"), ("skip_name_resolve", "1")];

/// What is set always. Every commit is on disk before it is acknowledged, by the primary and by the replica that acknowledges
/// it; and it waits for that as long as it takes (the time is in milliseconds, and the longest there is).
const FIXED: [(&str, &str); 16] = [
    ("binlog_format", "ROW"),
    ("gtid_strict_mode", "1"),
    ("innodb_flush_log_at_trx_commit", "1"),
    ("log_bin", "binlog"),
    ("log_slave_updates", "1"),
    ("relay_log", "relay"),
    ("rpl_semi_sync_master_timeout", "18446744073709551615"),
    ("rpl_semi_sync_master_wait_no_slave", "1"),
    ("rpl_semi_sync_master_wait_point", "AFTER_SYNC"),
    // A replica that stops to receive tells its primary so, and waits this long for one that is gone, in seconds.
    ("rpl_semi_sync_slave_kill_conn_timeout", "1"),
    ("skip_slave_start", "1"),
    ("slave_net_timeout", "3"),
    ("sync_binlog", "1"),
    ("sync_relay_log", "1"),
    ("rpl_semi_sync_slave_enabled", "1"),
    ("init_rpl_role", "MASTER"),
];

/// Our configuration file.
pub(super) fn configuration(settings: &Settings) -> PathBuf {
    settings.data.with_extension("cnf")
}

/// The server's Unix socket.
pub(super) fn socket(settings: &Settings) -> PathBuf {
    settings.socket.join(format!("mainstay-{}.sock", settings.port))
}

/// The identity of the data; there is none while the data are being made.
pub(super) fn identity(settings: &Settings) -> PathBuf {
    settings.data.join("mainstay-system")
}

/// Host and port of a member's server.
pub(super) fn place(source: &Source) -> (&str, u16) {
    let known = source.address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    known.unwrap_or((&source.address, 3306))
}

/// What MariaDB reads when it starts.
pub(super) fn text(settings: &Settings, start: &Start) -> String {
    let mut text = String::from("# Written by Mainstay; set parameters in the Database.\n[mariadbd]\n");
    let mut line = |name: &str, value: &str| {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
    };
    let own = settings.parameters.iter().filter(|it| !MANAGED.contains(&it.0.replace('-', "_").as_str()));
    for (name, value) in DEFAULTS {
        line(name, value);
    }
    for (name, value) in own {
        line(name, value);
    }
    for (name, value) in FIXED {
        line(name, value);
    }
    line("bind_address", &settings.listen);
    line("datadir", &settings.data.display().to_string());
    line("pid_file", &settings.data.join("mariadbd.pid").display().to_string());
    line("port", &settings.port.to_string());
    line("report_host", settings.member.as_str());
    line("server_id", &number(settings).to_string());
    line("socket", &socket(settings).display().to_string());
    let (read_only, wait) = match start {
        Start::Primary(synchronous) => (false, synchronous.count > 0),
        Start::Replica(_) => (true, false),
    };
    line("read_only", &u8::from(read_only).to_string());
    line("rpl_semi_sync_master_enabled", &u8::from(wait).to_string());
    text
}

/// The member's number among all, from 1.
fn number(settings: &Settings) -> usize {
    settings.members.iter().take_while(|id| **id < settings.member).count() + 1
}

/// Writes a file whole or not at all, readable by the server and nobody else.
pub(super) fn write(settings: &Settings, path: &Path, text: &str) -> Result<()> {
    let at = |source| MysqlError::File { path: path.to_owned(), source };
    let new = path.with_extension("new");
    fs::write(&new, text).map_err(at)?;
    own(settings, &new, 0o600)?;
    fs::rename(&new, path).map_err(at)
}

/// Gives a file or directory to the server's user.
pub(super) fn own(settings: &Settings, path: &Path, mode: u32) -> Result<()> {
    let at = |source| MysqlError::File { path: path.to_owned(), source };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at)?;
    match settings.user {
        Some((user, group)) => std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(at),
        None => Ok(()),
    }
}
