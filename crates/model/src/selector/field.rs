//! Field selectors: `metadata.name=x,spec.nodeName!=y`.
//!
//! Only the fields the Kubernetes API server supports for a kind can be selected on. Absent fields compare as the
//! empty string, booleans and numbers as their text.

use std::fmt;

use serde_json::Value;

use super::{SelectorError, TEXT_MAX};
use crate::meta;

/// The fields of every kind.
const COMMON: &[&str] = &["metadata.name", "metadata.namespace"];

/// The further fields that can be selected on for a kind.
pub fn supported_fields(kind: &str) -> &'static [&'static str] {
    match kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        "Namespace" => &["status.phase"],
        "Node" => &["spec.unschedulable"],
        "Secret" => &["type"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "ReplicaSet" | "ReplicationController" => &["status.replicas"],
        "Job" => &["status.successful"],
        "CertificateSigningRequest" | "ClusterTrustBundle" => &["spec.signerName"],
        "PodCertificateRequest" => &["spec.nodeName", "spec.podName", "spec.signerName"],
        _ => &[],
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

/// A conjunction of comparisons of fields with texts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

impl FieldSelector {
    /// From the text of a `fieldSelector` query parameter for objects of `kind`; empty selects everything.
    pub fn parse(kind: &str, text: &str) -> Result<Self, SelectorError> {
        let supported = supported_fields(kind);
        Self::parse_with(text, |field| supported.contains(&field)).map_err(|error| match error {
            SelectorError::UnsupportedField(field) if supported.is_empty() => SelectorError::UnknownField(field),
            error => error,
        })
    }

    /// As [`FieldSelector::parse`] where `supports` names the fields beyond name and namespace, for custom resources
    /// with `selectableFields`.
    pub fn parse_with(text: &str, supports: impl Fn(&str) -> bool) -> Result<Self, SelectorError> {
        if text.len() > TEXT_MAX {
            return Err(SelectorError::TooLong);
        }
        let mut terms = Vec::new();
        for term in split(text, ',').into_iter().filter(|term| !term.is_empty()) {
            let bad = || SelectorError::FieldParse { text: text.to_owned(), term: term.to_owned() };
            let sign = term.find('=').ok_or_else(bad)?;
            let (left, right) = (&term[..sign], &term[sign + 1..]);
            let (field, equal) = left.strip_suffix('!').map_or((left, true), |field| (field, false));
            let right = if equal { right.strip_prefix('=').unwrap_or(right) } else { right };
            let value = unescape(right).ok_or_else(bad)?;
            if !COMMON.contains(&field) && !supports(field) {
                return Err(SelectorError::UnsupportedField(field.to_owned()));
            }
            terms.push(Term { field: field.to_owned(), equal, value });
        }
        Ok(Self { terms })
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value a field must have, when the selector asks for exactly one, for example to list by node or by name.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    /// Whether it selects this object.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| (value_of(object, &term.field) == term.value) == term.equal)
    }
}

fn value_of(object: &Value, field: &str) -> String {
    let value = match field {
        "status.successful" => meta::at(object, "status.succeeded"),
        "status.podIPs" => meta::at(object, "status.podIPs.0.ip"),
        "source" => meta::at(object, "source.component").or_else(|| meta::at(object, "reportingComponent")),
        _ => meta::at(object, field),
    };
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(value) if value.is_number() || value.is_boolean() => value.to_string(),
        None if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        None if matches!(field, "status.successful" | "status.replicas") => "0".to_owned(),
        _ => String::new(),
    }
}

/// Splits at `separator` unless a backslash stands before it.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == separator {
            parts.push(&text[start..i]);
            start = i + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Values escape `\`, `,` and `=` with a backslash; unescaped they are an error.
fn unescape(text: &str) -> Option<String> {
    let mut value = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => value.push(characters.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            _ => value.push(c),
        }
    }
    Some(value)
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let value = term.value.replace('\\', r"\\").replace(',', r"\,").replace('=', r"\=");
            write!(f, "{comma}{}{}{value}", term.field, if term.equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}
