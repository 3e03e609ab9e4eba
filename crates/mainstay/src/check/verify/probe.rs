//! Asks every service all the time, on fresh connections, and counts its ready pods.
//!
//! Open loop: a question is asked when it is due, whatever became of those before. A service that speaks HTTP (its pods have
//! an HTTP probe) must answer GET / with less than 500; any other must take the connection; one without an address of its
//! own (headless, or no Service at all) is judged by its ready pods alone.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use mainstay_drill::observe::pod_is_ready;
use mainstay_informer::Cache;
use mainstay_model::selector::LabelSelector;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::verdict::{Seen, seen};

/// Between two questions to a service.
pub(super) const PERIOD: Duration = Duration::from_millis(20);
/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long connecting may take, and the pauses before further tries, where callers try again.
const CONNECT_PATIENCE: Duration = Duration::from_millis(250);
const PAUSES: [Duration; 3] = [Duration::from_millis(25), Duration::from_millis(75), Duration::from_millis(200)];
/// Questions of one service that wait for an answer at most; one more counts as not answered.
const WAITING_MAX: usize = 150;
/// Bytes of an answer that are read: enough for the status line.
const HEAD: usize = "HTTP/1.1 200".len();

/// How many ready pods a service needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// Fewer: it is down, if it is judged by its pods alone.
    pub least: usize,
    /// Fewer: it is degraded.
    pub minimum: usize,
}

/// One service and how it is asked.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub namespace: String,
    /// The `Host` header.
    pub host: String,
    pub address: Option<SocketAddr>,
    pub speaks_http: bool,
    /// Whether its callers try again, so that a question is only lost with the last try.
    pub is_retried: bool,
    pub selector: LabelSelector,
    pub need: Need,
}

/// What was seen of one service. Seconds after the probes' beginning.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// When it was asked, and whether it answered; in the order of the answers.
    pub answers: Vec<(f64, bool)>,
    /// Ready pods, from when on.
    pub ready: Vec<(f64, usize)>,
}

/// Probes of all services.
pub(super) struct Probes {
    began: Instant,
    all: Vec<(Place, Arc<Mutex<Record>>)>,
    /// End with it.
    tasks: JoinSet<()>,
}

impl Probes {
    /// Begins to ask.
    pub fn start(places: Vec<Place>, pods: &Cache<Pod>) -> Self {
        let began = Instant::now();
        let (mut tasks, mut all) = (JoinSet::new(), Vec::new());
        for place in places {
            let record = Arc::new(Mutex::new(Record::default()));
            tasks.spawn(probe(place.clone(), Cache::clone(pods), Arc::clone(&record), began));
            all.push((place, record));
        }
        Self { began, all, tasks }
    }

    /// Seconds since the beginning.
    pub fn now_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Ends; what was seen of each service between the two times, in the order of the places.
    pub async fn end(mut self, from_s: f64, until_s: f64) -> Vec<Seen> {
        // What was asked before the end may still be answered.
        tokio::time::sleep(PATIENCE * 2).await;
        self.tasks.shutdown().await;
        self.seen(from_s, until_s)
    }

    /// What is known of each service between the two times, in the order of the places.
    pub fn seen(&self, from_s: f64, until_s: f64) -> Vec<Seen> {
        let of = |(place, record): &(Place, Arc<Mutex<Record>>)| {
            let record = record.lock().unwrap_or_else(PoisonError::into_inner);
            seen(&record, place.address.is_some(), place.need, from_s, until_s)
        };
        self.all.iter().map(of).collect()
    }
}

async fn probe(place: Place, pods: Cache<Pod>, record: Arc<Mutex<Record>>, began: Instant) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    let mut asked = JoinSet::new();
    loop {
        ticks.tick().await;
        while asked.try_join_next().is_some() {}
        let due_s = began.elapsed().as_secs_f64();
        let ready = pods.filter(|pod| is_of(pod, &place) && pod_is_ready(pod)).len();
        {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            if record.ready.last().is_none_or(|(_, before)| *before != ready) {
                record.ready.push((due_s, ready));
            }
        }
        let Some(address) = place.address else { continue };
        let note = {
            let record = Arc::clone(&record);
            move |ok: bool| record.lock().unwrap_or_else(PoisonError::into_inner).answers.push((due_s, ok))
        };
        let Ok(permit) = Arc::clone(&waiting).try_acquire_owned() else {
            note(false);
            continue;
        };
        let place = place.clone();
        asked.spawn(async move {
            note(is_answered(address, &place).await);
            drop(permit);
        });
    }
}

/// One question, tried as the service's callers try.
async fn is_answered(address: SocketAddr, place: &Place) -> bool {
    let mut pauses = if place.is_retried { &PAUSES[..] } else { &[] }.iter();
    loop {
        if timeout(PATIENCE, ask(address, place)).await.is_ok_and(|answer| answer.unwrap_or(false)) {
            return true;
        }
        let Some(pause) = pauses.next() else { return false };
        tokio::time::sleep(*pause).await;
    }
}

fn is_of(pod: &Pod, place: &Place) -> bool {
    let labels = pod.labels();
    pod.metadata.namespace.as_deref() == Some(&place.namespace)
        && place.selector.matches_with(|key| labels.get(key).map(String::as_str))
}

/// One question; whether the answer is one.
async fn ask(address: SocketAddr, place: &Place) -> std::io::Result<bool> {
    let patience = if place.is_retried { CONNECT_PATIENCE } else { PATIENCE };
    let mut stream = timeout(patience, TcpStream::connect(address)).await??;
    if !place.speaks_http {
        return Ok(true);
    }
    let host = &place.host;
    let question = format!("GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mainstay-check\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await?;
    Ok(head.starts_with(b"HTTP/1.") && head[HEAD - 3] < b'5')
}
