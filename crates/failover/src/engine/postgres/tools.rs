//! Work on the files while the server does not run: a new database, a clone, a rewind. By PostgreSQL's own programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{PostgresError, Result, Settings, files};
use crate::engine::{Rebuild, Source};

/// How much of a failed program's output is shown, in bytes.
const OUTPUT_MAX: usize = 600;
/// How long a checkpoint of the source may take.
const CHECKPOINT: Duration = Duration::from_secs(60);

fn command(settings: &Settings, name: &str) -> Command {
    program(settings, &settings.programs.join(name))
}

/// A program that works on the member's files, as the server's user.
pub(super) fn program(settings: &Settings, path: &Path) -> Command {
    let mut command = Command::new(path);
    command.kill_on_drop(true).current_dir("/").env("LC_ALL", "C").stdin(Stdio::null());
    command.env("PGPASSWORD", &settings.password).env("PGCONNECT_TIMEOUT", "3");
    if let Some((user, group)) = settings.user {
        command.uid(user).gid(group);
    }
    command
}

pub(super) async fn run(mut command: Command, input: &str) -> Result<String> {
    let program = Path::new(command.as_std().get_program()).to_owned();
    let failed = |source| PostgresError::Run { program: program.clone(), source };
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let all = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(all);
    }
    let from = all.char_indices().rev().nth(OUTPUT_MAX).map_or(0, |(at, _)| at);
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(PostgresError::Program { program, output: all[from..].trim().to_owned() })
}

/// `initdb`, and the user of the replicas. What was left by an attempt that did not finish is removed first.
pub(super) async fn initialise(settings: &Settings) -> Result<()> {
    begin(settings)?;
    let password = settings.data.with_extension("password");
    files::write(settings, &password, &settings.password)?;
    let mut initdb = command(settings, "initdb");
    initdb.arg("-D").arg(&settings.data).arg(format!("--pwfile={}", password.display()));
    initdb.args(["-U", "postgres", "-E", "UTF8", "--locale=C", "--data-checksums", "--auth=scram-sha-256"]);
    let made = run(initdb, "").await;
    files::remove(&password)?;
    made?;
    // The single-user server takes one statement a line.
    let mut single = command(settings, "postgres");
    single.arg("--single").arg("-D").arg(&settings.data).arg("postgres");
    let quoted = settings.password.replace('\'', "''");
    run(single, &format!("CREATE ROLE replicator LOGIN REPLICATION PASSWORD '{quoted}'\n")).await?;
    files::remove(&files::incomplete(settings))
}

/// Marks the data as incomplete and empties its directory.
pub(super) fn begin(settings: &Settings) -> Result<()> {
    let at = |source| PostgresError::File { path: settings.data.clone(), source };
    files::write(settings, &files::incomplete(settings), "")?;
    match fs::remove_dir_all(&settings.data) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(at(source)),
        _ => {}
    }
    fs::create_dir_all(&settings.data).map_err(at)?;
    if let Some((user, group)) = settings.user {
        std::os::unix::fs::chown(&settings.data, Some(user), Some(group)).map_err(at)?;
    }
    fs::set_permissions(&settings.data, fs::Permissions::from_mode(0o700)).map_err(at)
}

/// The system identifier, from `pg_control`.
pub(super) async fn system(settings: &Settings) -> Result<String> {
    let mut control = command(settings, "pg_controldata");
    control.arg("-D").arg(&settings.data);
    let text = run(control, "").await?;
    let line = text.lines().find_map(|line| line.strip_prefix("Database system identifier:"));
    line.map(|it| it.trim().to_owned()).ok_or(PostgresError::Answer("pg_controldata".to_owned()))
}

/// Makes the files those of `source`.
pub(super) async fn rebuild(settings: &Settings, source: &Source, how: Rebuild) -> Result<()> {
    match how {
        Rebuild::Rewind => rewind(settings, source).await,
        Rebuild::Clone => clone(settings, source).await,
    }
}

async fn clone(settings: &Settings, source: &Source) -> Result<()> {
    begin(settings)?;
    let mut backup = command(settings, "pg_basebackup");
    backup.arg("-D").arg(&settings.data).args(["-X", "stream", "--checkpoint=fast", "--no-password"]);
    // Not by the member's name: a copy that is being made is no replica, and its answers must not count for commits.
    backup.arg("-d").arg(files::conninfo(settings, source, "replicator", super::COPY));
    run(backup, "").await?;
    files::remove(&files::incomplete(settings))
}

/// Needs a server that was stopped cleanly; `pg_rewind` itself sees to that, by recovering in single-user mode. A rewind that is
/// cut short leaves files that are good for nothing: they are marked until it is done.
async fn rewind(settings: &Settings, source: &Source) -> Result<()> {
    // Until its first checkpoint a new primary looks to pg_rewind as if it were still on the old timeline.
    checkpoint(settings, source).await?;
    files::remove(&settings.data.join("standby.signal"))?;
    files::write(settings, &files::incomplete(settings), "")?;
    let mut rewind = command(settings, "pg_rewind");
    rewind.arg("-D").arg(&settings.data).arg(format!("--config-file={}", files::configuration(settings).display()));
    rewind.arg(format!("--source-server={}", files::conninfo(settings, source, "postgres", super::COPY)));
    match run(rewind, "").await {
        // It sees no difference where there is one: two primaries took the same number for their timelines.
        Ok(said) if said.contains("no rewind required") => clone(settings, source).await,
        Ok(_) => files::remove(&files::incomplete(settings)),
        // Also versions before 15, which have no --config-file.
        Err(error) => {
            tracing::warn!(%error, "pg_rewind did not work; copying everything instead");
            clone(settings, source).await
        }
    }
}

async fn checkpoint(settings: &Settings, source: &Source) -> Result<()> {
    let unreachable = |error| PostgresError::Connect { socket: source.address.clone().into(), source: error };
    let mut config = tokio_postgres::Config::new();
    let (host, port) = files::place(source);
    config.host(host).port(port).user("postgres").password(&settings.password).dbname("postgres");
    config.connect_timeout(super::STATEMENT);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(unreachable)?;
    let work = tokio::spawn(connection);
    let done = tokio::time::timeout(CHECKPOINT, client.simple_query("CHECKPOINT")).await;
    work.abort();
    let refused = |error| PostgresError::Statement { statement: "CHECKPOINT".to_owned(), source: error };
    done.map_err(|_| PostgresError::Deadline(CHECKPOINT, "a checkpoint"))?.map_err(refused).map(drop)
}
