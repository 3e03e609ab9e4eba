//! `GET /containerLogs/NAMESPACE/POD/CONTAINER`: a log file as a stream, if wanted until the container ends.

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::pod::dir::PodDir;
use crate::pod::io::Instance;
use crate::server::log_file::{LogOptions, LogReader, seek_back};
use crate::server::{Answer, Refusal};

/// Read and sent at a time.
const PIECE_BYTES: usize = 32 * 1024;
/// How often a followed log is looked at for more.
const POLL: Duration = Duration::from_millis(50);
/// Files of one log that there may be.
const FILES_MAX: u32 = 5;
/// Pieces on their way to a slow client.
const QUEUE: usize = 2;

/// Answers a request for a container's log.
pub(super) async fn serve(
    context: &Arc<Context>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &str,
) -> Result<Answer, Refusal> {
    let options = LogOptions::parse(query, jiff::Timestamp::now()).map_err(Refusal::bad)?;
    let view = context.view(namespace, pod).ok_or_else(|| Refusal::no_pod(pod))?;
    let state = view.containers.get(container).ok_or_else(|| Refusal::no_container(pod, container))?;
    let attempt = match (options.previous, state.attempt.checked_sub(1)) {
        (true, None) => {
            return Err(Refusal::bad(format!(
                "previous terminated container \"{container}\" in pod \"{pod}\" not found"
            )));
        }
        (true, Some(before)) => before,
        (false, _) if !state.has_run => {
            let why = match state.waiting {
                Some("ErrImagePull" | "ImagePullBackOff") => "trying and failing to pull image",
                Some(reason) => reason,
                None => "ContainerCreating",
            };
            let text = format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}");
            return Err(Refusal::bad(text));
        }
        // A container that waits for its restart shows what it said last.
        (false, _) => state.attempt,
    };
    let uid = view.pod.metadata.uid.clone().unwrap_or_default();
    let instance = Instance { container: container.to_owned(), attempt };
    let path = PodDir::new(&context.config.data_dir, &uid).log(&instance);
    let file = File::open(&path)
        .await
        .map_err(|error| Refusal::bad(format!("the log of {container} cannot be read: {error}")))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let watched = Watched { context: context.clone(), uid, instance };
    tokio::spawn(async move {
        if let Err(error) = stream(&path, file, options, &watched, sender).await {
            tracing::debug!(path = %path.display(), %error, "log stream ended");
        }
    });
    Ok(Answer::stream(receiver))
}

/// The instance whose log is followed.
struct Watched {
    context: Arc<Context>,
    uid: String,
    instance: Instance,
}

impl Watched {
    fn is_running(&self) -> bool {
        self.context.with_views(|views| {
            let container = views.get(&self.uid).and_then(|view| view.containers.get(&self.instance.container));
            container.is_some_and(|c| c.attempt == self.instance.attempt && c.running.is_some())
        })
    }
}

/// The file that took over from `file` when the log was rotated; none while `file` is the present one.
async fn successor(path: &Path, file: &File) -> Option<File> {
    let own = file.metadata().await.ok()?.ino();
    let mut younger = path.to_owned();
    for number in 0..FILES_MAX {
        let older = if number == 0 { path.to_owned() } else { numbered(path, number) };
        let is_it = tokio::fs::metadata(&older).await.is_ok_and(|found| found.ino() == own);
        if is_it {
            return if number == 0 { None } else { File::open(younger).await.ok() };
        }
        younger = older;
    }
    // It is gone altogether: what is left begins with the oldest.
    File::open(path).await.ok()
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(format!(".{number}"));
    name.into()
}

async fn stream(
    path: &Path,
    mut file: File,
    options: LogOptions,
    watched: &Watched,
    sender: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    if let Some(lines) = options.tail_lines {
        seek_to_last(&mut file, lines).await?;
    }
    let follow = options.follow;
    let mut reader = LogReader::new(options);
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        // Asked before reading: what was written up to the end is then read for certain.
        let running = follow && watched.is_running();
        let count = file.read(&mut buffer).await?;
        if count > 0 {
            let output = reader.take(&buffer[..count]);
            if !output.is_empty() && sender.send(output.into()).await.is_err() || reader.is_full() {
                return Ok(());
            }
        } else if let Some(next) = successor(path, &file).await {
            // Nothing is written to the old file any more; what came since it was read to its end is still to be read.
            loop {
                let count = file.read(&mut buffer).await?;
                if count == 0 {
                    break;
                }
                let output = reader.take(&buffer[..count]);
                if !output.is_empty() && sender.send(output.into()).await.is_err() || reader.is_full() {
                    return Ok(());
                }
            }
            file = next;
        } else if running {
            tokio::select! {
                () = sender.closed() => return Ok(()),
                () = tokio::time::sleep(POLL) => {}
            }
        } else {
            return Ok(());
        }
    }
}

/// Goes to where the last `lines` lines begin, reading backwards.
async fn seek_to_last(file: &mut File, lines: u64) -> std::io::Result<()> {
    let length = file.metadata().await?.len();
    if lines == 0 || length == 0 {
        return file.seek(SeekFrom::End(0)).await.map(drop);
    }
    let mut end = length;
    let mut ends_left = lines;
    let mut buffer = vec![0; PIECE_BYTES];
    while end > 0 {
        let start = end.saturating_sub(PIECE_BYTES as u64);
        let piece = &mut buffer[..(end - start) as usize];
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(piece).await?;
        // The last line's own end is not where it begins.
        if end == length && piece.last() == Some(&b'\n') {
            ends_left = ends_left.saturating_add(1);
        }
        if let Some(at) = seek_back(piece, &mut ends_left) {
            return file.seek(SeekFrom::Start(start + at as u64)).await.map(drop);
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0)).await.map(drop)
}
