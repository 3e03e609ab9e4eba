//! A new database from a backup: a copy of the files, which a command of the user's brings, and the archived log up to a moment.
//!
//! Source: <https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-PITR-RECOVERY>.

use std::process::Stdio;
use std::time::Duration;

use super::session::Session;
use super::{PostgresError, Restore, Result, STATEMENT, Settings, Wanted, files, tools, until};

/// How long the archived log may take: days of it are read in hours.
const REPLAY: Duration = Duration::from_secs(24 * 3600);
/// Between two tries to connect.
const LOOK: Duration = Duration::from_millis(200);

/// Brings the copy, replays the log, and gives the users their new passwords. What was left by an attempt that did not finish is
/// removed first.
pub(super) async fn restore(settings: &Settings, wanted: &Restore) -> Result<()> {
    tools::begin(settings)?;
    let mut shell = tools::program(settings, "sh".as_ref());
    shell.args(["-c", &wanted.command]).env("PGDATA", &settings.data);
    tools::run(shell, "").await?;
    // Of the server that was copied.
    for left in ["postmaster.pid", "postmaster.opts", "standby.signal"] {
        files::remove(&settings.data.join(left))?;
    }
    files::prepare(settings, &Wanted::default(), false)?;
    files::write(settings, &settings.data.join("recovery.signal"), "")?;
    let access = settings.data.join("mainstay_restore_hba.conf");
    // Only by the socket, whose directory is the pod's own, until the passwords are set.
    files::write(settings, &access, "local all all trust\n")?;
    let mut server = tools::program(settings, &settings.programs.join("postgres"));
    server.arg("-D").arg(&settings.data).arg("-c");
    server.arg(format!("config_file={}", files::configuration(settings).display()));
    let hba = access.display().to_string();
    let replay = settings.parameters.get(files::RESTORE).map(String::as_str).unwrap_or_default();
    for (name, value) in [
        ("hba_file", hba.as_str()),
        ("listen_addresses", ""),
        ("archive_mode", "off"),
        (files::RESTORE, replay),
        ("recovery_target_time", wanted.until.as_deref().unwrap_or_default()),
        ("recovery_target_action", "promote"),
    ] {
        server.arg("-c").arg(format!("{name}={value}"));
    }
    server.stdout(Stdio::null());
    let failed = |source| PostgresError::Run { program: settings.programs.join("postgres"), source };
    let mut server = server.spawn().map_err(failed)?;
    let done = tokio::select! {
        done = finish(settings) => done,
        ended = server.wait() => Err(PostgresError::Program {
            program: "postgres".to_owned(),
            output: format!("the server ended while it replayed the archive ({ended:?}); its log says why"),
        }),
    };
    if let Some(pid) = server.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Fast, and in order: what follows starts from a clean stop.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT);
        server.wait().await.map_err(failed)?;
    }
    done?;
    files::remove(&access)?;
    files::remove(&files::incomplete(settings))
}

/// Waits for the end of the replay; then the roles that Mainstay needs are made its own.
async fn finish(settings: &Settings) -> Result<()> {
    let session = loop {
        match Session::connect(settings).await {
            Ok(session) => break session,
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    until(&session, "SELECT NOT pg_is_in_recovery()", REPLAY, "to replay the archived log").await?;
    let password = settings.password.replace('\'', "''");
    let known = session.row("SELECT count(*) FROM pg_roles WHERE rolname = 'replicator'").await?;
    let verb = if known.first().is_some_and(|it| it == "0") { "CREATE" } else { "ALTER" };
    session.run(&format!("{verb} ROLE replicator LOGIN REPLICATION PASSWORD '{password}'")).await?;
    session.run(&format!("ALTER ROLE postgres PASSWORD '{password}'")).await?;
    for user in &settings.users {
        let (name, password) = (&user.name, user.password.replace('\'', "''"));
        session
            .run(&format!(
                "DO $$BEGIN ALTER ROLE \"{name}\" PASSWORD '{password}'; EXCEPTION WHEN undefined_object THEN END$$"
            ))
            .await?;
    }
    session.run_within("CHECKPOINT", STATEMENT * 30).await
}
