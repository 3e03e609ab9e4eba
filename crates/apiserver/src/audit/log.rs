//! The audit log file: JSON lines, renamed when it is large, and deleted when old or many.
//!
//! Flow: requests hand over their events and go on; one thread writes them. When the thread cannot keep up, events are
//! dropped and counted, as a log that holds up the cluster would be worse than one with a gap that is told.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

/// Events that wait for the thread.
const WAITING_MAX: usize = 10_000;
/// How often old files are looked for.
const SWEEP: Duration = Duration::from_secs(3600);

/// Where the log goes and how much of it is kept.
#[derive(Debug, Clone)]
pub struct LogFile {
    /// The file; older ones stand beside it with the time in their name.
    pub path: PathBuf,
    /// Size at which a new file is begun, in MiB.
    pub size_max_mib: u64,
    /// Age at which old files are deleted, in days; 0 keeps them.
    pub age_max_days: u64,
    /// Old files that are kept; 0 keeps all.
    pub files_max: usize,
}

impl LogFile {
    /// 100 MiB a file, ten old ones, a month.
    pub fn new(path: PathBuf) -> Self {
        Self { path, size_max_mib: 100, age_max_days: 30, files_max: 10 }
    }
}

/// The sending end.
pub(super) struct Log {
    sender: SyncSender<String>,
    /// Events that were not written.
    pub(super) dropped: Arc<AtomicU64>,
}

impl Log {
    /// Opens the file and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn open(settings: LogFile) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let dropped = Arc::<AtomicU64>::default();
        let mut writer = Writer::open(settings)?;
        let lost = dropped.clone();
        std::thread::Builder::new().name("audit-log".to_owned()).spawn(move || writer.run(&receiver, &lost))?;
        Ok(Self { sender, dropped })
    }

    /// Hands a line over; never waits.
    pub(super) fn write(&self, line: String) {
        if self.sender.try_send(line).is_err() && self.dropped.fetch_add(1, Ordering::Relaxed).is_multiple_of(10_000) {
            tracing::warn!("the audit log cannot keep up; events are missing from it");
        }
    }
}

struct Writer {
    settings: LogFile,
    file: BufWriter<File>,
    bytes: u64,
}

impl Writer {
    fn open(settings: LogFile) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&settings.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { settings, file: BufWriter::new(file), bytes })
    }

    fn run(&mut self, receiver: &Receiver<String>, lost: &AtomicU64) {
        self.sweep();
        loop {
            let line = match receiver.recv_timeout(SWEEP) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    self.sweep();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut written = self.write(&line);
            // What waits already goes out together.
            while let (Ok(()), Ok(line)) = (&written, receiver.try_recv()) {
                written = self.write(&line);
            }
            if let Err(error) = written.and_then(|()| self.file.flush()) {
                lost.fetch_add(1, Ordering::Relaxed);
                tracing::error!(path = %self.settings.path.display(), %error, "cannot write the audit log");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.settings.size_max_mib * 1024 * 1024 {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.bytes += line.len() as u64 + 1;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        fs::rename(&self.settings.path, old_name(&self.settings.path, Timestamp::now()))?;
        *self = Self::open(self.settings.clone())?;
        self.sweep();
        Ok(())
    }

    /// Deletes what is too old or too many.
    fn sweep(&self) {
        let mut old = old_files(&self.settings.path);
        old.sort();
        let surplus = match self.settings.files_max {
            0 => 0,
            max => old.len().saturating_sub(max),
        };
        let age_max = Duration::from_secs(self.settings.age_max_days * 24 * 3600);
        let is_aged = |path: &Path| {
            let modified = fs::metadata(path).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            !age_max.is_zero() && modified.elapsed().is_ok_and(|age| age > age_max)
        };
        for (i, path) in old.iter().enumerate() {
            if i < surplus || is_aged(path) {
                // Somebody else may have tidied up.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// `audit-2026-01-02T03-04-05.678901.log` for `audit.log`: names that sort by time.
fn old_name(path: &Path, now: Timestamp) -> PathBuf {
    let (stem, extension) = parts(path);
    path.with_file_name(format!("{stem}-{}{extension}", now.strftime("%Y-%m-%dT%H-%M-%S%.6f")))
}

fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let extension = path.extension().map(|extension| format!(".{}", extension.to_string_lossy()));
    (text(path.file_stem()), extension.unwrap_or_default())
}

fn old_files(path: &Path) -> Vec<PathBuf> {
    let (stem, extension) = parts(path);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_old = |other: &PathBuf| {
        let name = other.file_name().unwrap_or_default().to_string_lossy();
        let time = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
        time.is_some_and(|time| time.starts_with("20") && time.contains('T'))
    };
    entries.filter(is_old).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_renamed_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let settings = LogFile { size_max_mib: 1, files_max: 2, ..LogFile::new(path.clone()) };
        let mut writer = Writer::open(settings).unwrap();
        let line = "x".repeat(700 * 1024);
        for _ in 0..5 {
            writer.write(&line).unwrap();
        }
        writer.file.flush().unwrap();
        assert_eq!(old_files(&path).len(), 2);
        assert_eq!(fs::metadata(&path).unwrap().len(), line.len() as u64 + 1);
        fs::write(directory.path().join("audit-notes.log"), "mine").unwrap();
        assert_eq!(old_files(&path).len(), 2);
    }
}
