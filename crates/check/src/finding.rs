//! What is wrong, where, by which rule, and what mends it.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::manifest::{Object, Place};

/// The eight elements of high availability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Element {
    /// Functional redundancy.
    E1,
    /// Hardware and software isolation.
    E2,
    /// Network isolation.
    E3,
    /// Fault tolerance.
    E4,
    /// Automatic failover.
    E5,
    /// Monitoring and alerting.
    E6,
    /// Backup and restore.
    E7,
    /// Dynamic load balancing.
    E8,
}

impl Element {
    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Self::E1 => "functional redundancy",
            Self::E2 => "hardware and software isolation",
            Self::E3 => "network isolation",
            Self::E4 => "fault tolerance",
            Self::E5 => "automatic failover",
            Self::E6 => "monitoring and alerting",
            Self::E7 => "backup and restore",
            Self::E8 => "dynamic load balancing",
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something will be down that need not be.
    Error,
    /// Something may be.
    Warning,
    /// Good to know.
    Note,
}

impl Severity {
    /// As SARIF has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, for ever.
    pub id: &'static str,
    /// What it serves.
    pub element: Element,
    /// How bad a breach is.
    pub severity: Severity,
    /// What is wrong when it is broken, in a sentence.
    pub title: &'static str,
    /// Rules of other programs that look at the same; empty where none can, since they place no pod.
    pub peers: &'static [&'static str],
}

/// A change to one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Fix {
    /// `apiVersion`, `kind`, name and namespace, with the fields to set: a strategic merge patch; or the whole object.
    pub content: Value,
    /// Whether the object is new.
    pub is_new: bool,
}

impl Fix {
    /// A strategic merge patch of an object.
    pub fn patch(object: &Object, fields: Value) -> Self {
        let mut content = json!({"apiVersion": object.written["apiVersion"], "kind": object.kind(),
            "metadata": {"name": object.name(), "namespace": object.namespace()}});
        if let (Value::Object(all), Value::Object(fields)) = (&mut content, fields) {
            all.extend(fields);
        }
        Self { content, is_new: false }
    }
}

/// A value below a path: `below("spec.template", v)` is `{spec: {template: v}}`.
pub fn below(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |inner, name| Value::Object(Map::from_iter([(name.to_owned(), inner)])))
}

/// A rule that is broken somewhere.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The rule.
    pub rule: &'static Rule,
    /// Whose: `Deployment shop/cart`.
    pub object: String,
    /// Where.
    pub place: Place,
    /// What is wrong, with the figures.
    pub message: String,
    /// What mends it.
    pub change: String,
    /// The change as a patch, where it can be computed.
    pub fix: Option<Fix>,
}

impl Finding {
    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({"rule": self.rule.id, "element": self.rule.element, "severity": self.rule.severity, "object": self.object,
            "place": self.place, "message": self.message, "change": self.change,
            "fix": self.fix.as_ref().map(|fix| &fix.content)})
    }
}
