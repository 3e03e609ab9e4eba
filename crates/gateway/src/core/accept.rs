//! Connections: accepted, understood (PROXY protocol, TLS, HTTP version), served, and ended when they are idle too long.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::LazyConfigAcceptor;

use super::headers::Forwarding;
use super::serve::serve;
use super::sni::{Sni, sni};
use super::{Core, proxy_protocol, tunnel};
use crate::body::RequestBody;
use crate::io::Io;
use crate::server::{self, HeadLimits, Watch, WatchLimits, Watched};
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
    pub(super) watch: Rc<Watch>,
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
            let forwarding = Forwarding::new(peer.ip(), false, trusted);
            let client = client(&core, &slot, settings, (peer, local), None, forwarding, open);
            // Boxed, here and below: an idle connection must not carry the space of what it does not do.
            if Box::pin(begins_http2(&stream, settings.client_idle)).await {
                Box::pin(run_http2(client, Io::Plain(stream), settings)).await;
            } else {
                run_http1(client, Io::Plain(stream), settings).await;
            }
        }
        PortService::Tls(targets) => {
            let Some(accepted) = Box::pin(tls(&core, &slot, targets, settings, stream, (peer, local), open)).await
            else {
                return;
            };
            let Accepted { client, io, http2 } = accepted;
            if http2 {
                Box::pin(run_http2(client, io, settings)).await;
            } else {
                run_http1(client, io, settings).await;
            }
        }
        PortService::Tcp(Some(rule)) => {
            let table = core.table();
            Box::pin(tunnel::stream(&core, &table, rule, stream, peer, local, settings.tunnel_idle, open)).await;
        }
        PortService::Tcp(None) => {}
    }
}

/// A TLS connection that speaks HTTP.
struct Accepted {
    client: Rc<Client>,
    io: Io,
    http2: bool,
}

fn client(
    core: &Rc<Core>,
    slot: &Rc<Slot>,
    settings: &PortSettings,
    (peer, local): (SocketAddr, SocketAddr),
    sni: Option<Option<String>>,
    forwarding: Forwarding,
    open: Open,
) -> Rc<Client> {
    let limits = WatchLimits { header: settings.client_header, idle: settings.client_idle };
    let watch = Watch::new(limits, Instant::now());
    core.watches.add(&watch);
    Rc::new(Client {
        core: core.clone(),
        slot: slot.clone(),
        peer,
        local,
        tls: sni.is_some(),
        sni: sni.flatten(),
        version: Cell::new(Version::HTTP_11),
        forwarding,
        watch,
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
) -> Option<Accepted> {
    let limit = settings.client_header;
    let name = tokio::time::timeout(limit, peek_name(&stream)).await.ok()??;
    let Some(target) = targets.get(name.as_deref().unwrap_or_default()) else {
        tracing::debug!(name, "no listener for this server name");
        return None;
    };
    let (peer, local) = addresses;
    match target {
        SniTarget::Passthrough(rules) => {
            let rule = rules.get(name.as_deref().unwrap_or_default())?;
            let table = core.table();
            tunnel::stream(core, &table, rule, stream, peer, local, settings.tunnel_idle, open).await;
            None
        }
        SniTarget::Stream(rule, config) => {
            let stream = handshake(stream, config, limit).await?;
            let table = core.table();
            tunnel::stream(core, &table, rule, stream, peer, local, settings.tunnel_idle, open).await;
            None
        }
        SniTarget::Http(_, config) => {
            let stream = handshake(stream, config, limit).await?;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let trusted = settings.trusted_proxies.contains(peer.ip());
            let forwarding = Forwarding::new(peer.ip(), true, trusted);
            let client = client(core, slot, settings, addresses, Some(name), forwarding, open);
            Some(Accepted { client, io: Io::Tls(Box::new(stream.into())), http2 })
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

async fn run_http1(client: Rc<Client>, io: Io, settings: &PortSettings) {
    let limits = HeadLimits { bytes_max: settings.header_bytes_max, headers_max: settings.headers_max };
    let (core, watch) = (client.core.clone(), client.watch.clone());
    // Boxed although that costs a fiftieth of the request: a connection at rest must not carry the space of a request.
    let service = |request| Box::pin(serve(client.clone(), request));
    if let Err(error) = server::serve(io, limits, watch, &core.common, service).await {
        tracing::debug!(%error, "a client's connection ended");
    }
}

async fn run_http2(client: Rc<Client>, io: Io, settings: &PortSettings) {
    let watch = client.watch.clone();
    let io = TokioIo::new(Watched::new(io, watch.clone()));
    client.version.set(Version::HTTP_2);
    let service = service_fn(move |request: Request<Incoming>| {
        let promise = client.watch.promise();
        let answering = Box::pin(serve(client.clone(), request.map(RequestBody::Http2)));
        async {
            let reply = answering.await;
            promise.keep();
            Ok::<_, Infallible>(reply)
        }
    });
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
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = poll_fn(|cx| watch.poll_over(cx)) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client's connection ended");
    }
}
