//! The roles and bindings every cluster has, made or completed at every start.
//!
//! What people added to them stays; what they took away comes back, unless the object says
//! `rbac.authorization.kubernetes.io/autoupdate: "false"`.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#auto-reconciliation>.

use futures::future::try_join_all;
use mainstay_model::meta;
use mainstay_model::rbac::{Rule, uncovered};
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::aggregate;
use crate::api::Api;
use crate::request::{Call, Verb};
use crate::rest;

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

/// All default objects, in the order of the table.
fn objects() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in include_str!("defaults.txt").lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["cluster-role", name, marks @ ..] => objects.push(cluster_role_object(name, marks)),
            ["role", name] => objects.push(object("Role", name)),
            ["cluster-binding", name, role, subjects @ ..] => {
                objects.push(binding("ClusterRoleBinding", "ClusterRole", name, role, subjects));
            }
            ["binding", name, role, subjects @ ..] => {
                objects.push(binding("RoleBinding", "Role", name, role, subjects));
            }
            rule => {
                if let Some(rules) = objects.last_mut().and_then(|role| role["rules"].as_array_mut()) {
                    rules.push(rule_object(rule));
                }
            }
        }
    }
    objects
}

/// The rules of a default ClusterRole.
pub(super) fn cluster_role(name: &str) -> Vec<Rule> {
    objects()
        .iter()
        .find(|o| o["kind"] == "ClusterRole" && meta::name(o) == name)
        .map(Rule::of_role)
        .unwrap_or_default()
}

fn object(kind: &str, name: &str) -> Value {
    let (namespace, name) = name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind, "rules": [],
        "metadata": {
            "name": name, "annotations": {AUTOUPDATE: "true"},
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        },
    });
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn cluster_role_object(name: &str, marks: &[&str]) -> Value {
    let mut role = object("ClusterRole", name);
    for mark in marks {
        let label = |to: &str| format!("{GROUP}/aggregate-to-{to}");
        match mark.split_once(':') {
            Some(("for", to)) => role["metadata"]["labels"][label(to)] = json!("true"),
            Some((_, to)) => {
                role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label(to): "true"}}]});
            }
            None => {}
        }
    }
    role
}

fn rule_object(words: &[&str]) -> Value {
    let list = |at: usize| -> Vec<&str> { words.get(at).map(|text| text.split(',').collect()).unwrap_or_default() };
    let mut verbs: Vec<&str> = list(0)
        .into_iter()
        .flat_map(|verb| match verb {
            "read" => READ.to_vec(),
            "write" => WRITE.to_vec(),
            verb => vec![verb],
        })
        .collect();
    verbs.sort_unstable();
    if words.get(1) == Some(&"url") {
        return json!({"nonResourceURLs": list(2), "verbs": verbs});
    }
    let groups: Vec<&str> = list(1).into_iter().map(|group| if group == "-" { "" } else { group }).collect();
    let mut rule = json!({"apiGroups": groups, "resources": list(2), "verbs": verbs});
    if words.len() > 3 {
        rule["resourceNames"] = json!(list(3));
    }
    rule
}

fn binding(kind: &str, role_kind: &str, name: &str, role: &str, subjects: &[&str]) -> Value {
    let mut binding = object(kind, name);
    binding.as_object_mut().map(|map| map.remove("rules"));
    binding["roleRef"] = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
    let subject = |text: &&str| match text.split_once('=') {
        Some(("user", name)) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        Some(("group", name)) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        Some((_, account)) => {
            let (namespace, name) = account.split_once('/').unwrap_or(("", account));
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        None => Value::Null,
    };
    if !subjects.is_empty() {
        binding["subjects"] = json!(subjects.iter().map(subject).collect::<Vec<_>>());
    }
    binding
}

/// Makes or completes all of them.
///
/// # Errors
/// When the store does not take them.
pub(crate) async fn reconcile(api: &Api) -> Result<(), ApiError> {
    // Together, they share few syncs of the disk.
    try_join_all(objects().into_iter().map(|object| ensure(api, object))).await?;
    aggregate::once(api).await
}

async fn ensure(api: &Api, wanted: Value) -> Result<(), ApiError> {
    let resource = known(meta::kind(&wanted));
    let mut call = Call::internal(Verb::Create, resource.into(), meta::namespace(&wanted));
    let found = rest::find(api, &resource.kind, meta::namespace(&wanted), meta::name(&wanted)).await?;
    let Some(found) = found else {
        let created = rest::create(api, &call, "application/json", wanted.to_string().as_bytes()).await;
        return created.map(drop);
    };
    if complete(&found, &wanted) == found {
        return Ok(());
    }
    call.verb = Verb::Update;
    call.name = Some(meta::name(&wanted).to_owned());
    rest::change(api, &call, |old| Ok(complete(old, &wanted))).await.map(drop)
}

/// `old` with everything that `wanted` has.
fn complete(old: &Value, wanted: &Value) -> Value {
    let mut new = old.clone();
    if meta::annotation(old, AUTOUPDATE) == Some("false") {
        return new;
    }
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            new["metadata"][field][key] = value.clone();
        }
    }
    if wanted["aggregationRule"].is_object() {
        new["aggregationRule"] = wanted["aggregationRule"].clone();
    } else if let Ok(missing) = uncovered(&Rule::of_role(old), &Rule::of_role(wanted))
        && !missing.is_empty()
    {
        let mut rules = old["rules"].as_array().cloned().unwrap_or_default();
        rules.extend(missing.iter().map(Rule::to_value));
        new["rules"] = json!(rules);
    }
    let mut subjects = old["subjects"].as_array().cloned().unwrap_or_default();
    let missing = wanted["subjects"].as_array().into_iter().flatten().filter(|subject| !subjects.contains(subject));
    let missing: Vec<Value> = missing.cloned().collect();
    if !missing.is_empty() {
        subjects.extend(missing);
        new["subjects"] = json!(subjects);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let objects = objects();
        let count = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).count();
        assert_eq!(
            (count("ClusterRole"), count("ClusterRoleBinding"), count("Role"), count("RoleBinding")),
            (33, 14, 4, 4)
        );
        for object in &objects {
            let kind = meta::kind(object);
            let faults = mainstay_model::validate::validate_create(kind, object);
            assert!(faults.is_empty(), "{} {faults:?}", meta::name(object));
            let role = &object["roleRef"];
            let known = |o: &Value| o["kind"] == role["kind"] && o["metadata"]["name"] == role["name"];
            assert!(role.is_null() || objects.iter().any(known), "{role}");
        }
        let discovery = cluster_role("system:discovery");
        assert!(discovery[0].allows("get", mainstay_model::rbac::Object::Path("/apis/apps/v1")));
    }

    #[test]
    fn what_was_taken_away_comes_back_and_what_was_added_stays() {
        let wanted = rule_object(&["get,list", "-", "pods"]);
        let wanted = json!({"metadata": {}, "rules": [wanted]});
        let old =
            json!({"metadata": {}, "rules": [rule_object(&["get", "-", "pods"]), rule_object(&["get", "-", "nodes"])]});
        let new = complete(&old, &wanted);
        assert_eq!(new["rules"].as_array().map(Vec::len), Some(3));
        assert_eq!(complete(&new, &wanted), new);
        let mut kept = old.clone();
        kept["metadata"]["annotations"] = json!({AUTOUPDATE: "false"});
        assert_eq!(complete(&kept, &wanted), kept);
    }
}
