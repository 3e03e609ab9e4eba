//! Roles and bindings in memory, indexed by who is bound.
//!
//! A question costs one look-up for the user and one for each group, and then only the rules of those roles.

use std::collections::HashMap;
use std::sync::Arc;

use mainstay_model::rbac::Rule;
use mainstay_model::selector::LabelSelector;
use mainstay_store::Entry;
use serde_json::Value;

use super::Attributes;
use crate::authn::{User, account_user};
use crate::follow::View;

/// The prefix of all four kinds in the store.
pub(crate) const PREFIX: &str = "/rbac.authorization.k8s.io/";

/// A Role (with a namespace) or ClusterRole.
#[derive(Debug, Default)]
pub(crate) struct Role {
    pub(crate) rules: Vec<Rule>,
    pub(crate) labels: Value,
    /// Whose rules this role collects; empty for a role with rules of its own.
    pub(crate) collects: Vec<LabelSelector>,
}

/// A RoleBinding (with a namespace) or ClusterRoleBinding.
#[derive(Debug)]
struct Binding {
    namespace: String,
    name: String,
    role_is_cluster: bool,
    role: String,
    subjects: Vec<Subject>,
}

/// Who is bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
    /// A ServiceAccount, by its user name; with how it is named in reasons.
    Account(String, String),
}

impl Subject {
    /// A subject of a binding in `home`, which is empty for a ClusterRoleBinding.
    fn read(subject: &Value, home: &str) -> Option<Self> {
        let name = subject["name"].as_str()?;
        Some(match subject["kind"].as_str()? {
            "User" => Self::User(name.to_owned()),
            "Group" => Self::Group(name.to_owned()),
            _ => {
                let given = subject["namespace"].as_str().filter(|namespace| !namespace.is_empty());
                let namespace = given.unwrap_or(home);
                Self::Account(account_user(namespace, name), format!("{name}/{namespace}"))
            }
        })
    }

    /// As an index entry: groups are told from users by their first character.
    fn index(&self) -> String {
        match self {
            Self::User(name) | Self::Account(name, _) => format!("u{name}"),
            Self::Group(name) => format!("g{name}"),
        }
    }

    fn told(&self) -> String {
        match self {
            Self::User(name) => format!("User {name:?}"),
            Self::Group(name) => format!("Group {name:?}"),
            Self::Account(_, name) => format!("ServiceAccount {name:?}"),
        }
    }
}

/// What the view knows.
#[derive(Default)]
pub(crate) struct Policies {
    /// By key in the store.
    roles: HashMap<String, Arc<Role>>,
    bindings: HashMap<String, Arc<Binding>>,
    bound: HashMap<String, Vec<Arc<Binding>>>,
}

/// The key of a role.
pub(crate) fn role_key(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{PREFIX}roles/{namespace}/{name}"),
        None => format!("{PREFIX}clusterroles/{name}"),
    }
}

impl View for Policies {
    fn take(&mut self, key: &str, entry: Option<&Entry>) {
        let parts: Vec<&str> = key[PREFIX.len().min(key.len())..].split('/').collect();
        let object = || entry.and_then(|entry| serde_json::from_slice::<Value>(&entry.value).ok());
        match parts.as_slice() {
            ["roles", _, _] | ["clusterroles", _] => match object() {
                Some(object) => drop(self.roles.insert(key.to_owned(), Arc::new(read_role(&object)))),
                None => drop(self.roles.remove(key)),
            },
            ["rolebindings", namespace, name] => self.bind(key, namespace, name, object()),
            ["clusterrolebindings", name] => self.bind(key, "", name, object()),
            _ => {}
        }
    }
}

fn read_role(object: &Value) -> Role {
    let selectors = object["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten();
    Role {
        rules: Rule::of_role(object),
        labels: object["metadata"]["labels"].clone(),
        collects: selectors.filter_map(|selector| LabelSelector::from_object(selector).ok()).collect(),
    }
}

impl Policies {
    fn bind(&mut self, key: &str, namespace: &str, name: &str, object: Option<Value>) {
        if let Some(old) = self.bindings.remove(key) {
            for subject in &old.subjects {
                if let Some(bindings) = self.bound.get_mut(&subject.index()) {
                    bindings.retain(|other| !Arc::ptr_eq(other, &old));
                    if bindings.is_empty() {
                        self.bound.remove(&subject.index());
                    }
                }
            }
        }
        let Some(object) = object else { return };
        let mut subjects: Vec<Subject> =
            object["subjects"].as_array().into_iter().flatten().filter_map(|s| Subject::read(s, namespace)).collect();
        subjects.dedup();
        let binding = Arc::new(Binding {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            role_is_cluster: object["roleRef"]["kind"] == "ClusterRole",
            role: object["roleRef"]["name"].as_str().unwrap_or_default().to_owned(),
            subjects,
        });
        for subject in &binding.subjects {
            self.bound.entry(subject.index()).or_default().push(binding.clone());
        }
        self.bindings.insert(key.to_owned(), binding);
    }

    /// The role of a key.
    pub(crate) fn role(&self, key: &str) -> Option<Arc<Role>> {
        self.roles.get(key).cloned()
    }

    /// All ClusterRoles by name.
    pub(crate) fn cluster_roles(&self) -> impl Iterator<Item = (&str, &Arc<Role>)> {
        let prefix = role_key(None, "");
        self.roles.iter().filter_map(move |(key, role)| Some((key.strip_prefix(&prefix)?, role)))
    }

    /// The bindings that count for a user in a namespace, each with the subject by which it does; cluster-wide ones first.
    fn bindings_of(&self, user: &User, namespace: &str) -> Vec<(&Arc<Binding>, String)> {
        let indices = std::iter::once(format!("u{}", user.name)).chain(user.groups.iter().map(|g| format!("g{g}")));
        let mut all: Vec<(&Arc<Binding>, String)> = Vec::new();
        for index in indices {
            let bindings = self.bound.get(&index).into_iter().flatten();
            let here = bindings.filter(|b| b.namespace.is_empty() || b.namespace == namespace);
            all.extend(here.map(|binding| (binding, index.clone())));
        }
        all.sort_by_key(|(binding, _)| !binding.namespace.is_empty());
        all
    }

    fn role_of(&self, binding: &Binding) -> Result<&Arc<Role>, String> {
        let namespace = (!binding.role_is_cluster).then_some(binding.namespace.as_str());
        self.roles.get(&role_key(namespace, &binding.role)).ok_or_else(|| {
            let kind = if binding.role_is_cluster { "clusterrole" } else { "role" };
            format!("{kind}.rbac.authorization.k8s.io {:?} not found", binding.role)
        })
    }

    /// Whether a rule allows it: the reason, or with `Err` what kept roles from being looked at.
    pub(crate) fn decide(&self, user: &User, asked: &Attributes) -> Result<String, Vec<String>> {
        let mut errors = Vec::new();
        for (binding, index) in self.bindings_of(user, &asked.namespace) {
            match self.role_of(binding) {
                Ok(role) if role.rules.iter().any(|rule| rule.allows(&asked.verb, asked.object())) => {
                    return Ok(reason(binding, &index));
                }
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        Err(errors)
    }

    /// All rules a user has in a namespace (with an empty one, everywhere), and what could not be resolved.
    pub(crate) fn rules_of(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for (binding, _) in self.bindings_of(user, namespace) {
            match self.role_of(binding) {
                Ok(role) => rules.extend(role.rules.iter().cloned()),
                Err(error) => errors.push(error),
            }
        }
        (rules, errors)
    }
}

fn reason(binding: &Binding, index: &str) -> String {
    let subject = binding.subjects.iter().find(|subject| subject.index() == index).map(Subject::told);
    let role_kind = if binding.role_is_cluster { "ClusterRole" } else { "Role" };
    let (kind, name) = if binding.namespace.is_empty() {
        ("ClusterRoleBinding", binding.name.clone())
    } else {
        ("RoleBinding", format!("{}/{}", binding.name, binding.namespace))
    };
    format!("RBAC: allowed by {kind} {name:?} of {role_kind} {:?} to {}", binding.role, subject.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn put(policies: &mut Policies, key: &str, object: &Value) {
        let entry = Entry { key: key.into(), value: object.to_string().into(), create_revision: 1, mod_revision: 1 };
        policies.take(&format!("{PREFIX}{key}"), Some(&entry));
    }

    fn world() -> Policies {
        let mut policies = Policies::default();
        let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
        put(&mut policies, "clusterroles/read", &json!({"rules": rules}));
        put(&mut policies, "roles/a/own", &json!({"rules": rules}));
        let binding = |kind: &str, role: &str, subjects: Value| json!({"roleRef": {"kind": kind, "name": role}, "subjects": subjects});
        let account = json!([{"kind": "ServiceAccount", "namespace": "a", "name": "bot"},
            {"kind": "ServiceAccount", "name": "neighbour"}]);
        put(&mut policies, "rolebindings/a/bots", &binding("Role", "own", account));
        put(
            &mut policies,
            "rolebindings/b/jane",
            &binding("ClusterRole", "read", json!([{"kind": "User", "name": "jane"}])),
        );
        put(
            &mut policies,
            "clusterrolebindings/ops",
            &binding("ClusterRole", "read", json!([{"kind": "Group", "name": "ops"}])),
        );
        put(
            &mut policies,
            "clusterrolebindings/lost",
            &binding("ClusterRole", "gone", json!([{"kind": "User", "name": "jane"}])),
        );
        policies
    }

    #[test]
    fn bindings_count_where_they_are() {
        let policies = world();
        let pods = |namespace: &str| Attributes::on("get", "", "pods", namespace, "p");
        let jane = User::new("jane", &[]);
        assert!(policies.decide(&jane, &pods("b")).is_ok());
        let refused = vec![r#"clusterrole.rbac.authorization.k8s.io "gone" not found"#.to_owned()];
        assert_eq!(policies.decide(&jane, &pods("a")), Err(refused));
        let bot = User::service_account("a", "bot", "");
        let reason = r#"RBAC: allowed by RoleBinding "bots/a" of Role "own" to ServiceAccount "bot/a""#;
        assert_eq!(policies.decide(&bot, &pods("a")).as_deref(), Ok(reason));
        // Without a namespace, an account is one of the binding's own.
        assert!(policies.decide(&User::service_account("a", "neighbour", ""), &pods("a")).is_ok());
        assert!(policies.decide(&User::service_account("b", "neighbour", ""), &pods("a")).is_err());
        let ops = User::new("o", &["ops"]);
        assert!(policies.decide(&ops, &pods("")).is_ok() && policies.decide(&ops, &pods("z")).is_ok());
        assert_eq!(policies.rules_of(&ops, "").0.len(), 1);
    }

    #[test]
    fn what_is_taken_away_is_gone() {
        let mut policies = world();
        let bot = User::service_account("a", "bot", "");
        policies.take(&format!("{PREFIX}rolebindings/a/bots"), None);
        assert!(policies.decide(&bot, &Attributes::on("get", "", "pods", "a", "p")).is_err());
        assert!(!policies.bound.contains_key("usystem:serviceaccount:a:bot"));
    }
}
