//! A container's output as log lines in the CRI format: `TIME STREAM TAG TEXT`, where the tag is `F` for a whole line and
//! `P` for a part of a long one.
//!
//! Source: <https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/kuberuntime/logs/logs.go>, "CRI log format".

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// The longest piece of text in one log line, in bytes.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// A log file that is this long gives way to a new one: the kubelet's `containerLogMaxSize`.
const FILE_BYTES_MAX: u64 = 10 << 20;
/// Files kept of one log, the present one included: the kubelet's `containerLogMaxFiles`.
const FILES_MAX: u32 = 5;

/// The log of a container: a file, and those before it with `.1` (the youngest) to `.4` behind their names.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    /// Opens a log, or goes on with one.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max: FILE_BYTES_MAX })
    }

    /// A full disk must not stop the container: its output is lost, its work goes on.
    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.bytes >= self.bytes_max {
            self.rotate();
        }
        if self.file.write_all(lines).is_ok() {
            self.bytes += lines.len() as u64;
        }
    }

    /// Begins a new file; whoever reads the old one finds it under its new name.
    fn rotate(&mut self) {
        let name = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        for number in (0..FILES_MAX - 1).rev() {
            let _ = fs::rename(name(number), name(number + 1));
        }
        match open(&self.path) {
            Ok(file) => (self.file, self.bytes) = (file, 0),
            // It goes on in the old one, and tries again after as much.
            Err(_) => self.bytes = 0,
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

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
    pub(super) fn pump(&mut self, log: &mut LogFile, turns: u32, copy: &mut dyn FnMut(&'static str, &[u8])) {
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
            log.write(&line(self.stream, b'F', &rest));
        }
    }

    fn take(&mut self, bytes: &[u8], log: &mut LogFile) {
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
        log.write(&lines);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::fcntl::OFlag;

    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap();
        let mut output = Output::new(File::from(read), "stdout");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        let mut write = File::from(write);
        for chunk in chunks {
            write.write_all(chunk).unwrap();
            output.pump(&mut log, 4, &mut |_, _| {});
        }
        drop(write);
        output.pump(&mut log, 4, &mut |_, _| {});
        let text = fs::read_to_string(path).unwrap();
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

    #[test]
    fn full_files_give_way_to_new_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.bytes_max = 10;
        for number in 0..8 {
            log.write(format!("entry {number:04}\n").as_bytes());
        }
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).ok();
        assert_eq!(read("0.log").as_deref(), Some("entry 0007\n"));
        assert_eq!(read("0.log.1").as_deref(), Some("entry 0006\n"));
        assert_eq!(read("0.log.4").as_deref(), Some("entry 0003\n"));
        assert_eq!(read("0.log.5"), None);
    }
}
