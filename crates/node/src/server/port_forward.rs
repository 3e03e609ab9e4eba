//! `/portForward/NAMESPACE/POD`: connections to ports of a pod, made inside its network namespace, as `kubectl port-forward`
//! wants them.
//!
//! On SPDY (plain, or carried in a WebSocket) every connection is two streams with the same `requestID`: `error` for what went
//! wrong, `data` for the bytes. On a WebSocket of `v4.channel.k8s.io` every port of the query is one connection: channel 2·n
//! its bytes, 2·n+1 what went wrong, and the first message of each channel from here is the port (two bytes, little-endian).
//!
//! Limits: connections of one client, time to connect, time for the second stream of a connection.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;

use crate::context::Context;
use crate::server::streams::spdy::{self, Stream};
use crate::server::streams::websocket::{self, Connection};
use crate::server::streams::{PING, QUEUE, Speech, Wire, negotiate};
use crate::server::{Answer, Refusal};

/// What is spoken on WebSockets, best first.
const WEBSOCKET: [&str; 2] = ["SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io"];
/// What is spoken on SPDY.
const SPDY: [&str; 1] = ["portforward.k8s.io"];
/// Connections of one client at a time.
const CONNECTIONS_MAX: usize = 256;
/// Ports of one client on a WebSocket with channels; a channel's number is one byte.
const PORTS_MAX: usize = 64;
/// Connections whose second stream is awaited.
const HALVES_MAX: usize = 64;
/// How long the second stream may take.
const SECOND: Duration = Duration::from_secs(30);
/// How long a connection inside the pod may take.
const DIAL: Duration = Duration::from_secs(10);
/// Read and sent at a time.
const PIECE_BYTES: usize = 32 * 1024;

/// Where the ports are.
#[derive(Clone)]
struct Place {
    /// The network namespace; none for the node's own.
    namespace: Option<Arc<File>>,
    pod: String,
    uid: String,
}

/// Answers a request to forward ports: checks it, switches the protocol and serves connections.
pub(super) fn serve(
    context: &Arc<Context>,
    (namespace, pod): (&str, &str),
    request: &mut hyper::Request<hyper::body::Incoming>,
) -> Result<Answer, Refusal> {
    let view = context.view(namespace, pod).ok_or_else(|| Refusal::no_pod(pod))?;
    let host_network = view.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let uid = view.pod.metadata.uid.clone().unwrap_or_default();
    let not_running = || Refusal::bad(format!("unable to forward port because pod is not running: {namespace}/{pod}"));
    let namespace = if host_network {
        None
    } else {
        let process = view.sandbox.ok_or_else(not_running)?;
        Some(Arc::new(File::open(format!("/proc/{process}/ns/net")).map_err(|_| not_running())?))
    };
    let place = Place { namespace, pod: pod.to_owned(), uid };
    let ports = ports(request.uri().query().unwrap_or_default())?;
    let (answer, speech) = negotiate(request, &WEBSOCKET, &SPDY)?;
    if matches!(speech.wire, Wire::WebSocket(_)) && ports.is_empty() {
        return Err(Refusal::bad("query parameter \"ports\" is required"));
    }
    tokio::spawn(converse(speech, place, ports));
    Ok(answer)
}

/// The `ports` of a query, in its order.
fn ports(query: &str) -> Result<Vec<u16>, Refusal> {
    let mut found = Vec::new();
    for (_, list) in
        form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| matches!(name.as_ref(), "ports" | "port"))
    {
        for text in list.split(',') {
            let port = text.parse().ok().filter(|port| *port > 0);
            found.push(port.ok_or_else(|| Refusal::bad(format!("unable to parse {text:?} as a port")))?);
        }
    }
    if found.len() > PORTS_MAX {
        return Err(Refusal::bad(format!("at most {PORTS_MAX} ports can be forwarded by one request")));
    }
    Ok(found)
}

async fn converse(speech: Speech, place: Place, ports: Vec<u16>) {
    let Ok(upgraded) = speech.upgrade.await else { return };
    let connection = TokioIo::new(upgraded);
    match speech.wire {
        Wire::Spdy(_) => pairs(spdy::accept(connection), place).await,
        Wire::Tunnel(_) => pairs(spdy::accept(websocket::tunnel(connection).await), place).await,
        Wire::WebSocket(_) => channels(connection, place, ports).await,
    }
}

/// A connection inside the pod's network namespace, to its own address for itself.
async fn dial(place: &Place, port: u16) -> Result<TcpStream, String> {
    let place = place.clone();
    let connect = move || -> io::Result<std::net::TcpStream> {
        let first = std::net::TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), DIAL);
        first.or_else(|error| {
            let second = std::net::TcpStream::connect_timeout(&SocketAddr::from((Ipv6Addr::LOCALHOST, port)), DIAL);
            second.map_err(|_| error)
        })
    };
    let dialled = tokio::task::spawn_blocking(move || {
        match &place.namespace {
            Some(namespace) => {
                mainstay_net::netns::within(&place.pod, &**namespace, connect).map_err(|error| error.to_string())?
            }
            None => connect(),
        }
        .map_err(|error| format!("failed to connect to localhost:{port} inside the pod: {error}"))
    });
    let stream = dialled.await.map_err(|error| error.to_string())??;
    let ready = || {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        TcpStream::from_std(stream)
    };
    ready().map_err(|error| error.to_string())
}

impl Place {
    /// What `kubectl` shows of a connection that failed.
    fn sentence(&self, port: u16, error: &str) -> String {
        format!("error forwarding port {port} to pod {}, uid {}: {error}", self.pod, self.uid)
    }
}

/// Puts streams together to connections, as they come.
async fn pairs(mut streams: mpsc::Receiver<Stream>, place: Place) {
    let mut halves: HashMap<String, (Instant, Stream)> = HashMap::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    while let Some(stream) = streams.recv().await {
        while connections.try_join_next().is_some() {}
        halves.retain(|_, (since, _)| since.elapsed() < SECOND);
        let header = |name: &str| stream.headers.get(name).map(String::as_str).unwrap_or_default();
        let kind = header("streamtype").to_owned();
        // Old clients have one connection for each pair of streams and no number.
        let request = format!("{}/{}", header("requestid"), header("port"));
        let Some(port) = header("port").parse::<u16>().ok().filter(|port| *port > 0) else {
            stream.writer.reset().await;
            continue;
        };
        let other = halves.remove(&request).map(|(_, other)| other);
        let (data, error) = match (kind.as_str(), other) {
            ("data", Some(error)) => (stream, error),
            ("error", Some(data)) => (data, stream),
            ("data" | "error", None) if halves.len() < HALVES_MAX => {
                halves.insert(request, (Instant::now(), stream));
                continue;
            }
            _ => {
                stream.writer.reset().await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            let message = place.sentence(port, &format!("{CONNECTIONS_MAX} connections are open already"));
            error.writer.write(message.as_bytes()).await;
            error.writer.finish().await;
            data.writer.reset().await;
            continue;
        };
        let place = place.clone();
        connections.spawn(async move {
            let _slot = slot;
            pair(&place, port, data, error).await;
        });
    }
    // The client is gone; so are its connections.
    connections.shutdown().await;
}

/// One connection on two streams.
async fn pair(place: &Place, port: u16, data: Stream, error: Stream) {
    match dial(place, port).await {
        Ok(connection) => {
            let writer = data.writer.clone();
            // What the program does to its connection is between it and its client; `kubectl` would take a word about it
            // for a reason to close all others.
            if let Err(error) = carry(connection, data).await {
                tracing::debug!(pod = place.pod, port, %error, "forwarded connection broken off");
                writer.reset().await;
            }
        }
        Err(why) => {
            data.writer.finish().await;
            error.writer.write(place.sentence(port, &why).as_bytes()).await;
        }
    }
    error.writer.finish().await;
}

/// Bytes both ways until both sides have ended, or one has failed.
async fn carry(connection: TcpStream, data: Stream) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = connection.into_split();
    let Stream { mut reader, writer, mut reset, .. } = data;
    let incoming = async {
        while let Some(bytes) = reader.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        to_pod.shutdown().await
    };
    let outgoing = async {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let count = from_pod.read(&mut buffer).await?;
            if count == 0 {
                writer.finish().await;
                return Ok(());
            }
            if !writer.write(&buffer[..count]).await {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    };
    let given_up = async {
        // A stream that ended in order is not given up.
        if reset.wait_for(|reset| *reset).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let both = async {
        // Who has been told everything by the pod need not go on telling it.
        tokio::pin!(incoming, outgoing);
        tokio::select! {
            result = &mut outgoing => result,
            result = &mut incoming => { result.or_else(|error| if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) })?; outgoing.await }
        }
    };
    tokio::select! {
        result = both => result,
        () = given_up => Ok(()),
    }
}

/// Ports on the channels of a WebSocket: one connection each.
async fn channels<C: Connection>(connection: C, place: Place, ports: Vec<u16>) {
    let (mut sink, mut source) = websocket::socket(connection).await.split();
    let (sender, mut messages) = mpsc::channel::<Message>(QUEUE);
    let mut inputs = Vec::new();
    let mut connections = tokio::task::JoinSet::new();
    for (number, port) in (0_u8..).zip(ports) {
        let (input, from_client) = mpsc::channel(QUEUE);
        inputs.push(input);
        connections.spawn(channel(place.clone(), port, number * 2, from_client, sender.clone()));
    }
    drop(sender);
    let speaker = async move {
        loop {
            let message = match tokio::time::timeout(PING, messages.recv()).await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(_) => Message::Ping(Bytes::new()),
            };
            if sink.send(message).await.is_err() {
                break;
            }
        }
        let _ = sink.close().await;
    };
    let listener = async {
        while let Some(Ok(message)) = source.next().await {
            let Message::Binary(data) = message else {
                if matches!(message, Message::Close(_)) {
                    break;
                }
                continue;
            };
            let input = data.first().filter(|channel| **channel % 2 == 0).and_then(|c| inputs.get(usize::from(c / 2)));
            if let Some(input) = input
                && data.len() > 1
            {
                let _ = input.send(data.slice(1..)).await;
            }
        }
    };
    tokio::select! {
        () = speaker => {}
        () = listener => {}
    }
    connections.shutdown().await;
}

async fn channel(place: Place, port: u16, number: u8, mut input: mpsc::Receiver<Bytes>, sender: mpsc::Sender<Message>) {
    for channel in [number, number + 1] {
        if sender.send(websocket::on_channel(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let result = async {
        let (mut from_pod, mut to_pod) = dial(&place, port).await?.into_split();
        let incoming = async {
            while let Some(bytes) = input.recv().await {
                to_pod.write_all(&bytes).await.map_err(|error| error.to_string())?;
            }
            Ok(())
        };
        let outgoing = async {
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let count = from_pod.read(&mut buffer).await.map_err(|error| error.to_string())?;
                if count == 0 || sender.send(websocket::on_channel(number, &buffer[..count])).await.is_err() {
                    return Ok::<(), String>(());
                }
            }
        };
        tokio::select! { result = incoming => result, result = outgoing => result }
    };
    let failed: Result<(), String> = result.await;
    if let Err(why) = failed {
        let text = place.sentence(port, &why);
        let _ = sender.send(websocket::on_channel(number + 1, text.as_bytes())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_query() {
        assert_eq!(ports("ports=80,443&ports=8080").map_err(|refusal| refusal.message), Ok(vec![80, 443, 8080]));
        assert!(ports("ports=0").is_err() && ports("ports=x").is_err() && ports("").is_ok_and(|none| none.is_empty()));
    }
}
