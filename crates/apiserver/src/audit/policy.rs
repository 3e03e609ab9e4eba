//! The audit policy: how much of which request is written down. Pure.
//!
//! Source: <https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/#audit-k8s-io-v1-Policy>.

use serde_json::Value;

use crate::authn::User;
use crate::authz::Attributes;

/// How much is written of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    None,
    /// Who, what, when.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "None" => Self::None,
            "Metadata" => Self::Metadata,
            "Request" => Self::Request,
            "RequestResponse" => Self::RequestResponse,
            _ => return None,
        })
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    RequestReceived,
    /// The head of a long answer was sent; its end is yet to come.
    ResponseStarted,
    ResponseComplete,
}

impl Stage {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
        }
    }
}

/// Which requests are written how; the first rule that matches counts.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    document: Value,
}

/// What the policy says about one request.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) level: Level,
    omitted: Vec<String>,
    /// Whether who owns which field is left out of the objects.
    pub(crate) omit_managed_fields: bool,
}

impl Verdict {
    /// Whether an event is written at a stage.
    pub(crate) fn writes(&self, stage: Stage) -> bool {
        self.level > Level::None && self.omitted.iter().all(|omitted| omitted != stage.word())
    }
}

impl Policy {
    /// From YAML or JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let document: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if document["apiVersion"] != "audit.k8s.io/v1" || document["kind"] != "Policy" {
            return Err("it must have apiVersion audit.k8s.io/v1 and kind Policy".to_owned());
        }
        let rules = document["rules"].as_array().filter(|rules| !rules.is_empty());
        let rules = rules.ok_or("it needs rules")?;
        for (i, rule) in rules.iter().enumerate() {
            if rule["level"].as_str().and_then(Level::parse).is_none() {
                return Err(format!("rules[{i}].level must be None, Metadata, Request or RequestResponse"));
            }
        }
        Ok(Self { document })
    }

    /// The level for a request.
    pub(crate) fn judge(&self, user: &User, asked: &Attributes) -> Verdict {
        let mut rules = self.document["rules"].as_array().into_iter().flatten();
        let rule = rules.find(|rule| matches(rule, user, asked)).unwrap_or(&Value::Null);
        let level = rule["level"].as_str().and_then(Level::parse).unwrap_or(Level::None);
        let mut omitted = words(&self.document["omitStages"]);
        omitted.extend(words(&rule["omitStages"]));
        let managed = rule["omitManagedFields"].as_bool().or(self.document["omitManagedFields"].as_bool());
        Verdict {
            level,
            omitted: omitted.into_iter().map(str::to_owned).collect(),
            omit_managed_fields: managed.unwrap_or(false),
        }
    }
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn matches(rule: &Value, user: &User, asked: &Attributes) -> bool {
    let open_or = |field: &str, holds: &dyn Fn(&[&str]) -> bool| {
        let words = words(&rule[field]);
        words.is_empty() || holds(&words)
    };
    let is_resource = !asked.resource.is_empty();
    let resources = rule["resources"].as_array().filter(|list| !list.is_empty());
    let paths = words(&rule["nonResourceURLs"]);
    let subject = match (resources, is_resource) {
        (Some(resources), true) => resources.iter().any(|resource| names(resource, asked)),
        (Some(_), false) => false,
        (None, false) => paths.is_empty() || paths.iter().any(|path| covers(path, &asked.path)),
        (None, true) => paths.is_empty(),
    };
    // A rule about namespaces is about resources; an empty name stands for what has no namespace.
    let in_namespace = open_or("namespaces", &|all| is_resource && all.contains(&asked.namespace.as_str()));
    subject
        && in_namespace
        && open_or("users", &|all| all.contains(&user.name.as_str()))
        && open_or("userGroups", &|all| user.groups.iter().any(|group| all.contains(&group.as_str())))
        && open_or("verbs", &|all| all.contains(&"*") || all.contains(&asked.verb.as_str()))
}

/// Whether an entry of `resources` means the request's resource.
fn names(entry: &Value, asked: &Attributes) -> bool {
    let group = entry["group"].as_str().unwrap_or_default();
    if group != asked.group {
        return false;
    }
    let (resources, objects) = (words(&entry["resources"]), words(&entry["resourceNames"]));
    let full = asked.full_resource();
    let resource = |given: &&str| {
        let (name, part) = given.split_once('/').unwrap_or((given, ""));
        *given == "*"
            || *given == full
            || (part == "*" && name == asked.resource)
            || (name == "*" && part == asked.subresource && !part.is_empty())
    };
    (resources.is_empty() || resources.iter().any(resource))
        && (objects.is_empty() || objects.contains(&asked.name.as_str()))
}

fn covers(given: &str, path: &str) -> bool {
    given == "*" || given == path || given.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_default_policy_is_sensible() {
        let policy = Policy::parse(super::super::DEFAULT_POLICY).unwrap();
        let level = |user: &User, asked: Attributes| policy.judge(user, &asked).level;
        let jane = User::new("jane", &["system:authenticated"]);
        let node = User::new("system:node:n", &["system:nodes"]);
        assert_eq!(level(&jane, Attributes::on("get", "", "secrets", "a", "s")), Level::Metadata);
        assert_eq!(level(&jane, Attributes::on("create", "", "secrets", "a", "s")), Level::Metadata);
        assert_eq!(level(&jane, Attributes::on("create", "apps", "deployments", "a", "d")), Level::Request);
        assert_eq!(level(&jane, Attributes::on("list", "", "pods", "a", "")), Level::Metadata);
        assert_eq!(level(&jane, Attributes::at("get", "/healthz")), Level::None);
        assert_eq!(
            level(&node, Attributes::on("update", "coordination.k8s.io", "leases", "kube-node-lease", "n")),
            Level::None
        );
        assert_eq!(level(&node, Attributes::on("watch", "", "pods", "", "")), Level::None);
    }

    #[test]
    fn rules_match_by_all_their_parts() {
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
            - {level: None, users: [ops], verbs: [watch]}\n\
            - {level: RequestResponse, resources: [{group: '', resources: [pods/*]}], namespaces: [a]}\n\
            - {level: Request, resources: [{group: apps}]}\n\
            - {level: Metadata, nonResourceURLs: [/api*]}\n";
        let policy = Policy::parse(text).unwrap();
        let level = |user: &str, asked: Attributes| policy.judge(&User::new(user, &[]), &asked).level;
        assert_eq!(level("ops", Attributes::on("watch", "apps", "deployments", "", "")), Level::None);
        assert_eq!(level("jane", Attributes::on("watch", "apps", "deployments", "", "")), Level::Request);
        let log = Attributes { subresource: "log".to_owned(), ..Attributes::on("get", "", "pods", "a", "p") };
        assert_eq!(level("jane", log.clone()), Level::RequestResponse);
        assert_eq!(level("jane", Attributes { namespace: "b".to_owned(), ..log }), Level::None);
        assert_eq!(level("jane", Attributes::at("get", "/apis/x")), Level::Metadata);
        let verdict = policy.judge(&User::new("jane", &[]), &Attributes::at("get", "/api"));
        assert!(verdict.writes(Stage::ResponseComplete) && !verdict.writes(Stage::RequestReceived));
        for wrong in ["a: b", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]"] {
            assert!(Policy::parse(wrong).is_err());
        }
    }
}
