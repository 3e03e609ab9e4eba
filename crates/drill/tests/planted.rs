//! Planted faults, each of which must be found, and a clean run, in which nothing may be.
//!
//! Real servers on free ports: `mainstay demo store` in this process, proxies of a few lines, and a real Redis where it is installed.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mainstay_demo::{DemoCommand, ListenArgs, StoreArgs};
use mainstay_drill::ledger::history::Ending;
use mainstay_drill::ledger::{
    HttpKeys, HttpLog, Judgement, Ledger, LedgerPlan, Place, PostgresRows, Recorder, RedisKeys,
};
use mainstay_drill::load::sample::{Failure, Latency, Sample};
use mainstay_drill::load::schedule::Arrivals;
use mainstay_drill::load::{Load, LoadPlan, Route};

/// A `demo store` that ends with this process.
fn store(lose_one_in: u64) -> SocketAddr {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = ListenArgs { listen: address, start_delay_ms: 0, linger_ms: 0, drain_ms: 0, quiet: true };
    std::thread::spawn(move || mainstay_demo::run(DemoCommand::Store(StoreArgs { listen, lose_one_in })));
    let since = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(since.elapsed() < Duration::from_secs(10), "the store does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    address
}

fn place(addresses: &[SocketAddr]) -> Place {
    let timeout = Duration::from_secs(2);
    Place { addresses: addresses.to_vec(), host: "store".to_owned(), base: String::new(), timeout }
}

/// What a ledger finds within some operations.
fn judged(ledger: impl Ledger + 'static, length: Duration) -> Judgement {
    static KEYS: AtomicU64 = AtomicU64::new(0);
    let first_key = KEYS.fetch_add(10_000_000, Ordering::Relaxed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let plan = LedgerPlan { clients: 4, keys: 3, first_key, rate: 400.0, writes: 0.5, seed: 7 };
        let recorder = Recorder::new(Arc::new(ledger), plan, Instant::now());
        recorder.prepare().await.unwrap();
        let (stop, told) = tokio::sync::watch::channel(false);
        tokio::join!(recorder.run(told), async {
            tokio::time::sleep(length).await;
            stop.send(true).unwrap();
        });
        recorder.judge("planted").await
    })
}

#[test]
fn nothing_is_invented_on_a_clean_run() {
    // Longer on request: nothing may be invented in ten minutes either.
    let seconds = std::env::var("MAINSTAY_DRILL_CLEAN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let (address, length) = (store(0), Duration::from_secs(seconds));
    let (keys, log, samples) = std::thread::scope(|scope| {
        let keys = scope.spawn(|| judged(HttpKeys(place(&[address])), length));
        let log = scope.spawn(|| judged(HttpLog(place(&[address])), length.min(Duration::from_secs(60))));
        let samples = load(server(0, Duration::ZERO), 500.0, seconds, 1);
        (keys.join().unwrap(), log.join().unwrap(), samples)
    });
    println!("{} and {} operations, {} requests", keys.operations, log.operations, samples.len());
    assert!(keys.is_clean() && keys.acknowledged > 100, "{keys:?}");
    assert!(log.is_clean() && log.acknowledged > 100, "{log:?}");
    assert_eq!(samples.len() as u64, 500 * seconds);
    assert!(
        samples.iter().all(|sample| sample.failure.is_none()),
        "{:?}",
        samples.iter().find(|it| it.failure.is_some())
    );
    // What the run left in the store is no answer to the next one.
    let again = judged(HttpKeys(place(&[address])), Duration::from_secs(1));
    assert!(again.is_clean(), "{again:?}");
}

#[test]
fn a_store_that_loses_acknowledged_writes_is_caught() {
    let keys = judged(HttpKeys(place(&[store(50)])), Duration::from_secs(2));
    assert!(keys.stale_count > 0 && !keys.disorder.is_empty(), "{keys:?}");
    let log = judged(HttpLog(place(&[store(50)])), Duration::from_secs(1));
    assert!(log.lost_count > 0 && log.lost_count * 50 <= log.acknowledged, "{log:?}");
}

#[test]
fn a_primary_that_runs_twice_is_caught() {
    let twice = judged(HttpKeys(place(&[store(0), store(0)])), Duration::from_secs(2));
    assert!(!twice.is_clean() && twice.stale_count > 0 && !twice.disorder.is_empty(), "{twice:?}");
}

#[test]
fn redis_keeps_its_word() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = std::process::Command::new("redis-server");
    command.args([
        "--port",
        &address.port().to_string(),
        "--save",
        "",
        "--bind",
        "127.0.0.1",
        "--requirepass",
        "secret",
    ]);
    let Ok(mut server) = command.stdout(std::process::Stdio::null()).spawn() else {
        eprintln!("skipped: redis-server is not installed");
        return;
    };
    let since = Instant::now();
    while TcpStream::connect(address).is_err() && since.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let with = |password: &str| RedisKeys {
        addresses: vec![address],
        user: String::new(),
        password: password.to_owned(),
        prefix: "drill:".to_owned(),
        timeout: Duration::from_secs(2),
    };
    let found = judged(with("secret"), Duration::from_secs(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stranger = runtime.block_on(with("").write(0, 1, 1));
    let _ = server.kill();
    let _ = server.wait();
    assert!(found.is_clean() && found.acknowledged > 50, "{found:?}");
    assert_eq!(stranger, Ending::Refused);
}

/// A PostgreSQL on a free port in a directory of its own; `None` where it is not installed.
struct Postgres {
    programs: std::path::PathBuf,
    address: SocketAddr,
    server: std::process::Child,
    _directory: tempfile::TempDir,
}

impl Postgres {
    /// Its programs refuse to run as root.
    fn program(programs: &std::path::Path, name: &str) -> std::process::Command {
        let mut command = std::process::Command::new(if nix::unistd::geteuid().is_root() { "setpriv" } else { "env" });
        if nix::unistd::geteuid().is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        command.arg(programs.join(name)).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    }

    fn start() -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
        let programs = versions.map(|entry| entry.path().join("bin")).find(|bin| bin.join("initdb").exists())?;
        let directory = tempfile::tempdir().unwrap();
        let (data, password) = (directory.path().join("data"), directory.path().join("password"));
        std::fs::write(&password, "secret\n").unwrap();
        for path in [directory.path(), &password] {
            std::os::unix::fs::chown(path, Some(owner()), None).unwrap();
        }
        let mut initdb = Self::program(&programs, "initdb");
        initdb.args(["-U", "postgres", "--auth=scram-sha-256", "--no-sync", "--pwfile"]).arg(&password);
        assert!(initdb.arg("-D").arg(&data).status().unwrap().success(), "initdb failed");
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Self::program(&programs, "postgres");
        command.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-h", "127.0.0.1", "-p"]);
        let server = command.arg(address.port().to_string()).args(["-c", "fsync=off"]).spawn().unwrap();
        let started = Self { programs, address, server, _directory: directory };
        let since = Instant::now();
        while !started.sql("SELECT 1") {
            assert!(since.elapsed() < Duration::from_secs(20), "PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(started)
    }

    fn sql(&self, statement: &str) -> bool {
        let mut psql = Self::program(&self.programs, "psql");
        psql.args(["-h", "127.0.0.1", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement, "-p"]);
        psql.arg(self.address.port().to_string()).env("PGPASSWORD", "secret").status().unwrap().success()
    }

    fn rows(&self) -> PostgresRows {
        PostgresRows {
            addresses: vec![self.address],
            user: "postgres".to_owned(),
            password: "secret".to_owned(),
            database: "postgres".to_owned(),
            table: "ledger".to_owned(),
            timeout: Duration::from_secs(5),
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.server.id() as i32), nix::sys::signal::SIGQUIT);
        let _ = self.server.wait();
    }
}

/// Who runs PostgreSQL here.
fn owner() -> u32 {
    let user = nix::unistd::User::from_name("postgres").unwrap();
    let this = nix::unistd::geteuid();
    user.filter(|_| this.is_root()).map_or(this.as_raw(), |user| user.uid.as_raw())
}

#[test]
fn rows_of_a_database_are_kept_or_missed() {
    let Some(server) = Postgres::start() else {
        eprintln!("skipped: postgresql is not installed");
        return;
    };
    let found = judged(server.rows(), Duration::from_secs(1));
    assert!(found.is_clean() && found.acknowledged > 20, "{found:?}");
    assert!(!server.sql("SELECT * FROM ledger"), "the table is left");
    // A trigger that lets every tenth write fall, which the server acknowledges all the same.
    assert!(server.sql(
        "CREATE TABLE ledger (key bigint PRIMARY KEY, value bigint NOT NULL); \
         CREATE FUNCTION fall() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN IF NEW.value % 10 = 0 THEN RETURN NULL; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER fall BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION fall()"
    ));
    let found = judged(server.rows(), Duration::from_secs(2));
    assert!(found.stale_count > 0 && !found.disorder.is_empty(), "{found:?}");
    let stranger = PostgresRows { password: "wrong".to_owned(), ..server.rows() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(stranger.prepare()).unwrap_err();
    assert!(refused.contains("password"), "{refused}");
}

/// Answers every request over kept-alive connections; every `drop_one_in`th is swallowed and its connection closed. Waits
/// `stall` once, at the thousandth.
fn server(drop_one_in: u64, stall: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let gate = Arc::new(std::sync::Mutex::new(()));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, count, gate) = (stream.unwrap(), Arc::clone(&count), Arc::clone(&gate));
            std::thread::spawn(move || {
                let mut buffer = [0_u8; 4096];
                while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                    let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                    if drop_one_in > 0 && number.is_multiple_of(drop_one_in) {
                        return;
                    }
                    // All wait for the one that sleeps: the whole server stands still.
                    let held = gate.lock().unwrap();
                    if number == 1000 {
                        std::thread::sleep(stall);
                    }
                    drop(held);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn load(address: SocketAddr, rate: f64, seconds: u64, tries: u8) -> Vec<Sample> {
    let route =
        Route { method: "GET".parse().unwrap(), path: "/".parse().unwrap(), body: Vec::new().into(), weight: 1 };
    let plan = LoadPlan {
        address,
        host: "server".to_owned(),
        tls: None,
        keep_alive: true,
        rate,
        arrivals: Arrivals::Uniform,
        routes: vec![route],
        steps: 1,
        think: Duration::ZERO,
        // A busy machine must not look like a failing server.
        timeout: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(60),
        tries,
        in_flight_max: 20_000,
        seed: 1,
        duration: Some(Duration::from_secs(seconds)),
    };
    let load = Load::start(plan).unwrap();
    while !load.is_over() {
        std::thread::sleep(Duration::from_millis(20));
    }
    load.end().unwrap()
}

#[test]
fn one_dropped_request_in_ten_thousand_is_counted() {
    let samples = load(server(10_000, Duration::ZERO), 2500.0, 8, 1);
    let failed: Vec<Failure> = samples.iter().filter_map(|it| it.failure).take(10).collect();
    assert_eq!((samples.len(), failed), (20_000, vec![Failure::Broken; 2]));
}

#[test]
fn a_dropped_request_that_is_tried_again_is_answered_and_counted() {
    let samples = load(server(1000, Duration::ZERO), 500.0, 3, 2);
    let again = samples.iter().filter(|it| it.tries == 2 && it.failure.is_none()).count();
    assert_eq!((samples.iter().filter(|it| it.failure.is_some()).count(), again), (0, 1));
}

#[test]
fn a_stall_is_in_the_latency_of_every_request_that_was_due_in_it() {
    let stall = Duration::from_millis(500);
    let samples = load(server(0, stall), 1000.0, 3, 1);
    assert_eq!(samples.len(), 3000);
    // 500 requests were due while the server stood still: they waited 250 ms on average, and half of them longer. (At most:
    // a busy machine makes more of them.)
    let slow = samples.iter().filter(|it| it.latency_us > 250_000).count();
    assert!(slow >= 225, "{slow} of {:?}", Latency::of(&samples));
}

#[test]
fn who_is_not_there_is_told_from_who_does_not_answer() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let samples = load(nobody, 100.0, 1, 1);
    assert!(samples.iter().all(|it| it.failure == Some(Failure::Refused)), "{:?}", samples[0]);
    assert_eq!(samples.len(), 100);
}
