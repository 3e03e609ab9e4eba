//! The registry of built-in resources: one row of data per kind, no code per kind.
//!
//! Role: everything the API server must know to serve a kind generically — where it lives in the URL space, its names,
//! whether it is namespaced, its verbs and subresources. The rows of the built-in kinds stand in `built_in.txt`; a
//! CustomResourceDefinition becomes the same row at run time.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/>.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};

/// One served resource: a row of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// API group, empty for core.
    pub group: String,
    /// Served version.
    pub version: String,
    /// Kind, for example `Pod`.
    pub kind: String,
    /// Plural name in URLs.
    pub plural: String,
    /// Singular name for `kubectl`.
    pub singular: String,
    /// Kind of a list of them, for example `PodList`.
    pub list_kind: String,
    /// Short names for `kubectl`.
    pub short_names: Vec<String>,
    /// `kubectl get all` and the like.
    pub categories: Vec<String>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Subresources served under an object, for example `status`.
    pub subresources: Vec<String>,
    /// What can be done with it, in the words of discovery.
    pub verbs: Vec<String>,
}

/// Verbs of a full resource, as discovery lists them.
pub const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Whether `subresource` is served.
    pub fn has_subresource(&self, subresource: &str) -> bool {
        self.subresources.iter().any(|served| served == subresource)
    }

    /// Whether discovery lists `verb`.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|served| served == verb)
    }

    /// The prefix of all keys of this resource in the store, ending in `/`: group (or `core`) and plural.
    ///
    /// Events of `events.k8s.io` are the events of the core group in other words, and are stored as those.
    pub fn key_prefix(&self) -> String {
        let group = if matches!(self.group.as_str(), "" | "events.k8s.io") { "core" } else { &self.group };
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
            "kind": self.kind, "verbs": self.verbs,
        });
        if !self.short_names.is_empty() {
            own["shortNames"] = json!(self.short_names);
        }
        if !self.categories.is_empty() {
            own["categories"] = json!(self.categories);
        }
        let mut all = vec![own];
        for subresource in &self.subresources {
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
            "scale" => ("Scale", "autoscaling/v1".to_owned(), CHANGE),
            "eviction" => ("Eviction", "policy/v1".to_owned(), &["create"]),
            "binding" => ("Binding", own, &["create"]),
            "token" => ("TokenRequest", "authentication.k8s.io/v1".to_owned(), &["create"]),
            "log" => ("Pod", own, &["get"]),
            "exec" => ("PodExecOptions", own, &["create", "get"]),
            "attach" => ("PodAttachOptions", own, &["create", "get"]),
            "portforward" => ("PodPortForwardOptions", own, &["create", "get"]),
            "proxy" => match resource.kind.as_str() {
                "Node" => ("NodeProxyOptions", own, PROXY),
                "Service" => ("ServiceProxyOptions", own, PROXY),
                _ => ("PodProxyOptions", own, PROXY),
            },
            "finalize" => ("Namespace", own, &["update"]),
            _ => (&resource.kind, own, CHANGE),
        };
        Self { kind: kind.to_owned(), group_version, verbs }
    }
}

const CHANGE: &[&str] = &["get", "patch", "update"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

/// The built-in resources. A row in `built_in.txt` is all that a plain kind needs.
pub static BUILT_IN: LazyLock<Vec<Arc<Resource>>> = LazyLock::new(|| {
    let lines = include_str!("built_in.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| parse_row(line).map(Arc::new)).collect()
});

fn parse_row(line: &str) -> Option<Resource> {
    let list = |text: &str| -> Vec<String> {
        text.split(',').filter(|entry| !matches!(*entry, "-" | "")).map(str::to_owned).collect()
    };
    let words: Vec<&str> = line.split(' ').collect();
    let [group_version, plural, kind, scope, short_names, categories, subresources, verbs @ ..] = words.as_slice()
    else {
        return None;
    };
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let mut verbs = list(verbs.first().unwrap_or(&"-"));
    if verbs.is_empty() {
        verbs = VERBS.iter().map(|&verb| verb.to_owned()).collect();
    }
    Some(Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
        singular: kind.to_lowercase(),
        list_kind: format!("{kind}List"),
        short_names: list(short_names),
        categories: list(categories),
        namespaced: *scope == "ns",
        subresources: list(subresources),
        verbs,
    })
}

/// The row of an `apiVersion` and `kind`.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Arc<Resource>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    BUILT_IN.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
}

/// The row of a kind whose name is known to be in the registry; of two groups with that kind (`Event`) the first.
///
/// # Panics
/// When there is no such built-in kind, which is a mistake in the calling code.
pub fn known(kind: &str) -> &'static Arc<Resource> {
    BUILT_IN.iter().find(|r| r.kind == kind).unwrap_or_else(|| panic!("{kind} is not a built-in kind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_row() {
        let lines = include_str!("built_in.txt").lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(BUILT_IN.len(), lines);
    }

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
