//! Asks every member directly, all the time, whether it accepts writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::members::Members;

/// Between two questions to one member.
const LOOK: Duration = Duration::from_millis(10);
/// For an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// For a connection.
const CONNECT: Duration = Duration::from_millis(500);

/// A time during which one member certainly accepted writes: from an answer that said so to the asking of the last question on the
/// same connection that was answered so. A server cannot stop being primary and become it again without losing its connections.
#[derive(Debug, Clone)]
struct Reign {
    member: String,
    from: Instant,
    to: Instant,
}

/// The witness at work.
pub struct Witness {
    stop: Arc<AtomicBool>,
    reigns: Arc<Mutex<Vec<Reign>>>,
    work: JoinHandle<()>,
}

impl Witness {
    pub fn start(members: &Members) -> Self {
        let (stop, reigns) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ends, seen, addresses) = (stop.clone(), reigns.clone(), members.every_conninfo());
        let work = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let watch = |(member, address)| watch(member, address, &ends, &seen);
                futures::future::join_all(addresses.into_iter().map(watch)).await
            });
        });
        Self { stop, reigns, work }
    }

    /// The longest time during which two members certainly accepted writes at once.
    pub fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.work.join().unwrap();
        let reigns = self.reigns.lock().unwrap().clone();
        let pairs = reigns.iter().flat_map(|one| reigns.iter().map(move |other| (one, other)));
        let overlap = |(one, other): (&Reign, &Reign)| {
            let common = one.to.min(other.to).saturating_duration_since(one.from.max(other.from));
            if one.member == other.member { Duration::ZERO } else { common }
        };
        pairs.map(overlap).max().unwrap_or_default()
    }
}

async fn watch(member: String, address: String, stop: &AtomicBool, reigns: &Mutex<Vec<Reign>>) {
    while !stop.load(Ordering::Relaxed) {
        let connecting = tokio::time::timeout(CONNECT, tokio_postgres::connect(&address, NoTls)).await;
        let Ok(Ok((client, connection))) = connecting else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let work = tokio::spawn(connection);
        let mut reign: Option<usize> = None;
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let answer = tokio::time::timeout(ANSWER, writable(&client)).await;
            let Ok(Some(writable)) = answer else { break };
            let mut reigns = reigns.lock().unwrap();
            match reign {
                Some(index) if writable => reigns[index].to = asked,
                None if writable => {
                    reign = Some(reigns.len());
                    let now = Instant::now();
                    reigns.push(Reign { member: member.clone(), from: now, to: now });
                }
                _ => reign = None,
            }
            drop(reigns);
            tokio::time::sleep(LOOK).await;
        }
        work.abort();
    }
}

async fn writable(client: &Client) -> Option<bool> {
    let answer = client.simple_query("SELECT pg_is_in_recovery()").await.ok()?;
    answer.iter().find_map(|it| match it {
        SimpleQueryMessage::Row(row) => Some(row.get(0)? == "f"),
        _ => None,
    })
}
