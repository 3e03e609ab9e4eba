//! What the log says about real requests.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Audit, LogFile};
use crate::testing::{World, admin, user};

const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
    - {level: RequestResponse, resources: [{group: '', resources: [configmaps]}]}\n\
    - {level: Metadata, omitStages: [RequestReceived]}\n";

/// The lines of the log, as soon as there are so many.
async fn lines(path: &std::path::Path, count: usize) -> Vec<Value> {
    let since = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap();
        if text.lines().count() >= count {
            return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn requests_leave_a_trail() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let audit = Arc::new(Audit::open(LogFile::new(path.clone()), Some(POLICY)).unwrap());
    let world = World::with(|settings| settings.audit = Some(audit)).await;
    let body = json!({"metadata": {"name": "m"}, "data": {"a": "b"}});
    let made = world.call(admin(), "POST", "/api/v1/namespaces/default/configmaps", &body).await;
    let headers = [("impersonate-user", "jane"), ("user-agent", "me")];
    world.call_with(admin(), "GET", "/api/v1/namespaces/default/secrets/s", &Value::Null, &headers).await.refused(403);
    world.call(user("eve"), "GET", "/metrics", &Value::Null).await.refused(403);
    let events = lines(&path, 4).await;
    let stages: Vec<&str> = events.iter().filter_map(|event| event["stage"].as_str()).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete", "ResponseComplete", "ResponseComplete"]);
    let create = &events[1];
    assert_eq!(made.headers["audit-id"].to_str().unwrap(), create["auditID"]);
    assert_eq!((&create["verb"], &create["responseStatus"]["code"]), (&json!("create"), &json!(201)));
    assert_eq!(
        (&create["requestObject"]["data"]["a"], &create["responseObject"]["data"]["a"]),
        (&json!("b"), &json!("b"))
    );
    assert_eq!(create["annotations"]["authorization.k8s.io/decision"], "allow");
    let refused = &events[2];
    assert_eq!(
        (&refused["user"]["username"], &refused["impersonatedUser"]["username"]),
        (&json!("admin"), &json!("jane"))
    );
    let reference = json!({"resource": "secrets", "namespace": "default", "name": "s", "apiVersion": "v1"});
    assert_eq!((&refused["objectRef"], &refused["userAgent"]), (&reference, &json!("me")));
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert!(refused["responseObject"].is_null());
    assert_eq!(events[3]["requestURI"], "/metrics");
}
