//! Rate limits that gateways share through a Redis.
//!
//! # Flow
//! A request's ask goes to the one task that this core has for that Redis; the task writes it behind the others and gives the
//! answers back in their order. The decision is made by `shared.lua` in the server, by its clock, so that gateways need
//! not agree about the time.
//!
//! # Guarantees
//! - Exact over all gateways while the Redis answers.
//! - A request waits for it 50 ms at most. Without an answer its gateway counts alone, as if the limit were its own: a Redis that
//!   is down lets N gateways admit N times the limit, and stops nobody.
//!
//! # Deliberately absent
//! Passwords, TLS and clusters of Redis: the wire is RESP2 in the clear.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::rate::Decision;
use crate::table::settings::LimitSettings;

const SCRIPT: &str = include_str!("shared.lua");
/// How long a request waits for a decision.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_millis(200);
/// How long nobody is asked after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// Asks that may wait, per core.
const QUEUE: usize = 1024;
/// Longest line and bulk of an answer.
const ANSWER_MAX: usize = 4096;

struct Ask {
    command: Vec<u8>,
    reply: oneshot::Sender<Decision>,
    until: Instant,
}

/// A core's way to a Redis.
#[derive(Debug)]
pub(crate) struct SharedLimits {
    asks: mpsc::Sender<Ask>,
}

thread_local! {
    /// Cores share nothing, so each has its own connections; they end with the last rule that uses them.
    static KNOWN: RefCell<HashMap<String, Weak<SharedLimits>>> = RefCell::default();
}

impl SharedLimits {
    /// This core's way to the Redis at `HOST:PORT`. Must be called on a local runtime.
    pub(crate) fn at(address: &str) -> Rc<Self> {
        KNOWN.with_borrow_mut(|known| {
            known.retain(|_, it| it.strong_count() > 0);
            known.get(address).and_then(Weak::upgrade).unwrap_or_else(|| {
                let (asks, waiting) = mpsc::channel(QUEUE);
                tokio::task::spawn_local(serve(address.to_owned(), waiting));
                let new = Rc::new(Self { asks });
                known.insert(address.to_owned(), Rc::downgrade(&new));
                new
            })
        })
    }

    /// What the shared limit says; nothing if it does not answer in time.
    pub(crate) async fn ask(&self, settings: &LimitSettings, key: &[u8]) -> Option<Decision> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask { command: arguments(settings, key), reply, until: Instant::now() + PATIENCE };
        self.asks.try_send(ask).ok()?;
        timeout(PATIENCE, answer).await.ok()?.ok()
    }
}

/// Everything of the command behind the script's digest.
fn arguments(settings: &LimitSettings, key: &[u8]) -> Vec<u8> {
    let name = [b"mainstay:limit:", settings.key.as_bytes(), b":", key].concat();
    let numbers = [settings.requests, settings.period.as_micros() as u64, settings.burst, settings.queue];
    let algorithm = format!("{:?}", settings.algorithm);
    let mut out = Vec::with_capacity(128 + name.len());
    for part in [b"1".as_slice(), &name, algorithm.as_bytes()] {
        bulk(&mut out, part);
    }
    for number in numbers {
        bulk(&mut out, number.to_string().as_bytes());
    }
    out
}

fn bulk(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// Answers asks until nobody can ask any more.
async fn serve(address: String, mut asks: mpsc::Receiver<Ask>) {
    while let Some(first) = asks.recv().await {
        let Err(error) = converse(&address, first, &mut asks).await else { return };
        tracing::warn!(redis = address, %error, "rate limits are not shared: each gateway counts alone");
        let end = Instant::now() + PAUSE;
        // Who asks meanwhile is not kept waiting.
        while let Ok(Some(ask)) = tokio::time::timeout_at(end.into(), asks.recv()).await {
            drop(ask);
        }
    }
}

/// One connection, until it fails (or nobody asks any more).
async fn converse(address: &str, first: Ask, asks: &mut mpsc::Receiver<Ask>) -> io::Result<()> {
    let stream = timeout(CONNECT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let digest = timeout(CONNECT, load(&mut reader, &mut writer)).await??;
    let mut waiting: VecDeque<Ask> = VecDeque::new();
    send(&mut writer, &digest, &first).await?;
    waiting.push_back(first);
    loop {
        let oldest = waiting.front().map(|ask| ask.until + CONNECT);
        tokio::select! {
            ask = asks.recv() => {
                let Some(ask) = ask else { return Ok(()) };
                send(&mut writer, &digest, &ask).await?;
                waiting.push_back(ask);
            }
            // The whole answer is read once its first byte is there: a read must not be given up in its middle.
            ready = reader.fill_buf(), if !waiting.is_empty() => {
                if ready?.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let decision = timeout(CONNECT, decision(&mut reader)).await??;
                if let Some(ask) = waiting.pop_front() {
                    // Who has waited too long is gone.
                    let _ = ask.reply.send(decision);
                }
            }
            () = until(oldest), if oldest.is_some() => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

async fn until(time: Option<Instant>) {
    if let Some(time) = time {
        tokio::time::sleep_until(time.into()).await;
    }
}

async fn load(reader: &mut BufReader<OwnedReadHalf>, writer: &mut OwnedWriteHalf) -> io::Result<Vec<u8>> {
    let mut command = b"*3\r\n".to_vec();
    for part in ["SCRIPT", "LOAD", SCRIPT] {
        bulk(&mut command, part.as_bytes());
    }
    writer.write_all(&command).await?;
    let line = line(reader).await?;
    let length: usize = line.strip_prefix('$').and_then(|it| it.parse().ok()).ok_or_else(|| strange(&line))?;
    if length > ANSWER_MAX {
        return Err(strange(&line));
    }
    let mut digest = vec![0; length + 2];
    reader.read_exact(&mut digest).await?;
    digest.truncate(length);
    Ok(digest)
}

async fn send(writer: &mut OwnedWriteHalf, digest: &[u8], ask: &Ask) -> io::Result<()> {
    let mut command = b"*9\r\n$7\r\nEVALSHA\r\n".to_vec();
    bulk(&mut command, digest);
    command.extend_from_slice(&ask.command);
    timeout(CONNECT, writer.write_all(&command)).await?
}

/// Reads `*4` and four integers.
async fn decision(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Decision> {
    let head = line(reader).await?;
    if head != "*4" {
        return Err(strange(&head));
    }
    let mut numbers = [0_u64; 4];
    for number in &mut numbers {
        let line = line(reader).await?;
        *number = line.strip_prefix(':').and_then(|it| it.parse().ok()).ok_or_else(|| strange(&line))?;
    }
    let [admitted, wait_us, remaining, reset_us] = numbers;
    Ok(Decision { admitted: admitted == 1, wait_ns: wait_us * 1000, remaining, reset_ns: reset_us * 1000 })
}

async fn line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<String> {
    let mut line = String::new();
    let limited = &mut reader.take(ANSWER_MAX as u64);
    if limited.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn strange(line: &str) -> io::Error {
    io::Error::other(format!("the Redis answered {line:?}"))
}
