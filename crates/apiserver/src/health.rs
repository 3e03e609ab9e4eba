//! `/livez`, `/readyz`, `/healthz`: whether the server lives and can work, with single checks below them.
//!
//! A server that cannot read its state is not ready. It says `ok`, or with `?verbose`, and whenever something fails, one
//! line for each check; `?exclude=NAME` leaves one out.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/health-checks/>.

use http::{Response, StatusCode, Uri};
use mainstay_model::status::ApiError;

use crate::api::Api;
use crate::reply::{self, Body};

/// The checks, in kube-apiserver's order and by its names; `etcd` is the store, whichever it is.
const CHECKS: &[&str] = &["ping", "log", "etcd", "poststarthook/rbac/bootstrap-roles"];
/// Checks of readiness only.
const READINESS: &[&str] = &["informer-sync", "shutdown"];

/// The endpoint and what follows it, when a path is one of health: `livez` and `ping`.
fn parts(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix('/')?;
    let (endpoint, check) = path.split_once('/').unwrap_or((path, ""));
    matches!(endpoint, "livez" | "readyz" | "healthz").then_some((endpoint, check))
}

/// Answers a path of health; `None` for any other path.
///
/// # Errors
/// 404 for a check that there is not.
pub(crate) async fn answer(api: &Api, uri: &Uri) -> Result<Option<Response<Body>>, ApiError> {
    let Some((endpoint, check)) = parts(uri.path().trim_end_matches('/')) else { return Ok(None) };
    let more: &[&str] = if endpoint == "readyz" { READINESS } else { &[] };
    let checks: Vec<&str> = CHECKS.iter().chain(more).copied().collect();
    if !check.is_empty() {
        if !checks.contains(&check) {
            return Err(ApiError::no_such_path());
        }
        let failure = run(api, check).await;
        return Ok(Some(match failure {
            None => reply::text(StatusCode::OK, "ok"),
            Some(reason) => {
                reply::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {check}: {reason}\n"))
            }
        }));
    }
    let (mut verbose, mut excluded) = (false, Vec::new());
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*name {
            "verbose" => verbose = true,
            "exclude" => excluded.push(value.into_owned()),
            _ => {}
        }
    }
    let (mut lines, mut failed) = (String::new(), Vec::new());
    for check in &checks {
        if excluded.iter().any(|name| name == check) {
            lines.extend([format!("[+]{check} excluded: ok\n")]);
        } else if let Some(reason) = run(api, check).await {
            tracing::warn!(endpoint, check, reason, "a health check failed");
            lines.extend([format!("[-]{check} failed: reason withheld\n")]);
            failed.push(*check);
        } else {
            lines.extend([format!("[+]{check} ok\n")]);
        }
    }
    let unknown: Vec<String> =
        excluded.iter().filter(|name| !checks.contains(&name.as_str())).map(|n| format!("{n:?}")).collect();
    if !unknown.is_empty() {
        lines.extend([format!("warn: some health checks cannot be excluded: no matches for {}\n", unknown.join(","))]);
    }
    Ok(Some(if failed.is_empty() {
        let text = if verbose { format!("{lines}{endpoint} check passed\n") } else { "ok".to_owned() };
        reply::text(StatusCode::OK, text)
    } else {
        reply::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{endpoint} check failed\n"))
    }))
}

/// Runs one check; answers why it fails. What is started before the server listens is well when it can be asked.
async fn run(api: &Api, check: &str) -> Option<String> {
    match check {
        "etcd" => api.store.revision().await.err().map(|error| error.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{World, admin};

    #[tokio::test]
    async fn health_reads_as_that_of_kubernetes() {
        let world = World::new().await;
        let text = async |path: &str| {
            let answer = world.call(admin(), "GET", path, &Value::Null).await;
            (answer.code, answer.body)
        };
        assert_eq!(text("/livez").await, (200, json!("ok")));
        let lines = "[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]poststarthook/rbac/bootstrap-roles ok\nlivez check passed\n";
        assert_eq!(text("/livez?verbose").await, (200, json!(lines)));
        let (_, body) = text("/readyz?verbose&exclude=etcd&exclude=x").await;
        let body = body.as_str().unwrap_or_default().to_owned();
        assert!(body.contains("[+]etcd excluded: ok\n") && body.contains("[+]shutdown ok\n"), "{body}");
        assert!(body.contains("warn: some health checks cannot be excluded: no matches for \"x\"\n"), "{body}");
        assert_eq!(text("/readyz/ping").await, (200, json!("ok")));
        assert_eq!(text("/readyz/nothing").await.0, 404);
    }
}
