//! The audit log: who did what, and what came of it.
//!
//! Flow: a request gets a [`Trail`] when its caller is known; what is learnt on the way is noted there; at each stage that
//! the policy wants, the trail becomes one line of `audit.k8s.io/v1` Event.
//!
//! Guarantees: no request waits for the log; without a log nothing is collected.
//!
//! Source: <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>.

mod log;
mod policy;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderMap, Uri};
use jiff::Timestamp;
use mainstay_model::meta::format_micro_time;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

pub use log::LogFile;
pub(crate) use policy::{Level, Stage};

use crate::authn::User;
use crate::authz::Attributes;
use crate::rest;
use log::Log;
use policy::{Policy, Verdict};

/// What is written when nothing else is wished.
const DEFAULT_POLICY: &str = include_str!("default_policy.yaml");

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy is not one.
    #[error("the audit policy cannot be used: {0}")]
    Policy(String),
    /// The file.
    #[error("cannot open the audit log {path}: {source}")]
    Open {
        /// Which.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// An audit log with its policy.
pub struct Audit {
    policy: Policy,
    log: Log,
}

impl Audit {
    /// Opens a log; `policy` is a YAML document, without it a sensible default applies.
    ///
    /// # Errors
    /// When the policy is not one or the file cannot be opened.
    pub fn open(file: LogFile, policy: Option<&str>) -> Result<Self, AuditError> {
        let policy = Policy::parse(policy.unwrap_or(DEFAULT_POLICY)).map_err(AuditError::Policy)?;
        let path = file.path.clone();
        let log = Log::open(file).map_err(|source| AuditError::Open { path, source })?;
        Ok(Self { policy, log })
    }

    /// Events that were not written.
    pub(crate) fn dropped(&self) -> u64 {
        self.log.dropped.load(Ordering::Relaxed)
    }
}

/// What is known about one request that is written down.
pub(crate) struct Trail {
    audit: Arc<Audit>,
    verdict: Verdict,
    id: String,
    received: Timestamp,
    event: Value,
    pub(crate) annotations: BTreeMap<String, String>,
    /// What was sent and answered, for the levels that want it.
    pub(crate) request_object: Option<Value>,
    pub(crate) response_object: Option<Value>,
    /// Why the request was refused.
    pub(crate) refusal: Option<ApiError>,
}

/// The request as it came.
pub(crate) struct Arrival<'a> {
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) address: Option<IpAddr>,
    pub(crate) received: Timestamp,
}

impl Trail {
    /// Begins a trail, if the policy wants one. `by` is who acts as `user`.
    pub(crate) fn begin(
        audit: &Arc<Audit>,
        arrival: &Arrival<'_>,
        user: &User,
        by: Option<&User>,
        asked: &Attributes,
    ) -> Option<Self> {
        let verdict = audit.policy.judge(by.unwrap_or(user), asked);
        if verdict.level == Level::None {
            return None;
        }
        let id = rest::new_uid();
        let agent = arrival.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": verdict.level.word(), "auditID": id,
            "requestURI": arrival.uri.path_and_query().map_or("", |path| path.as_str()), "verb": asked.verb,
            "user": by.unwrap_or(user).to_value(),
            "requestReceivedTimestamp": format_micro_time(arrival.received),
        });
        if by.is_some() {
            event["impersonatedUser"] = user.to_value();
        }
        if let Some(address) = arrival.address {
            event["sourceIPs"] = json!([address]);
        }
        if let Some(agent) = agent {
            event["userAgent"] = json!(agent);
        }
        if !asked.resource.is_empty() {
            event["objectRef"] = object_reference(asked);
        }
        let mut annotations = BTreeMap::new();
        annotations.insert("authorization.k8s.io/decision".to_owned(), "forbid".to_owned());
        let trail = Self {
            audit: audit.clone(),
            verdict,
            id,
            received: arrival.received,
            event,
            annotations,
            request_object: None,
            response_object: None,
            refusal: None,
        };
        trail.write(Stage::RequestReceived, None, arrival.received);
        Some(trail)
    }

    /// The id that the caller is told.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// How much is wanted.
    pub(crate) fn level(&self) -> Level {
        self.verdict.level
    }

    /// Notes that the request is allowed, and why.
    pub(crate) fn allowed(&mut self, reason: String) {
        self.annotations.insert("authorization.k8s.io/decision".to_owned(), "allow".to_owned());
        self.annotations.insert("authorization.k8s.io/reason".to_owned(), reason);
    }

    /// Writes the event of a stage; `code` is the answer's.
    pub(crate) fn write(&self, stage: Stage, code: Option<u16>, now: Timestamp) {
        if !self.verdict.writes(stage) {
            return;
        }
        let mut event = self.event.clone();
        event["stage"] = json!(stage.word());
        event["stageTimestamp"] = json!(format_micro_time(now.max(self.received)));
        if let Some(code) = code {
            event["responseStatus"] = self.status(code);
            event["annotations"] = json!(self.annotations);
            for (field, object) in [("requestObject", &self.request_object), ("responseObject", &self.response_object)]
            {
                if let Some(object) = object {
                    event[field] = self.cleaned(object);
                }
            }
        }
        self.audit.log.write(event.to_string());
    }

    fn status(&self, code: u16) -> Value {
        let mut status = json!({"metadata": {}, "code": code});
        if let Some(refusal) = &self.refusal {
            status["status"] = json!("Failure");
            status["message"] = json!(refusal.message);
            status["reason"] = json!(refusal.reason);
        }
        status
    }

    fn cleaned(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if self.verdict.omit_managed_fields {
            let one = |object: &mut Value| object.pointer_mut("/metadata")?.as_object_mut()?.remove("managedFields");
            one(&mut object);
            for item in object["items"].as_array_mut().into_iter().flatten() {
                one(item);
            }
        }
        object
    }
}

fn object_reference(asked: &Attributes) -> Value {
    let mut reference = json!({"resource": asked.resource});
    for (field, text) in [
        ("namespace", &asked.namespace),
        ("name", &asked.name),
        ("apiGroup", &asked.group),
        ("apiVersion", &asked.version),
        ("subresource", &asked.subresource),
    ] {
        if !text.is_empty() {
            reference[field] = json!(text);
        }
    }
    reference
}

#[cfg(test)]
mod tests;
