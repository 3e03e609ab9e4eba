//! Traces for OpenTelemetry: a span for each sampled request, sent to a collector with OTLP over HTTP in JSON.
//!
//! # Flow
//! [`Tracer::begin`] decides, from `traceparent` or by chance, and says under which span the endpoint works; [`Tracer::end`]
//! puts the span into a queue; one task of the control thread sends what has gathered, every second.
//!
//! # Guarantees
//! A collector that is slow or gone costs requests nothing: the queue has a limit, and spans beyond it are counted and dropped.
//!
//! # Sources
//! W3C Trace Context, 3.2; OpenTelemetry Protocol 1.x (JSON mapping of `ExportTraceServiceRequest`); semantic conventions for
//! HTTP server spans.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use crate::core::headers::{TRACEPARENT, traceparent};
use crate::table::settings::UpstreamSettings;
use crate::upstream::{Connection, Exchange, Outgoing, connect};

/// Spans that wait at most.
const QUEUE_MAX: usize = 8_192;
/// Spans sent at once.
const BATCH_MAX: usize = 512;
/// How often they are sent.
const EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The flag of a trace that is sampled.
const SAMPLED: u8 = 1;
/// A span of a server (OTLP, `SpanKind`).
const KIND_SERVER: u8 = 2;
/// OTLP's `StatusCode` of an error.
const STATUS_ERROR: u8 = 2;

/// Where traces go.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceOptions {
    /// `HOST:PORT` of a collector.
    pub collector: String,
    /// The path on it, usually `/v1/traces`.
    pub path: String,
    /// Share of the requests without a sampled `traceparent` that are sampled, from 0 to 1.
    pub share: f64,
}

impl TraceOptions {
    /// From a collector's base URL, as `OTEL_EXPORTER_OTLP_ENDPOINT` has it.
    ///
    /// # Errors
    /// It is no URL of scheme `http`.
    pub fn of_url(url: &str, share: f64) -> Result<Self, String> {
        let wrong = || format!("{url:?} is not http://HOST[:PORT][/PATH]; TLS to a collector is not spoken");
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.is_empty() {
            return Err(wrong());
        }
        // 4318 is OTLP's port for HTTP.
        let port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let collector = if port { authority.to_owned() } else { format!("{authority}:4318") };
        Ok(Self { collector, path: format!("{}/v1/traces", path.trim_end_matches('/')), share })
    }
}

/// A span that has begun.
#[derive(Debug)]
pub(crate) struct Span {
    trace: u128,
    id: u64,
    parent: u64,
    began_ns: u64,
    method: Method,
    path: String,
}

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) status: StatusCode,
    pub(crate) route: Option<&'a str>,
    pub(crate) client: SocketAddr,
    pub(crate) took: Duration,
}

/// Makes spans, and keeps them until they are sent.
#[derive(Debug)]
pub(crate) struct Tracer {
    options: TraceOptions,
    queue: Mutex<Vec<Value>>,
    dropped: AtomicU64,
}

impl Tracer {
    /// A tracer; its spans go nowhere until [`Tracer::run`] runs.
    pub(crate) fn new(options: TraceOptions) -> Arc<Self> {
        Arc::new(Self { options, queue: Mutex::default(), dropped: AtomicU64::new(0) })
    }

    /// Begins a request's span, if it is sampled, and names it in the headers as the parent of what the endpoint does.
    pub(crate) fn begin(&self, method: &Method, path: &str, headers: &mut HeaderMap) -> Option<Span> {
        let told = headers.get(TRACEPARENT).and_then(|it| parse(it.as_bytes()));
        let sampled = match told {
            Some((_, _, flags)) if flags & SAMPLED != 0 => true,
            _ => fastrand::f64() < self.options.share,
        };
        if !sampled {
            return None;
        }
        let (trace, parent) = told.map_or_else(|| (fastrand::u128(1..), 0), |(trace, parent, _)| (trace, parent));
        let id = fastrand::u64(1..);
        headers.insert(TRACEPARENT, traceparent(trace, id, true));
        let began_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_nanos() as u64);
        Some(Span { trace, id, parent, began_ns, method: method.clone(), path: path.to_owned() })
    }

    /// Ends a span.
    pub(crate) fn end(&self, span: &Span, ended: &Ended<'_>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= QUEUE_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            queue.push(span_json(span, ended));
        }
    }

    /// Spans that were lost.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sends spans for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            while let Some(batch) = self.batch() {
                let count = batch.len() as u64;
                let sent = tokio::time::timeout(SEND_TIMEOUT, self.send(&batch)).await;
                if let Err(error) = sent.unwrap_or(Err("no answer in time".to_owned())) {
                    self.dropped.fetch_add(count, Ordering::Relaxed);
                    tracing::warn!(collector = %self.options.collector, %error, count, "spans are lost");
                    break;
                }
            }
        }
    }

    fn batch(&self) -> Option<Vec<Value>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let count = queue.len().min(BATCH_MAX);
        (count > 0).then(|| queue.drain(..count).collect())
    }

    async fn send(&self, spans: &[Value]) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut found = tokio::net::lookup_host(&self.options.collector).await.map_err(|error| text(&error))?;
        let address = found.next().ok_or("the collector's name has no address")?;
        let io = connect(address, &UpstreamSettings::default()).await.map_err(|error| text(&error))?;
        let mut headers = HeaderMap::new();
        let host = HeaderValue::try_from(self.options.collector.as_str()).map_err(|error| text(&error))?;
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = Outgoing::Full(Bytes::from(export(spans).to_string()));
        let connection = Connection::new(io);
        let mut exchange = Exchange::new(connection, &Method::POST, &self.options.path, &headers, body, None);
        let head = poll_fn(|cx| exchange.poll_head(cx)).await.map_err(|error| text(&error))?;
        if head.status.is_success() { Ok(()) } else { Err(format!("the collector answered {}", head.status)) }
    }
}

/// Trace, span and flags of a `traceparent`.
fn parse(value: &[u8]) -> Option<(u128, u64, u8)> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it))
    };
    if !(hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2)) || version == "ff" {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|it| *it != 0)?;
    let span = u64::from_str_radix(span, 16).ok().filter(|it| *it != 0)?;
    Some((trace, span, u8::from_str_radix(flags, 16).ok()?))
}

fn attribute(key: &str, value: &Value) -> Value {
    json!({"key": key, "value": value})
}

fn span_json(span: &Span, ended: &Ended<'_>) -> Value {
    let text = |value: &str| json!({"stringValue": value});
    // 64-bit numbers are text in this mapping.
    let number = |value: u64| json!({"intValue": value.to_string()});
    let mut attributes = vec![
        attribute("http.request.method", &text(span.method.as_str())),
        attribute("url.path", &text(&span.path)),
        attribute("http.response.status_code", &number(u64::from(ended.status.as_u16()))),
        attribute("client.address", &text(&ended.client.ip().to_string())),
    ];
    let mut name = span.method.to_string();
    if let Some(route) = ended.route {
        attributes.push(attribute("http.route", &text(route)));
        name = format!("{name} {route}");
    }
    let ended_ns = span.began_ns + ended.took.as_nanos() as u64;
    let mut object = json!({
        "traceId": format!("{:032x}", span.trace),
        "spanId": format!("{:016x}", span.id),
        "name": name,
        "kind": KIND_SERVER,
        "startTimeUnixNano": span.began_ns.to_string(),
        "endTimeUnixNano": ended_ns.to_string(),
        "attributes": attributes,
    });
    if span.parent != 0 {
        object["parentSpanId"] = json!(format!("{:016x}", span.parent));
    }
    if ended.status.is_server_error() {
        object["status"] = json!({"code": STATUS_ERROR});
    }
    object
}

fn export(spans: &[Value]) -> Value {
    let service = attribute("service.name", &json!({"stringValue": "mainstay-gateway"}));
    json!({"resourceSpans": [{
        "resource": {"attributes": [service]},
        "scopeSpans": [{"scope": {"name": "mainstay"}, "spans": spans}],
    }]})
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tracer(share: f64) -> Arc<Tracer> {
        Tracer::new(TraceOptions::of_url("http://127.0.0.1", share).unwrap())
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn collectors_are_named_by_url() {
        let of = |url| TraceOptions::of_url(url, 1.0).map(|it| (it.collector, it.path));
        assert_eq!(of("http://c").unwrap(), ("c:4318".into(), "/v1/traces".into()));
        assert_eq!(of("http://c:1/x/").unwrap(), ("c:1".into(), "/x/v1/traces".into()));
        for wrong in ["c:4318", "https://c", "http://"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sampled_parent_is_followed_and_chance_decides_else() {
        let mut headers: HeaderMap = [(TRACEPARENT, PARENT.parse().unwrap())].into_iter().collect();
        let span = tracer(0.0).begin(&Method::GET, "/", &mut headers).unwrap();
        assert_eq!((span.trace >> 64, span.parent), (0x0af7_6519_16cd_43dd, 0xb7ad_6b71_6920_3331));
        let sent = headers[TRACEPARENT].to_str().unwrap();
        assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && sent.ends_with("-01") && sent != PARENT);
        for (value, share) in
            [("", 0.0), (&PARENT[..54], 0.0), ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 0.0)]
        {
            let mut headers: HeaderMap = [(TRACEPARENT, value.parse().unwrap())].into_iter().collect();
            assert!(tracer(share).begin(&Method::GET, "/", &mut headers).is_none(), "{value}");
        }
        assert_eq!(tracer(1.0).begin(&Method::GET, "/", &mut HeaderMap::new()).unwrap().parent, 0);
    }

    #[test]
    fn the_queue_has_a_limit() {
        let tracer = tracer(1.0);
        let ended = Ended {
            status: StatusCode::BAD_GATEWAY,
            route: Some("HTTPRoute a/b 0"),
            client: SocketAddr::from(([127, 0, 0, 1], 1)),
            took: Duration::from_millis(5),
        };
        for _ in 0..=QUEUE_MAX {
            let span = tracer.begin(&Method::GET, "/x", &mut HeaderMap::new()).unwrap();
            tracer.end(&span, &ended);
        }
        assert_eq!(tracer.dropped(), 1);
        let batch = tracer.batch().unwrap();
        assert_eq!(batch.len(), BATCH_MAX);
        assert_eq!(batch[0]["name"], "GET HTTPRoute a/b 0");
        assert_eq!(batch[0]["status"]["code"], 2);
        let length = |field: &str| batch[0][field].as_str().unwrap().len();
        assert_eq!((length("traceId"), length("spanId")), (32, 16));
    }
}
