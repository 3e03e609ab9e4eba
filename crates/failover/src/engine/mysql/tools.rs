//! Work by MariaDB's own programs: a new database, a clone, what a relay log still has.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{MysqlError, Result, STEWARD, Settings, files, quoted};
use crate::engine::Source;

/// How much of a failed program's output is shown, in bytes.
const OUTPUT_MAX: usize = 600;
/// How long the server that a clone is loaded into may take to accept connections.
const START: Duration = Duration::from_secs(30);
/// How long what a relay log still has may take to be applied.
pub(super) const RECOVER: Duration = Duration::from_secs(600);
/// While data are being made nothing is worth keeping until all is there; [`settle`] sees to that at the end.
const UNSYNCED: &str = "--debug-no-sync";
/// Lines at the beginning of a dump among which is its position.
const HEAD_LINES: usize = 200;

/// A program of MariaDB's: beside the server, or where clients are.
fn command(settings: &Settings, program: &str) -> Command {
    let places = [settings.programs.clone(), settings.programs.join("../bin"), PathBuf::from("/usr/bin")];
    let found = places.iter().map(|place| place.join(program)).find(|path| path.exists());
    let mut command = Command::new(found.unwrap_or_else(|| PathBuf::from(program)));
    command.arg("--no-defaults").kill_on_drop(true).current_dir("/").env("LC_ALL", "C").stdin(Stdio::null());
    command.env("MYSQL_PWD", &settings.password).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some((user, group)) = settings.user {
        command.uid(user).gid(group);
    }
    command
}

/// The client on this member's own server.
fn client(settings: &Settings) -> Command {
    let mut client = command(settings, "mariadb");
    client.arg("--socket").arg(files::socket(settings)).args([
        "--user",
        STEWARD,
        "--binary-mode",
        "--max-allowed-packet=1G",
    ]);
    client
}

fn spawn(mut command: Command) -> Result<(Child, PathBuf)> {
    let program = PathBuf::from(command.as_std().get_program());
    match command.spawn() {
        Ok(child) => Ok((child, program)),
        Err(source) => Err(MysqlError::Run { program, source }),
    }
}

async fn finish((child, program): (Child, PathBuf)) -> Result<()> {
    let output = child.wait_with_output().await;
    let output = output.map_err(|source| MysqlError::Run { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let from = said.char_indices().rev().nth(OUTPUT_MAX).map_or(0, |(at, _)| at);
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(MysqlError::Program { program, output: said[from..].trim().to_owned() })
}

/// Runs a program with this input.
async fn feed(mut command: Command, input: &str) -> Result<()> {
    command.stdin(Stdio::piped());
    let (mut child, program) = spawn(command)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why at the end.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    finish((child, program)).await
}

/// The system's own tables and the three users, in an empty data directory.
pub(super) async fn initialise(settings: &Settings) -> Result<()> {
    let data = format!("--datadir={}", settings.data.display());
    let mut install = command(settings, "mariadb-install-db");
    install.arg(&data).args([
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
        UNSYNCED,
    ]);
    finish(spawn(install)?).await?;
    let mut server = command(settings, "mariadbd");
    server.arg(&data).args(["--bootstrap", UNSYNCED]);
    feed(server, &users(&settings.password)).await
}

/// `root`, who may not write on replicas; the steward's own; the replicas'.
fn users(password: &str) -> String {
    let password = quoted(password);
    let user = |name: &str, grant: &str| {
        format!("CREATE USER {name} IDENTIFIED BY {password};\nGRANT {grant} ON *.* TO {name};\n")
    };
    let mut text = String::from(
        "FLUSH PRIVILEGES;\nDELETE FROM mysql.global_priv WHERE User IN ('', 'root');\nFLUSH PRIVILEGES;\n",
    );
    text += &user(&format!("'{STEWARD}'@'localhost'"), "ALL PRIVILEGES");
    text += &user("'replicator'@'%'", "REPLICATION SLAVE");
    for root in ["'root'@'localhost'", "'root'@'%'"] {
        text += &user(root, "ALL PRIVILEGES");
        // Writing to a text cannot fail.
        let _ = write!(text, "GRANT GRANT OPTION ON *.* TO {root};\nREVOKE READ_ONLY ADMIN ON *.* FROM {root};\n");
    }
    text
}

/// Loads a dump of `source`, and notes which position it is of. The server for it listens on the socket alone.
pub(super) async fn load(settings: &Settings, source: &Source) -> Result<()> {
    let mut server = command(settings, "mariadbd");
    server.arg(format!("--datadir={}", settings.data.display())).arg("--socket").arg(files::socket(settings));
    server.args(["--skip-networking", "--log-bin=binlog", "--server-id=1", "--skip-slave-start", "--sync-binlog=0"]);
    server.args(["--innodb-flush-log-at-trx-commit=0", "--pid-file=loading.pid", UNSYNCED]);
    let (mut server, _) = spawn(server)?;
    let ready = async {
        while feed(client(settings), "DO 1;").await.is_err() {
            tokio::time::sleep(super::LOOK).await;
        }
    };
    tokio::time::timeout(START, ready).await.map_err(|_| MysqlError::Deadline(START, "to start for a clone"))?;
    let position = pour(settings, source).await?;
    // As if it had made all these transactions itself: then it continues to count from there, and replicas can follow it.
    let place = quoted(&position);
    let noted = format!(
        "RESET MASTER;\nSET GLOBAL gtid_slave_pos = {place};\nSET GLOBAL gtid_binlog_state = {place};\nSHUTDOWN;\n"
    );
    feed(client(settings), &noted).await?;
    let ended = server.wait().await;
    ended.map(drop).map_err(|source| MysqlError::File { path: settings.data.clone(), source })
}

/// Returns once all that was made is on disk.
pub(super) async fn settle(settings: &Settings) -> Result<()> {
    let path = settings.data.clone();
    let sync = move || nix::unistd::syncfs(fs::File::open(&path)?).map_err(std::io::Error::from);
    let synced = tokio::task::spawn_blocking(sync).await.map_err(std::io::Error::other).and_then(|it| it);
    synced.map_err(|source| MysqlError::File { path: settings.data.clone(), source })
}

/// A dump of `source`, in one transaction, straight into this member's server. The position it is of.
async fn pour(settings: &Settings, source: &Source) -> Result<String> {
    let (host, port) = files::place(source);
    let mut dump = command(settings, "mariadb-dump");
    dump.args([
        "--host",
        host,
        "--port",
        &port.to_string(),
        "--user",
        "root",
        "--all-databases",
        "--single-transaction",
    ]);
    dump.args([
        "--quick",
        "--routines",
        "--events",
        "--triggers",
        "--hex-blob",
        "--flush-privileges",
        "--master-data=2",
        "--gtid",
    ]);
    dump.args(["--max-allowed-packet=1G", "--ignore-table=mysql.gtid_slave_pos"]).stdout(Stdio::piped());
    let (mut dump, program) = spawn(dump)?;
    let mut into = client(settings);
    into.stdin(Stdio::piped());
    let (mut into, loader) = spawn(into)?;
    let failed = |source| MysqlError::Run { program: program.clone(), source };
    let (Some(output), Some(mut input)) = (dump.stdout.take(), into.stdin.take()) else {
        return Err(MysqlError::Answer("dump"));
    };
    let mut output = BufReader::new(output);
    let mut position = String::new();
    input.write_all(b"SET SESSION sql_log_bin = 0;\n").await.map_err(failed)?;
    let mut line = Vec::new();
    for _ in 0..HEAD_LINES {
        line.clear();
        if output.read_until(b'\n', &mut line).await.map_err(failed)? == 0 {
            break;
        }
        if let Some(found) = dumped_position(&String::from_utf8_lossy(&line)) {
            position = found;
        }
        input.write_all(&line).await.map_err(failed)?;
    }
    // Where the loader ends early it says why; so does the dump.
    let copied = tokio::io::copy_buf(&mut output, &mut input).await;
    drop(input);
    finish((into, loader)).await?;
    finish((dump, program.clone())).await?;
    copied.map(|_| position).map_err(failed)
}

/// The position in a line of a dump, where it says one: `-- SET GLOBAL gtid_slave_pos='0-1-100';`.
fn dumped_position(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("SET GLOBAL gtid_slave_pos='")?;
    rest.split_once('\'').map(|(position, _)| position.to_owned())
}

/// Applies what relay logs of before the start have beyond `position`, with the numbers it had at the primary. The end may be cut
/// short where the server died: a transaction that is not whole was acknowledged to nobody, and is left out.
pub(super) async fn recover(settings: &Settings, position: &str) -> Result<()> {
    let index = settings.data.join("relay.index");
    let list = fs::read_to_string(&index).unwrap_or_default();
    let logs: Vec<PathBuf> =
        list.lines().map(|line| settings.data.join(line)).filter(|path| has_events(path)).collect();
    if logs.is_empty() {
        return Ok(());
    }
    let mut reader = command(settings, "mariadb-binlog");
    if !position.is_empty() {
        reader.arg(format!("--start-position={position}"));
    }
    reader.args(logs).stdout(Stdio::piped());
    let (mut reader, program) = spawn(reader)?;
    let mut into = client(settings);
    into.stdin(Stdio::piped());
    let (mut into, loader) = spawn(into)?;
    let failed = |source| MysqlError::Run { program: program.clone(), source };
    if let (Some(output), Some(mut input)) = (reader.stdout.take(), into.stdin.take()) {
        tokio::io::copy_buf(&mut BufReader::new(output), &mut input).await.map_err(failed)?;
    }
    finish((into, loader)).await?;
    if let Err(error) = finish((reader, program.clone())).await {
        tracing::info!(%error, "the relay log ends within a transaction, which was acknowledged to nobody");
    }
    Ok(())
}

/// More than the four bytes that say what the file is.
fn has_events(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.len() > 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_says_its_position() {
        assert_eq!(dumped_position("-- SET GLOBAL gtid_slave_pos='0-1-100';\n").as_deref(), Some("0-1-100"));
        assert_eq!(dumped_position("-- CHANGE MASTER TO MASTER_USE_GTID=slave_pos;"), None);
        assert!(users("a'b").contains("IDENTIFIED BY 'a''b'"));
    }
}
