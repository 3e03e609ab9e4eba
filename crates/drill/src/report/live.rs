//! What is shown while a drill runs: a few redrawn lines on a terminal, one line a second elsewhere.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::ms;
use crate::load::sample::{Latency, Recording, Sample};

/// Seconds in the strip of the last ones.
const STRIP: usize = 60;
/// The strip's heights, for p99 on a scale of powers of two from 1 ms.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Not at all.
    Silent,
    /// A line each second, for logs.
    Lines,
    /// Redrawn in place, for terminals.
    Redrawn,
}

/// Shows until it is aborted. On standard error, so that the report alone is on standard output.
pub(crate) async fn run(show: Show, recording: Arc<Recording>, began: Instant, state: watch::Receiver<String>) {
    if show == Show::Silent {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let (mut seen, mut strip, mut failed_all, mut drawn) = (0, Vec::new(), 0, false);
    loop {
        ticks.tick().await;
        let fresh = recording.since(seen);
        seen += fresh.len();
        let failed = fresh.iter().filter(|sample| sample.failure.is_some()).count();
        failed_all += failed;
        strip.push(height(&fresh, failed));
        let state = state.borrow().clone();
        let line = line(began.elapsed(), &fresh, failed_all, &state);
        let text = if show == Show::Lines {
            format!("{line}\n")
        } else {
            let last: String = strip[strip.len().saturating_sub(STRIP)..].iter().collect();
            let back = if drawn { "\x1b[2A\x1b[J" } else { "" };
            // Cut, not wrapped, or the next drawing would begin at the wrong place.
            format!("{back}\x1b[?7l{line}\n{last}\n\x1b[?7h")
        };
        drawn = true;
        let mut out = std::io::stderr();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

fn line(time: Duration, fresh: &[Sample], failed_all: usize, state: &str) -> String {
    let latency = Latency::of(fresh);
    let (seconds, ended) = (time.as_secs(), fresh.len());
    let answered = match latency.count {
        0 => "none answered".to_owned(),
        _ => format!("p50 {} ms  p99 {} ms", ms(latency.p50_us), ms(latency.p99_us)),
    };
    format!("{seconds:>4} s  {ended:>6}/s  {failed_all} failed  {answered}  {state}")
}

/// A second with a failure is a cross, another as high as its p99.
fn height(fresh: &[Sample], failed: usize) -> char {
    if failed > 0 {
        return '×';
    }
    let p99_ms = Latency::of(fresh).p99_us / 1000;
    HEIGHTS[(p99_ms.max(1).ilog2() as usize).min(HEIGHTS.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_as_high_as_its_p99_and_failures_are_crosses() {
        let sample = |latency_us| Sample { due_us: 0, latency_us, lag_us: 0, tries: 1, failure: None };
        let heights: Vec<char> = [100, 5_000, 300_000].map(|us| height(&[sample(us)], 0)).into();
        assert_eq!(heights, ['▁', '▃', '█']);
        assert_eq!(height(&[sample(100)], 1), '×');
    }
}
