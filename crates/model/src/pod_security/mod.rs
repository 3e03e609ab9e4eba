//! Pod Security Standards: what a pod may ask for under `baseline` and `restricted`.
//!
//! Each rule looks at a pod's `spec` and annotations and answers a reason with details, in kube-apiserver's words. A
//! namespace may pin a version of the standards by label; here the rules of the latest always apply, which are the
//! strictest.
//!
//! Source: <https://kubernetes.io/docs/concepts/security/pod-security-standards/>,
//! <https://kubernetes.io/docs/concepts/security/pod-security-admission/>.

mod baseline;
mod restricted;

use serde_json::Value;

use crate::meta;

/// How much is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Privileged,
    /// What is known to lead out of a container.
    Baseline,
    /// Everything that a well-made program does not need.
    Restricted,
}

impl Level {
    /// By the value of a label.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            "restricted" => Self::Restricted,
            _ => return None,
        })
    }

    /// As in a label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A broken rule: what is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// For example `host namespaces`.
    pub reason: String,
    /// For example `hostNetwork=true`.
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.detail.is_empty() { f.write_str(&self.reason) } else { write!(f, "{} ({})", self.reason, self.detail) }
    }
}

/// The rules that a pod breaks: `spec` with the annotations beside it.
pub fn violations(level: Level, annotations: &Value, spec: &Value) -> Vec<Violation> {
    let pod = Pod { annotations, spec };
    match level {
        Level::Privileged => Vec::new(),
        Level::Baseline => baseline::RULES.iter().chain(baseline::REPLACED).filter_map(|rule| rule(&pod)).collect(),
        Level::Restricted => baseline::RULES.iter().chain(restricted::RULES).filter_map(|rule| rule(&pod)).collect(),
    }
}

/// All violations in one sentence: `reason (detail), reason (detail)`.
pub fn sentence(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

type Rule = fn(&Pod<'_>) -> Option<Violation>;

struct Pod<'a> {
    annotations: &'a Value,
    spec: &'a Value,
}

impl<'a> Pod<'a> {
    /// Init, normal and ephemeral containers.
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| meta::list_at(spec, list))
    }

    /// Names of the containers that a condition holds for.
    fn named(&self, condition: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|container| condition(container)).map(name).collect()
    }

    /// The pod's own security context.
    fn context(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    fn is_windows(&self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    /// Whether the pod's users are not those of the node.
    fn has_own_users(&self) -> bool {
        self.spec["hostUsers"] == false
    }
}

fn name(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

/// A violation, if it is one.
fn found(is_one: bool, reason: &str, detail: impl FnOnce() -> String) -> Option<Violation> {
    is_one.then(|| Violation { reason: reason.to_owned(), detail: detail() })
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `"a", "b"`.
fn quoted<T: AsRef<str>>(words: &[T]) -> String {
    words.iter().map(|word| format!("{:?}", word.as_ref())).collect::<Vec<_>>().join(", ")
}

/// `container "a"` or `containers "a", "b"`.
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod`, `container "a"`, or both with `and`.
fn setters(pod: bool, names: &[&str]) -> String {
    match (pod, names.is_empty()) {
        (true, true) => "pod".to_owned(),
        (true, false) => format!("pod and {}", containers(names)),
        _ => containers(names),
    }
}

/// Sorted, without repetition.
fn unique<T: Ord>(mut words: Vec<T>) -> Vec<T> {
    words.sort();
    words.dedup();
    words
}

#[cfg(test)]
mod tests;
