//! A SPDY/3.1 connection, the accepting side: streams that the client opens.
//!
//! Flow: one task reads frames and hands streams and their bytes out, one writes frames; a [`Stream`] speaks through both.
//!
//! Guarantees: no more than [`STREAMS_MAX`] streams that the client still writes to; a stream whose bytes nobody takes holds
//! the connection up, because the client keeps no windows; a client that does not answer pings is given up.
//!
//! Deliberately absent: opening streams, priorities, settings, windows.

mod frame;

use std::collections::HashMap;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use self::frame::{Decoder, Frame};
use super::websocket::Connection;
use super::{Inbound, Outbound, PING, QUEUE, Session, Wanted, size};

/// Streams that the client writes to at a time.
const STREAMS_MAX: usize = 512;
/// Read at a time.
const PIECE_BYTES: usize = 32 * 1024;
/// How long the streams of a command may take to be opened.
const OPENING: std::time::Duration = std::time::Duration::from_secs(30);
/// Pings that may go unanswered.
const PINGS_MISSED_MAX: u32 = 4;

/// A stream that the client opened.
pub(crate) struct Stream {
    /// What it is for; names in lower case.
    pub(crate) headers: HashMap<String, String>,
    /// What the client writes; the end says that it writes no more.
    pub(crate) reader: mpsc::Receiver<Bytes>,
    /// What the client reads.
    pub(crate) writer: StreamWriter,
    /// Whether the client has given it up.
    pub(crate) reset: watch::Receiver<bool>,
}

/// The near side of a stream.
#[derive(Clone)]
pub(crate) struct StreamWriter {
    id: u32,
    frames: mpsc::Sender<Vec<u8>>,
}

impl StreamWriter {
    /// Bytes for the client; false when the connection is gone.
    pub(crate) async fn write(&self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(PIECE_BYTES) {
            if self.frames.send(frame::data(self.id, piece, false)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Nothing more comes.
    pub(crate) async fn finish(&self) {
        let _ = self.frames.send(frame::data(self.id, &[], true)).await;
    }

    /// Gives the stream up.
    pub(crate) async fn reset(&self) {
        let _ = self.frames.send(frame::reset(self.id, false)).await;
    }
}

/// Accepts streams on a connection; the end of the queue is the end of the connection.
pub(crate) fn accept<C: Connection>(connection: C) -> mpsc::Receiver<Stream> {
    let (reader, writer) = split(connection);
    let (streams, accepted) = mpsc::channel(QUEUE);
    let (frames, queue) = mpsc::channel(QUEUE);
    let speaker = tokio::spawn(speak(writer, queue));
    tokio::spawn(async move {
        let mut listener = Listener { open: HashMap::new(), streams, frames, replied: false, ping: 2, unanswered: 0 };
        if let Err(why) = listener.listen(reader).await {
            tracing::debug!(why, "SPDY connection given up");
            speaker.abort();
        }
    });
    accepted
}

async fn speak<C: Connection>(mut writer: WriteHalf<C>, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// The reading side.
struct Listener {
    /// The streams that the client still writes to.
    open: HashMap<u32, (mpsc::Sender<Bytes>, watch::Sender<bool>)>,
    streams: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Vec<u8>>,
    /// The first reply begins the packed headers of this side.
    replied: bool,
    ping: u32,
    unanswered: u32,
}

impl Listener {
    async fn listen<C: Connection>(&mut self, mut reader: ReadHalf<C>) -> Result<(), String> {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let count = match timeout(PING, reader.read(&mut buffer)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(count)) => count,
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => {
                    self.ask().await?;
                    continue;
                }
            };
            self.unanswered = 0;
            decoder.feed(&buffer[..count]);
            while let Some(frame) = decoder.next().map_err(|error| error.to_string())? {
                self.take(frame).await?;
            }
        }
    }

    async fn send(&self, frame: Vec<u8>) -> Result<(), String> {
        self.frames.send(frame).await.map_err(|_| "the client takes nothing any more".to_owned())
    }

    async fn ask(&mut self) -> Result<(), String> {
        self.unanswered += 1;
        if self.unanswered > PINGS_MISSED_MAX {
            return Err("the client does not answer".to_owned());
        }
        self.ping = self.ping.wrapping_add(2);
        self.send(frame::ping(self.ping)).await
    }

    async fn take(&mut self, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::Open { stream, last, headers } => self.opened(stream, last, headers).await?,
            Frame::Data { stream, last, bytes } => {
                if !bytes.is_empty()
                    && let Some((sender, _)) = self.open.get(&stream)
                {
                    // Whoever does not want it any more has dropped the other end.
                    let _ = sender.send(Bytes::from(bytes)).await;
                }
                if last {
                    self.open.remove(&stream);
                }
            }
            Frame::Reset { stream } => {
                if let Some((_, reset)) = self.open.remove(&stream) {
                    reset.send_replace(true);
                }
            }
            // The client's pings have odd numbers; the others are answers to ours.
            Frame::Ping { id } if id % 2 == 1 => self.send(frame::ping(id)).await?,
            Frame::Ping { .. } | Frame::GoAway | Frame::Other => {}
        }
        Ok(())
    }

    async fn opened(&mut self, id: u32, last: bool, headers: HashMap<String, String>) -> Result<(), String> {
        if self.open.len() >= STREAMS_MAX || id.is_multiple_of(2) {
            return self.send(frame::reset(id, true)).await;
        }
        let first = !std::mem::replace(&mut self.replied, true);
        self.send(frame::reply(id, first)).await?;
        let (sender, reader) = mpsc::channel(QUEUE);
        let (resetter, reset) = watch::channel(false);
        if !last {
            self.open.insert(id, (sender, resetter));
        }
        let writer = StreamWriter { id, frames: self.frames.clone() };
        self.streams.send(Stream { headers, reader, writer, reset }).await.map_err(|_| "nobody accepts".to_owned())
    }
}

/// The streams of a command: what `exec` and `attach` have on SPDY, one for each of `wanted` and one for the Status.
pub(super) async fn session<C: Connection>(connection: C, wanted: &Wanted) -> Option<Session> {
    let mut accepted = accept(connection);
    let mut expected = vec!["error"];
    for (name, flag) in
        [("stdin", wanted.stdin), ("stdout", wanted.stdout), ("stderr", wanted.stderr), ("resize", wanted.tty)]
    {
        expected.extend(flag.then_some(name));
    }
    let mut streams = HashMap::new();
    let all = async {
        while streams.len() < expected.len() {
            let stream = accepted.recv().await?;
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            if expected.contains(&kind.as_str()) {
                streams.insert(kind, stream);
            }
        }
        Some(())
    };
    timeout(OPENING, all).await.ok()??;
    let (to_session, input) = mpsc::channel(QUEUE);
    let (output, from_session) = mpsc::channel(QUEUE);
    tokio::spawn(feed(streams.remove("stdin"), streams.remove("resize"), accepted, to_session));
    tokio::spawn(tell(streams, from_session));
    Some(Session { input, output })
}

/// From the client's streams to the session; ends with the connection.
async fn feed(
    mut stdin: Option<Stream>,
    mut resize: Option<Stream>,
    mut connection: mpsc::Receiver<Stream>,
    session: mpsc::Sender<Inbound>,
) {
    async fn next(stream: &mut Option<Stream>) -> Option<Bytes> {
        match stream {
            Some(stream) => stream.reader.recv().await,
            None => std::future::pending().await,
        }
    }
    let mut sizes = Vec::new();
    loop {
        let inbound = tokio::select! {
            bytes = next(&mut stdin) => {
                stdin = stdin.filter(|_| bytes.is_some());
                Some(bytes.map_or(Inbound::StdinEnd, Inbound::Stdin))
            }
            bytes = next(&mut resize) => {
                resize = resize.filter(|_| bytes.is_some());
                // One JSON document after the other, perhaps in pieces.
                sizes.extend_from_slice(&bytes.unwrap_or_default());
                let end = sizes.iter().rposition(|byte| *byte == b'}').map_or(0, |at| at + 1);
                let whole: Vec<u8> = sizes.drain(..end).collect();
                sizes.truncate(PIECE_BYTES);
                whole.split_inclusive(|byte| *byte == b'}').filter_map(size).next_back()
            }
            stream = connection.recv() => match stream {
                Some(_) => None,
                None => return,
            },
        };
        if let Some(inbound) = inbound
            && session.send(inbound).await.is_err()
        {
            return;
        }
    }
}

/// From the session to the client's streams, then their ends.
async fn tell(streams: HashMap<String, Stream>, mut session: mpsc::Receiver<Outbound>) {
    while let Some(outbound) = session.recv().await {
        let (name, bytes) = match outbound {
            Outbound::Stdout(bytes) => ("stdout", bytes),
            Outbound::Stderr(bytes) => ("stderr", bytes),
            Outbound::Status(status) => ("error", Bytes::from(status.to_string())),
        };
        if let Some(stream) = streams.get(name)
            && !stream.writer.write(&bytes).await
        {
            return;
        }
    }
    for stream in streams.values() {
        stream.writer.finish().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use tokio::io::DuplexStream;

    /// Reads frames until one of them is as wanted.
    async fn until(client: &mut DuplexStream, decoder: &mut Decoder, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let mut buffer = [0; 256];
        loop {
            while let Some(frame) = decoder.next().unwrap() {
                if wanted(&frame) {
                    return frame;
                }
            }
            let count = client.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the connection ended");
            decoder.feed(&buffer[..count]);
        }
    }

    #[tokio::test]
    async fn a_command_on_streams() {
        let (near, mut client) = tokio::io::duplex(4096);
        let wanted = Wanted { stdin: true, stdout: true, tty: true, ..Wanted::default() };
        let session = tokio::spawn(async move { session(near, &wanted).await.unwrap() });
        for (index, kind) in ["error", "stdin", "stdout", "resize"].into_iter().enumerate() {
            let id = 1 + 2 * index as u32;
            client.write_all(&frame::open(id, index == 0, &[("streamType", kind)])).await.unwrap();
        }
        let mut session = session.await.unwrap();
        client.write_all(&frame::data(3, b"in", true)).await.unwrap();
        assert_eq!(session.input.recv().await, Some(Inbound::Stdin(Bytes::from_static(b"in"))));
        assert_eq!(session.input.recv().await, Some(Inbound::StdinEnd));
        client
            .write_all(&frame::data(7, b"{\"Width\":1,\"Height\":2}\n{\"Width\":5,\"Height\":6}\n", false))
            .await
            .unwrap();
        assert_eq!(session.input.recv().await, Some(Inbound::Resize { columns: 5, rows: 6 }));
        client.write_all(&frame::ping(9)).await.unwrap();
        session.output.send(Outbound::Stdout(Bytes::from_static(b"out"))).await.unwrap();
        session.output.send(Outbound::Status(json!({"status": "Success"}))).await.unwrap();
        drop(session.output);
        let mut decoder = Decoder::new();
        until(&mut client, &mut decoder, |frame| *frame == Frame::Ping { id: 9 }).await;
        let out = Frame::Data { stream: 5, last: false, bytes: b"out".to_vec() };
        until(&mut client, &mut decoder, |frame| *frame == out).await;
        let status = Frame::Data { stream: 1, last: false, bytes: br#"{"status":"Success"}"#.to_vec() };
        until(&mut client, &mut decoder, |frame| *frame == status).await;
        until(&mut client, &mut decoder, |frame| matches!(frame, Frame::Data { stream: 5, last: true, .. })).await;
        drop(client);
        assert_eq!(session.input.recv().await, None);
    }

    #[tokio::test]
    async fn a_client_that_speaks_nonsense_is_dropped() {
        let (near, mut client) = tokio::io::duplex(64);
        let mut streams = accept(near);
        client.write_all(&[0x80, 9, 9, 9, 0, 0, 0, 0]).await.unwrap();
        assert!(streams.recv().await.is_none());
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
    }
}
