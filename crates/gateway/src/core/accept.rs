//! Connections: accepted, understood (PROXY protocol, TLS, HTTP version), served, and ended when they are idle too long.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Version;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::LazyConfigAcceptor;

use super::headers::Forwarding;
use super::serve::serve;
use super::sni::{Sni, sni};
use super::{Core, proxy_protocol, tunnel};
use crate::table::hosts::HostMap;
use crate::table::settings::PortSettings;
use crate::table::{Port, PortService, SniTarget};
use crate::upstream::LocalExecutor;

/// Streams of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 256;
/// Resets a client may have waiting before it is cut off (CVE-2023-44487, rapid reset).
const RESETS_MAX: usize = 64;
/// Largest ClientHello that is looked into.
const HELLO_MAX: usize = 16_384;

/// A port as connections see it: its configuration can be exchanged under them.
pub(super) struct Slot {
    pub(super) port: RefCell<Arc<Port>>,
}

/// A listening socket of this core; closed when dropped.
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    slot: Rc<Slot>,
    task: AbortHandle,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client's connection, as its requests see it.
pub(super) struct Client {
    pub(super) core: Rc<Core>,
    pub(super) slot: Rc<Slot>,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) tls: bool,
    pub(super) sni: Option<String>,
    pub(super) version: Cell<Version>,
    pub(super) forwarding: Forwarding,
    pub(super) state: Arc<WatchState>,
    pub(super) open: Open,
}

/// Counts an open connection, and the client's, until the last clone is dropped.
#[derive(Clone)]
pub(super) struct Open(#[allow(dead_code, reason = "held for its drop")] Rc<OpenInner>);

struct OpenInner {
    core: Rc<Core>,
    peer: SocketAddr,
    counted: bool,
}

impl Drop for OpenInner {
    fn drop(&mut self) {
        self.core.shared().connections.fetch_sub(1, Ordering::Relaxed);
        if self.counted {
            self.core.shared().client_closes(self.peer.ip());
        }
    }
}

impl Listening {
    /// Starts accepting on a socket.
    pub(super) fn start(
        core: Rc<Core>,
        address: SocketAddr,
        socket: std::net::TcpListener,
        port: Arc<Port>,
    ) -> Option<Self> {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%address, %error, "cannot listen");
                return None;
            }
        };
        let slot = Rc::new(Slot { port: RefCell::new(port) });
        let task = tokio::task::spawn_local(accept(core, slot.clone(), listener)).abort_handle();
        Some(Self { address, slot, task })
    }

    /// Gives the port a new configuration; connections stay.
    pub(super) fn set(&self, port: Arc<Port>) {
        *self.slot.port.borrow_mut() = port;
    }
}

async fn accept(core: Rc<Core>, slot: Rc<Slot>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                core.shared().connections.fetch_add(1, Ordering::Relaxed);
                let open = OpenInner { core: core.clone(), peer, counted: false };
                tokio::task::spawn_local(connection(core.clone(), slot.clone(), stream, peer, open));
            }
            Err(error) => {
                // No descriptors left, usually: what is open must go on, and end.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(core: Rc<Core>, slot: Rc<Slot>, mut stream: TcpStream, mut peer: SocketAddr, mut open: OpenInner) {
    let port = slot.port.borrow().clone();
    let settings = &port.settings;
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    if settings.accept_proxy {
        match Box::pin(proxy_protocol::accept(&mut stream, settings.client_header)).await {
            Ok(said) => peer = said.unwrap_or(peer),
            Err(error) => return tracing::debug!(%peer, %error, "a connection without a PROXY header"),
        }
    }
    if let Some(max) = settings.connections_per_client {
        open.counted = true;
        open.peer = peer;
        if core.shared().client_opens(peer.ip()) > max {
            return tracing::debug!(%peer, "too many connections of one client");
        }
    }
    let open = Open(Rc::new(open));
    match &port.service {
        PortService::Http(_) => {
            let trusted = settings.trusted_proxies.contains(peer.ip());
            let client = client(&core, &slot, (peer, local), None, Forwarding::new(peer.ip(), false, trusted), open);
            // Boxed, here and below: an idle connection must not carry the space of what it does not do.
            let http2 = Box::pin(begins_http2(&stream, settings.client_idle)).await;
            run_http(client, stream, http2, settings).await;
        }
        PortService::Tls(targets) => {
            Box::pin(tls(&core, &slot, targets, settings, stream, (peer, local), open)).await;
        }
        PortService::Tcp(Some(rule)) => {
            let table = core.table();
            Box::pin(tunnel::stream(&core, &table, rule, stream, peer, local, settings.tunnel_idle, open)).await;
        }
        PortService::Tcp(None) => {}
    }
}

fn client(
    core: &Rc<Core>,
    slot: &Rc<Slot>,
    (peer, local): (SocketAddr, SocketAddr),
    sni: Option<Option<String>>,
    forwarding: Forwarding,
    open: Open,
) -> Rc<Client> {
    Rc::new(Client {
        core: core.clone(),
        slot: slot.clone(),
        peer,
        local,
        tls: sni.is_some(),
        sni: sni.flatten(),
        version: Cell::new(Version::HTTP_11),
        forwarding,
        state: Arc::new(WatchState::new(Instant::now())),
        open,
    })
}

/// Whether a plain connection begins with HTTP/2's preface (RFC 9113, 3.4).
async fn begins_http2(stream: &TcpStream, limit: Duration) -> bool {
    let mut start = [0; 4];
    let looking = async {
        while let Ok(seen) = stream.peek(&mut start).await {
            // No HTTP/1.1 method begins with PRI followed by a space that anybody uses.
            if seen == 0 || start[..seen] != b"PRI "[..seen] {
                return false;
            }
            if seen == 4 {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        false
    };
    tokio::time::timeout(limit, looking).await.unwrap_or(false)
}

async fn tls(
    core: &Rc<Core>,
    slot: &Rc<Slot>,
    targets: &HostMap<SniTarget>,
    settings: &PortSettings,
    stream: TcpStream,
    addresses: (SocketAddr, SocketAddr),
    open: Open,
) {
    let limit = settings.client_header;
    let Ok(Some(name)) = tokio::time::timeout(limit, peek_name(&stream)).await else { return };
    let Some(target) = targets.get(name.as_deref().unwrap_or_default()) else {
        return tracing::debug!(name, "no listener for this server name");
    };
    let (peer, local) = addresses;
    match target {
        SniTarget::Passthrough(rules) => {
            let Some(rule) = rules.get(name.as_deref().unwrap_or_default()) else { return };
            let table = core.table();
            tunnel::stream(core, &table, rule, stream, peer, local, settings.tunnel_idle, open).await;
        }
        SniTarget::Stream(rule, config) => {
            let Some(stream) = handshake(stream, config, limit).await else { return };
            let table = core.table();
            tunnel::stream(core, &table, rule, stream, peer, local, settings.tunnel_idle, open).await;
        }
        SniTarget::Http(_, config) => {
            let Some(stream) = handshake(stream, config, limit).await else { return };
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let trusted = settings.trusted_proxies.contains(peer.ip());
            let client = client(core, slot, addresses, Some(name), Forwarding::new(peer.ip(), true, trusted), open);
            run_http(client, stream, http2, settings).await;
        }
    }
}

/// The server name of a hello that stays in the socket; `None` if it is no TLS.
async fn peek_name(stream: &TcpStream) -> Option<Option<String>> {
    let mut buffer = vec![0; 1024];
    loop {
        let seen = stream.peek(&mut buffer).await.ok()?;
        match sni(&buffer[..seen]) {
            Sni::Name(name) => return Some(name),
            Sni::NotTls => return None,
            Sni::More if seen == buffer.len() && seen < HELLO_MAX => buffer.resize(seen * 2, 0),
            Sni::More if seen == 0 || seen >= HELLO_MAX => return None,
            Sni::More => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

async fn handshake(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    limit: Duration,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let shaking = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        start.into_stream(config.clone()).await
    };
    match tokio::time::timeout(limit, shaking).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

async fn run_http(
    client: Rc<Client>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    settings: &PortSettings,
) {
    let io = TokioIo::new(Watched::new(stream, client.state.clone()));
    if http2 {
        client.version.set(Version::HTTP_2);
    }
    let limits = (settings.client_header, settings.client_idle);
    let state = client.state.clone();
    let core = client.core.clone();
    let service = service_fn(move |request| Box::pin(serve(client.clone(), request)));
    let result = if http2 {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_header_list_size(settings.header_bytes_max as u32)
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(1 << 20)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .enable_connect_protocol();
        let mut connection = Box::pin(builder.serve_connection(io, service));
        tokio::select! {
            result = connection.as_mut() => result,
            () = state.ends(&core, limits) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(settings.header_bytes_max);
        // Saying so, even if it is hyper's own limit, makes it allocate for every request.
        if settings.headers_max != PortSettings::default().headers_max {
            builder.max_headers(settings.headers_max);
        }
        let connection = builder.serve_connection(io, service).with_upgrades();
        tokio::select! {
            result = connection => result,
            () = state.ends(&core, limits) => Ok(()),
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// What a connection does, for those who look whether it is idle.
#[derive(Debug)]
pub(super) struct WatchState {
    /// Requests being answered.
    busy: AtomicU32,
    /// Grows with every byte that moves.
    moved: AtomicU64,
    /// Bytes of a request have come since the last one was answered.
    begun: AtomicBool,
    born: Instant,
}

/// A request being answered, until dropped.
pub(super) struct Busy(Arc<WatchState>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(self.0.busy.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        self.0.begun.store(false, Ordering::Relaxed);
    }
}

impl WatchState {
    /// A new connection.
    pub(super) fn new(now: Instant) -> Self {
        Self { busy: AtomicU32::new(0), moved: AtomicU64::new(0), begun: AtomicBool::new(false), born: now }
    }

    /// A request begins to be answered.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.store(self.busy.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// How often something has moved.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn note(&self) {
        self.moved.store(self.moved().wrapping_add(1), Ordering::Relaxed);
    }

    /// Waits until the connection should end: idle for too long, too slow with a request's head, or the gateway drains.
    async fn ends(&self, core: &Core, (header, idle): (Duration, Duration)) {
        // A few looks within the limits, instead of a timer that every request sets and clears.
        let step = (header.min(idle) / 4).clamp(Duration::from_millis(10), Duration::from_secs(3));
        let mut seen = self.moved();
        let (mut quiet_since, mut begun_since) = (self.born, None);
        loop {
            tokio::time::sleep(step).await;
            let now = Instant::now();
            if self.busy.load(Ordering::Relaxed) > 0 {
                (seen, quiet_since, begun_since) = (self.moved(), now, None);
                continue;
            }
            if self.moved() != seen {
                (seen, quiet_since) = (self.moved(), now);
                begun_since = if self.begun.load(Ordering::Relaxed) { begun_since.or(Some(now)) } else { None };
            }
            let draining = core.shared().draining.load(Ordering::Relaxed);
            let idle = if draining { idle.min(Duration::from_secs(2)) } else { idle };
            let slow = begun_since.is_some_and(|since| now.duration_since(since) >= header);
            if now.duration_since(quiet_since) >= idle || slow {
                return;
            }
        }
    }
}

/// A stream that notes when something moves.
pub(super) struct Watched<S> {
    stream: S,
    state: Arc<WatchState>,
}

impl<S> Watched<S> {
    /// Watches a stream.
    pub(super) fn new(stream: S, state: Arc<WatchState>) -> Self {
        Self { stream, state }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        if result.is_ready() {
            this.state.note();
            this.state.begun.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.state.note();
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.state.note();
        Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
