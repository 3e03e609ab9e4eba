//! nginx.conf: `http`, `upstream`, `server`, `location`, and `stream`.

mod location;
mod parse;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::ImportError;
use super::plan::{self, Backend, Endpoint, Kind, Plan, Route, Rule, name_of};
use crate::import::words::Worded as _;
use parse::Directive;

/// Directives that say nothing about routing, or what the gateway does anyway.
const PASSED_OVER: &[&str] = &[
    "access_log",
    "charset",
    "default_type",
    "error_log",
    "events",
    "keepalive_requests",
    "keepalive_timeout",
    "log_format",
    "pid",
    "proxy_buffer_size",
    "proxy_buffering",
    "proxy_buffers",
    "proxy_busy_buffers_size",
    "proxy_http_version",
    "proxy_redirect",
    "proxy_request_buffering",
    "resolver",
    "reset_timedout_connection",
    "root",
    "send_timeout",
    "sendfile",
    "server_names_hash_bucket_size",
    "server_tokens",
    "ssl_ciphers",
    "ssl_dhparam",
    "ssl_prefer_server_ciphers",
    "ssl_protocols",
    "ssl_session_cache",
    "ssl_session_tickets",
    "ssl_session_timeout",
    "tcp_nodelay",
    "tcp_nopush",
    "types_hash_max_size",
    "user",
    "worker_connections",
    "worker_processes",
    "worker_rlimit_nofile",
    "zone",
    "http2",
    "ssl_certificate",
    "ssl_certificate_key",
    "server_name",
    "listen",
    "ssl",
    "gzip_vary",
    "gzip_proxied",
    "gzip_disable",
    "limit_req_status",
    "limit_conn_status",
    "limit_req_log_level",
    "log_not_found",
    "limit_conn_zone",
    "internal",
];

/// Whether a text is of this language.
pub(super) fn is(text: &str) -> bool {
    let begins = |line: &str, word: &str| {
        line.trim_start()
            .strip_prefix(word)
            .is_some_and(|rest| rest.trim_start().is_empty() || rest.trim_start().starts_with('{'))
    };
    text.lines().any(|line| ["http", "stream", "server", "events"].iter().any(|word| begins(line, word)))
}

/// What is inherited from the outside in.
#[derive(Debug, Clone, Default)]
struct Scope {
    /// Directives of the blocks around, the outermost first.
    around: Vec<Directive>,
}

impl Scope {
    fn within(&self, block: &[Directive]) -> Self {
        let mut around = self.around.clone();
        around.extend(block.iter().filter(|it| it.block.is_empty()).cloned());
        Self { around }
    }

    /// The innermost directive of a name.
    fn last(&self, name: &str) -> Option<&Directive> {
        self.around.iter().rev().find(|it| it.name() == name)
    }

    /// All directives of a name in the innermost block that has any, as nginx inherits lists.
    fn all<'a>(&'a self, own: &'a [Directive], name: &str) -> Vec<&'a Directive> {
        let inner: Vec<&Directive> = own.iter().filter(|it| it.name() == name).collect();
        if inner.is_empty() { self.around.iter().filter(|it| it.name() == name).collect() } else { inner }
    }
}

/// A rate of `limit_req_zone`.
#[derive(Debug, Clone)]
struct Zone {
    requests: u64,
    period: &'static str,
    key: serde_json::Value,
}

/// What the whole file knows.
#[derive(Debug, Default)]
struct World {
    plan: Plan,
    zones: BTreeMap<String, Zone>,
}

/// Translates a configuration.
pub(super) fn plan(path: &Path, text: &str) -> Result<Plan, ImportError> {
    let directives = parse::parse(path, text, 0)?;
    let mut world = World::default();
    let mut bare = Vec::new();
    for directive in &directives {
        match directive.name() {
            "http" => http(&mut world, &directive.block),
            "stream" => stream(&mut world, &directive.block),
            // A file of `conf.d` alone.
            "server" | "upstream" | "limit_req_zone" => bare.push(directive.clone()),
            name if PASSED_OVER.contains(&name) => {}
            _ => untranslated(&mut world.plan, directive),
        }
    }
    if !bare.is_empty() {
        http(&mut world, &bare);
    }
    Ok(world.plan)
}

fn untranslated(plan: &mut Plan, directive: &Directive) {
    let hint = match directive.name() {
        "fastcgi_pass" | "uwsgi_pass" | "scgi_pass" => {
            "; run an HTTP server beside the application and name it in a Backend"
        }
        "try_files" | "index" | "alias" | "autoindex" | "expires" => {
            "; files are served by a backend, not by the gateway"
        }
        "if" | "set" | "map" | "geo" | "split_clients" => {
            "; header and query matches, or weighted backendRefs, do what it is mostly used for"
        }
        "include" => ": the file cannot be read",
        _ => "",
    };
    let shown: Vec<&str> = directive.words.iter().take(2).map(String::as_str).collect();
    plan.note(&directive.path, directive.line, format!("`{}` is not translated{hint}", shown.join(" ")));
}

fn http(world: &mut World, block: &[Directive]) {
    let scope = Scope::default().within(block);
    for directive in block {
        match directive.name() {
            "upstream" => upstream(&mut world.plan, directive, None),
            "limit_req_zone" => zone(world, directive),
            _ => {}
        }
    }
    for directive in block {
        match directive.name() {
            "server" => server(world, &scope, directive),
            "upstream" | "limit_req_zone" => {}
            name if PASSED_OVER.contains(&name) || location::inherited(name) => {}
            _ => untranslated(&mut world.plan, directive),
        }
    }
}

/// `limit_req_zone $binary_remote_addr zone=NAME:10m rate=10r/s`.
fn zone(world: &mut World, directive: &Directive) {
    let option = |name: &str| directive.args().iter().find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
    let name = option("zone").and_then(|it| it.split(':').next());
    let rate = option("rate").and_then(|it| it.split_once("r/"));
    let key = match directive.arg(0) {
        "$binary_remote_addr" | "$remote_addr" => Some(json!(["client"])),
        "$server_name" | "$host" | "$http_host" => Some(json!(["host"])),
        "$uri" | "$request_uri" => Some(json!(["path"])),
        other => {
            let header = |it: &str| json!([{"header": it.replace('_', "-")}]);
            let cookie = |it: &str| json!([{"cookie": it}]);
            other.strip_prefix("$http_").map(header).or_else(|| other.strip_prefix("$cookie_").map(cookie))
        }
    };
    let rate =
        rate.and_then(|(count, unit)| Some((count.parse().ok()?, if unit.starts_with('m') { "60s" } else { "1s" })));
    match (name, rate, key) {
        (Some(name), Some((requests, period)), Some(key)) => {
            world.zones.insert(name.to_owned(), Zone { requests, period, key });
        }
        _ => untranslated(&mut world.plan, directive),
    }
}

/// An `upstream` block as a backend.
fn upstream(plan: &mut Plan, directive: &Directive, protocol: Option<&'static str>) {
    let name = name_of(directive.arg(0));
    let mut backend = Backend { protocol, ..Backend::default() };
    for inner in &directive.block {
        match inner.name() {
            "server" => endpoint(plan, &mut backend, inner),
            "least_conn" | "least_time" => {
                drop(backend.policy.insert("loadBalancer", json!({"algorithm": "LeastRequest"})));
            }
            "ip_hash" => drop(backend.policy.insert("loadBalancer", json!({"algorithm": "SourceHash"}))),
            "random" => drop(backend.policy.insert("loadBalancer", json!({"algorithm": "Random"}))),
            "hash" => {
                let key = inner.arg(0);
                let part = match key {
                    "$remote_addr" | "$binary_remote_addr" => Some(json!("client")),
                    "$request_uri" | "$uri" => Some(json!("path")),
                    "$host" | "$http_host" => Some(json!("host")),
                    _ => {
                        let header = |it: &str| json!({"header": it.replace('_', "-")});
                        let cookie = |it: &str| json!({"cookie": it});
                        let query = |it: &str| json!({"query": it});
                        let header = key.strip_prefix("$http_").map(header);
                        header
                            .or_else(|| key.strip_prefix("$cookie_").map(cookie))
                            .or_else(|| key.strip_prefix("$arg_").map(query))
                    }
                };
                match part {
                    Some(part) => {
                        backend.policy.insert("loadBalancer", json!({"algorithm": "RingHash", "hashOn": [part]}));
                    }
                    None => untranslated(plan, inner),
                }
            }
            "keepalive" => {
                if let Ok(idle) = inner.arg(0).parse::<u32>() {
                    backend.policy.insert("connections", json!({"idleMax": idle}));
                }
            }
            name if PASSED_OVER.contains(&name) => {}
            _ => untranslated(plan, inner),
        }
    }
    plan.backends.insert(name, backend);
}

/// `server ADDRESS[:PORT] [weight=N] [max_fails=N] [max_conns=N] [backup] [down]`.
fn endpoint(plan: &mut Plan, backend: &mut Backend, directive: &Directive) {
    if directive.arg(0).starts_with("unix:") {
        return untranslated(plan, directive);
    }
    let address = with_port(directive.arg(0), 80);
    let mut endpoint = Endpoint { address, weight: None, backup: false };
    for option in directive.args().iter().skip(1) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("weight", value) => endpoint.weight = value.parse().ok(),
            ("backup", _) => endpoint.backup = true,
            ("down", _) => endpoint.weight = Some(0),
            ("max_conns", value) => {
                if let Ok(max) = value.parse::<u32>() {
                    backend.policy.insert("connections", json!({"max": max}));
                }
            }
            // The gateway leaves out what fails by itself, sooner.
            ("max_fails" | "fail_timeout" | "resolve", _) => {}
            _ => plan.note(&directive.path, directive.line, format!("`{option}` of an endpoint is not translated")),
        }
    }
    backend.endpoints.push(endpoint);
}

/// An address with a port.
fn with_port(address: &str, port: u16) -> String {
    let bare = address.rsplit_once(':').is_none_or(|(_, last)| last.ends_with(']') || last.parse::<u16>().is_err());
    if bare { format!("{address}:{port}") } else { address.to_owned() }
}

/// The port that a `listen` names.
fn listen_port(text: &str) -> Option<u16> {
    let last = text.rsplit(':').next().unwrap_or(text);
    match last.parse() {
        Ok(port) => Some(port),
        // An address alone, or [::]: port 80.
        Err(_) => (!text.starts_with("unix:")).then_some(80),
    }
}

fn server(world: &mut World, scope: &Scope, directive: &Directive) {
    let block = &directive.block;
    let scope = scope.within(block);
    let names: Vec<String> =
        block.iter().filter(|it| it.name() == "server_name").flat_map(|it| it.args().to_vec()).collect();
    let mut hostnames = Vec::new();
    for name in &names {
        match name.as_str() {
            "_" | "" => {}
            it if it.starts_with('~') || it.ends_with(".*") => {
                world.plan.note(
                    &directive.path,
                    directive.line,
                    format!("server_name `{it}`: write its hosts one by one"),
                );
            }
            // `.example.com` is the name and everything below it.
            it => match it.strip_prefix('.') {
                Some(rest) => hostnames.extend([rest.to_lowercase(), format!("*.{}", rest.to_lowercase())]),
                None => hostnames.push(it.to_lowercase()),
            },
        }
    }
    let default = block.iter().any(|it| it.name() == "listen" && it.args().iter().any(|it| it == "default_server"));
    if default {
        hostnames.clear();
    }
    let listeners = listeners(world, directive, &scope, &hostnames);
    let rules = location::rules(world, &scope, block);
    let name = format!("{}-{}", name_of(hostnames.first().map_or("default", String::as_str)), directive.line);
    world.plan.routes.push(Route { name, listeners, hostnames, rules, tcp: false });
}

/// The listeners of a server: one for each port, and for each host where there is TLS.
fn listeners(world: &mut World, server: &Directive, scope: &Scope, hostnames: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let listens: Vec<&Directive> = server.block.iter().filter(|it| it.name() == "listen").collect();
    if listens.is_empty() {
        found.push(world.plan.listener(80, Kind::Http, None, None));
    }
    for listen in listens {
        let Some(port) = listen_port(listen.arg(0)) else {
            untranslated(&mut world.plan, listen);
            continue;
        };
        if listen.args().iter().any(|it| it == "proxy_protocol") {
            world.plan.gateway_policy.insert("proxyProtocol", json!({"accept": true}));
        }
        if !listen.args().iter().any(|it| it == "ssl") {
            found.push(world.plan.listener(port, Kind::Http, None, None));
            continue;
        }
        let files = (scope.last("ssl_certificate").cloned(), scope.last("ssl_certificate_key").cloned());
        let (Some(chain), Some(key)) = files else {
            world.plan.note(&listen.path, listen.line, "`listen ... ssl` without ssl_certificate is left out");
            continue;
        };
        let file = |directive: &Directive| plan::beside(&directive.path, directive.arg(0));
        let certificate = world.plan.certificate(&chain.path, chain.line, &file(&chain), &file(&key));
        let hosts =
            if hostnames.is_empty() { vec![None] } else { hostnames.iter().map(|it| Some(it.as_str())).collect() };
        for host in hosts {
            found.push(world.plan.listener(port, Kind::Https, host, Some(certificate.clone())));
        }
    }
    found.dedup();
    found
}

/// `stream { upstream ...; server { listen PORT; proxy_pass NAME; } }`.
fn stream(world: &mut World, block: &[Directive]) {
    for directive in block.iter().filter(|it| it.name() == "upstream") {
        upstream(&mut world.plan, directive, Some("tcp"));
    }
    for directive in block.iter().filter(|it| it.name() != "upstream") {
        if directive.name() != "server" {
            if !PASSED_OVER.contains(&directive.name()) {
                untranslated(&mut world.plan, directive);
            }
            continue;
        }
        let of = |name: &str| directive.block.iter().find(|it| it.name() == name);
        let port =
            of("listen").filter(|it| !it.args().iter().any(|it| it == "udp")).and_then(|it| listen_port(it.arg(0)));
        let (Some(port), Some(pass)) = (port, of("proxy_pass")) else {
            untranslated(&mut world.plan, directive);
            continue;
        };
        let backend = backend_of(&mut world.plan, pass.arg(0), Some("tcp"));
        let listeners = vec![world.plan.listener(port, Kind::Tcp, None, None)];
        let rules = vec![Rule { backend: Some(backend), ..Rule::default() }];
        let name = format!("tcp-{port}");
        world.plan.routes.push(Route { name, listeners, rules, tcp: true, hostnames: Vec::new() });
        let known = ["listen", "proxy_pass", "proxy_connect_timeout", "proxy_timeout"];
        for inner in directive.block.iter().filter(|it| !known.contains(&it.name())) {
            untranslated(&mut world.plan, inner);
        }
    }
}

/// The backend of an upstream's name, or of an address.
fn backend_of(plan: &mut Plan, target: &str, protocol: Option<&'static str>) -> String {
    let name = name_of(target);
    if !plan.backends.contains_key(&name) {
        let port = if protocol == Some("https") { 443 } else { 80 };
        let endpoint = Endpoint { address: with_port(target, port), weight: None, backup: false };
        plan.backends.insert(name.clone(), Backend { endpoints: vec![endpoint], protocol, ..Backend::default() });
    }
    name
}
