//! A container's output as log lines in the CRI format: `TIME STREAM TAG TEXT`, where the tag is `F` for a whole line and
//! `P` for a part of a long one.
//!
//! Source: <https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/kuberuntime/logs/logs.go>, "CRI log format".

use std::fs::File;
use std::io::{self, Read as _, Write as _};

use jiff::Timestamp;

/// The longest piece of text in one log line, in bytes.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// One output pipe of a container.
pub(super) struct Output {
    pipe: File,
    stream: &'static str,
    /// The beginning of a line without its end.
    partial: Vec<u8>,
    open: bool,
}

impl Output {
    pub(super) fn new(pipe: File, stream: &'static str) -> Self {
        Self { pipe, stream, partial: Vec::new(), open: true }
    }

    /// The pipe, while it is open.
    pub(super) fn pipe(&self) -> Option<&File> {
        self.open.then_some(&self.pipe)
    }

    /// Reads what is there and writes it to the log; nothing blocks, and a log that cannot be written loses lines rather
    /// than hold up the container. A container that never stops talking gets `turns` readings at a time, so that the
    /// others are heard too. `copy` sees the bytes as they come.
    pub(super) fn pump(&mut self, log: &mut File, turns: u32, copy: &mut dyn FnMut(&'static str, &[u8])) {
        let mut buffer = [0; PIECE_BYTES_MAX];
        for _ in 0..turns {
            if !self.open {
                break;
            }
            match self.pipe.read(&mut buffer) {
                Ok(0) => self.open = false,
                Ok(count) => {
                    copy(self.stream, &buffer[..count]);
                    self.take(&buffer[..count], log);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.open = false,
            }
        }
        if !self.open && !self.partial.is_empty() {
            let rest = std::mem::take(&mut self.partial);
            write_lines(log, &line(self.stream, b'F', &rest));
        }
    }

    fn take(&mut self, bytes: &[u8], log: &mut File) {
        let mut lines = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                lines.extend(line(self.stream, b'F', &self.partial));
                self.partial.clear();
            } else if self.partial.len() >= PIECE_BYTES_MAX {
                lines.extend(line(self.stream, b'P', &self.partial));
                self.partial.clear();
            }
        }
        write_lines(log, &lines);
    }
}

fn line(stream: &str, tag: u8, text: &[u8]) -> Vec<u8> {
    let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string();
    let mut line = Vec::with_capacity(time.len() + text.len() + 12);
    for part in [time.as_bytes(), b" ", stream.as_bytes(), b" ", &[tag], b" ", text, b"\n"] {
        line.extend_from_slice(part);
    }
    line
}

fn write_lines(log: &mut File, lines: &[u8]) {
    if !lines.is_empty() {
        // A full disk must not stop the container: its output is lost, its work goes on.
        let _ = log.write_all(lines);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::fcntl::OFlag;
    use std::io::{Seek as _, SeekFrom};

    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap();
        let mut output = Output::new(File::from(read), "stdout");
        let mut log = tempfile::tempfile().unwrap();
        let mut write = File::from(write);
        for chunk in chunks {
            write.write_all(chunk).unwrap();
            output.pump(&mut log, 4, &mut |_, _| {});
        }
        drop(write);
        output.pump(&mut log, 4, &mut |_, _| {});
        log.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_put_together_and_long_ones_cut() {
        assert_eq!(logged(&[b"one\ntw", b"o\nthree"]), ["stdout F one", "stdout F two", "stdout F three"]);
        let long = vec![b'x'; PIECE_BYTES_MAX + 3];
        let lines = logged(&[&long, b"\n"]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("stdout P x"), "the first part says that it is one");
        assert_eq!(lines[1], "stdout F xxx");
    }
}
