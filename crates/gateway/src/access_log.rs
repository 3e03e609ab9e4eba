//! The access log: a JSON line, or a line of one's own template, for each request.
//!
//! Cores write into a queue with a limit; one thread writes it out in large pieces. If that thread does not keep up, lines are
//! dropped and counted rather than requests delayed.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use http::header::HeaderValue;
use http::{Method, StatusCode, Uri};
use serde_json::json;

/// Lines waiting at most.
const QUEUE_LINES: usize = 65_536;

/// A log that cores write to.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    queue: SyncSender<String>,
    template: Option<Arc<str>>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens a log: a file, appended to, or `-` for standard output. In a template, `{time}`, `{client}`, `{method}`, `{host}`,
    /// `{path}`, `{route}`, `{status}` and `{ms}` are filled in; without one, lines are JSON.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(path: &Path, template: Option<&str>) -> io::Result<Self> {
        let mut out: BufWriter<Box<dyn Write + Send>> = BufWriter::with_capacity(
            65_536,
            if path.as_os_str() == "-" {
                Box::new(io::stdout())
            } else {
                Box::new(OpenOptions::new().create(true).append(true).open(path)?)
            },
        );
        let (queue, lines) = sync_channel::<String>(QUEUE_LINES);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            while let Ok(line) = lines.recv() {
                let mut next = Some(line);
                while let Some(line) = next {
                    // A full disk loses lines of the log, not requests.
                    let _ = writeln!(out, "{line}");
                    next = lines.try_recv().ok();
                }
                let _ = out.flush();
            }
        })?;
        Ok(Self { queue, template: template.map(Into::into), dropped: Arc::default() })
    }

    /// Lines that were lost.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes a line.
    #[allow(clippy::too_many_arguments, reason = "they are the fields of the line")]
    pub(crate) fn write(
        &self,
        peer: &SocketAddr,
        method: &Method,
        uri: &Uri,
        host: Option<&HeaderValue>,
        route: Option<&str>,
        status: StatusCode,
        took: Duration,
    ) {
        let time = mainstay_time();
        let host = host.and_then(|it| it.to_str().ok()).or(uri.host()).unwrap_or_default();
        let path = uri.path_and_query().map_or("", |it| it.as_str());
        let ms = (took.as_secs_f64() * 1e6).round() / 1e3;
        let line = match &self.template {
            None => json!({
                "time": time, "client": peer.ip(), "method": method.as_str(), "host": host, "path": path,
                "route": route, "status": status.as_u16(), "ms": ms,
            })
            .to_string(),
            Some(template) => {
                let values = [
                    ("time", time),
                    ("client", peer.ip().to_string()),
                    ("method", method.to_string()),
                    ("host", host.to_owned()),
                    ("path", path.to_owned()),
                    ("route", route.unwrap_or("-").to_owned()),
                    ("status", status.as_u16().to_string()),
                    ("ms", ms.to_string()),
                ];
                fill(template, &values)
            }
        };
        if self.queue.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn mainstay_time() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// Fills a template in one pass, so that what a client sends is never taken for a part of the template.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut line = String::with_capacity(template.len() + 64);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        line.push_str(before);
        let found = after
            .split_once('}')
            .and_then(|(name, tail)| Some((values.iter().find(|(known, _)| *known == name)?, tail)));
        match found {
            Some(((_, value), tail)) => {
                line.extend(value.chars().map(|c| if c.is_control() { '?' } else { c }));
                rest = tail;
            }
            None => {
                line.push('{');
                rest = after;
            }
        }
    }
    line + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_once() {
        let values = [("path", "/{status}\n".to_owned()), ("status", "200".to_owned())];
        assert_eq!(fill("{path} {status} {none} {", &values), "/{status}? 200 {none} {");
    }
}
