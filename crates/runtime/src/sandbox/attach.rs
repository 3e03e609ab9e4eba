//! A connection to a running container's standard streams.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::{START_TIMEOUT, SandboxError, connect, next};
use crate::protocol::{Message, Request, Wish, frame};

/// What the container writes.
pub struct AttachReader(BufReader<OwnedReadHalf>);

/// What the container reads.
pub struct AttachWriter(OwnedWriteHalf);

/// Connects to the standard streams of the running container `id` of the pod whose directory is `dir`. `stdin` says whether
/// to feed it; who does ends the input of a container with `stdinOnce` by going away.
///
/// # Errors
/// [`SandboxError::Refused`] when it does not run, or too many are attached.
pub async fn attach(dir: &Path, id: &str, stdin: bool) -> Result<(AttachReader, AttachWriter), SandboxError> {
    let stream = connect(dir).await.map_err(|_| SandboxError::Gone)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let request = Request { number: 0, wish: Wish::Attach { id: id.to_owned(), stdin } };
    let mut line = serde_json::to_vec(&request).unwrap_or_default();
    line.push(b'\n');
    let answered = timeout(START_TIMEOUT, async {
        writer.write_all(&line).await.ok()?;
        loop {
            match next(&mut reader).await? {
                Message::Answer { result, .. } => return Some(result),
                Message::Hello { .. } | Message::Changed(_) => {}
            }
        }
    });
    let answer = answered.await.map_err(|_| SandboxError::Silent)?.ok_or(SandboxError::Gone)?;
    answer.map_err(SandboxError::Refused)?;
    Ok((AttachReader(reader), AttachWriter(writer)))
}

impl AttachReader {
    /// The next piece of output, and whether it is error output; `None` when the container is through.
    pub async fn next(&mut self) -> Option<(bool, Vec<u8>)> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > frame::BYTES_MAX {
            return None;
        }
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).await.ok()?;
        Some((head[0] == frame::STDERR, bytes))
    }
}

impl AttachWriter {
    /// Input for the container; waits while the container does not read. False when the container is through.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(frame::BYTES_MAX) {
            if !self.frame(frame::STDIN, piece).await {
                return false;
            }
        }
        true
    }

    /// There is no more input. With `stdinOnce` the container reads the end of its input.
    pub async fn end(&mut self) -> bool {
        self.frame(frame::STDIN_END, &[]).await
    }

    /// The size of the container's terminal.
    pub async fn resize(&mut self, columns: u16, rows: u16) -> bool {
        let ([a, b], [c, d]) = (columns.to_be_bytes(), rows.to_be_bytes());
        self.frame(frame::RESIZE, &[a, b, c, d]).await
    }

    async fn frame(&mut self, kind: u8, bytes: &[u8]) -> bool {
        let mut whole = frame::head(kind, bytes.len()).to_vec();
        whole.extend_from_slice(bytes);
        self.0.write_all(&whole).await.is_ok()
    }
}
