//! WebSockets: channels in messages, and bytes in messages.
//!
//! Every binary message of a channel protocol begins with its channel: 0 standard input, 1 output, 2 error output, 3 the
//! final Status, 4 the terminal's size (JSON), and in version 5 255, which closes the channel that the next byte names.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{IDLE, Inbound, Outbound, PING, QUEUE, Session, size};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The largest message a client may send.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a tunnel on their way.
const TUNNEL_BYTES: usize = 64 * 1024;
/// How long a client may take to say farewell.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(5);
/// Read and sent at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// What a connection has to be.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection for T {}

/// A WebSocket over a connection that has switched.
pub(crate) async fn socket<C: Connection>(connection: C) -> WebSocketStream<C> {
    let mut limits = WebSocketConfig::default();
    (limits.max_message_size, limits.max_frame_size) = (Some(MESSAGE_BYTES_MAX), Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(limits)).await
}

/// A conversation over a WebSocket.
pub(super) async fn session<C: Connection>(connection: C) -> Session {
    let (sink, source) = socket(connection).await.split();
    let (to_session, input) = mpsc::channel(QUEUE);
    let (output, from_session) = mpsc::channel(QUEUE);
    let mut reader = tokio::spawn(listen(source, to_session));
    tokio::spawn(async move {
        // The client has the last word: were it not read, the kernel would take back what was sent last.
        if speak(sink, from_session).await && timeout(FAREWELL, &mut reader).await.is_ok() {
            return;
        }
        // Also when the reader waits for a program that does not read: who cannot be told anything is gone.
        reader.abort();
    });
    Session { input, output }
}

async fn listen<C: Connection>(mut source: SplitStream<WebSocketStream<C>>, session: mpsc::Sender<Inbound>) {
    // Pongs come regularly, so that only a client that is gone is silent for so long.
    while let Ok(Some(Ok(message))) = timeout(IDLE, source.next()).await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) => return,
            _ => continue,
        };
        let inbound = match (data.first(), data.get(1)) {
            (Some(&STDIN), Some(_)) => Some(Inbound::Stdin(data.slice(1..))),
            (Some(&RESIZE), _) => size(&data[1..]),
            (Some(&CLOSE), Some(&STDIN)) => Some(Inbound::StdinEnd),
            _ => None,
        };
        if let Some(inbound) = inbound {
            // Nobody listens any more: the rest is read all the same, up to the client's farewell.
            let _ = session.send(inbound).await;
        }
    }
}

/// False when the client is gone.
async fn speak<C: Connection>(
    mut sink: SplitSink<WebSocketStream<C>, Message>,
    mut session: mpsc::Receiver<Outbound>,
) -> bool {
    loop {
        let message = match timeout(PING, session.recv()).await {
            Ok(Some(Outbound::Stdout(bytes))) => on_channel(STDOUT, &bytes),
            Ok(Some(Outbound::Stderr(bytes))) => on_channel(STDERR, &bytes),
            Ok(Some(Outbound::Status(status))) => on_channel(ERROR, status.to_string().as_bytes()),
            Ok(None) => break,
            Err(_) => Message::Ping(Bytes::new()),
        };
        if sink.send(message).await.is_err() {
            return false;
        }
    }
    // With a status, or kubectl takes the end for an accident.
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    sink.send(Message::Close(Some(frame))).await.is_ok()
}

/// A message of a channel.
pub(crate) fn on_channel(channel: u8, bytes: &[u8]) -> Message {
    let mut data = Vec::with_capacity(bytes.len() + 1);
    data.push(channel);
    data.extend_from_slice(bytes);
    Message::Binary(Bytes::from(data))
}

/// The bytes of another protocol that are carried in a WebSocket's messages.
pub(crate) async fn tunnel<C: Connection>(connection: C) -> DuplexStream {
    let (mut sink, mut source) = socket(connection).await.split();
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut reader, mut writer) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Ok(Some(Ok(message))) = timeout(IDLE, source.next()).await {
            match message {
                Message::Binary(bytes) if writer.write_all(&bytes).await.is_err() => return,
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    near
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    async fn client(far: DuplexStream) -> WebSocketStream<DuplexStream> {
        WebSocketStream::from_raw_socket(far, Role::Client, None).await
    }

    #[tokio::test]
    async fn channels_become_input_and_output_becomes_channels() {
        let (near, far) = tokio::io::duplex(1024);
        let (mut session, mut client) = (session(near).await, client(far).await);
        for data in [&b"\0abc"[..], b"\0", b"\x04{\"Width\":3,\"Height\":2}", b"\x09?", b"\xff\0"] {
            client.send(Message::Binary(Bytes::from_static(data))).await.unwrap();
        }
        assert_eq!(session.input.recv().await, Some(Inbound::Stdin(Bytes::from_static(b"abc"))));
        assert_eq!(session.input.recv().await, Some(Inbound::Resize { columns: 3, rows: 2 }));
        assert_eq!(session.input.recv().await, Some(Inbound::StdinEnd));
        session.output.send(Outbound::Stderr(Bytes::from_static(b"no"))).await.unwrap();
        session.output.send(Outbound::Status(json!({}))).await.unwrap();
        drop(session.output);
        for expected in [&b"\x02no"[..], b"\x03{}"] {
            assert_eq!(client.next().await.unwrap().unwrap().into_data(), expected);
        }
        assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(Some(_))));
        drop(client);
        assert_eq!(session.input.recv().await, None, "a client that is gone is the end");
    }

    #[tokio::test]
    async fn a_tunnel_carries_bytes() {
        let (near, far) = tokio::io::duplex(1024);
        let (mut tunnel, mut client) = (tunnel(near).await, client(far).await);
        client.send(Message::Binary(Bytes::from_static(b"ab"))).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(b"c"))).await.unwrap();
        let mut seen = [0; 3];
        tunnel.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"abc");
        tunnel.write_all(b"xyz").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap().into_data(), &b"xyz"[..]);
        client.close(None).await.unwrap();
        assert_eq!(tunnel.read(&mut seen).await.unwrap(), 0);
    }
}
