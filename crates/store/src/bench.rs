//! How fast the embedded store is on a given disk. It measures and does not judge.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use crate::etcd::bench::EtcdLoad;
use crate::{Durability, EmbeddedStore, Error, Expect, Result, Settings, Store};

/// The size of the values written, in bytes: that of a small Pod.
const VALUE_BYTES: usize = 2000;
/// How many writes one client makes.
const SINGLE_WRITES: u32 = 500;
/// How many clients write at the same time, and how often each.
const CLIENTS: usize = 256;
const CLIENT_WRITES: usize = 100;
/// How many watchers see one change, and how many changes are measured.
const WATCHERS: usize = 1000;
const CHANGES: u32 = 50;

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub metric: &'static str,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// Measures in `directory`, which should be empty, for some seconds. Must run on a tokio runtime.
pub async fn run(directory: &Path) -> Result<Vec<Row>> {
    let failed = |source| Error::Open { path: directory.to_owned(), source };
    let fsync = bare_fsync(directory).map_err(failed)?;
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&directory.join("bench"), Settings::default())?);
    let create = creates(&*store, "/single/", Durability::Immediate).await?;
    let relaxed = creates(&*store, "/relaxed/", Durability::Relaxed).await?;
    let throughput = many_clients(&store).await?;
    let list = Instant::now();
    let listed = store.range("/many/", None, None, None).await?.entries.len();
    let list = list.elapsed();
    let fan_out = fan_out(&store).await?;
    let row = |metric, value, unit| Row { metric, value, unit };
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    Ok(vec![
        row("write of 4 KiB and fdatasync, p50", micros(fsync), "us"),
        row("durable create, one client, p50", micros(create), "us"),
        row("durable create beyond one fdatasync, p50", micros(create) - micros(fsync), "us"),
        row("relaxed create, one client, p50", micros(relaxed), "us"),
        row("durable creates, 256 clients", throughput, "1/s"),
        row("list per 1,000 objects of 2 kB", micros(list) / listed as f64, "ms"),
        row("one change to 1,000 watchers, p50", micros(fan_out) / 1000.0, "ms"),
    ])
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// Half of all writes of 4 KiB with `fdatasync(2)` in `directory` take no longer.
pub fn bare_fsync(directory: &Path) -> std::io::Result<Duration> {
    let file = File::create(directory.join("fsync"))?;
    let mut samples = Vec::new();
    for turn in 0..SINGLE_WRITES {
        let start = Instant::now();
        file.write_all_at(&[turn as u8; 4096], u64::from(turn % 256) * 4096)?;
        file.sync_data()?;
        samples.push(start.elapsed());
    }
    Ok(median(samples))
}

async fn creates(store: &dyn Store, prefix: &str, durability: Durability) -> Result<Duration> {
    let mut samples = Vec::new();
    for turn in 0..SINGLE_WRITES {
        let (key, value) = (format!("{prefix}{turn}"), Bytes::from(vec![1; VALUE_BYTES]));
        let start = Instant::now();
        store.put_with(&key, value, Expect::Absent, durability).await?;
        samples.push(start.elapsed());
    }
    Ok(median(samples))
}

async fn many_clients(store: &Arc<dyn Store>) -> Result<f64> {
    let start = Instant::now();
    let clients = (0..CLIENTS).map(|client| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            for turn in 0..CLIENT_WRITES {
                let value = Bytes::from(vec![1; VALUE_BYTES]);
                store.put(&format!("/many/{client}/{turn}"), value, Expect::Absent).await?;
            }
            Ok::<_, Error>(())
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap_or(Err(Error::Closed))?;
    }
    Ok((CLIENTS * CLIENT_WRITES) as f64 / start.elapsed().as_secs_f64())
}

/// From the acknowledgement of a change until the last watcher has it.
async fn fan_out(store: &Arc<dyn Store>) -> Result<Duration> {
    let from = store.revision().await?;
    let (sender, mut received) = tokio::sync::mpsc::channel(WATCHERS);
    for _ in 0..WATCHERS {
        let (mut watcher, sender) = (store.watch("/watched/", from).await?, sender.clone());
        tokio::spawn(async move {
            while let Some(Ok(_)) = watcher.next().await {
                if sender.send(Instant::now()).await.is_err() {
                    break;
                }
            }
        });
    }
    let mut samples = Vec::new();
    for turn in 0..CHANGES {
        // Relaxed: the disk is not what is measured here.
        let start = Instant::now();
        store.put_with(&format!("/watched/{turn}"), Bytes::new(), Expect::Any, Durability::Relaxed).await?;
        let mut last = start;
        for _ in 0..WATCHERS {
            last = last.max(received.recv().await.unwrap_or(last));
        }
        samples.push(last - start);
    }
    Ok(median(samples))
}
