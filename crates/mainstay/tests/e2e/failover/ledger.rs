//! A client that writes one row after the other, and remembers which were acknowledged and when.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use super::members::Members;
use crate::cluster::PATIENCE;

/// A write without an answer for so long is given up; it may have been done or not.
const WRITE: Duration = Duration::from_secs(1);
/// For a new connection: an address where nobody answers must not hide that another one does.
const CONNECT: Duration = Duration::from_millis(200);

/// Numbers of rows never repeat, whoever writes them.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The client at work.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    work: JoinHandle<()>,
}

/// What it saw.
#[derive(Default)]
pub struct Seen {
    pub acknowledged: Vec<u64>,
    pub longest_gap: Duration,
    last: Option<Instant>,
}

impl Ledger {
    /// Starts to write, to whoever the Service leads to.
    pub fn start(members: &Members) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (address, ended, sees) = (members.conninfo(), stop.clone(), seen.clone());
        let work = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(write(&address, &ended, &sees));
        });
        Self { stop, seen, work }
    }

    /// Waits until so many more writes were acknowledged.
    pub fn until_writes(&self, more: usize) {
        let count = || self.seen.lock().unwrap().acknowledged.len();
        let (goal, since) = (count() + more, Instant::now());
        while count() < goal {
            assert!(since.elapsed() < PATIENCE, "no more writes are acknowledged");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the writing.
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.work.join().unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

async fn write(address: &str, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut client: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(open) = &client else {
            client = connect(address).await;
            if client.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            continue;
        };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let statement = format!("INSERT INTO ledger VALUES ({id})");
        if let Ok(Ok(_)) = tokio::time::timeout(WRITE, open.simple_query(&statement)).await {
            let (mut seen, now) = (seen.lock().unwrap(), Instant::now());
            let gap = seen.last.map_or(Duration::ZERO, |last| now - last);
            seen.longest_gap = seen.longest_gap.max(gap);
            seen.last = Some(now);
            seen.acknowledged.push(id);
        } else {
            client = None;
        }
    }
}

async fn connect(address: &str) -> Option<Client> {
    let connecting = tokio_postgres::connect(address, NoTls);
    let (client, connection) = tokio::time::timeout(CONNECT, connecting).await.ok()?.ok()?;
    tokio::spawn(connection);
    Some(client)
}
