//! The rules of role-based access control: what one rule allows, and whether some rules cover others.
//!
//! Role: pure functions over the `rules` of Role and ClusterRole. Who has which rules is for the API server to know.
//!
//! Guarantees: [`uncovered`] looks at no more than [`COMBINATIONS_MAX`] combinations, whatever the rules say.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use std::fmt;

use serde_json::{Map, Value, json};

/// Combinations of verb, group, resource and name that are looked at for one comparison of rules.
pub const COMBINATIONS_MAX: usize = 20_000;
/// Comparisons of such a combination with a rule.
const COMPARISONS_MAX: usize = 20_000_000;
/// Combinations that are told as uncovered; more help nobody.
const TOLD_MAX: usize = 500;

/// One entry of a role's `rules`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// `get`, `create` and so on; `*` is any.
    pub verbs: Vec<String>,
    /// API groups, empty text for core; `*` is any.
    pub groups: Vec<String>,
    /// Plural resources, `pods/log`, `*/scale`; `*` is any, with any subresource.
    pub resources: Vec<String>,
    /// Names of objects; without any, all objects are meant.
    pub names: Vec<String>,
    /// Paths outside the resources; a `*` at the end stands for any rest.
    pub urls: Vec<String>,
}

/// What somebody wants to touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object<'a> {
    /// A resource.
    Resource {
        /// API group, empty for core.
        group: &'a str,
        /// Plural name.
        resource: &'a str,
        /// Empty when the object itself is meant.
        subresource: &'a str,
        /// Empty when it is not about one object.
        name: &'a str,
    },
    /// A path outside the resources.
    Path(&'a str),
}

fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|entry| entry == word)
}

fn any_or(list: &[String], word: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == word)
}

impl Rule {
    /// Reads one entry of `rules`.
    pub fn read(rule: &Value) -> Self {
        let list = |field: &str| -> Vec<String> {
            rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn of_role(role: &Value) -> Vec<Self> {
        role["rules"].as_array().into_iter().flatten().map(Self::read).collect()
    }

    /// As an entry of `rules`.
    pub fn to_value(&self) -> Value {
        let mut rule = Map::new();
        let fields = [
            ("apiGroups", &self.groups),
            ("nonResourceURLs", &self.urls),
            ("resourceNames", &self.names),
            ("resources", &self.resources),
        ];
        for (field, list) in fields.into_iter().filter(|(_, list)| !list.is_empty()) {
            rule.insert(field.to_owned(), json!(list));
        }
        rule.insert("verbs".to_owned(), json!(self.verbs));
        Value::Object(rule)
    }

    /// Whether this rule alone lets `verb` be done to `object`.
    pub fn allows(&self, verb: &str, object: Object<'_>) -> bool {
        any_or(&self.verbs, verb)
            && match object {
                Object::Resource { group, resource, subresource, name } => {
                    any_or(&self.groups, group)
                        && self.resources.iter().any(|given| meant(given, resource, subresource))
                        && (self.names.is_empty() || has(&self.names, name))
                }
                Object::Path(path) => self.urls.iter().any(|given| url_covers(given, path)),
            }
    }

    /// Whether everything that `single`, a rule of one combination, allows is allowed by this one.
    fn covers(&self, single: &Self) -> bool {
        let all = |own: &[String], wanted: &[String]| wanted.iter().all(|word| any_or(own, word));
        let resource = |wanted: &String| {
            let part = wanted.split_once('/').map(|(_, part)| format!("*/{part}"));
            any_or(&self.resources, wanted) || part.is_some_and(|part| has(&self.resources, &part))
        };
        let names =
            self.names.is_empty() || (!single.names.is_empty() && single.names.iter().all(|n| has(&self.names, n)));
        all(&self.verbs, &single.verbs)
            && all(&self.groups, &single.groups)
            && single.resources.iter().all(resource)
            && names
            && single.urls.iter().all(|wanted| self.urls.iter().any(|own| url_covers(own, wanted)))
    }

    fn combinations(&self) -> usize {
        let size = |list: &Vec<String>| list.len().max(1);
        [&self.groups, &self.resources, &self.names, &self.urls]
            .into_iter()
            .map(size)
            .fold(self.verbs.len(), usize::saturating_mul)
    }

    /// The same rule as rules of one combination each.
    fn singles(&self) -> Vec<Self> {
        let mut singles = Vec::new();
        for verb in &self.verbs {
            let one = |word: &String| vec![word.clone()];
            for url in &self.urls {
                singles.push(Self { verbs: one(verb), urls: one(url), ..Self::default() });
            }
            for (group, resource) in self.groups.iter().flat_map(|g| self.resources.iter().map(move |r| (g, r))) {
                let whole = Self { verbs: one(verb), groups: one(group), resources: one(resource), ..Self::default() };
                if self.names.is_empty() {
                    singles.push(whole.clone());
                }
                singles.extend(self.names.iter().map(|name| Self { names: one(name), ..whole.clone() }));
            }
        }
        singles
    }
}

/// Whether an entry of `resources` means this resource.
fn meant(given: &str, resource: &str, subresource: &str) -> bool {
    if given == "*" {
        return true;
    }
    match given.split_once('/') {
        None => subresource.is_empty() && given == resource,
        Some((owner, part)) => !subresource.is_empty() && part == subresource && (owner == "*" || owner == resource),
    }
}

fn url_covers(given: &str, path: &str) -> bool {
    given == path || given.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

/// The part of `wanted` that `owned` does not allow, in rules of one resource each.
///
/// # Errors
/// The number of combinations, when it is over [`COMBINATIONS_MAX`].
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Result<Vec<Rule>, usize> {
    let combinations = wanted.iter().fold(0, |sum: usize, rule| sum.saturating_add(rule.combinations()));
    if combinations > COMBINATIONS_MAX || combinations.saturating_mul(owned.len()) > COMPARISONS_MAX {
        return Err(combinations);
    }
    let singles = wanted.iter().flat_map(Rule::singles);
    Ok(compact(singles.filter(|single| !owned.iter().any(|own| own.covers(single))).take(TOLD_MAX)))
}

/// Joins rules that differ only in their verb, in the order in which they come.
pub fn compact(rules: impl IntoIterator<Item = Rule>) -> Vec<Rule> {
    let mut joined: Vec<Rule> = Vec::new();
    for mut rule in rules {
        let same = |other: &&mut Rule| {
            (&other.groups, &other.resources, &other.names, &other.urls)
                == (&rule.groups, &rule.resources, &rule.names, &rule.urls)
        };
        match joined.iter_mut().find(same) {
            Some(other) if rule.urls.is_empty() => {
                rule.verbs.retain(|verb| !other.verbs.contains(verb));
                other.verbs.append(&mut rule.verbs);
            }
            _ => joined.push(rule),
        }
    }
    joined
}

/// As kube-apiserver writes rules in its refusals: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let shown = fields.iter().filter(|(_, list)| !list.is_empty());
        let parts: Vec<String> = shown.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

/// A list of words as kube-apiserver prints it: `["a" "b"]`.
pub fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rule(value: &Value) -> Rule {
        Rule::read(value)
    }

    fn pods<'a>(subresource: &'a str, name: &'a str) -> Object<'a> {
        Object::Resource { group: "", resource: "pods", subresource, name }
    }

    #[test]
    fn what_a_rule_allows() {
        let read = rule(&json!({"apiGroups": [""], "resources": ["pods", "*/scale"], "verbs": ["get", "list"]}));
        assert!(read.allows("get", pods("", "a")) && read.allows("get", pods("scale", "a")));
        assert!(!read.allows("get", pods("log", "a")) && !read.allows("watch", pods("", "")));
        let named = rule(&json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["a"]}));
        assert!(named.allows("delete", pods("exec", "a")) && !named.allows("list", pods("", "")));
        let urls = rule(&json!({"nonResourceURLs": ["/healthz", "/logs/*"], "verbs": ["get"]}));
        assert!(urls.allows("get", Object::Path("/logs/a")) && urls.allows("get", Object::Path("/healthz")));
        assert!(!urls.allows("get", Object::Path("/healthz/x")) && !urls.allows("get", pods("", "")));
    }

    #[test]
    fn what_is_not_covered_is_told() {
        let owned = [rule(&json!({"apiGroups": [""], "resources": ["pods", "*/log"], "verbs": ["get", "list"]}))];
        let wanted = [rule(
            &json!({"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["list", "watch", "delete"]}),
        )];
        let missing = uncovered(&owned, &wanted).unwrap();
        let text: Vec<String> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch" "delete"]}"#,
                r#"{APIGroups:[""], Resources:["pods/log"], Verbs:["watch" "delete"]}"#
            ]
        );
        let everything = [rule(&json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}))];
        assert!(uncovered(&everything, &wanted).unwrap().is_empty());
        assert_eq!(uncovered(&owned, &everything).unwrap().len(), 1);
        let named =
            [rule(&json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["a"]}))];
        assert!(uncovered(&owned, &named).unwrap().is_empty());
        assert_eq!(uncovered(&named, &owned).unwrap().len(), 2);
    }

    #[test]
    fn huge_rules_are_not_multiplied_out() {
        let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let huge =
            Rule { verbs: many.clone(), groups: many.clone(), resources: many.clone(), names: many, urls: vec![] };
        assert_eq!(uncovered(&[], &[huge]), Err(100_000_000));
    }
}
