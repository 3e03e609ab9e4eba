//! What every demo program answers, and the way from a request to the program's own part.
//!
//! # Flow
//! log ← answer ← [control | probe | who-am-I | the program] ← added latency ← request
//!
//! `/control` is answered before any latency, so that a program made slow can be made fast again.

use std::fmt::Arguments;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::json;

use crate::faults::{self, Ballast};
use crate::health::Health;
use crate::identity::Identity;
use crate::reply::{self, Reply};
use crate::shop::{self, Front};
use crate::store::{self, Store};

/// Which program this process is.
#[derive(Debug)]
pub(crate) enum Program {
    Front(Front),
    Catalogue,
    Cart,
    Server(Ballast),
    Store(Store),
    /// With what it answers.
    Broken(u16),
}

impl Program {
    /// The subcommand's name, for the log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Front(_) => "front",
            Self::Catalogue => "catalogue",
            Self::Cart => "cart",
            Self::Server(_) => "server",
            Self::Store(_) => "store",
            Self::Broken(_) => "broken",
        }
    }
}

/// A program with its health and its name: all that a connection needs.
#[derive(Debug)]
pub(crate) struct Application {
    program: Program,
    pub(crate) health: Health,
    identity: Identity,
    log_requests: bool,
}

impl Application {
    pub(crate) fn new(program: Program, health: Health, identity: Identity, log_requests: bool) -> Arc<Self> {
        Arc::new(Self { program, health, identity, log_requests })
    }

    /// Answers one request. Never fails: what goes wrong becomes a status code with a reason.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Reply {
        let began = Instant::now();
        let line = self
            .wants_log(&request)
            .then(|| format!("{} {}", request.method(), request.uri().path_and_query().map_or("/", |it| it.as_str())));
        let mut reply = self.route(request).await;
        if self.health.switches().stopping {
            // Tell clients with idle connections to come back over a new one, which will lead to another pod.
            reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(line) = line {
            log(format_args!("{line} {} {:.1} ms", reply.status().as_u16(), began.elapsed().as_secs_f64() * 1e3));
        }
        reply
    }

    /// Probes arrive every second or so and would drown everything else.
    fn wants_log(&self, request: &Request<Incoming>) -> bool {
        self.log_requests && !is_probe(request.uri().path())
    }

    async fn route(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path();
        if path == "/control" {
            return self.control(&request);
        }
        let switches = self.health.switches();
        let added_ms = if is_probe(path) { switches.probe_latency_ms } else { switches.latency_ms };
        if added_ms > 0 {
            tokio::time::sleep(Duration::from_millis(added_ms)).await;
        }
        match path {
            "/livez" => verdict("live", switches.live),
            "/readyz" => verdict("ready", switches.ready),
            "/startupz" => verdict("started", switches.started),
            "/healthz" => verdict("healthy", switches.live && switches.ready),
            "/whoami" if !matches!(self.program, Program::Broken(_)) => self.whoami(),
            _ => match &self.program {
                Program::Front(front) => front.answer(&self.identity, &request).await,
                Program::Catalogue => shop::catalogue(&self.identity, &request),
                Program::Cart => shop::cart(&self.identity, &request),
                Program::Server(ballast) => faults::answer(ballast, request).await,
                Program::Store(store) => store::answer(store, request).await,
                Program::Broken(status) => broken(*status, request.headers()),
            },
        }
    }

    /// GET shows the switches; POST turns those named in the query.
    fn control(&self, request: &Request<Incoming>) -> Reply {
        if request.method() == Method::POST
            && let Err(error) = self.health.control(request.uri().query().unwrap_or_default())
        {
            return reply::text(StatusCode::BAD_REQUEST, error);
        }
        match *request.method() {
            Method::GET | Method::POST => reply::json(StatusCode::OK, &self.health.switches()),
            _ => reply::text(StatusCode::METHOD_NOT_ALLOWED, "GET shows the switches, POST turns them"),
        }
    }

    fn whoami(&self) -> Reply {
        let Identity { hostname, pod, node, zone, version, pid } = &self.identity;
        let uptime_ms = self.health.uptime().as_millis() as u64;
        let body = json!({
            "hostname": hostname, "pod": pod, "node": node, "zone": zone, "version": version, "pid": pid,
            "uptime_ms": uptime_ms,
        });
        reply::json(StatusCode::OK, &body)
    }
}

/// Good enough for a probe (which says that it is one, as kubelet's do), for nobody else.
fn broken(status: u16, headers: &HeaderMap) -> Reply {
    let asks = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    if asks.starts_with("kube-probe/") {
        return reply::text(StatusCode::OK, "ready");
    }
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply::text(status, "this release errs on purpose")
}

/// One line on standard output, where `kubectl logs` finds it. A closed pipe is no reason to stop serving.
pub(crate) fn log(line: Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/startupz" | "/healthz")
}

/// 200 or 503, as an HTTP probe understands it.
fn verdict(word: &str, good: bool) -> Reply {
    if good {
        reply::text(StatusCode::OK, word)
    } else {
        reply::text(StatusCode::SERVICE_UNAVAILABLE, format_args!("not {word}"))
    }
}

/// The last value of `name` in the query.
pub(crate) fn query_value(uri: &Uri, name: &str) -> Option<String> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .last()
}

/// The number `name` from the query, `default` if absent, or what is wrong with it if it is not a number up to `max`.
pub(crate) fn query_number(uri: &Uri, name: &str, default: u64, max: u64) -> Result<u64, String> {
    let Some(text) = query_value(uri, name) else { return Ok(default) };
    match text.parse() {
        Ok(number) if number <= max => Ok(number),
        _ => Err(format!("{name}={text:?}: expected a number from 0 to {max}")),
    }
}
