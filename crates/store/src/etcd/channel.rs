//! A connection to one of several endpoints, made again when it ends, and calls over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::grpc::{self, Answers, CallError, Outgoing};

/// How long connecting to one endpoint may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one answer may take: beyond etcd's own limit of 5 s and two election time-outs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// A silent peer is asked for a sign of life this often, and given up after as long again. etcd allows every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// How often a question that changes nothing is asked again, and how long to wait before that.
const TRIES: u32 = 4;
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// Room for what etcd may send before we have taken it, per stream and per connection, in bytes.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing.
    Harmless,
    /// It may have been done although no answer came.
    Never,
}

/// One place where etcd listens, such as `10.0.0.1:2379`.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) authority: String,
}

impl Endpoint {
    /// The host without its port, as certificates name it.
    fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(&*self.authority, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Calls to whichever endpoint answers.
pub(super) struct Channel {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Which endpoint is tried first.
    next: AtomicUsize,
    connection: Mutex<Option<Arc<Connection>>>,
}

/// An open connection. Dropping it ends it and all that runs over it.
pub(super) struct Connection {
    sender: SendRequest<Outgoing>,
    driver: JoinHandle<()>,
    scheme: &'static str,
    authority: String,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Makes a call and waits for the head of its answer.
    async fn send(&self, method: &str, message: &impl Message, stays_open: bool) -> Result<Answers, CallError> {
        let request = grpc::request(self.scheme, &self.authority, method, Outgoing::new(message, stays_open))?;
        grpc::send(&mut self.sender.clone(), request).await
    }
}

impl Channel {
    pub(super) fn new(endpoints: Vec<Endpoint>, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self { endpoints, tls, next: AtomicUsize::new(0), connection: Mutex::default() }
    }

    /// One channel for each endpoint: for what every member must be told.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> {
        self.endpoints.iter().map(|endpoint| Self::new(vec![endpoint.clone()], self.tls.clone()))
    }

    /// A call with one answer.
    pub(super) async fn call<A: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
        repeat: Repeat,
    ) -> Result<A, CallError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.attempt(method, message).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // Where nothing was sent, nothing can be done twice; but connecting has tried every endpoint already.
            let again = match repeat {
                Repeat::Harmless => tries < TRIES && error.is_passing(),
                Repeat::Never => tries < 2 && matches!(error, CallError::Unreachable(_)),
            };
            if !again {
                return Err(error);
            }
            tokio::time::sleep(RETRY_WAIT * tries).await;
        }
    }

    async fn attempt<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A, CallError> {
        let connection = self.connection().await?;
        let answer = timeout(ANSWER_TIMEOUT, async {
            let answer = connection.send(method, message, false).await?.next().await?;
            answer.ok_or_else(|| CallError::Malformed("no message in the answer".to_owned()))
        });
        let late = |_| Err(CallError::Interrupted(format!("not within {} s", ANSWER_TIMEOUT.as_secs())));
        let answer = answer.await.unwrap_or_else(late);
        if let Err(CallError::Unreachable(_) | CallError::Interrupted(_)) = answer {
            self.forget(&connection).await;
        }
        answer
    }

    /// A call whose answers go on, over a connection of its own, which lives as long as what is returned.
    pub(super) async fn stream(
        &self,
        method: &str,
        message: &impl Message,
    ) -> Result<(Arc<Connection>, Answers), CallError> {
        let connection = Arc::new(self.connect().await?);
        match timeout(ANSWER_TIMEOUT, connection.send(method, message, true)).await {
            Ok(answers) => answers.map(|answers| (connection, answers)),
            Err(_) => Err(CallError::Interrupted("the stream does not begin".to_owned())),
        }
    }

    /// A call whose answers go on, over the connection that other calls use, too.
    pub(super) async fn shared_stream(&self, method: &str, message: &impl Message) -> Result<Answers, CallError> {
        self.connection().await?.send(method, message, true).await
    }

    /// The open connection, or a new one.
    async fn connection(&self) -> Result<Arc<Connection>, CallError> {
        let mut place = self.connection.lock().await;
        match &*place {
            Some(open) if !open.sender.is_closed() => Ok(Arc::clone(open)),
            _ => {
                let new = Arc::new(self.connect().await?);
                *place = Some(Arc::clone(&new));
                Ok(new)
            }
        }
    }

    /// Turns to the next endpoint, unless somebody has already.
    async fn forget(&self, failed: &Arc<Connection>) {
        let mut place = self.connection.lock().await;
        if place.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, failed)) {
            *place = None;
            self.next.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn connect(&self) -> Result<Connection, CallError> {
        let first = self.next.load(Ordering::Relaxed);
        let mut said = Vec::new();
        for turn in 0..self.endpoints.len() {
            let endpoint = &self.endpoints[(first + turn) % self.endpoints.len()];
            match timeout(CONNECT_TIMEOUT, self.connect_to(endpoint)).await {
                Ok(Ok(connection)) => {
                    self.next.store(first + turn, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok(Err(error)) => said.push(format!("{}: {error}", endpoint.authority)),
                Err(_) => {
                    said.push(format!("{}: no answer within {} s", endpoint.authority, CONNECT_TIMEOUT.as_secs()));
                }
            }
        }
        Err(CallError::Unreachable(said.join("; ")))
    }

    async fn connect_to(&self, endpoint: &Endpoint) -> Result<Connection, String> {
        let stream = TcpStream::connect(&endpoint.authority).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        let (scheme, authority) = (if self.tls.is_some() { "https" } else { "http" }, endpoint.authority.clone());
        let (sender, driver) = match &self.tls {
            None => handshake(stream).await?,
            Some(tls) => {
                let name = ServerName::try_from(endpoint.host().to_owned()).map_err(|error| error.to_string())?;
                let connector = TlsConnector::from(Arc::clone(tls));
                handshake(connector.connect(name, stream).await.map_err(|error| error.to_string())?).await?
            }
        };
        Ok(Connection { sender, driver, scheme, authority })
    }
}

async fn handshake<S>(stream: S) -> Result<(SendRequest<Outgoing>, JoinHandle<()>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to etcd ended");
        }
    });
    Ok((sender, driver))
}
