//! Connections that carry a container's standard streams: what `kubectl attach` talks to.
//!
//! Flow: an agent's connection asks for a container and becomes an [`Attachment`]. What the container writes is copied to
//! every attachment of it, besides its log; what attachments write goes to the container's [`Input`].
//!
//! Guarantees: nothing here blocks. While an attachment has more than [`OUTBOUND_MAX`] bytes waiting the container's output
//! is not read, so that a slow reader slows the container instead of filling memory; one that takes nothing for
//! [`PATIENCE`] is dropped. Likewise no input is taken while the container has not read what came before.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::protocol::frame;

/// How much output may wait for one attachment before the container has to.
const OUTBOUND_MAX: usize = 64 * 1024;
/// How much may wait after the container's end, when it cannot wait any more.
const LAST_OUTBOUND_MAX: usize = 4 << 20;
/// How long an attachment may take nothing although something waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Read from an attachment at a time.
const PIECE: usize = 16 * 1024;

/// One connection to a container's streams.
pub(super) struct Attachment {
    stream: UnixStream,
    /// The container's id.
    pub(super) container: String,
    /// It may write to the container's standard input.
    pub(super) feeds: bool,
    outbound: Vec<u8>,
    partial: Vec<u8>,
    /// Since when it takes nothing.
    stalled: Option<Instant>,
    /// The container is through; what waits is still delivered.
    over: bool,
    /// To be dropped.
    pub(super) gone: bool,
}

/// What an attachment asks for.
pub(super) enum Asked {
    /// Bytes for standard input.
    Input(Vec<u8>),
    /// The input ends.
    End,
    /// The terminal's size.
    Size { columns: u16, rows: u16 },
}

impl Attachment {
    /// `partial` is what was read already behind the request to attach.
    pub(super) fn new(stream: UnixStream, partial: Vec<u8>, container: String, feeds: bool) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, container, feeds, outbound: Vec::new(), partial, stalled: None, over: false, gone: false })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What to wait for; `listening` says whether its container takes input now.
    pub(super) fn interest(&self, listening: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, listening && !self.over);
        flags.set(PollFlags::POLLOUT, !self.outbound.is_empty());
        flags
    }

    /// Whether the container must wait for it.
    pub(super) fn is_behind(&self) -> bool {
        self.outbound.len() > OUTBOUND_MAX
    }

    /// When it will have been patient enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.stalled.map(|since| since + PATIENCE)
    }

    /// Output for it.
    pub(super) fn say(&mut self, stream: &str, bytes: &[u8]) {
        let kind = if stream == "stderr" { frame::STDERR } else { frame::STDOUT };
        if self.gone || self.outbound.len() > LAST_OUTBOUND_MAX {
            self.gone = true;
            return;
        }
        for piece in bytes.chunks(frame::BYTES_MAX) {
            self.outbound.extend_from_slice(&frame::head(kind, piece.len()));
            self.outbound.extend_from_slice(piece);
        }
        self.flush();
    }

    /// The container is through: it ends when it has taken what waits.
    pub(super) fn finish(&mut self) {
        self.over = true;
        self.flush();
    }

    /// Delivers what can be delivered now.
    pub(super) fn flush(&mut self) {
        while !self.outbound.is_empty() {
            match self.stream.write(&self.outbound) {
                Ok(count @ 1..) => {
                    self.outbound.drain(..count);
                    self.stalled = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let since = *self.stalled.get_or_insert_with(Instant::now);
                    self.gone |= since.elapsed() >= PATIENCE;
                    return;
                }
                Ok(_) | Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
        self.gone |= self.over;
    }

    /// What it asks for now.
    pub(super) fn read(&mut self) -> Vec<Asked> {
        let mut buffer = [0; PIECE];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.gone = true,
            Ok(count) => self.partial.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
        let mut asked = Vec::new();
        loop {
            match frame::take(&mut self.partial) {
                Ok(Some((frame::STDIN, bytes))) => asked.push(Asked::Input(bytes)),
                Ok(Some((frame::STDIN_END, _))) => asked.push(Asked::End),
                Ok(Some((frame::RESIZE, bytes))) => {
                    if let [a, b, c, d] = bytes[..] {
                        asked.push(Asked::Size {
                            columns: u16::from_be_bytes([a, b]),
                            rows: u16::from_be_bytes([c, d]),
                        });
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(()) => {
                    self.gone = true;
                    break;
                }
            }
        }
        asked
    }
}

/// The near end of a container's standard input: a pipe or a terminal.
pub(super) struct Input {
    file: File,
    /// A terminal, or `false` for a pipe.
    pub(super) terminal: bool,
    /// It ends with the first attachment.
    once: bool,
    /// What the container has not taken yet.
    pending: Vec<u8>,
    /// Nothing more is coming.
    ending: bool,
}

impl Input {
    /// `file` must not block.
    pub(super) fn new(file: File, terminal: bool, once: bool) -> Self {
        Self { file, terminal, once, pending: Vec::new(), ending: false }
    }

    /// Whether the container takes input now.
    pub(super) fn is_listening(&self) -> bool {
        self.pending.is_empty()
    }

    /// What to wait for.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.pending.is_empty()).then(|| self.file.as_fd())
    }

    /// Takes bytes for the container; false when nobody will ever read them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        self.pending.extend_from_slice(bytes);
        self.flush()
    }

    /// Hands over what can be handed over now; false when nobody will ever read it.
    pub(super) fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match self.file.write(&self.pending) {
                Ok(count @ 1..) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(_) | Err(_) => return false,
            }
        }
        !self.ending
    }

    /// An attachment ended: with `stdinOnce` that is the end of the input, but never of a terminal. False when the input is
    /// over, all of it handed over.
    pub(super) fn detach(&mut self) -> bool {
        self.ending |= self.once && !self.terminal;
        self.flush()
    }

    /// Tells the container how large its terminal is.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        if self.terminal {
            // A terminal that is gone has no size.
            let _ = crate::exec::resize_terminal(self.file.as_raw_fd(), columns, rows);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_slow_reader_holds_the_container_up_and_gets_everything() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut attachment = Attachment::new(near, Vec::new(), "c".to_owned(), false).unwrap();
        let mut sent = 0;
        while !attachment.is_behind() {
            attachment.say("stdout", &[7; 5000]);
            sent += 5000;
        }
        assert!(attachment.interest(true).contains(PollFlags::POLLOUT) && attachment.deadline().is_some());
        attachment.finish();
        assert!(!attachment.gone, "what waits is still delivered");
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut far = far;
            far.read_to_end(&mut all).unwrap();
            all
        });
        while !attachment.gone {
            attachment.flush();
            std::thread::yield_now();
        }
        drop(attachment);
        let mut all = reader.join().unwrap();
        let mut received = 0;
        while let Some((kind, bytes)) = frame::take(&mut all).unwrap() {
            assert_eq!(kind, frame::STDOUT);
            received += bytes.len();
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn input_waits_for_a_container_that_does_not_read() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut input = Input::new(File::from(std::os::fd::OwnedFd::from(near)), false, true);
        while input.is_listening() {
            assert!(input.take(&[1; 10_000]));
        }
        assert!(input.fd().is_some() && input.detach(), "the end waits for what came before");
        let mut buffer = vec![0; 1 << 20];
        while !input.is_listening() {
            assert!(far.read(&mut buffer).unwrap() > 0);
            assert_eq!(input.flush(), !input.is_listening());
        }
        drop(far);
        assert!(!input.take(b"x"), "nobody reads any more");
    }
}
