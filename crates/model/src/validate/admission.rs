//! Rules of what decides about the writes of others: webhook configurations, and requests for certificates.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>,
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::faults::{Faults, get, items, text};
use super::metadata;
use crate::meta::names;

const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// What a certificate may be for.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// The shortest life of a certificate that may be asked for, in seconds.
const CERTIFICATE_SECONDS_MIN: i64 = 600;

pub(super) fn webhooks(faults: &mut Faults, object: &Value) {
    let webhooks = items(object, "webhooks");
    faults.unique(webhooks, "webhooks", "name");
    for (i, webhook) in webhooks.iter().enumerate() {
        self::webhook(faults, webhook, &format!("webhooks[{i}]"));
    }
}

fn webhook(faults: &mut Faults, webhook: &Value, path: &str) {
    let at = format!("{path}.name");
    match text(webhook, "name") {
        None => faults.required(at, ""),
        Some(name) => {
            faults.named(&at, name, names::check_subdomain(name));
            if name.split('.').count() < 3 {
                let rule = "should be a domain with at least three segments separated by dots";
                faults.invalid(at, &json!(name), rule);
            }
        }
    }
    for (i, rule) in items(webhook, "rules").iter().enumerate() {
        self::rule(faults, rule, &format!("{path}.rules[{i}]"));
    }
    faults.one_of(webhook, path, "failurePolicy", &["Fail", "Ignore"]);
    faults.one_of(webhook, path, "matchPolicy", &["Equivalent", "Exact"]);
    faults.one_of(webhook, path, "reinvocationPolicy", &["IfNeeded", "Never"]);
    faults.one_of(webhook, path, "sideEffects", &["None", "NoneOnDryRun"]);
    if text(webhook, "sideEffects").is_none() {
        faults.required(format!("{path}.sideEffects"), "must specify one of None, NoneOnDryRun");
    }
    faults.between(webhook, path, "timeoutSeconds", (1, 30));
    for field in ["namespaceSelector", "objectSelector"] {
        if let Some(selector) = get(webhook, field) {
            metadata::selector(faults, selector, &format!("{path}.{field}"));
        }
    }
    client(faults, webhook, &format!("{path}.clientConfig"));
    review_versions(faults, webhook, &format!("{path}.admissionReviewVersions"));
}

fn review_versions(faults: &mut Faults, webhook: &Value, path: &str) {
    let versions = items(webhook, "admissionReviewVersions");
    if versions.is_empty() {
        return faults.required(path, "must specify one of v1, v1beta1");
    }
    for (i, version) in versions.iter().enumerate() {
        let name = version.as_str().unwrap_or_default();
        faults.named(&format!("{path}[{i}]"), name, names::check_label_1035(name));
        if versions[..i].contains(version) {
            faults.invalid(format!("{path}[{i}]"), version, "duplicate version");
        }
    }
    if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
        faults.invalid(path, &json!(versions), "must include at least one of v1, v1beta1");
    }
}

fn rule(faults: &mut Faults, rule: &Value, path: &str) {
    for (field, wildcard) in [("operations", "*"), ("apiGroups", "*"), ("apiVersions", "*"), ("resources", "*/*")] {
        let (at, list) = (format!("{path}.{field}"), items(rule, field));
        if list.is_empty() {
            faults.required(&at, "");
        }
        if list.len() > 1 && list.iter().any(|item| item == wildcard) {
            let others = if field == "operations" { "operations" } else { "values" };
            let detail = format!("if '{wildcard}' is present, must not specify other {others}");
            faults.invalid(&at, &json!(list), detail);
        }
        for (i, item) in list.iter().enumerate() {
            let word = item.as_str().unwrap_or_default();
            match field {
                "operations" if !OPERATIONS.contains(&word) => {
                    faults.not_supported(format!("{at}[{i}]"), item, OPERATIONS);
                }
                "apiVersions" | "resources" if word.is_empty() => faults.required(format!("{at}[{i}]"), ""),
                _ => {}
            }
        }
    }
    faults.one_of(rule, path, "scope", &["*", "Cluster", "Namespaced"]);
}

/// Where a webhook is: at a URL or behind a Service.
fn client(faults: &mut Faults, webhook: &Value, path: &str) {
    let none = Value::Null;
    let config = get(webhook, "clientConfig").unwrap_or(&none);
    match (text(config, "url"), get(config, "service")) {
        (Some(url), None) => url_of(faults, url, &format!("{path}.url")),
        (None, Some(service)) => service_of(faults, service, &format!("{path}.service")),
        _ => faults.required(path, "exactly one of url or service is required"),
    }
}

/// The rules for the URL of a webhook.
fn url_of(faults: &mut Faults, url: &str, path: &str) {
    const DESIRED: &str = "; desired format: https://host[/path]";
    let mut bad = |detail: String| faults.invalid(path, &json!(url), detail);
    let Some(rest) = url.strip_prefix("https://") else {
        return bad(format!("'https' is the only allowed URL scheme{DESIRED}"));
    };
    if rest.is_empty() || rest.starts_with('/') {
        bad(format!("host must be specified{DESIRED}"));
    }
    for (mark, what) in [
        ('@', "user information is not permitted in the URL"),
        ('#', "fragments are not permitted in the URL"),
        ('?', "query parameters are not permitted in the URL"),
    ] {
        if rest.contains(mark) {
            bad(what.to_owned());
        }
    }
}

fn service_of(faults: &mut Faults, service: &Value, path: &str) {
    for field in ["name", "namespace"] {
        if text(service, field).is_none() {
            faults.required(format!("{path}.{field}"), format!("service {field} is required"));
        }
    }
    faults.between(service, path, "port", (1, 65_535));
    if let Some(given) = text(service, "path").filter(|given| *given != "/") {
        let at = format!("{path}.path");
        if !given.starts_with('/') {
            faults.invalid(at, &json!(given), "must start with a '/'");
        } else if given.contains("//") {
            faults.invalid(at, &json!(given), "path may not contain empty segments");
        }
    }
}

pub(super) fn signing_request(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return };
    if let Some(signer) = text(spec, "signerName") {
        let at = "spec.signerName";
        if signer == "kubernetes.io/legacy-unknown" {
            faults.invalid(at, &json!(signer), "the legacy signerName is not allowed via this API version");
        }
        match signer.split_once('/') {
            Some((domain, path)) if domain.contains('.') && !path.is_empty() => {
                faults.named(at, signer, names::check_subdomain(domain));
            }
            _ => {
                let rule = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
                faults.invalid(at, &json!(signer), rule);
            }
        }
    }
    let pem = text(spec, "request").and_then(|request| STANDARD.decode(request).ok());
    if pem.is_some_and(|pem| !pem.trim_ascii_start().starts_with(b"-----BEGIN CERTIFICATE REQUEST-----")) {
        faults.invalid("spec.request", &spec["request"], "PEM block type must be CERTIFICATE REQUEST");
    }
    let usages = items(spec, "usages");
    if usages.is_empty() {
        faults.required("spec.usages", "");
    }
    for (i, usage) in usages.iter().enumerate() {
        let at = format!("spec.usages[{i}]");
        if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
            faults.not_supported(&at, usage, USAGES);
        } else if usages[..i].contains(usage) {
            faults.duplicate(&at, usage);
        }
    }
    if spec["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < CERTIFICATE_SECONDS_MIN) {
        let rule = "may not specify a duration less than 600 seconds (10 minutes)";
        faults.invalid("spec.expirationSeconds", &spec["expirationSeconds"], rule);
    }
}

pub(super) fn signing_request_update(faults: &mut Faults, old: &Value, new: &Value) {
    faults.unchanged(old, new, "spec", super::IMMUTABLE);
}
