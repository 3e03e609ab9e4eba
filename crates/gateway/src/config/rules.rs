//! Rules of HTTPRoutes (and of what is turned into them): matches, filters, settings.

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use regex::Regex;

use super::attach::Attachment;
use super::compile::Work;
use super::objects::Held;
use super::policies::{self, Target};
use super::status::Condition;
use super::{Severity, upstreams};
use crate::api::route::{
    Filter, HeaderModifier, HttpMatch, HttpRule, PathModifier, RequestMirror, RequestRedirect, RouteSpec, ValueMatch,
};
use crate::api::{Key, MAINSTAY_GROUP};
use crate::table::Rule;
use crate::table::filters::{Cors, Filters, HeaderChanges, Mirror, PathChange, Redirect, Rewrite};
use crate::table::paths::{Candidate, PathCondition, PathTable, Text};

/// What a rule was written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteKind {
    Http,
    Grpc,
    Ingress,
}

impl RouteKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Ingress => "Ingress",
        }
    }
}

/// Compiles every rule of a route and adds it to the listeners; answers the route's conditions for this parent.
pub(super) fn attach<T>(
    work: &mut Work<'_>,
    route: &Held<T>,
    kind: RouteKind,
    spec: &RouteSpec<HttpRule>,
    attachments: &[Attachment],
) -> Vec<Condition> {
    let mut dropped: Vec<(usize, String)> = Vec::new();
    let mut resolved = Condition::good("ResolvedRefs");
    for (at, _) in attachments {
        // What a listener counts is routes that name it.
        work.listeners[*at].attached += u32::from(kind != RouteKind::Ingress);
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        let number = index.to_string();
        let path = ["spec", "rules", number.as_str()];
        let conditions = match conditions(rule) {
            Ok(conditions) => conditions,
            Err((field, message)) => {
                let path: Vec<&str> = path.into_iter().chain(field.iter().map(String::as_str)).collect();
                work.problem(route, &path, Severity::Error, &*message);
                dropped.push((index, message));
                continue;
            }
        };
        for (at, hosts) in attachments {
            let compiled = match compile_rule(work, route, kind, index, rule, *at) {
                Ok((compiled, bad)) => {
                    resolved = bad.unwrap_or(resolved);
                    compiled
                }
                Err(message) => {
                    work.problem(route, &path, Severity::Error, &*message);
                    dropped.push((index, message));
                    continue;
                }
            };
            for (match_index, condition) in conditions.iter().enumerate() {
                let time = route.meta.creation_timestamp.clone().unwrap_or_default();
                let age = (time, route.key.to_string(), index, match_index);
                for host in hosts {
                    let table = work.listeners[*at].routes.entry(host.as_deref(), PathTable::default);
                    let (method, headers, query) = condition.others.clone();
                    let rule = compiled.clone();
                    table.add(
                        &condition.path,
                        Candidate { method, headers, query, age: age.clone(), rule, prefix_len: 0 },
                    );
                }
            }
        }
    }
    dropped.dedup_by_key(|(index, _)| *index);
    route_conditions(&dropped, spec.rules.len(), resolved)
}

/// The conditions of a route of which some rules cannot be served: it is accepted as long as one can (Gateway API,
/// `PartiallyInvalid`).
fn route_conditions(dropped: &[(usize, String)], rules: usize, resolved: Condition) -> Vec<Condition> {
    let Some((index, message)) = dropped.first() else { return vec![Condition::good("Accepted"), resolved] };
    let message = format!("Dropped Rule {index}: {message}");
    if dropped.len() == rules {
        return vec![Condition::bad("Accepted", "UnsupportedValue", message), resolved];
    }
    let partly = Condition { holds: true, ..Condition::bad("PartiallyInvalid", "UnsupportedValue", message) };
    vec![Condition::good("Accepted"), resolved, partly]
}

struct Conditions {
    path: PathCondition,
    others: Others,
}

/// Method, headers, query parameters.
type Others = (Option<Method>, Vec<(HeaderName, Text)>, Vec<(String, Text)>);

type FieldError = (Vec<String>, String);

fn conditions(rule: &HttpRule) -> Result<Vec<Conditions>, FieldError> {
    let everything = [HttpMatch::default()];
    let matches = if rule.matches.is_empty() { everything.as_slice() } else { &rule.matches };
    matches
        .iter()
        .enumerate()
        .map(|(index, it)| {
            let at = |field: &str| vec!["matches".to_owned(), index.to_string(), field.to_owned()];
            let path = path_condition(it).map_err(|message| (at("path"), message))?;
            let method = it.method.as_deref().map(|name| Method::from_bytes(name.as_bytes()));
            let method = method.transpose().map_err(|_| (at("method"), "not an HTTP method".to_owned()))?;
            let header = |(value, text): (&ValueMatch, Text)| {
                HeaderName::try_from(&value.name)
                    .map(|name| (name, text))
                    .map_err(|_| format!("{:?} is not a header name", value.name))
            };
            let headers = texts(&it.headers).and_then(|all| all.into_iter().map(header).collect::<Result<_, _>>());
            let headers = headers.map_err(|message| (at("headers"), message))?;
            let query = texts(&it.query_params).map_err(|message| (at("queryParams"), message))?;
            let query = query.into_iter().map(|(value, text)| (value.name.clone(), text)).collect();
            Ok(Conditions { path, others: (method, headers, query) })
        })
        .collect()
}

fn path_condition(it: &HttpMatch) -> Result<PathCondition, String> {
    let path = it.path.clone().unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".to_owned());
    let kind = path.kind.as_deref().unwrap_or("PathPrefix");
    if kind != "RegularExpression" && !value.starts_with('/') {
        return Err(format!("path {value:?} does not start with /"));
    }
    Ok(match kind {
        "Exact" => PathCondition::Exact(value),
        "PathPrefix" => PathCondition::Prefix(value),
        // The whole path must match, as in Envoy and Istio; write `.*` for more.
        "RegularExpression" => PathCondition::Regex(regex(&format!("^(?:{value})$"))?),
        other => return Err(format!("path type {other:?} is not known; use Exact, PathPrefix or RegularExpression")),
    })
}

fn texts(values: &[ValueMatch]) -> Result<Vec<(&ValueMatch, Text)>, String> {
    let text = |value: &ValueMatch| match value.kind.as_deref().unwrap_or("Exact") {
        "Exact" => Ok(Text::Exact(value.value.clone())),
        "RegularExpression" => regex(&value.value).map(Text::Regex),
        other => Err(format!("type {other:?} is not known; use Exact or RegularExpression")),
    };
    values.iter().map(|value| text(value).map(|text| (value, text))).collect()
}

/// Regular expressions run in linear time; their size is limited so that a table stays small.
fn regex(pattern: &str) -> Result<Regex, String> {
    let built = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
    built.map_err(|error| format!("{pattern:?} is not a regular expression: {}", error.to_string().replace('\n', " ")))
}

fn compile_rule<T>(
    work: &mut Work<'_>,
    route: &Held<T>,
    kind: RouteKind,
    index: usize,
    rule: &HttpRule,
    listener: usize,
) -> Result<(Arc<Rule>, Option<Condition>), String> {
    let number = index.to_string();
    let path = ["spec", "rules", number.as_str()];
    let (gateway, section) = (work.listeners[listener].gateway.clone(), work.listeners[listener].name.clone());
    let extensions: Vec<Key> = extension_policies(work, route, rule)?;
    let mut targets: Vec<Target<'_>> = extensions.iter().map(Target::policy).collect();
    let rule_name = rule.name.as_deref().unwrap_or(&number);
    targets.push(Target::section(kind.name(), &route.key, rule_name));
    targets.push(Target::whole(kind.name(), &route.key));
    targets.push(Target::section("Gateway", &gateway, &section));
    targets.push(Target::whole("Gateway", &gateway));
    let context = upstreams::Context {
        route_kind: kind.name(),
        route: &route.key,
        targets: targets.clone(),
        grpc: kind == RouteKind::Grpc,
        gateway: (kind != RouteKind::Ingress).then_some(&gateway),
    };

    let (filters, mut bad) = compile_filters(work, route, &context, &rule.filters)?;
    let (mut backends, bad_backend) = upstreams::backends(work, route, &context, &rule.backend_refs, &path);
    bad = bad.or(bad_backend);
    for (compiled, written) in backends.list.iter_mut().zip(&rule.backend_refs) {
        let (filters, bad_filter) = compile_filters(work, route, &context, &written.filters)?;
        compiled.filters = filters;
        bad = bad.or(bad_filter);
    }
    let (mut settings, fallback) = policies::rule_settings(work, route, &context, rule)?;
    settings.grpc = kind == RouteKind::Grpc;
    let id = work.rules.len();
    let name = format!("{} {} {rule_name}", kind.name(), route.key);
    let compiled = Arc::new(Rule { id, name, filters, backends, fallback, settings });
    work.rules.push(compiled.clone());
    Ok((compiled, bad))
}

fn extension_policies<T>(work: &Work<'_>, route: &Held<T>, rule: &HttpRule) -> Result<Vec<Key>, String> {
    let references = rule.filters.iter().filter_map(|filter| filter.extension_ref.as_ref());
    references
        .map(|it| {
            let key = Key::new(&route.key.namespace, &it.name);
            let ours = it.group.as_deref() == Some(MAINSTAY_GROUP) && it.kind.as_deref() == Some("TrafficPolicy");
            if ours && work.objects.policies.contains_key(&key) {
                Ok(key)
            } else {
                Err(format!("extensionRef {}: there is no TrafficPolicy ({MAINSTAY_GROUP}) of that name", it.name))
            }
        })
        .collect()
}

fn compile_filters<T>(
    work: &mut Work<'_>,
    route: &Held<T>,
    context: &upstreams::Context<'_>,
    filters: &[Filter],
) -> Result<(Filters, Option<Condition>), String> {
    let mut compiled = Filters::default();
    let mut bad = None;
    for filter in filters {
        let missing = || format!("filter {} without its field", filter.kind);
        match filter.kind.as_str() {
            "RequestHeaderModifier" => {
                compiled.request_headers = changes(filter.request_header_modifier.as_ref().ok_or_else(missing)?)?;
            }
            "ResponseHeaderModifier" => {
                compiled.response_headers = changes(filter.response_header_modifier.as_ref().ok_or_else(missing)?)?;
            }
            "RequestRedirect" => {
                compiled.redirect = Some(redirect(filter.request_redirect.as_ref().ok_or_else(missing)?)?);
            }
            "URLRewrite" => {
                let rewrite = filter.url_rewrite.as_ref().ok_or_else(missing)?;
                let host = rewrite.hostname.as_deref().map(HeaderValue::from_str).transpose();
                let host = host.map_err(|_| "urlRewrite.hostname is not a host".to_owned())?;
                compiled.rewrite = Some(Rewrite { host, path: rewrite.path.as_ref().map(path_change).transpose()? });
            }
            "RequestMirror" => {
                let written = filter.request_mirror.as_ref().ok_or_else(missing)?;
                match upstreams::resolve(work, route, context, &written.backend_ref) {
                    Ok(upstream) => compiled.mirrors.push(mirror(written, upstream)?),
                    Err(condition) => bad = Some(condition),
                }
            }
            "CORS" => compiled.cors = Some(Arc::new(cors(filter.cors.as_ref().ok_or_else(missing)?)?)),
            "ExtensionRef" => {}
            other => return Err(format!("filter type {other:?} is not known")),
        }
    }
    if compiled.redirect.is_some() && compiled.rewrite.is_some() {
        return Err("a rule cannot both redirect and rewrite".to_owned());
    }
    Ok((compiled, bad))
}

fn changes(written: &HeaderModifier) -> Result<HeaderChanges, String> {
    let name = |text: &str| HeaderName::try_from(text).map_err(|_| format!("{text:?} is not a header name"));
    let pair = |pair: &crate::api::route::HeaderPair| {
        let value = HeaderValue::from_str(&pair.value);
        Ok((name(&pair.name)?, value.map_err(|_| format!("{:?} is not a header value", pair.value))?))
    };
    Ok(HeaderChanges {
        set: written.set.iter().map(pair).collect::<Result<_, String>>()?,
        add: written.add.iter().map(pair).collect::<Result<_, String>>()?,
        remove: written.remove.iter().map(|it| name(it)).collect::<Result<_, _>>()?,
    })
}

fn path_change(written: &PathModifier) -> Result<PathChange, String> {
    match (written.kind.as_str(), &written.replace_full_path, &written.replace_prefix_match) {
        ("ReplaceFullPath", Some(full), None) => Ok(PathChange::Full(full.clone())),
        ("ReplacePrefixMatch", None, Some(prefix)) => Ok(PathChange::Prefix(prefix.clone())),
        _ => {
            Err("a path change is ReplaceFullPath with replaceFullPath, or ReplacePrefixMatch with replacePrefixMatch"
                .to_owned())
        }
    }
}

fn redirect(written: &RequestRedirect) -> Result<Redirect, String> {
    let status = StatusCode::from_u16(written.status_code.unwrap_or(302)).ok().filter(StatusCode::is_redirection);
    Ok(Redirect {
        scheme: written.scheme.as_ref().map(|it| it.to_lowercase()),
        host: written.hostname.clone(),
        port: written.port,
        path: written.path.as_ref().map(path_change).transpose()?,
        status: status.ok_or("requestRedirect.statusCode must be 301, 302, 303, 307 or 308")?,
    })
}

fn mirror(written: &RequestMirror, upstream: usize) -> Result<Mirror, String> {
    let (numerator, denominator) = match (&written.fraction, written.percent) {
        (Some(fraction), None) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, percent) => (u32::from(percent.unwrap_or(100)), 100),
        (Some(_), Some(_)) => return Err("a mirror has either percent or fraction".to_owned()),
    };
    if denominator == 0 || numerator > denominator {
        return Err("a mirror's share must be between 0 and 1".to_owned());
    }
    Ok(Mirror { upstream, numerator, denominator })
}

fn cors(written: &crate::api::route::Cors) -> Result<Cors, String> {
    let expose =
        (!written.expose_headers.is_empty()).then(|| HeaderValue::from_str(&written.expose_headers.join(", ")));
    Ok(Cors {
        origins: written.allow_origins.clone(),
        credentials: written.allow_credentials.unwrap_or(false),
        methods: written.allow_methods.clone(),
        headers: written.allow_headers.clone(),
        expose: expose.transpose().map_err(|_| "cors.exposeHeaders are not header names".to_owned())?,
        max_age_s: written.max_age.unwrap_or(5),
    })
}
