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
use mainstay_drill::ledger::{HttpKeys, HttpLog, Judgement, Ledger, LedgerPlan, Place, Recorder, RedisKeys};
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let plan = LedgerPlan { clients: 4, keys: 3, rate: 400.0, writes: 0.5, seed: 7 };
        let recorder = Recorder::new(Arc::new(ledger), plan, Instant::now());
        let (stop, told) = tokio::sync::watch::channel(false);
        tokio::join!(recorder.run(told), async {
            tokio::time::sleep(length).await;
            stop.send(true).unwrap();
        });
        recorder.judge("planted").await
    })
}

#[test]
fn a_store_that_keeps_its_word_is_not_accused() {
    let address = store(0);
    // Longer on request: nothing may be invented in ten minutes either.
    let seconds = std::env::var("MAINSTAY_DRILL_CLEAN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let keys = judged(HttpKeys(place(&[address])), Duration::from_secs(seconds));
    println!("{} operations, {} acknowledged writes", keys.operations, keys.acknowledged);
    assert!(keys.is_clean() && keys.acknowledged > 100, "{keys:?}");
    let log = judged(HttpLog(place(&[address])), Duration::from_secs(1));
    assert!(log.is_clean() && log.acknowledged > 100, "{log:?}");
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
    command.args(["--port", &address.port().to_string(), "--save", "", "--bind", "127.0.0.1"]);
    let Ok(mut server) = command.stdout(std::process::Stdio::null()).spawn() else {
        eprintln!("skipped: redis-server is not installed");
        return;
    };
    let since = Instant::now();
    while TcpStream::connect(address).is_err() && since.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let ledger = RedisKeys { addresses: vec![address], prefix: "drill:".to_owned(), timeout: Duration::from_secs(2) };
    let found = judged(ledger, Duration::from_secs(1));
    let _ = server.kill();
    let _ = server.wait();
    assert!(found.is_clean() && found.acknowledged > 50, "{found:?}");
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
