//! What is served: the built-in resources, and those that CustomResourceDefinitions add while the server runs.
//!
//! Flow: a request reads the whole [`Catalogue`] once, as it is at that moment; a change swaps it for a new one. So no
//! request ever sees half a change, and nothing waits for a lock while it looks something up.

use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use mainstay_model::apply::View;
use mainstay_model::protobuf::schema_type;
use mainstay_model::resource::{self, Resource};

/// A resource that requests may be about. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    row: Arc<Resource>,
}

impl Deref for Served {
    type Target = Resource;

    fn deref(&self) -> &Resource {
        &self.row
    }
}

impl From<&Arc<Resource>> for Served {
    fn from(row: &Arc<Resource>) -> Self {
        Self { row: row.clone() }
    }
}

impl Served {
    /// The name under which the tables of `mainstay_model` (defaults, validation, columns) know this kind; empty when
    /// they know nothing of it, as for custom resources, whose kind may be anything, and for the second face of events.
    pub(crate) fn rules(&self) -> &str {
        if self.group == "events.k8s.io" { "" } else { &self.kind }
    }
}

impl Served {
    /// How its objects divide into fields that can be owned.
    pub(crate) fn view(&self) -> View<'_> {
        View::built_in(schema_type(&self.api_version(), &self.kind))
    }
}

/// Everything that is served at one moment.
#[derive(Debug)]
pub(crate) struct Catalogue {
    rows: Vec<Served>,
}

impl Catalogue {
    fn built_in() -> Self {
        Self { rows: resource::BUILT_IN.iter().map(Served::from).collect() }
    }

    /// All resources, those of one group and version next to each other.
    pub(crate) fn all(&self) -> &[Served] {
        &self.rows
    }

    /// The resource of a URL.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Served> {
        self.rows.iter().find(|r| r.plural == plural && r.group == group && r.version == version)
    }

    /// The resources of one group and version.
    pub(crate) fn of(&self, group: &str, version: &str) -> impl Iterator<Item = &Served> {
        self.rows.iter().filter(move |r| r.group == group && r.version == version)
    }

    /// The named groups in the order of discovery, each with its versions, the preferred one first.
    pub(crate) fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for row in self.rows.iter().filter(|r| !r.group.is_empty()) {
            match groups.iter_mut().find(|(group, _)| *group == row.group) {
                Some((_, versions)) if versions.contains(&row.version.as_str()) => {}
                Some((_, versions)) => versions.push(&row.version),
                None => groups.push((&row.group, vec![&row.version])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by(|a, b| by_priority(a, b));
        }
        groups
    }
}

/// The order of versions: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, then all others by name.
///
/// Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/#version-priority>.
fn by_priority(a: &str, b: &str) -> Ordering {
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Stability (2 general, 1 beta, 0 alpha), major and minor number of a version that follows the rule.
fn rank(version: &str) -> Option<(u8, u32, u32)> {
    let digits = |text: &str| Some(text).filter(|t| t.bytes().all(|b| b.is_ascii_digit())).and_then(|t| t.parse().ok());
    let rest = version.strip_prefix('v')?;
    for (word, stability) in [("beta", 1), ("alpha", 0)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, digits(major)?, digits(minor)?));
        }
    }
    Some((2, digits(rest)?, 0))
}

/// The catalogue in force.
pub(crate) struct Registry {
    catalogue: RwLock<Arc<Catalogue>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { catalogue: RwLock::new(Arc::new(Catalogue::built_in())) }
    }
}

impl Registry {
    /// What is served now.
    pub(crate) fn now(&self) -> Arc<Catalogue> {
        // The lock guards one pointer: nobody can leave it half written.
        self.catalogue.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_by_priority() {
        let mut versions = ["foo1", "v1alpha1", "v10", "v1beta2", "v2", "v1beta1", "v1", "bar"];
        versions.sort_by(|a, b| by_priority(a, b));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "bar", "foo1"]);
    }

    #[test]
    fn built_in_groups() {
        let registry = Registry::default();
        let catalogue = registry.now();
        assert!(catalogue.groups().contains(&("apps", vec!["v1"])));
        assert_eq!(catalogue.find("", "v1", "pods").map(|r| r.kind.as_str()), Some("Pod"));
        assert!(catalogue.find("apps", "v1", "pods").is_none());
    }
}
