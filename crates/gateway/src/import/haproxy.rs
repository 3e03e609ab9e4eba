//! haproxy.cfg: `defaults`, `frontend`, `backend`, `listen`.

mod acl;
mod sections;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::plan::{self, Backend, Endpoint, Kind, Plan, Route, Rule, milliseconds, name_of, span};
use crate::import::words::Worded as _;
use acl::Acls;
use sections::{Line, Section, sections};

/// Directives that say nothing about routing, or what the gateway does anyway.
const PASSED_OVER: &[&str] = &[
    "log",
    "mode",
    "maxconn",
    "description",
    "errorfile",
    "fullconn",
    "http-reuse",
    "id",
    "load-server-state-from-file",
    "monitor-uri",
    "no",
    "rate-limit",
    "source",
    "stats",
    "unique-id-format",
    "unique-id-header",
    "capture",
    "compression",
    "tcp-check",
    "use-server",
    "hash-type",
    "email-alert",
    "balance",
    "acl",
    "bind",
    "timeout",
    "server",
    "default_backend",
    "use_backend",
    "retries",
    "cookie",
    "http-check",
    "default-server",
    "stick-table",
    "http-request",
    "http-response",
    "redirect",
    "retry-on",
    "option",
    "stick",
    "server-template",
    "dynamic-cookie-key",
];

/// `option`s that the gateway does by itself, or that mean nothing to it.
const OWN_OPTIONS: &[&str] = &[
    "httplog",
    "tcplog",
    "dontlognull",
    "dontlog-normal",
    "forwardfor",
    "http-server-close",
    "http-keep-alive",
    "redispatch",
    "abortonclose",
    "clitcpka",
    "srvtcpka",
    "tcpka",
    "log-health-checks",
    "splice-auto",
    "prefer-last-server",
    "contstats",
    "originalto",
    "socket-stats",
    "logasap",
    "log-separate-errors",
    "http-use-htx",
    "tcp-smart-accept",
    "tcp-smart-connect",
];

/// Whether a text is of this language.
pub(super) fn is(text: &str) -> bool {
    let first = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    text.lines().any(|line| {
        matches!(first(line).as_str(), "frontend" | "backend" | "listen" | "defaults") && !line.contains('{')
    })
}

/// Translates a configuration.
pub(super) fn plan(path: &Path, text: &str) -> Plan {
    let mut plan = Plan::default();
    let all = sections(path, text);
    for section in all.iter().filter(|it| matches!(it.kind.as_str(), "backend" | "listen")) {
        backend(&mut plan, section);
    }
    for section in &all {
        match section.kind.as_str() {
            "frontend" | "listen" => frontend(&mut plan, section, &all),
            "global" | "defaults" | "backend" => {}
            _ => plan.note(path, section.line, format!("section `{}` is not translated", section.kind)),
        }
    }
    plan
}

fn untranslated(plan: &mut Plan, line: &Line) {
    let shown: Vec<&str> = line.words.iter().take(4).map(String::as_str).collect();
    plan.note(&line.path, line.number, format!("`{}` is not translated", shown.join(" ")));
}

fn tcp(section: &Section) -> bool {
    section.last("mode").is_some_and(|it| it.arg(0) == "tcp")
}

/// The active check of a backend: asked for by any of its servers.
#[derive(Debug)]
struct Check {
    wanted: bool,
    settings: Value,
}

impl Default for Check {
    fn default() -> Self {
        Self { wanted: false, settings: json!({}) }
    }
}

impl Check {
    /// Takes in a word about the check's times.
    fn take(&mut self, word: &str, value: &str) {
        let number = value.parse::<u32>().ok().map(|it| json!(it));
        let (field, found) = match word {
            "inter" => ("interval", milliseconds(value, 1).map(|ms| json!(span(ms)))),
            "rise" | "fall" | "port" => (word, number),
            _ => return,
        };
        if let Some(found) = found {
            self.settings[field] = found;
        }
    }
}

/// The endpoints of a `backend` or `listen` section, and how they are used.
fn backend(plan: &mut Plan, section: &Section) {
    let mut backend = Backend { protocol: tcp(section).then_some("tcp"), ..Backend::default() };
    let mut check = Check::default();
    for line in section.own("server") {
        server(plan, section, line, &mut backend, &mut check);
    }
    if backend.endpoints.is_empty() && section.kind == "listen" {
        return;
    }
    if check.wanted {
        let mut check = check.settings;
        match section.last_option("httpchk") {
            Some(line) => {
                // `option httpchk [METHOD] [PATH]`, or `http-check send ... uri PATH`.
                let sent = section.last("http-check").filter(|it| it.arg(0) == "send");
                let after = |line: &Line, word: &str| {
                    let at = line.args().iter().position(|it| it == word)?;
                    line.args().get(at + 1).cloned()
                };
                let uri = sent.and_then(|it| after(it, "uri"));
                let path = uri.or_else(|| line.args().iter().skip(1).find(|it| it.starts_with('/')).cloned());
                let mut http = json!({"path": path.unwrap_or_else(|| "/".to_owned())});
                if let Some(status) =
                    section.last("http-check").filter(|it| it.arg(0) == "expect" && it.arg(1) == "status")
                {
                    http["statuses"] = json!(status.arg(2).parse::<u16>().ok().into_iter().collect::<Vec<_>>());
                }
                check["http"] = http;
            }
            None => check["tcp"] = json!({}),
        }
        backend.policy.insert("healthCheck", check);
    }
    if let Some(balance) = balance(plan, section) {
        backend.policy.insert("loadBalancer", balance);
    }
    for line in section.lines.iter().filter(|it| !PASSED_OVER.contains(&it.name())) {
        untranslated(plan, line);
    }
    plan.backends.insert(name_of(&section.name), backend);
}

/// `server NAME ADDRESS[:PORT] [check] [inter T] [rise N] [fall N] [weight N] [backup] [disabled] [maxconn N] [ssl] [verify none]`.
fn server(plan: &mut Plan, section: &Section, line: &Line, backend: &mut Backend, check: &mut Check) {
    let mut endpoint = Endpoint { address: line.arg(1).to_owned(), weight: None, backup: false };
    if !endpoint.address.contains(':') {
        endpoint.address.push_str(":80");
    }
    let defaults = section.last("default-server").map(|it| it.args().to_vec()).unwrap_or_default();
    let mut words = defaults.iter().chain(line.args().iter().skip(2));
    while let Some(word) = words.next() {
        let mut value = || words.next().cloned().unwrap_or_default();
        match word.as_str() {
            "check" => check.wanted = true,
            "inter" | "fastinter" | "downinter" | "rise" | "fall" | "port" => check.take(word, &value()),
            "weight" => endpoint.weight = value().parse().ok(),
            "backup" => endpoint.backup = true,
            "disabled" => endpoint.weight = Some(0),
            "maxconn" => {
                if let Ok(max) = value().parse::<u32>() {
                    backend.policy.insert("connections", json!({"max": max}));
                }
            }
            "slowstart" => {
                if let Some(ms) = milliseconds(&value(), 1) {
                    backend.policy.insert("loadBalancer", json!({"slowStart": span(ms)}));
                }
            }
            "ssl" => {
                backend.protocol = Some(if backend.protocol == Some("h2c") { "h2" } else { "https" });
                let held = backend.tls.get_or_insert_with(|| json!({}));
                if held.get("hostname").is_none()
                    && !endpoint.address.starts_with(|it: char| it.is_ascii_digit() || it == '[')
                {
                    held["hostname"] = json!(endpoint.address.split(':').next());
                }
            }
            "sni" => {
                if let Some(host) = value().strip_prefix("str(").and_then(|it| it.strip_suffix(')')) {
                    backend.tls.get_or_insert_with(|| json!({}))["hostname"] = json!(host);
                }
            }
            "verify" => {
                if value() == "none" {
                    backend.tls.get_or_insert_with(|| json!({}))["insecureSkipVerify"] = json!(true);
                }
            }
            "proto" | "alpn" => {
                if value().starts_with("h2") {
                    backend.protocol = Some(if backend.protocol == Some("https") { "h2" } else { "h2c" });
                }
            }
            "send-proxy" => drop(backend.policy.insert("proxyProtocol", json!({"send": 1}))),
            "send-proxy-v2" => drop(backend.policy.insert("proxyProtocol", json!({"send": 2}))),
            "cookie" | "maxqueue" | "minconn" | "observe" | "error-limit" | "on-error" | "on-marked-down"
            | "init-addr" | "resolvers" | "resolve-prefer" | "pool-max-conn" | "pool-purge-delay" | "check-sni"
            | "id" => drop(value()),
            "check-ssl" | "no-check" | "enabled" | "tfo" | "non-stick" => {}
            other => plan.note(&line.path, line.number, format!("`{other}` of a server is not translated")),
        }
    }
    backend.endpoints.push(endpoint);
}

fn balance(plan: &mut Plan, section: &Section) -> Option<Value> {
    let line = section.last("balance")?;
    let argument = |text: &str| text.split_once('(').map(|(_, rest)| rest.trim_end_matches(')').to_owned());
    Some(match line.arg(0) {
        "leastconn" => json!({"algorithm": "LeastRequest"}),
        "source" => json!({"algorithm": "SourceHash"}),
        "uri" => json!({"algorithm": "RingHash", "hashOn": ["path"]}),
        "url_param" => json!({"algorithm": "RingHash", "hashOn": [{"query": line.arg(1)}]}),
        "roundrobin" | "static-rr" => return None,
        name if name.starts_with("hdr(") => {
            json!({"algorithm": "RingHash", "hashOn": [{"header": argument(name)?}]})
        }
        name if name.starts_with("random") => json!({"algorithm": "Random"}),
        _ => {
            untranslated(plan, line);
            return None;
        }
    })
}

/// Sections of the policy of what a frontend hands on, from the frontend and the backend.
fn policy(plan: &mut Plan, front: &Section, back: &Section) -> BTreeMap<&'static str, Value> {
    let mut policy = BTreeMap::new();
    let time = |section: &Section, name: &str| {
        let line = section.lines_and_defaults().filter(|it| it.name() == "timeout" && it.arg(0) == name).last()?;
        milliseconds(line.arg(1), 1).filter(|it| *it > 0).map(span)
    };
    let mut timeouts = json!({});
    for (field, found) in [
        ("connect", time(back, "connect")),
        ("request", time(back, "server")),
        ("streamIdle", time(back, "server")),
        ("tunnelIdle", time(back, "tunnel")),
    ] {
        if let Some(found) = found {
            timeouts[field] = json!(found);
        }
    }
    if timeouts != json!({}) {
        policy.insert("timeouts", timeouts);
    }
    let mut retry = json!({});
    if let Some(attempts) = back.last("retries").and_then(|it| it.arg(0).parse::<u8>().ok()) {
        retry["attempts"] = json!(attempts);
    }
    if let Some(on) = back.last("retry-on") {
        let statuses: Vec<u16> = on.args().iter().filter_map(|it| it.parse().ok()).collect();
        if !statuses.is_empty() {
            retry["statuses"] = json!(statuses);
        }
    }
    if retry != json!({}) {
        policy.insert("retry", retry);
    }
    let limits: Vec<Value> = [front, back].into_iter().filter_map(|it| rate_limit(plan, it)).collect();
    if !limits.is_empty() && front.name != back.name {
        policy.insert("rateLimits", json!(limits));
    } else if let Some(first) = limits.into_iter().next() {
        policy.insert("rateLimits", json!([first]));
    }
    policy
}

/// `stick-table type ip ... store http_req_rate(T)`, `http-request track-sc0 src`, `http-request deny if { sc_http_req_rate(0) gt N }`.
fn rate_limit(plan: &mut Plan, section: &Section) -> Option<Value> {
    let table = section.own("stick-table").last()?;
    let period = table.args().iter().find_map(|it| it.split("http_req_rate(").nth(1)?.split(')').next());
    let period = period.and_then(|it| milliseconds(it, 1));
    let rules: Vec<&Line> = section.own("http-request").collect();
    let by_client = rules.iter().any(|it| it.arg(0).starts_with("track-sc") && it.arg(1) == "src");
    let deny =
        rules.iter().find(|it| it.arg(0) == "deny" && it.words.iter().any(|word| word.contains("http_req_rate")));
    let count = deny.and_then(|it| {
        let at = it.words.iter().position(|word| word == "gt" || word == "ge")?;
        it.words.get(at + 1)?.parse::<u64>().ok()
    });
    match (period, count, by_client) {
        (Some(period), Some(requests), true) => Some(json!({
            "name": name_of(&section.name),
            "algorithm": "SlidingWindow",
            "requests": requests,
            "period": span(period),
            "key": ["client"],
        })),
        _ => {
            untranslated(plan, table);
            None
        }
    }
}

fn frontend(plan: &mut Plan, section: &Section, all: &[Section]) {
    let stream = tcp(section);
    let listeners = listeners(plan, section, stream);
    let named = |name: &str| all.iter().find(|it| matches!(it.kind.as_str(), "backend" | "listen") && it.name == name);
    let own = section.own("server").next().is_some();
    let default = section.last("default_backend").map(|it| it.arg(0).to_owned()).or(own.then(|| section.name.clone()));
    let name = name_of(&section.name);
    if stream {
        let rules = vec![Rule { backend: default.map(|it| name_of(&it)), ..Rule::default() }];
        for line in section.own("use_backend") {
            untranslated(plan, line);
        }
        plan.routes.push(Route { name, listeners, rules, tcp: true, hostnames: Vec::new() });
        return;
    }
    let acls = Acls::of(plan, section);
    let mut rules = Vec::new();
    redirects(plan, section, &acls, &mut rules);
    let filters = filters(plan, section);
    let mut lead = |plan: &mut Plan, target: &str, matches: Vec<Value>, line: Option<&Line>| match named(target) {
        Some(back) => {
            let mut rule = Rule { matches, backend: Some(name_of(target)), ..Rule::default() };
            rule.filters.clone_from(&filters);
            if back.name != section.name {
                rule.filters.extend(self::filters(plan, back));
            }
            rule.policy = policy(plan, section, back);
            rule.session = session(plan, back);
            rules.push(rule);
        }
        None => match line {
            Some(line) => untranslated(plan, line),
            None => plan.note(&section.path, section.line, format!("there is no backend `{target}`")),
        },
    };
    if let Some(second) = section.own("use_backend").nth(1) {
        let message = "of several rules that fit, the one with the more exact match wins, not the first: look whether they overlap";
        plan.note(&second.path, second.number, message);
    }
    for line in section.own("use_backend") {
        match acls.matches(line.words.get(2..).unwrap_or_default()) {
            Some(matches) => lead(plan, line.arg(0), matches, Some(line)),
            None => untranslated(plan, line),
        }
    }
    if let Some(default) = default {
        lead(plan, &default, Vec::new(), None);
    }
    for line in section.lines.iter().filter(|it| it.name() == "option" && !OWN_OPTIONS.contains(&it.arg(0))) {
        if line.arg(0) != "httpchk" {
            untranslated(plan, line);
        }
    }
    for line in section.lines.iter().filter(|it| !PASSED_OVER.contains(&it.name())) {
        untranslated(plan, line);
    }
    client_times(plan, section);
    // The hosts of the rules are in their matches: merged filters would lose them.
    plan.routes.extend(by_host(&name, &listeners, rules));
}

/// Rules as routes: those that name a host in one route for each host, in front of those for every host.
fn by_host(name: &str, listeners: &[String], rules: Vec<Rule>) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for rule in rules {
        let mut by_host: BTreeMap<Vec<String>, Vec<Value>> = BTreeMap::new();
        if rule.matches.is_empty() {
            by_host.insert(Vec::new(), Vec::new());
        }
        for mut found in rule.matches.clone() {
            let hosts = found.as_object_mut().and_then(|it| it.remove(acl::HOSTS));
            let hosts: Vec<String> = hosts.and_then(|it| serde_json::from_value(it).ok()).unwrap_or_default();
            let list = by_host.entry(hosts).or_default();
            if found != json!({}) {
                list.push(found);
            }
        }
        for (hostnames, matches) in by_host {
            let rule = Rule { matches, ..rule.clone() };
            match routes.iter_mut().find(|it| it.hostnames == hostnames) {
                Some(route) => route.rules.push(rule),
                None => {
                    let name =
                        hostnames.first().map_or_else(|| name.to_owned(), |it| format!("{name}-{}", name_of(it)));
                    let listeners = listeners.to_vec();
                    routes.push(Route { name, listeners, hostnames, rules: vec![rule], tcp: false });
                }
            }
        }
    }
    routes
}

/// `bind ADDRESS:PORT[,...] [ssl crt FILE]`.
fn listeners(plan: &mut Plan, section: &Section, stream: bool) -> Vec<String> {
    let mut found = Vec::new();
    for line in section.own("bind") {
        let certificate = line.args().iter().position(|it| it == "crt").and_then(|at| line.args().get(at + 1));
        let ssl = line.args().iter().any(|it| it == "ssl");
        if line.args().iter().any(|it| it == "accept-proxy") {
            plan.gateway_policy.insert("proxyProtocol", json!({"accept": true}));
        }
        for address in line.arg(0).split(',') {
            let Some(port) = address.rsplit(':').next().and_then(|it| it.parse::<u16>().ok()) else {
                untranslated(plan, line);
                continue;
            };
            let (kind, certificate) = match (ssl, stream, certificate) {
                (false, true, _) => (Kind::Tcp, None),
                (false, false, _) => (Kind::Http, None),
                (true, false, Some(file)) => {
                    let file = plan::beside(&line.path, file);
                    (Kind::Https, Some(plan.certificate(&line.path, line.number, &file, &file)))
                }
                (true, ..) => {
                    untranslated(plan, line);
                    continue;
                }
            };
            found.push(plan.listener(port, kind, None, certificate));
        }
    }
    found.dedup();
    found
}

fn client_times(plan: &mut Plan, section: &Section) {
    let times = [("clientIdle", "http-keep-alive"), ("clientIdle", "client"), ("clientHeader", "http-request")];
    for (field, name) in times {
        let line = section.lines_and_defaults().filter(|it| it.name() == "timeout" && it.arg(0) == name).last();
        if let Some(ms) = line.and_then(|it| milliseconds(it.arg(1), 1)).filter(|it| *it > 0) {
            let timeouts = plan.gateway_policy.entry("timeouts").or_insert_with(|| json!({}));
            if timeouts.get(field).is_none() {
                timeouts[field] = json!(span(ms));
            }
        }
    }
}

/// `cookie NAME insert`: sessions that stay with an endpoint.
fn session(plan: &mut Plan, section: &Section) -> Option<Value> {
    let line = section.last("cookie")?;
    if line.args().iter().any(|it| it == "rewrite" || it == "prefix") {
        untranslated(plan, line);
        return None;
    }
    Some(json!({"sessionName": line.arg(0), "type": "Cookie"}))
}

/// `http-request redirect`, `redirect`: rules of their own, before all others.
fn redirects(plan: &mut Plan, section: &Section, acls: &Acls, rules: &mut Vec<Rule>) {
    for line in section
        .lines
        .iter()
        .filter(|it| it.name() == "redirect" || (it.name() == "http-request" && it.arg(0) == "redirect"))
    {
        let words: Vec<&str> =
            line.words.iter().map(String::as_str).filter(|it| *it != "http-request" && *it != "redirect").collect();
        let after = |word: &str| words.iter().position(|it| *it == word).and_then(|at| words.get(at + 1)).copied();
        let condition = words
            .iter()
            .position(|it| matches!(*it, "if" | "unless"))
            .map(|at| &line.words[line.words.len() - (words.len() - at)..]);
        let not_tls = ["if !{ ssl_fc }", "unless { ssl_fc }"];
        let plain = condition.is_some_and(|it| not_tls.contains(&it.join(" ").as_str()));
        let matches = match condition {
            None => Some(Vec::new()),
            Some(_) if plain => Some(Vec::new()),
            Some(condition) => acls.matches(condition),
        };
        let mut redirect = json!({"statusCode": after("code").and_then(|it| it.parse::<u16>().ok()).unwrap_or(302)});
        let target = (after("scheme"), after("location"), after("prefix"));
        match target {
            (Some(scheme), None, None) => redirect["scheme"] = json!(scheme),
            (None, Some(location), None) | (None, None, Some(location)) if !location.contains('%') => {
                let (scheme, rest) = location.split_once("://").unwrap_or(("", location));
                let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
                if !scheme.is_empty() {
                    redirect["scheme"] = json!(scheme);
                    redirect["hostname"] = json!(host);
                }
                if !path.is_empty() && target.1.is_some() {
                    redirect["path"] = json!({"type": "ReplaceFullPath", "replaceFullPath": path});
                }
            }
            _ => {
                untranslated(plan, line);
                continue;
            }
        }
        let Some(matches) = matches else {
            untranslated(plan, line);
            continue;
        };
        if plain && section.own("bind").any(|it| it.args().iter().any(|it| it == "ssl")) {
            plan.note(&line.path, line.number, "the redirect to https belongs to the plain listener alone: a route of its own, attached by sectionName, does that");
            continue;
        }
        rules.push(Rule {
            matches,
            filters: vec![json!({"type": "RequestRedirect", "requestRedirect": redirect})],
            ..Rule::default()
        });
    }
}

/// `http-request` and `http-response` rules without a condition, as filters.
fn filters(plan: &mut Plan, section: &Section) -> Vec<Value> {
    let mut filters = Vec::new();
    for (name, kind, field) in [
        ("http-request", "RequestHeaderModifier", "requestHeaderModifier"),
        ("http-response", "ResponseHeaderModifier", "responseHeaderModifier"),
    ] {
        let mut change: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for line in section.own(name) {
            let plain = !line.words.iter().any(|it| it.contains('%') || it == "if" || it == "unless");
            let pair = || json!({"name": line.arg(1), "value": line.arg(2)});
            match line.arg(0) {
                "set-header" if plain => change.entry("set").or_default().push(pair()),
                "add-header" if plain => change.entry("add").or_default().push(pair()),
                "del-header" if plain => change.entry("remove").or_default().push(json!(line.arg(1))),
                // Said by the gateway already.
                "set-header" if line.arg(1).to_ascii_lowercase().starts_with("x-forwarded-") => {}
                "redirect" => {}
                word if word.starts_with("track-sc") => {}
                "deny" if line.words.iter().any(|it| it.contains("http_req_rate")) => {}
                _ => untranslated(plan, line),
            }
        }
        if !change.is_empty() {
            filters.push(json!({"type": kind, field: change}));
        }
    }
    filters
}
