//! What is served: the built-in resources, and those that CustomResourceDefinitions add while the server runs.
//!
//! Flow: a request reads the whole [`Catalogue`] once, as it is at that moment; a change swaps it for a new one. So no
//! request ever sees half a change, and nothing waits for a lock while it looks something up.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use mainstay_custom::definition::by_priority;
use mainstay_custom::served::Version;
use mainstay_model::apply::View;
use mainstay_model::protobuf::schema_type;
use mainstay_model::resource::{self, Resource, known};
use mainstay_model::status::ApiError;
use mainstay_store::{Revision, Store};

use crate::custom::Definitions;
use crate::follow::Follower;

/// A resource that requests may be about. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Served {
    row: Arc<Resource>,
    custom: Option<Arc<Custom>>,
}

/// What a custom kind has besides its row.
pub(crate) struct Custom {
    /// Its schema, columns and so on.
    pub(crate) version: Version,
    /// Name of its definition.
    pub(crate) definition: String,
    /// Another one whenever the definition changes.
    pub(crate) tag: String,
    /// Whether the definition is being deleted, so that nothing new may be made.
    pub(crate) terminating: bool,
}

impl Deref for Served {
    type Target = Resource;

    fn deref(&self) -> &Resource {
        &self.row
    }
}

impl From<&Arc<Resource>> for Served {
    fn from(row: &Arc<Resource>) -> Self {
        Self { row: row.clone(), custom: None }
    }
}

impl From<&Arc<Custom>> for Served {
    fn from(custom: &Arc<Custom>) -> Self {
        Self { row: custom.version.row.clone(), custom: Some(custom.clone()) }
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = self.custom.as_ref().map(|custom| &custom.tag);
        f.debug_struct("Served").field("row", &self.row).field("tag", &tag).finish()
    }
}

impl Served {
    /// The name under which the tables of `mainstay_model` (defaults, validation, columns) know this kind; empty when
    /// they know nothing of it, as for custom resources, whose kind may be anything, and for the second face of events.
    pub(crate) fn rules(&self) -> &str {
        if self.custom.is_some() || self.group == "events.k8s.io" { "" } else { &self.kind }
    }

    /// How its objects divide into fields that can be owned.
    pub(crate) fn view(&self) -> View<'_> {
        match self.custom() {
            Some(custom) => View::custom(custom.version.source()),
            None => View::built_in(schema_type(&self.api_version(), &self.kind)),
        }
    }

    /// What it has besides its row, if it is a custom kind.
    pub(crate) fn custom(&self) -> Option<&Custom> {
        self.custom.as_deref()
    }
}

/// What an object is read from the store as: a built-in kind by its row, a custom one by its version.
pub(crate) trait Stored {
    /// The row.
    fn row(&self) -> &Resource;

    /// The version of a custom kind.
    fn version(&self) -> Option<&Version> {
        None
    }
}

impl Stored for Resource {
    fn row(&self) -> &Resource {
        self
    }
}

impl Stored for Arc<Resource> {
    fn row(&self) -> &Resource {
        self
    }
}

impl Stored for Served {
    fn row(&self) -> &Resource {
        &self.row
    }

    fn version(&self) -> Option<&Version> {
        self.custom().map(|custom| &custom.version)
    }
}

/// Everything that is served at one moment.
#[derive(Debug)]
pub(crate) struct Catalogue {
    rows: Vec<Served>,
}

impl Catalogue {
    /// The built-in kinds only.
    pub(crate) fn built_in() -> Self {
        Self::with(std::iter::empty())
    }

    /// The built-in kinds and these custom ones. A built-in kind of the same group and name goes before.
    pub(crate) fn with<'a>(custom: impl Iterator<Item = &'a Arc<Custom>>) -> Self {
        let mut more: Vec<Served> = custom.map(Served::from).collect();
        more.sort_by(|a, b| (&a.group, &a.version, &a.plural).cmp(&(&b.group, &b.version, &b.plural)));
        Self { rows: resource::BUILT_IN.iter().map(Served::from).chain(more).collect() }
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

/// The catalogue in force: a view of the definitions in the store.
pub(crate) struct Registry {
    definitions: Follower<Definitions>,
}

impl Registry {
    /// The catalogue of the definitions in `store`.
    pub(crate) fn new(store: &Arc<dyn Store>) -> Self {
        let prefix = known("CustomResourceDefinition").key_prefix();
        Self { definitions: Follower::new(store.clone(), prefix) }
    }

    /// What is served now.
    ///
    /// # Errors
    /// 500 when the definitions could not be read since the server started.
    pub(crate) async fn now(&self) -> Result<Arc<Catalogue>, ApiError> {
        self.definitions.read(Definitions::catalogue).await
    }

    /// Looks at the definitions.
    ///
    /// # Errors
    /// 500 when they could not be read since the server started.
    pub(crate) async fn definitions<R>(&self, look: impl FnOnce(&Definitions) -> R) -> Result<R, ApiError> {
        self.definitions.read(look).await
    }

    /// Waits until a change is in the catalogue: who created a definition must find its kind with the next request.
    pub(crate) async fn settle(&self, key: &str, revision: Revision) {
        self.definitions.settle(key, revision).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_groups() {
        let catalogue = Catalogue::built_in();
        assert!(catalogue.groups().contains(&("apps", vec!["v1"])));
        assert_eq!(catalogue.find("", "v1", "pods").map(|r| r.kind.as_str()), Some("Pod"));
        assert!(catalogue.find("apps", "v1", "pods").is_none());
    }
}
