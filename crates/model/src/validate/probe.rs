//! Rules of probes and lifecycle hooks.

use serde_json::Value;

use super::faults::{Faults, get, items, text};

/// Which probe of a container it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Liveness,
    Readiness,
    Startup,
}

/// The handlers a probe may have.
const PROBES: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
/// The handlers a lifecycle hook may have.
pub(super) const HOOKS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];

pub(super) fn check(faults: &mut Faults, probe: &Value, path: &str, kind: Kind) {
    check_handler(faults, probe, path, PROBES);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        faults.not_negative(probe, path, field);
    }
    if kind != Kind::Readiness
        && let Some(threshold) =
            get(probe, "successThreshold").filter(|threshold| threshold.as_i64().is_some_and(|n| n > 1))
    {
        faults.invalid(format!("{path}.successThreshold"), threshold, "must be 1");
    }
    if let Some(grace) = get(probe, "terminationGracePeriodSeconds") {
        let at = format!("{path}.terminationGracePeriodSeconds");
        if kind == Kind::Readiness {
            faults.invalid(at, grace, "must not be set for readinessProbes");
        } else if grace.as_i64().is_some_and(|n| n <= 0) {
            faults.invalid(at, grace, "must be greater than 0");
        }
    }
}

/// Exactly one handler, and that one complete.
pub(super) fn check_handler(faults: &mut Faults, handler: &Value, path: &str, allowed: &[&str]) {
    let given: Vec<_> = allowed.iter().filter(|name| get(handler, name).is_some()).collect();
    if given.is_empty() {
        return faults.required(path, "must specify a handler type");
    }
    for extra in &given[1..] {
        faults.forbidden(format!("{path}.{extra}"), "may not specify more than 1 handler type");
    }
    let (name, at) = (*given[0], format!("{path}.{}", given[0]));
    let action = &handler[name];
    match name {
        "exec" if items(action, "command").is_empty() => faults.required(format!("{at}.command"), ""),
        "httpGet" | "tcpSocket" => {
            if let Some(port) = get(action, "port") {
                faults.port(&format!("{at}.port"), port);
            }
            if name == "httpGet" {
                faults.one_of(action, &at, "scheme", &["HTTP", "HTTPS"]);
                if text(action, "path").is_none() {
                    faults.required(format!("{at}.path"), "");
                }
                for (i, header) in items(action, "httpHeaders").iter().enumerate() {
                    let good = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
                    if !text(header, "name").is_some_and(|name| name.bytes().all(good)) {
                        let rule = "a valid HTTP header must consist of token characters (RFC 9110, section 5.1)";
                        faults.invalid(format!("{at}.httpHeaders[{i}].name"), &header["name"], rule);
                    }
                }
            }
        }
        "grpc" => faults.between(action, &at, "port", (1, 65_535)),
        "sleep" => faults.not_negative(action, &at, "seconds"),
        _ => {}
    }
}
