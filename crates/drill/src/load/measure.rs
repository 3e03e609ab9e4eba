//! The load alone: one URL, one rate, some seconds, a few figures. For `mainstay drill load` and for benches.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::sample::{Latency, SAMPLES_MAX, count, quantile};
use super::schedule::Arrivals;
use super::{Load, LoadError, LoadPlan, Route};

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The URL.
    #[error("{0:?} is not of the form http://HOST[:PORT][/PATH]")]
    Url(String),
    /// The host.
    #[error("the host of {url} has no address: {source}")]
    Host {
        /// The URL.
        url: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too many requests in all.
    #[error("{0} requests in all are too many; at most {SAMPLES_MAX}")]
    Many(u64),
    /// The load.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Requests per second asked for.
    pub rate_wanted: f64,
    /// Requests per second that were sent, from the first one due to the last one sent.
    pub rate_sent: f64,
    /// How many in all.
    pub asked: u64,
    /// Of these, not answered.
    pub failed: u64,
    /// Why, and how many each.
    pub failures: BTreeMap<String, u64>,
    /// Counted from when each was due.
    pub latency: Latency,
    /// How late the generator sent them: half of them, 99 of 100, the latest; in microseconds.
    pub lag_us: [u32; 3],
}

/// Measures, and waits until it is over.
///
/// # Errors
/// See [`MeasureError`].
pub async fn run(url: &str, rate: f64, length: Duration) -> Result<Figures, MeasureError> {
    let all = (rate * length.as_secs_f64()) as u64;
    if all > SAMPLES_MAX as u64 {
        return Err(MeasureError::Many(all));
    }
    let wrong = || MeasureError::Url(url.to_owned());
    let uri: hyper::Uri = url.parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
    let found = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80))).await;
    let failed = |source| MeasureError::Host { url: url.to_owned(), source };
    let address = found.map_err(failed)?.next().ok_or_else(wrong)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).parse().map_err(|_| wrong())?;
    let plan = LoadPlan {
        address,
        host: host.to_owned(),
        tls: None,
        keep_alive: true,
        rate,
        arrivals: Arrivals::Uniform,
        routes: vec![Route { method: Method::GET, path, body: Vec::new().into(), weight: 1 }],
        steps: 1,
        think: Duration::ZERO,
        timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(1),
        tries: 1,
        in_flight_max: 4096,
        seed: 1,
        duration: Some(length),
    };
    let since = Instant::now();
    let load = Load::start(plan)?;
    while !load.is_over() && since.elapsed() < length * 2 + Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let samples = tokio::task::spawn_blocking(move || load.end()).await.map_err(|_| LoadError::Lost)??;
    let sent_until_us = samples.iter().map(|it| it.due_us + u64::from(it.lag_us)).max().unwrap_or_default();
    let mut lags: Vec<u32> = samples.iter().map(|sample| sample.lag_us).collect();
    lags.sort_unstable();
    let apart_us = 1e6 / rate;
    Ok(Figures {
        rate_wanted: rate,
        rate_sent: samples.len() as f64 * 1e6 / (sent_until_us as f64 + apart_us),
        asked: samples.len() as u64,
        failed: samples.iter().filter(|sample| sample.failure.is_some()).count() as u64,
        failures: count(samples.iter().filter_map(|sample| sample.failure)),
        latency: Latency::of(&samples),
        lag_us: [0.5, 0.99, 1.0].map(|q| quantile(&lags, q)),
    })
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50_us, p90_us, p99_us, p999_us, max_us, .. } = self.latency;
        let [lag_p50, lag_p99, lag_max] = self.lag_us;
        writeln!(formatter, "sent     {:.1} per second of {} wanted", self.rate_sent, self.rate_wanted)?;
        writeln!(formatter, "asked    {}, {} failed", self.asked, self.failed)?;
        for (what, count) in &self.failures {
            writeln!(formatter, "failed   {count} × {what}")?;
        }
        writeln!(
            formatter,
            "latency  p50 {p50_us} us, p90 {p90_us} us, p99 {p99_us} us, p99.9 {p999_us} us, max {max_us} us"
        )?;
        writeln!(formatter, "late     p50 {lag_p50} us, p99 {lag_p99} us, max {lag_max} us (the generator itself)")
    }
}
