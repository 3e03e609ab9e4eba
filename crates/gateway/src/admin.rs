//! The admin: what is configured, how it goes, and a few switches. Plain HTTP on an address of its own, loopback by default.
//!
//! | | |
//! |---|---|
//! | `GET /healthz`, `/readyz` | 200 while alive; while it takes new connections |
//! | `GET /metrics` | counters and histograms, as Prometheus reads them |
//! | `GET /config` | ports, rules, conditions of gateways and routes, problems of the last reading |
//! | `GET /upstreams` | endpoints with their health and counts |
//! | `GET /stats` | sums per rule, for `mainstay gateway top` |
//! | `GET /degrade`, `PUT` and `DELETE /degrade/NAME` | switches |
//! | `POST /purge?prefix=HOST/PATH` | drops what the caches hold below it |
//! | `POST /reload` | reads the configuration again |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::acme::Held;
use crate::control::Control;
use crate::metrics::{HostMetrics, Sum};
use crate::registry::Inner;
use crate::table::PortService;
use crate::table::paths::query_value;

/// How much of the admin an address has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything.
    All,
    /// What a kubelet and a Prometheus ask for: nothing that changes or tells anything else.
    Probes,
}

/// Starts to listen.
pub(crate) fn start(control: Rc<Control>, address: SocketAddr, scope: Scope) -> io::Result<()> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // A successor listens while this process drains.
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    let listener = socket.listen(64)?;
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let control = control.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(move |request| {
                    let reply = answer(&control, &request, scope);
                    async move { Ok::<_, Infallible>(reply) }
                });
                let serving = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(std::time::Duration::from_secs(10), serving).await;
            });
        }
    });
    Ok(())
}

fn answer(control: &Control, request: &Request<Incoming>, scope: Scope) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if scope == Scope::Probes && !matches!(path, "/healthz" | "/readyz" | "/metrics") {
        return text(StatusCode::NOT_FOUND, "see /healthz /readyz /metrics\n".into());
    }
    match (request.method(), path) {
        (&Method::GET, "/readyz") if control.shared.draining.load(Ordering::Relaxed) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".into())
        }
        (&Method::GET, "/healthz" | "/readyz") => text(StatusCode::OK, "ok\n".into()),
        (&Method::GET, "/metrics") => text(StatusCode::OK, metrics(control)),
        (&Method::GET, "/config") => show(&configuration(control)),
        (&Method::GET, "/upstreams") => show(&upstreams(control)),
        (&Method::GET, "/stats") => show(&stats(control)),
        (&Method::GET, "/degrade") => {
            let mut on: Vec<String> = control.shared.inner().switches.iter().cloned().collect();
            on.sort();
            show(&json!({ "on": on, "known": switches(control) }))
        }
        (&Method::PUT | &Method::DELETE, _) if path.starts_with("/degrade/") => {
            let name = &path["/degrade/".len()..];
            if !switches(control).iter().any(|known| known == name) {
                return text(StatusCode::NOT_FOUND, format!("no degradation is named {name}\n"));
            }
            control.shared.switch(name, request.method() == Method::PUT);
            text(StatusCode::OK, "ok\n".into())
        }
        (&Method::POST, "/purge") => {
            let prefix = query_value(request.uri().query().unwrap_or_default(), "prefix").unwrap_or_default();
            let count = control.shared.purge(|key| key.starts_with(&prefix));
            show(&json!({ "purged": count }))
        }
        (&Method::POST, "/reload") => {
            control.reload.notify_one();
            text(StatusCode::ACCEPTED, "reading\n".into())
        }
        _ => text(StatusCode::NOT_FOUND, "see /healthz /readyz /metrics /config /upstreams /stats /degrade\n".into()),
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::from(text));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    reply
}

fn show(value: &Value) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::from(format!("{value:#}\n")));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// The names that can be switched.
fn switches(control: &Control) -> Vec<String> {
    let live = control.live();
    let named = live.table.rules.iter().filter_map(|rule| Some(rule.settings.degradation.as_ref()?.name.clone()));
    let mut names: Vec<String> = named.chain(["noncore".to_owned()]).collect();
    names.sort();
    names.dedup();
    names
}

/// Everything counted, in Prometheus' text format.
pub(crate) fn metrics(control: &Control) -> String {
    const PREFIX: &str = "mainstay_gateway_";
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut histograms: Vec<(&str, String, Sum)> = Vec::new();
    {
        let inner = control.shared.inner();
        for (name, cores) in &inner.rules {
            let labels = format!("route=\"{}\"", escaped(name));
            let mut sum = Sum::default();
            let mut totals: Vec<(&str, &str, u64)> = Vec::new();
            for core in cores {
                add_up(&mut totals, core.all());
                sum.add(&core.duration);
            }
            lines.extend(
                totals.iter().map(|(metric, extra, value)| {
                    (format!("{PREFIX}{metric}"), format!("{{{labels},{extra}}} {value}"))
                }),
            );
            histograms.push(("mainstay_gateway_request_duration_seconds", labels, sum));
        }
        for ((upstream, address), (cores, healthy)) in endpoints(&inner) {
            let labels = format!("upstream=\"{}\",endpoint=\"{address}\"", escaped(upstream));
            let mut sum = Sum::default();
            let mut totals = Vec::new();
            for core in cores {
                add_up(&mut totals, core.all());
                sum.add(&core.duration);
            }
            lines.extend(
                totals.iter().map(|(metric, extra, value)| {
                    (format!("{PREFIX}{metric}"), format!("{{{labels},{extra}}} {value}"))
                }),
            );
            lines.push((format!("{PREFIX}endpoint_healthy"), format!("{{{labels}}} {}", u8::from(healthy))));
            histograms.push(("mainstay_gateway_endpoint_duration_seconds", labels, sum));
        }
    }
    let (good, bad) = control.reloads.get();
    lines.push((format!("{PREFIX}connections"), format!(" {}", control.shared.connections.load(Ordering::Relaxed))));
    lines.push((format!("{PREFIX}configuration_version"), format!(" {}", control.live().version)));
    lines.push((format!("{PREFIX}reloads_total"), format!("{{result=\"good\"}} {good}")));
    lines.push((format!("{PREFIX}reloads_total"), format!("{{result=\"bad\"}} {bad}")));
    lines.extend(of_certificates(control));
    let dropped = control.log.as_ref().map_or(0, crate::access_log::AccessLog::dropped);
    lines.push((format!("{PREFIX}access_log_dropped_total"), format!(" {dropped}")));
    let dropped = control.tracer.as_ref().map_or(0, |it| it.dropped());
    lines.push((format!("{PREFIX}spans_dropped_total"), format!(" {dropped}")));
    lines.sort();
    histograms.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let mut out = String::new();
    let mut last = String::new();
    for (name, rest) in lines {
        if name != last {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            let _ = writeln!(out, "# TYPE {name} {kind}");
            last.clone_from(&name);
        }
        let _ = writeln!(out, "{name}{rest}");
    }
    for (name, labels, sum) in histograms {
        if name != last {
            let _ = writeln!(out, "# TYPE {name} histogram");
            name.clone_into(&mut last);
        }
        sum.write(&mut out, name, &labels);
    }
    out
}

/// Metrics of certificates obtained by ACME.
fn of_certificates(control: &Control) -> Vec<(String, String)> {
    const PREFIX: &str = "mainstay_gateway_certificate";
    let certificates = control.last().certificates.clone();
    let mut lines: Vec<(String, String)> = Vec::new();
    for entry in certificates.iter() {
        let labels = format!("{{secret=\"{}\"}}", escaped(&entry.secret.to_string()));
        if let Held::Certificate(held) = &entry.held {
            lines.push((format!("{PREFIX}_not_after_seconds"), format!("{labels} {}", held.not_after)));
        }
        lines.push((format!("{PREFIX}_failures"), format!("{labels} {}", entry.tried().failures)));
    }
    for (result, count) in [("good", &control.acme.obtained), ("bad", &control.acme.failed)] {
        lines.push((format!("{PREFIX}_orders_total"), format!("{{result=\"{result}\"}} {}", count.get())));
    }
    lines
}

/// Counters and health of each endpoint. An upstream that routes use with different settings is there more than once, but
/// has one name, and no sample may be given twice.
fn endpoints(inner: &Inner) -> BTreeMap<(&str, SocketAddr), (Vec<&HostMetrics>, bool)> {
    let mut found = BTreeMap::new();
    for ((_, address), entry) in &inner.hosts {
        let (cores, healthy) = found.entry((&*entry.upstream, *address)).or_insert((Vec::new(), true));
        cores.extend(entry.metrics.iter().map(Arc::as_ref));
        *healthy &= entry.shared.healthy.load(Ordering::Relaxed);
    }
    found
}

fn add_up(totals: &mut Vec<(&'static str, &'static str, u64)>, more: Vec<(&'static str, &'static str, u64)>) {
    if totals.is_empty() {
        *totals = more;
        return;
    }
    for (total, (_, _, value)) in totals.iter_mut().zip(more) {
        total.2 += value;
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn configuration(control: &Control) -> Value {
    let live = control.live();
    let table = &live.table;
    let ports = table.ports.iter().map(|port| {
        let kind = match &port.service {
            PortService::Http(_) => "HTTP",
            PortService::Tls(_) => "TLS",
            PortService::Tcp(_) => "TCP",
        };
        json!({ "addresses": port.addresses, "protocol": kind })
    });
    let rules = table.rules.iter().map(|rule| {
        let backends = rule
            .backends
            .list
            .iter()
            .map(|it| json!({ "weight": it.weight, "upstream": it.upstream.map(|at| &table.upstreams[at].name) }));
        json!({
            "name": rule.name,
            "backends": backends.collect::<Vec<_>>(),
            "retryAttempts": rule.settings.retry.attempts,
            "rateLimits": rule.settings.limits.iter().map(|it| &it.key).collect::<Vec<_>>(),
            "cached": rule.settings.cache.is_some(),
        })
    });
    let last = control.last();
    let now = jiff::Timestamp::now().to_string();
    let gateways =
        last.statuses.gateways.iter().map(
            |(key, status)| json!({ "gateway": key.to_string(), "status": status.to_json(&Value::Null, &[], &now) }),
        );
    let routes = last.statuses.routes.iter().map(|((kind, key), status)| {
        json!({ "route": format!("{kind} {key}"), "status": status.to_json(&Value::Null, &now) })
    });
    json!({
        "version": live.version,
        "ports": ports.collect::<Vec<_>>(),
        "rules": rules.collect::<Vec<_>>(),
        "gateways": gateways.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "certificates": certificates(control),
        "problems": last.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// What is obtained by ACME, and how that goes.
fn certificates(control: &Control) -> Vec<Value> {
    let now = jiff::Timestamp::now().as_second();
    control.last().certificates.iter().map(|it| crate::acme::shown(it, now)).collect()
}

fn upstreams(control: &Control) -> Value {
    let live = control.live();
    let now = Instant::now();
    let inner = control.shared.inner();
    let shown = live.table.upstreams.iter().map(|upstream| {
        let endpoints = upstream.endpoints.iter().map(|endpoint| {
            let entry = inner.hosts.get(&(upstream.key.clone(), endpoint.address));
            let sum = |of: fn(&HostMetrics) -> u64| {
                entry.map_or(0, |entry| entry.metrics.iter().map(|core| of(core)).sum::<u64>())
            };
            let until = entry.and_then(|it| *it.shared.ejected_until.lock().unwrap_or_else(PoisonError::into_inner));
            json!({
                "address": endpoint.address,
                "weight": endpoint.weight,
                "zone": endpoint.zone.as_deref(),
                "priority": endpoint.priority,
                "healthy": entry.is_none_or(|it| it.shared.healthy.load(Ordering::Relaxed)),
                "ejectedForMs": until.map_or(0, |until| until.saturating_duration_since(now).as_millis() as u64),
                "good": sum(|it| it.good.get()),
                "bad": sum(|it| it.bad.get()),
                "refused": sum(|it| it.refused.get()),
                "ejections": sum(|it| it.ejections.get()),
            })
        });
        let breaker = inner.breakers.get(&upstream.key);
        let circuit = breaker.map(|it| it.lock().unwrap_or_else(PoisonError::into_inner).shown(now));
        json!({
            "name": upstream.name,
            "algorithm": format!("{:?}", upstream.settings.algorithm),
            "circuit": circuit,
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    });
    Value::Array(shown.collect())
}

fn stats(control: &Control) -> Value {
    let inner = control.shared.inner();
    let mut rules: Vec<Value> = inner
        .rules
        .iter()
        .map(|(name, cores)| {
            let mut sum = Sum::default();
            let mut totals = Vec::new();
            for core in cores {
                add_up(&mut totals, core.all());
                sum.add(&core.duration);
            }
            let of = |extra: &str| totals.iter().filter(|(_, it, _)| *it == extra).map(|it| it.2).sum::<u64>();
            json!({
                "name": name,
                "requests": sum.buckets.iter().sum::<u64>(),
                "clientErrors": of("code=\"4xx\""),
                "serverErrors": of("code=\"5xx\""),
                "retries": of("kind=\"retry\"") + of("kind=\"hedge\""),
                "buckets": sum.buckets,
            })
        })
        .collect();
    rules.sort_by_key(|it| it["name"].to_string());
    json!({
        "connections": control.shared.connections.load(Ordering::Relaxed),
        "boundsUs": crate::metrics::bounds_us(),
        "rules": rules,
    })
}
