//! The definitions in the store, and the catalogue they make, kept in memory by the store's watch.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use mainstay_custom::definition::is_established;
use mainstay_custom::served;
use mainstay_model::meta;
use mainstay_model::resource::known;
use mainstay_store::Entry;
use serde_json::Value;

use crate::follow::View;
use crate::registry::{Catalogue, Custom};
use crate::rest::decode_entry;

struct Definition {
    object: Value,
    served: Vec<Arc<Custom>>,
}

/// All definitions, by key.
#[derive(Default)]
pub(crate) struct Definitions {
    by_key: BTreeMap<String, Definition>,
    /// Made when it is first asked for after a change.
    catalogue: OnceLock<Arc<Catalogue>>,
}

impl View for Definitions {
    fn take(&mut self, key: &str, entry: Option<&Entry>) {
        self.catalogue = OnceLock::new();
        let Some(entry) = entry else {
            self.by_key.remove(key);
            return;
        };
        let object = decode_entry(known(super::DEFINITION), entry);
        let before = self.by_key.remove(key).filter(|before| serves_the_same(&before.object, &object));
        let served = before.map_or_else(|| versions(&object), |before| before.served);
        self.by_key.insert(key.to_owned(), Definition { object, served });
    }
}

/// Whether two states of a definition lead to the same kinds, so that schemas need not be compiled again.
fn serves_the_same(before: &Value, after: &Value) -> bool {
    before["spec"] == after["spec"]
        && before["status"]["acceptedNames"] == after["status"]["acceptedNames"]
        && is_established(before) == is_established(after)
        && meta::is_being_deleted(before) == meta::is_being_deleted(after)
        && meta::uid(before) == meta::uid(after)
}

fn versions(object: &Value) -> Vec<Arc<Custom>> {
    if !is_established(object) {
        return Vec::new();
    }
    let custom = |version| {
        Arc::new(Custom {
            version,
            definition: meta::name(object).to_owned(),
            tag: format!("{}/{}", meta::uid(object), meta::generation(object)),
            terminating: meta::is_being_deleted(object),
        })
    };
    match served::versions(object) {
        Ok(versions) => versions.into_iter().map(custom).collect(),
        // Validation lets none such in; a store from elsewhere may hold one.
        Err(error) => {
            tracing::error!(definition = meta::name(object), %error, "a definition cannot be served");
            Vec::new()
        }
    }
}

impl Definitions {
    /// All definitions.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Value> {
        self.by_key.values().map(|definition| &definition.object)
    }

    /// What is served with them.
    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        let make = || Arc::new(Catalogue::with(self.by_key.values().flat_map(|definition| &definition.served)));
        self.catalogue.get_or_init(make).clone()
    }

    /// A served version of a definition; any will do to reach its objects.
    pub(crate) fn served(&self, name: &str) -> Option<Arc<Custom>> {
        self.by_key.values().flat_map(|definition| &definition.served).find(|custom| custom.definition == name).cloned()
    }
}
