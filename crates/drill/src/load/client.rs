//! One request over one connection: pooled HTTP/1.1, nothing tried again that the caller did not ask for.
//!
//! Flow: take an idle connection, else open one → send → read the whole answer → give the connection back.
//!
//! A request that could not be handed to a connection that turned out to be closed was never sent; it goes over a fresh one
//! and counts as one try. Everything else that fails is a failure, although RFC 9110, 9.2.2 would let a client repeat an
//! idempotent request when the connection ends early: what is measured here is the service, not the patience of its clients.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{COOKIE, HOST, HeaderValue, SET_COOKIE};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::sample::Failure;
use super::tls::Tls;

type Sender = SendRequest<Full<Bytes>>;

/// What to ask; made once, sent often.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) method: Method,
    pub(crate) path: Uri,
    pub(crate) body: Bytes,
}

impl Prepared {
    /// Whether asking twice does no harm (RFC 9110, 9.2.2).
    pub(crate) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }
}

/// Connections to one address.
pub(crate) struct Pool {
    address: SocketAddr,
    host: HeaderValue,
    connect_timeout: Duration,
    tls: Option<Tls>,
    idle: RefCell<Vec<Sender>>,
}

/// What a session remembers between its requests: the cookies it was given.
#[derive(Debug, Default)]
pub(crate) struct Session(RefCell<Vec<(String, String)>>);

impl Pool {
    pub(crate) fn new(address: SocketAddr, host: HeaderValue, connect_timeout: Duration, tls: Option<Tls>) -> Self {
        Self { address, host, connect_timeout, tls, idle: RefCell::default() }
    }

    /// One try.
    pub(crate) async fn exchange(
        &self,
        request: &Prepared,
        session: Option<&Session>,
        deadline: Instant,
        fresh: bool,
    ) -> Result<(), Failure> {
        let connected = Cell::new(false);
        let work = self.work(request, session, deadline, fresh, &connected);
        match timeout_at(deadline, work).await {
            Ok(result) => result,
            Err(_) if connected.get() => Err(Failure::Timeout),
            Err(_) => Err(Failure::ConnectTimeout),
        }
    }

    async fn work(
        &self,
        prepared: &Prepared,
        session: Option<&Session>,
        deadline: Instant,
        fresh: bool,
        connected: &Cell<bool>,
    ) -> Result<(), Failure> {
        let mut request = Request::new(Full::new(prepared.body.clone()));
        *request.method_mut() = prepared.method.clone();
        *request.uri_mut() = prepared.path.clone();
        request.headers_mut().insert(HOST, self.host.clone());
        if let Some(cookies) = session.and_then(Session::header) {
            request.headers_mut().insert(COOKIE, cookies);
        }
        let mut idle = if fresh { None } else { self.take() };
        loop {
            let reused = idle.is_some();
            let mut sender = match idle.take() {
                Some(sender) => sender,
                None => self.connect(deadline).await?,
            };
            connected.set(true);
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    let failure = Some(answer.status().as_u16()).filter(|status| *status >= 400);
                    if let Some(session) = session {
                        session.learn(answer.headers().get_all(SET_COOKIE).iter());
                    }
                    drain(answer.into_body()).await?;
                    self.give_back(sender);
                    return failure.map_or(Ok(()), |status| Err(Failure::Status(status)));
                }
                // Handed back unsent: the pooled connection had been closed meanwhile.
                Err(mut error) => match error.take_message().filter(|_| reused) {
                    Some(unsent) => {
                        connected.set(false);
                        request = unsent;
                    }
                    None => return Err(Failure::Broken),
                },
            }
        }
    }

    fn take(&self) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        // The one used last is the one most likely to be alive still.
        std::iter::from_fn(|| idle.pop()).find(Sender::is_ready)
    }

    async fn connect(&self, deadline: Instant) -> Result<Sender, Failure> {
        let until = deadline.min(Instant::now() + self.connect_timeout);
        let stream = match timeout_at(until, TcpStream::connect(self.address)).await {
            Err(_) => return Err(Failure::ConnectTimeout),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::TimedOut => return Err(Failure::ConnectTimeout),
            Ok(Err(_)) => return Err(Failure::Refused),
            Ok(Ok(stream)) => stream,
        };
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => open(stream).await,
            Some(tls) => open(timeout_at(until, tls.over(stream)).await.map_err(|_| Failure::ConnectTimeout)??).await,
        }
    }

    /// Back to the pool as soon as the connection is done with this exchange; closed ones are dropped there.
    fn give_back(&self, sender: Sender) {
        if !sender.is_closed() {
            self.idle.borrow_mut().push(sender);
        }
    }
}

/// HTTP over a connection.
async fn open(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Sender, Failure> {
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|_| Failure::Broken)?;
    // Ends with its sender, or with the load's runtime.
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// Reads the body to its end and forgets it.
async fn drain(mut body: hyper::body::Incoming) -> Result<(), Failure> {
    while let Some(frame) = body.frame().await {
        frame.map_err(|_| Failure::Broken)?;
    }
    Ok(())
}

impl Session {
    fn header(&self) -> Option<HeaderValue> {
        let cookies = self.0.borrow();
        let pairs: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (!pairs.is_empty()).then(|| HeaderValue::from_str(&pairs.join("; ")).ok())?
    }

    /// Name and value only: a load of minutes against one host has no use for paths, domains and ages.
    fn learn<'a>(&self, set: impl Iterator<Item = &'a HeaderValue>) {
        for text in set.filter_map(|value| value.to_str().ok()) {
            let Some((name, value)) = text.split(';').next().and_then(|pair| pair.split_once('=')) else { continue };
            let mut cookies = self.0.borrow_mut();
            cookies.retain(|(known, _)| known != name.trim());
            cookies.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_session_sends_back_the_newest_value_of_each_cookie() {
        let session = Session::default();
        assert!(session.header().is_none());
        let set = ["cart=1; Path=/", "theme=dark", "cart=1.3; Max-Age=60"].map(HeaderValue::from_static);
        session.learn(set.iter());
        assert_eq!(session.header().unwrap(), "theme=dark; cart=1.3");
    }
}
