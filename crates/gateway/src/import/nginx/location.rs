//! `location` blocks as rules.

use std::path::Path;

use serde_json::{Value, json};

use super::parse::Directive;
use super::{PASSED_OVER, Scope, World, backend_of, untranslated};
use crate::import::plan::{self, Plan, Rule, bytes, milliseconds, name_of, span, whole};
use crate::import::words::Worded as _;

/// Directives that a location takes over from the blocks around it.
const INHERITED: &[&str] = &[
    "add_header",
    "allow",
    "auth_basic",
    "auth_basic_user_file",
    "client_body_timeout",
    "client_header_timeout",
    "client_max_body_size",
    "deny",
    "gzip",
    "gzip_comp_level",
    "gzip_min_length",
    "gzip_types",
    "limit_conn",
    "limit_req",
    "proxy_connect_timeout",
    "proxy_hide_header",
    "proxy_next_upstream",
    "proxy_next_upstream_tries",
    "proxy_read_timeout",
    "proxy_send_timeout",
    "proxy_set_header",
    "proxy_ssl_server_name",
    "proxy_ssl_verify",
    "proxy_ssl_name",
];

/// Headers that the gateway sets itself.
const OWN_HEADERS: &[&str] = &[
    "host",
    "connection",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "accept-encoding",
    "te",
];

/// Whether a directive is looked at where it is needed.
pub(super) fn inherited(name: &str) -> bool {
    INHERITED.contains(&name)
}

/// The rules of a server: one for each location, one for what the server answers itself.
pub(super) fn rules(world: &mut World, scope: &Scope, block: &[Directive]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for directive in block {
        match directive.name() {
            "location" => location(world, scope, directive, &mut rules),
            "return" | "rewrite" => {
                let mut rule = Rule { matches: vec![prefix("/")], ..Rule::default() };
                if answer(&mut world.plan, directive, &mut rule) {
                    rules.push(rule);
                }
            }
            name if PASSED_OVER.contains(&name) || inherited(name) => {}
            _ => untranslated(&mut world.plan, directive),
        }
    }
    rules
}

fn prefix(path: &str) -> Value {
    json!({"path": {"type": "PathPrefix", "value": path}})
}

fn location(world: &mut World, scope: &Scope, directive: &Directive, rules: &mut Vec<Rule>) {
    let (kind, path) = match directive.args() {
        [path] if path.starts_with('@') => return untranslated(&mut world.plan, directive),
        [path] => ("", path.as_str()),
        [kind, path] => (kind.as_str(), path.as_str()),
        _ => return untranslated(&mut world.plan, directive),
    };
    let (of_path, whole_prefix) = match kind {
        "=" => (json!({"path": {"type": "Exact", "value": path}}), None),
        "~" | "~*" => {
            let pattern = whole(path, kind == "~*");
            (json!({"path": {"type": "RegularExpression", "value": pattern}}), None)
        }
        _ => {
            let shorter = if path.len() > 1 { path.trim_end_matches('/') } else { path };
            (prefix(shorter), Some(path))
        }
    };
    if kind != "=" && kind != "~" && kind != "~*" && !path.ends_with('/') {
        let message = format!("`location {path}` also matched {path}x; a PathPrefix ends with a whole segment");
        world.plan.note(&directive.path, directive.line, message);
    }
    let mut rule = Rule { matches: vec![of_path], ..Rule::default() };
    let mut leads = false;
    for inner in &directive.block {
        match inner.name() {
            "proxy_pass" | "grpc_pass" => leads |= pass(world, inner, whole_prefix, &mut rule),
            "return" => leads |= answer(&mut world.plan, inner, &mut rule),
            "location" => {
                let scope = scope.within(&directive.block);
                location(world, &scope, inner, rules);
            }
            name if PASSED_OVER.contains(&name) || inherited(name) => {}
            _ => untranslated(&mut world.plan, inner),
        }
    }
    if !leads {
        let message = format!("`location {path}` leads to no backend and is left out");
        return world.plan.note(&directive.path, directive.line, message);
    }
    headers(&mut world.plan, scope, &directive.block, &mut rule);
    policies(world, scope, &directive.block, &mut rule);
    rules.push(rule);
}

/// `proxy_pass http://UPSTREAM[/path]`.
fn pass(world: &mut World, directive: &Directive, location: Option<&str>, rule: &mut Rule) -> bool {
    let target = directive.arg(0);
    let (scheme, rest) = target.split_once("://").unwrap_or(("http", target));
    if rest.contains('$') || rest.starts_with("unix:") {
        untranslated(&mut world.plan, directive);
        return false;
    }
    let (authority, path) = rest.find('/').map_or((rest, None), |at| (&rest[..at], Some(&rest[at..])));
    let protocol = match (scheme, directive.name()) {
        ("https", _) => Some("https"),
        ("grpcs", _) => Some("h2"),
        (_, "grpc_pass") => Some("h2c"),
        _ => None,
    };
    let known = world.plan.backends.contains_key(&name_of(authority));
    let backend = backend_of(&mut world.plan, authority, protocol);
    if let Some(held) = world.plan.backends.get_mut(&backend) {
        held.protocol = protocol.or(held.protocol);
        if matches!(held.protocol, Some("https" | "h2")) && held.tls.is_none() {
            // nginx does not verify unless told to.
            held.tls = Some(json!({"insecureSkipVerify": true}));
        }
    }
    rule.backend = Some(backend);
    let mut rewrite = json!({});
    if !known && authority.parse::<std::net::SocketAddr>().is_err() && authority.parse::<std::net::IpAddr>().is_err() {
        // nginx asks a server by its own name.
        rewrite["hostname"] = json!(authority.split(':').next().unwrap_or(authority));
    }
    match (path, location) {
        (Some(path), Some(location)) if path != location => {
            let replaced = if path.len() > 1 { path.trim_end_matches('/') } else { path };
            rewrite["path"] = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": replaced});
        }
        (Some(path), None) => rewrite["path"] = json!({"type": "ReplaceFullPath", "replaceFullPath": path}),
        _ => {}
    }
    if rewrite != json!({}) {
        rule.filters.push(json!({"type": "URLRewrite", "urlRewrite": rewrite}));
    }
    true
}

/// `return 301 https://$host$request_uri`, or another URL; whether it was translated.
fn answer(plan: &mut Plan, directive: &Directive, rule: &mut Rule) -> bool {
    let (status, target) = match directive.args() {
        [status, target] => (status.as_str(), target.as_str()),
        [target] if target.contains("://") => ("302", target.as_str()),
        _ => ("", ""),
    };
    let redirects = matches!(status, "301" | "302" | "303" | "307" | "308");
    if directive.name() != "return" || !redirects {
        untranslated(plan, directive);
        return false;
    }
    let mut redirect = json!({"statusCode": status.parse::<u16>().unwrap_or(302)});
    let (scheme, rest) = target.split_once("://").unwrap_or(("", target));
    if !scheme.is_empty() && scheme != "$scheme" {
        redirect["scheme"] = json!(scheme);
    }
    let at = rest.find(['/', '$']).filter(|_| !rest.starts_with('$')).unwrap_or(0);
    let (host, mut path) = rest.split_at(at);
    if host.is_empty() {
        path = ["$host", "$http_host", "$server_name"].iter().find_map(|it| path.strip_prefix(it)).unwrap_or(path);
    } else {
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        redirect["hostname"] = json!(name);
        if let Ok(port) = port.parse::<u16>() {
            redirect["port"] = json!(port);
        }
    }
    match path {
        "" | "$request_uri" | "$uri" | "$uri$is_args$args" => {}
        path if path.contains('$') => {
            untranslated(plan, directive);
            return false;
        }
        path => redirect["path"] = json!({"type": "ReplaceFullPath", "replaceFullPath": path}),
    }
    rule.filters.push(json!({"type": "RequestRedirect", "requestRedirect": redirect}));
    true
}

fn headers(plan: &mut Plan, scope: &Scope, own: &[Directive], rule: &mut Rule) {
    let (mut set, mut remove, mut add, mut hidden) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut rewritten = None;
    for directive in scope.all(own, "proxy_set_header") {
        let (name, value) = (directive.arg(0).to_ascii_lowercase(), directive.arg(1));
        match (name.as_str(), value) {
            ("host", value) if !value.contains('$') => rewritten = Some(value.to_owned()),
            (name, _) if OWN_HEADERS.contains(&name) => {}
            (name, "") => remove.push(name.to_owned()),
            // The same as the first of X-Forwarded-For, which the gateway sets.
            ("x-real-ip", _) => plan.note(
                &directive.path,
                directive.line,
                "X-Real-IP is not set; the client's address is in X-Forwarded-For and Forwarded",
            ),
            (_, value) if value.contains('$') => untranslated(plan, directive),
            (_, value) => set.push(json!({"name": name, "value": value})),
        }
    }
    if let Some(host) = rewritten
        && rule.filters.iter().all(|it| it["type"] != "URLRewrite")
    {
        rule.filters.push(json!({"type": "URLRewrite", "urlRewrite": {"hostname": host}}));
    }
    for directive in scope.all(own, "add_header") {
        if directive.arg(1).contains('$') {
            untranslated(plan, directive);
        } else {
            add.push(json!({"name": directive.arg(0), "value": directive.arg(1)}));
        }
    }
    hidden.extend(scope.all(own, "proxy_hide_header").iter().map(|it| it.arg(0).to_owned()));
    let mut modifier = |kind: &str, field: &str, change: Value| {
        let change: serde_json::Map<String, Value> = match change {
            Value::Object(map) => {
                map.into_iter().filter(|(_, it)| it.as_array().is_some_and(|it| !it.is_empty())).collect()
            }
            _ => return,
        };
        if !change.is_empty() {
            rule.filters.push(json!({"type": kind, field: change}));
        }
    };
    modifier("RequestHeaderModifier", "requestHeaderModifier", json!({"set": set, "remove": remove}));
    modifier("ResponseHeaderModifier", "responseHeaderModifier", json!({"add": add, "remove": hidden}));
}

/// Limits, time limits, retries, access: the rule's policy.
fn policies(world: &mut World, scope: &Scope, own: &[Directive], rule: &mut Rule) {
    let inner = scope.within(own);
    let first = |name: &str| inner.last(name).map(|it| it.arg(0).to_owned());
    let time = |name: &str| first(name).and_then(|it| milliseconds(&it, 1000)).map(span);
    let mut timeouts = json!({});
    for (field, found) in [
        ("connect", time("proxy_connect_timeout")),
        ("request", time("proxy_read_timeout")),
        ("streamIdle", time("proxy_read_timeout")),
    ] {
        if let Some(found) = found {
            timeouts[field] = json!(found);
        }
    }
    let mut section = |name: &'static str, value: Value| {
        if value != json!({}) && value != json!([]) {
            rule.policy.insert(name, value);
        }
    };
    section("timeouts", timeouts);
    section("retry", retry(&inner));
    let limits: Vec<Value> = scope.all(own, "limit_req").into_iter().filter_map(|it| limit(world, it)).collect();
    section("rateLimits", json!(limits));
    let mut access = json!({});
    if let Some(max) = first("client_max_body_size").and_then(|it| bytes(&it)).filter(|it| *it > 0) {
        access["bodyBytesMax"] = json!(max);
    }
    for (field, name) in [("allow", "allow"), ("deny", "deny")] {
        let networks = scope.all(own, name).into_iter().map(|it| it.arg(0).to_owned()).filter(|it| it != "all");
        let networks: Vec<String> = networks.collect();
        if !networks.is_empty() {
            access[field] = json!(networks);
        }
    }
    if scope.all(own, "deny").iter().any(|it| it.arg(0) == "all") {
        // Whoever is not allowed is denied anyway.
        if let Some(access) = access.as_object_mut() {
            access.remove("deny");
        }
    }
    section("access", access);
    if first("gzip").as_deref() == Some("on") {
        let mut compression = json!({"bytesMin": first("gzip_min_length").and_then(|it| bytes(&it)).unwrap_or(20)});
        let types: Vec<String> = inner.last("gzip_types").map(|it| it.args().to_vec()).unwrap_or_default();
        if !types.is_empty() && !types.iter().any(|it| it == "*") {
            compression["types"] = json!(types.into_iter().chain(["text/html".to_owned()]).collect::<Vec<_>>());
        }
        section("compression", compression);
    }
    if let (Some(realm), Some(file)) = (first("auth_basic"), inner.last("auth_basic_user_file"))
        && realm != "off"
    {
        let name = passwords(&mut world.plan, file);
        section("authentication", json!({"basic": {"realm": realm, "secretRef": {"name": name}}}));
    }
    for directive in scope.all(own, "limit_conn") {
        untranslated(&mut world.plan, directive);
    }
}

fn retry(scope: &Scope) -> Value {
    let mut retry = json!({});
    if let Some(next) = scope.last("proxy_next_upstream") {
        if next.args().iter().any(|it| it == "off") {
            return json!({"attempts": 0});
        }
        let statuses = next.args().iter().filter_map(|it| it.strip_prefix("http_")?.parse::<u16>().ok());
        retry["statuses"] = json!(statuses.collect::<Vec<_>>());
        if next.args().iter().any(|it| it == "non_idempotent") {
            retry["unsafeMethods"] = json!(true);
        }
    }
    let tries = scope.last("proxy_next_upstream_tries").and_then(|it| it.arg(0).parse::<u8>().ok());
    if let Some(tries) = tries.filter(|it| *it > 0) {
        retry["attempts"] = json!(tries - 1);
    }
    retry
}

/// `limit_req zone=NAME [burst=N] [nodelay]`.
fn limit(world: &mut World, directive: &Directive) -> Option<Value> {
    let option = |name: &str| directive.args().iter().find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
    let Some(zone) = option("zone").and_then(|it| world.zones.get(it)) else {
        untranslated(&mut world.plan, directive);
        return None;
    };
    let name = option("zone").unwrap_or_default();
    let burst: u64 = option("burst").and_then(|it| it.parse().ok()).unwrap_or(0);
    let mut limit = json!({"name": name_of(name), "requests": zone.requests, "period": zone.period, "key": zone.key});
    if burst == 0 || directive.args().iter().any(|it| it == "nodelay") {
        limit["algorithm"] = json!("TokenBucket");
        limit["burst"] = json!(burst + 1);
    } else {
        limit["algorithm"] = json!("LeakyBucket");
        limit["queue"] = json!(burst);
    }
    Some(limit)
}

/// A Secret of a password file; its name.
fn passwords(plan: &mut Plan, directive: &Directive) -> String {
    let file = plan::beside(&directive.path, directive.arg(0));
    let name = name_of(&file.file_name().unwrap_or_default().to_string_lossy());
    match std::fs::read_to_string(&file) {
        Ok(lines) => {
            let known = |line: &str| line.is_empty() || line.contains(":{SHA}") || line.contains(":{SHA256}");
            if !lines.lines().map(str::trim).all(known) {
                let message = "passwords must be {SHA} or {SHA256} (htpasswd -s); others never fit";
                plan.note(&directive.path, directive.line, message);
            }
            plan.passwords.insert(name.clone(), lines);
        }
        Err(_) => missing(plan, directive, &file, &name),
    }
    name
}

fn missing(plan: &mut Plan, directive: &Directive, file: &Path, name: &str) {
    let message = format!(
        "{} cannot be read here: make the Secret with `kubectl create secret generic {name} --from-file=auth={}`",
        file.display(),
        file.display()
    );
    plan.note(&directive.path, directive.line, message);
}
