//! Which webhooks a write concerns. Pure.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#matching-requests-rules>.

use mainstay_model::meta;
use mainstay_model::selector::LabelSelector;
use serde_json::Value;

use crate::admission::Operation;

/// What rules look at.
pub(super) struct Subject<'a> {
    pub(super) operation: Operation,
    pub(super) group: &'a str,
    pub(super) version: &'a str,
    pub(super) resource: &'a str,
    /// Empty for the object itself.
    pub(super) subresource: &'a str,
    pub(super) namespaced: bool,
    /// All versions in which the resource is served.
    pub(super) versions: &'a [String],
}

/// The word of an operation in rules and reviews.
pub(in crate::admission) fn word(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// The version in which a webhook wants the object, if one of its rules means this write. With `matchPolicy: Equivalent`,
/// the default, a rule for another version of the same resource counts, too.
pub(super) fn wanted_version<'a>(webhook: &Value, subject: &Subject<'a>) -> Option<&'a str> {
    let rules = meta::list_at(webhook, "rules");
    if rules.iter().any(|rule| matches(rule, subject, subject.version)) {
        return Some(subject.version);
    }
    if webhook["matchPolicy"] == "Exact" {
        return None;
    }
    let other = |version: &&'a String| rules.iter().any(|rule| matches(rule, subject, version));
    subject.versions.iter().find(other).map(String::as_str)
}

fn matches(rule: &Value, subject: &Subject<'_>, version: &str) -> bool {
    let one_of = |field: &str, word: &str| {
        let mut entries = meta::list_at(rule, field).iter().filter_map(Value::as_str);
        entries.any(|entry| entry == "*" || entry == word)
    };
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => subject.namespaced,
        Some("Cluster") => !subject.namespaced,
        _ => true,
    };
    let resource = |entry: &str| {
        let (name, part) = entry.split_once('/').unwrap_or((entry, ""));
        (name == "*" || name == subject.resource)
            && (part == subject.subresource || (part == "*" && (!subject.subresource.is_empty() || name == "*")))
    };
    scope
        && one_of("operations", word(subject.operation))
        && one_of("apiGroups", subject.group)
        && one_of("apiVersions", version)
        && meta::list_at(rule, "resources").iter().filter_map(Value::as_str).any(resource)
}

/// Whether a selector of a webhook lets the write through; an absent one lets all through. `labels` are those of what is
/// selected by: one set must match.
pub(super) fn selects(selector: &Value, labels: &[Option<&Value>]) -> bool {
    if selector.is_null() {
        return true;
    }
    // A selector that cannot be read selects everything: a guard must not be switched off by a mistake.
    let Ok(selector) = LabelSelector::from_object(selector) else { return true };
    selector.is_everything() || labels.iter().any(|labels| selector.matches(labels.and_then(Value::as_object)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn subject<'a>(subresource: &'a str, versions: &'a [String]) -> Subject<'a> {
        let (group, version, resource) = ("apps", "v1", "deployments");
        Subject { operation: Operation::Create, group, version, resource, subresource, namespaced: true, versions }
    }

    fn webhook(groups: &str, versions: &str, resources: &str, scope: &str) -> Value {
        json!({"rules": [{"operations": ["CREATE"], "apiGroups": [groups], "apiVersions": [versions], "resources": [resources], "scope": scope}]})
    }

    #[test]
    fn rules_mean_what_they_say() {
        for (groups, versions, resources, scope, subresource, expected) in [
            ("apps", "v1", "deployments", "*", "", true),
            ("*", "*", "*", "Namespaced", "", true),
            ("apps", "v1", "deployments", "Cluster", "", false),
            ("", "v1", "deployments", "*", "", false),
            ("apps", "v1", "deployments", "*", "scale", false),
            ("apps", "v1", "deployments/*", "*", "scale", true),
            ("apps", "v1", "deployments/*", "*", "", false),
            ("apps", "v1", "*/scale", "*", "scale", true),
            ("apps", "v1", "*/*", "*", "", true),
            ("apps", "v1", "*", "*", "scale", false),
        ] {
            let matched =
                wanted_version(&webhook(groups, versions, resources, scope), &subject(subresource, &[])).is_some();
            assert_eq!(matched, expected, "{groups} {versions} {resources} {scope} {subresource}");
        }
    }

    #[test]
    fn other_versions_of_a_resource_are_equivalent() {
        let versions = ["v1".to_owned(), "v2".to_owned()];
        let mut webhook = webhook("apps", "v2", "deployments", "*");
        assert_eq!(wanted_version(&webhook, &subject("", &versions)), Some("v2"));
        webhook["matchPolicy"] = json!("Exact");
        assert_eq!(wanted_version(&webhook, &subject("", &versions)), None);
    }

    #[test]
    fn selectors_choose_by_labels() {
        let selector = json!({"matchLabels": {"a": "b"}});
        assert!(selects(&Value::Null, &[]) && selects(&json!({}), &[None]));
        assert!(selects(&selector, &[None, Some(&json!({"a": "b"}))]) && !selects(&selector, &[Some(&json!({}))]));
    }
}
