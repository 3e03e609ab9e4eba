//! The node authoriser: an agent reads what the pods on its node need, and nothing of others.
//!
//! Flow: for secrets, config maps, claims, volumes and account tokens, a pod on this node must refer to the object; pods
//! and nodes are its own; everything else is a fixed list of rules ([`RULES`]). What a node may write of what it may
//! touch at all, admission restricts further.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/node/>.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use mainstay_model::meta;
use mainstay_model::rbac::Rule;
use mainstay_model::status::ApiError;
use mainstay_store::Entry;
use serde_json::Value;

use super::{Attributes, Decision, defaults};
use crate::api::Api;
use crate::follow::View;
use crate::rest;

/// The prefix of pods in the store.
pub(crate) const PREFIX: &str = "/core/pods/";

/// What nodes may do regardless of their pods: the default role `system:node`.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| defaults::cluster_role("system:node"));

/// What a pod refers to: `secrets/name`, all in its own namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    objects: HashSet<String>,
}

/// The pods of each node, by key.
#[derive(Default)]
pub(crate) struct NodePods {
    nodes: HashMap<String, HashMap<String, Arc<References>>>,
    node_of: HashMap<String, String>,
}

impl View for NodePods {
    fn take(&mut self, key: &str, entry: Option<&Entry>) {
        let pod = entry.and_then(|entry| serde_json::from_slice::<Value>(&entry.value).ok());
        let node = pod.as_ref().and_then(|pod| meta::str_at(pod, "spec.nodeName")).unwrap_or_default();
        // Most changes are to a pod's status; what it refers to cannot change but by ephemeral containers.
        if let Some(before) = self.node_of.get(key).filter(|before| *before != node) {
            if let Some(pods) = self.nodes.get_mut(before) {
                pods.remove(key);
                if pods.is_empty() {
                    self.nodes.remove(before);
                }
            }
            self.node_of.remove(key);
        }
        if let Some(pod) = pod.as_ref().filter(|_| !node.is_empty()) {
            self.nodes.entry(node.to_owned()).or_default().insert(key.to_owned(), Arc::new(references(pod)));
            self.node_of.insert(key.to_owned(), node.to_owned());
        }
    }
}

impl NodePods {
    /// Whether a pod on the node refers to an object in its namespace.
    fn refers(&self, node: &str, namespace: &str, what: &str, name: &str) -> bool {
        let (prefix, reference) = (format!("{PREFIX}{namespace}/"), format!("{what}/{name}"));
        let pods = self.nodes.get(node).into_iter().flatten();
        pods.filter(|(key, _)| key.starts_with(&prefix)).any(|(_, references)| references.objects.contains(&reference))
    }

    fn has(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.node_of.get(&format!("{PREFIX}{namespace}/{name}")).is_some_and(|other| other == node)
    }
}

/// Everything a pod names that its node must read.
fn references(pod: &Value) -> References {
    let mut objects = HashSet::new();
    let mut add = |what: &str, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            objects.insert(format!("{what}/{name}"));
        }
    };
    let spec = &pod["spec"];
    add("serviceaccounts", &spec["serviceAccountName"]);
    for secret in meta::list_at(spec, "imagePullSecrets") {
        add("secrets", &secret["name"]);
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in meta::list_at(spec, list) {
            for source in meta::list_at(container, "envFrom") {
                add("secrets", &source["secretRef"]["name"]);
                add("configmaps", &source["configMapRef"]["name"]);
            }
            for variable in meta::list_at(container, "env") {
                add("secrets", &variable["valueFrom"]["secretKeyRef"]["name"]);
                add("configmaps", &variable["valueFrom"]["configMapKeyRef"]["name"]);
            }
        }
    }
    for volume in meta::list_at(spec, "volumes") {
        add("secrets", &volume["secret"]["secretName"]);
        add("configmaps", &volume["configMap"]["name"]);
        add("persistentvolumeclaims", &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            add("persistentvolumeclaims", &format!("{}-{}", meta::name(pod), text(&volume["name"])).into());
        }
        for source in meta::list_at(volume, "projected.sources") {
            add("secrets", &source["secret"]["name"]);
            add("configmaps", &source["configMap"]["name"]);
        }
        // Every kind of volume that needs credentials names them the same way.
        for kind in volume.as_object().into_iter().flat_map(serde_json::Map::values) {
            for field in ["secretRef", "nodePublishSecretRef"] {
                add("secrets", &kind[field]["name"]);
            }
        }
    }
    References { objects }
}

const NO_RELATION: &str = "no relationship found between node";

/// Whether the agent of `node` may do it.
pub(super) async fn decide(api: &Api, node: &str, asked: &Attributes) -> Result<Decision, ApiError> {
    let refuse = |reason: String| Ok(Decision::Refused(reason));
    let verb = asked.verb.as_str();
    match (asked.group.as_str(), asked.full_resource().as_str()) {
        ("", what @ ("secrets" | "configmaps")) => match verb {
            "get" | "list" | "watch" => related(api, node, asked, what).await,
            _ => refuse("can only read resources of this type".to_owned()),
        },
        ("", "persistentvolumeclaims" | "persistentvolumeclaims/status") => match (verb, asked.subresource.as_str()) {
            ("get", _) | ("update" | "patch", "status") => related(api, node, asked, "persistentvolumeclaims").await,
            _ => refuse("can only get individual resources of this type".to_owned()),
        },
        ("", "persistentvolumes") if verb == "get" => volume(api, node, asked).await,
        ("", "serviceaccounts/token") if verb == "create" => related(api, node, asked, "serviceaccounts").await,
        ("", "serviceaccounts") if verb == "get" => related(api, node, asked, "serviceaccounts").await,
        ("", "serviceaccounts" | "serviceaccounts/token" | "persistentvolumes") => {
            refuse("can only get individual resources of this type".to_owned())
        }
        ("", "pods") if verb == "get" => {
            let own = api.authoriser.pods.read(|pods| pods.has(node, &asked.namespace, &asked.name)).await?;
            Ok(relation(own, node))
        }
        ("", "pods") if matches!(verb, "list" | "watch") => match asked.selects("spec.nodeName") {
            Some(selected) if selected == node => Ok(Decision::Allowed(String::new())),
            _ => refuse("can only list/watch pods with spec.nodeName field selector".to_owned()),
        },
        ("", "nodes") if matches!(verb, "get" | "list" | "watch") && asked.name != node => {
            refuse(format!("node {node:?} cannot read {:?}, only its own Node object", asked.name))
        }
        ("coordination.k8s.io", "leases") => Ok(own_name(node, asked, "kube-node-lease")),
        ("storage.k8s.io", "csinodes") => Ok(own_name(node, asked, "")),
        ("storage.k8s.io", "volumeattachments") if verb == "get" => attachment(api, node, asked).await,
        _ if RULES.iter().any(|rule| rule.allows(verb, asked.object())) => Ok(Decision::Allowed(String::new())),
        _ => refuse(String::new()),
    }
}

fn relation(found: bool, node: &str) -> Decision {
    if found {
        Decision::Allowed(String::new())
    } else {
        Decision::Refused(format!("{NO_RELATION} '{node}' and this object"))
    }
}

async fn related(api: &Api, node: &str, asked: &Attributes, what: &str) -> Result<Decision, ApiError> {
    if asked.name.is_empty() {
        return Ok(Decision::Refused("No Object name found".to_owned()));
    }
    let refers = |pods: &NodePods| pods.refers(node, &asked.namespace, what, &asked.name);
    Ok(relation(api.authoriser.pods.read(refers).await?, node))
}

/// A volume is the node's business when a pod of the node uses the claim it is bound to.
async fn volume(api: &Api, node: &str, asked: &Attributes) -> Result<Decision, ApiError> {
    let volume = rest::find(api, "PersistentVolume", None, &asked.name).await?.unwrap_or_default();
    let text = |field: &str| volume["spec"]["claimRef"][field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let refers = |pods: &NodePods| pods.refers(node, namespace, "persistentvolumeclaims", name);
    Ok(relation(api.authoriser.pods.read(refers).await?, node))
}

async fn attachment(api: &Api, node: &str, asked: &Attributes) -> Result<Decision, ApiError> {
    let object = rest::find(api, "VolumeAttachment", None, &asked.name).await?.unwrap_or_default();
    Ok(relation(object["spec"]["nodeName"] == node, node))
}

/// Objects that carry the node's name.
fn own_name(node: &str, asked: &Attributes, namespace: &str) -> Decision {
    let refuse = |reason: &str| Decision::Refused(reason.to_owned());
    if !matches!(asked.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") || !asked.subresource.is_empty()
    {
        return refuse("can only get, create, update, patch, or delete an object of this type");
    }
    if asked.namespace != namespace {
        return refuse("can only access objects of this type in the namespace that is for nodes");
    }
    // The name of a new object stands in its body, where admission looks.
    if asked.verb != "create" && asked.name != node {
        return refuse("can only access the object with the same name as the requesting node");
    }
    Decision::Allowed(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(node: &str) -> Entry {
        let pod = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {
            "nodeName": node, "serviceAccountName": "bot", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "all"}}]}],
            "volumes": [{"secret": {"secretName": "files"}}, {"name": "e", "ephemeral": {}},
                {"projected": {"sources": [{"configMap": {"name": "ca"}}]}}, {"cephfs": {"secretRef": {"name": "ceph"}}}],
        }});
        Entry { key: "".into(), value: pod.to_string().into(), create_revision: 1, mod_revision: 1 }
    }

    #[test]
    fn a_node_is_related_to_what_its_pods_name() {
        let mut pods = NodePods::default();
        pods.take("/core/pods/a/p", Some(&pod("n")));
        for (what, name) in [
            ("serviceaccounts", "bot"),
            ("secrets", "pull"),
            ("secrets", "env"),
            ("secrets", "files"),
            ("secrets", "ceph"),
            ("configmaps", "all"),
            ("configmaps", "ca"),
            ("persistentvolumeclaims", "p-e"),
        ] {
            assert!(pods.refers("n", "a", what, name), "{what}/{name}");
            assert!(!pods.refers("m", "a", what, name) && !pods.refers("n", "b", what, name));
        }
        assert!(!pods.refers("n", "a", "secrets", "other") && pods.has("n", "a", "p"));
        pods.take("/core/pods/a/p", Some(&pod("m")));
        assert!(!pods.refers("n", "a", "secrets", "env") && pods.refers("m", "a", "secrets", "env"));
        pods.take("/core/pods/a/p", None);
        assert!(pods.nodes.is_empty() && pods.node_of.is_empty());
    }
}
