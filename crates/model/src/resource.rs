//! The registry of built-in resources: one row of data per kind, no code per kind.
//!
//! Role: everything the API server must know to serve a kind generically — where it lives in the URL space,
//! its names, whether it is namespaced, its subresources. A CustomResourceDefinition becomes the same row at run time.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/>.

use serde_json::{Value, json};

/// One served resource: a row of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// API group, empty for core.
    pub group: &'static str,
    /// Served version.
    pub version: &'static str,
    /// Kind, for example `Pod`.
    pub kind: &'static str,
    /// Plural name in URLs.
    pub plural: &'static str,
    /// Singular name for `kubectl`.
    pub singular: &'static str,
    /// Short names for `kubectl`.
    pub short_names: &'static [&'static str],
    /// `kubectl get all` and the like.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Subresources served under an object, for example `status`.
    pub subresources: &'static [&'static str],
}

/// Verbs of a full resource, as discovery lists them.
pub const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Whether `subresource` is served.
    pub fn has_subresource(&self, subresource: &str) -> bool {
        self.subresources.contains(&subresource)
    }

    /// The prefix of all keys of this resource in the store, ending in `/`: group (or `core`) and plural.
    pub fn key_prefix(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { self.group };
        format!("/{group}/{}/", self.plural)
    }

    /// The store key of one object, or with an empty name the prefix of a namespace.
    pub fn key(&self, namespace: Option<&str>, name: &str) -> String {
        match namespace {
            Some(namespace) if self.namespaced => format!("{}{namespace}/{name}", self.key_prefix()),
            _ => format!("{}{name}", self.key_prefix()),
        }
    }

    /// The URL path of a collection or, with a name, of one object.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            path = format!("{path}/namespaces/{namespace}");
        }
        path = format!("{path}/{}", self.plural);
        match name {
            Some(name) => format!("{path}/{name}"),
            None => path,
        }
    }

    /// The entries of this resource in an `APIResourceList`: itself and its subresources.
    pub fn discovery(&self) -> Vec<Value> {
        let mut own = json!({
            "name": self.plural, "singularName": self.singular, "namespaced": self.namespaced,
            "kind": self.kind, "verbs": VERBS,
        });
        if !self.short_names.is_empty() {
            own["shortNames"] = json!(self.short_names);
        }
        if !self.categories.is_empty() {
            own["categories"] = json!(self.categories);
        }
        let mut all = vec![own];
        for subresource in self.subresources {
            let shape = Subresource::of(subresource, self);
            let mut entry = json!({
                "name": format!("{}/{subresource}", self.plural), "singularName": "",
                "namespaced": self.namespaced, "kind": shape.kind, "verbs": shape.verbs,
            });
            if shape.group_version != self.api_version() {
                let (group, version) = shape.group_version.split_once('/').unwrap_or(("", &shape.group_version));
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
            all.push(entry);
        }
        all
    }
}

/// What a subresource carries: its own kind and verbs.
pub struct Subresource {
    /// Kind of the body.
    pub kind: String,
    /// Group and version of that kind.
    pub group_version: String,
    /// Verbs it has.
    pub verbs: &'static [&'static str],
}

impl Subresource {
    /// The shape of a subresource of `resource`.
    pub fn of(subresource: &str, resource: &Resource) -> Self {
        let own = resource.api_version();
        let (kind, group_version, verbs): (&str, String, &'static [&'static str]) = match subresource {
            "scale" => ("Scale", "autoscaling/v1".to_owned(), &["get", "patch", "update"]),
            "eviction" => ("Eviction", "policy/v1".to_owned(), &["create"]),
            "binding" => ("Binding", own, &["create"]),
            "log" => ("Pod", own, &["get"]),
            "exec" => ("PodExecOptions", own, &["create", "get"]),
            "attach" => ("PodAttachOptions", own, &["create", "get"]),
            "portforward" => ("PodPortForwardOptions", own, &["create", "get"]),
            "finalize" => ("Namespace", own, &["update"]),
            _ => (resource.kind, own, &["get", "patch", "update"]),
        };
        Self { kind: kind.to_owned(), group_version, verbs }
    }
}

const fn row(
    (group, version): (&'static str, &'static str),
    (kind, plural, singular): (&'static str, &'static str, &'static str),
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    subresources: &'static [&'static str],
) -> Resource {
    Resource { group, version, kind, plural, singular, short_names, categories, namespaced, subresources }
}

const CORE: (&str, &str) = ("", "v1");
const APPS: (&str, &str) = ("apps", "v1");
const ALL: &[&str] = &["all"];
const STATUS: &[&str] = &["status"];
const SCALED: &[&str] = &["scale", "status"];

/// The built-in resources this server serves. A row here is all that a plain kind needs.
pub static BUILT_IN: &[Resource] = &[
    row(CORE, ("Namespace", "namespaces", "namespace"), &["ns"], &[], false, &["finalize", "status"]),
    row(CORE, ("Node", "nodes", "node"), &["no"], &[], false, STATUS),
    row(CORE, ("Pod", "pods", "pod"), &["po"], ALL, true, &["binding", "eviction", "exec", "log", "status"]),
    row(CORE, ("Service", "services", "service"), &["svc"], ALL, true, STATUS),
    row(CORE, ("ConfigMap", "configmaps", "configmap"), &["cm"], &[], true, &[]),
    row(CORE, ("Secret", "secrets", "secret"), &[], &[], true, &[]),
    row(CORE, ("Event", "events", "event"), &["ev"], &[], true, &[]),
    row(CORE, ("ServiceAccount", "serviceaccounts", "serviceaccount"), &["sa"], &[], true, &[]),
    row(APPS, ("Deployment", "deployments", "deployment"), &["deploy"], ALL, true, SCALED),
    row(APPS, ("ReplicaSet", "replicasets", "replicaset"), &["rs"], ALL, true, SCALED),
    row(("coordination.k8s.io", "v1"), ("Lease", "leases", "lease"), &[], &[], true, &[]),
    row(("discovery.k8s.io", "v1"), ("EndpointSlice", "endpointslices", "endpointslice"), &[], &[], true, &[]),
    row(
        ("policy", "v1"),
        ("PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget"),
        &["pdb"],
        &[],
        true,
        STATUS,
    ),
];

/// The row of a group and plural, any version.
pub fn find(group: &str, plural: &str) -> Option<&'static Resource> {
    BUILT_IN.iter().find(|r| r.group == group && r.plural == plural)
}

/// The row of an `apiVersion` and `kind`.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    BUILT_IN.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
}

/// The row of a kind whose name is known to be in the registry.
///
/// # Panics
/// When there is no such built-in kind, which is a mistake in the calling code.
pub fn known(kind: &str) -> &'static Resource {
    BUILT_IN.iter().find(|r| r.kind == kind).unwrap_or_else(|| panic!("{kind} is not a built-in kind"))
}

/// The groups served besides core, with their versions.
pub fn groups() -> Vec<(&'static str, &'static str)> {
    let mut groups: Vec<_> = BUILT_IN.iter().filter(|r| !r.group.is_empty()).map(|r| (r.group, r.version)).collect();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique() {
        for (i, a) in BUILT_IN.iter().enumerate() {
            assert!(!BUILT_IN[i + 1..].iter().any(|b| a.plural == b.plural && a.group == b.group), "{}", a.plural);
        }
    }

    #[test]
    fn paths_and_keys() {
        let pods = known("Pod");
        assert_eq!(pods.path(Some("shop"), Some("a")), "/api/v1/namespaces/shop/pods/a");
        assert_eq!(pods.key(Some("shop"), "a"), "/core/pods/shop/a");
        let nodes = known("Node");
        assert_eq!(nodes.path(None, None), "/api/v1/nodes");
        assert_eq!(nodes.key(None, "n"), "/core/nodes/n");
    }

    #[test]
    fn discovery_names_the_foreign_group_of_scale() {
        let entries = known("Deployment").discovery();
        let scale = entries.iter().find(|e| e["name"] == "deployments/scale").expect("scale");
        assert_eq!((&scale["group"], &scale["version"]), (&json!("autoscaling"), &json!("v1")));
    }
}
