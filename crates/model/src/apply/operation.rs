//! The two operations on ownership: apply, and every other write.

use std::borrow::Cow;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::compare::compare;
use super::conflict::Conflicts;
use super::element;
use super::fields::FieldSet;
use super::last_applied;
use super::managers::{Entry, Managers, Operation, Owned, is_reset};
use super::merge::merge;
use super::reconcile::reconcile;
use super::remove::prune;
use super::view::View;
use super::walk::{self, TypeErrors, fields_of};
use crate::meta::format_time;
use crate::status::ApiError;

/// The owner of what an object held before anybody applied to it, when no owners are known.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Fields that nobody owns: the server keeps them, or they name the object.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

static UNOWNED_FIELDS: LazyLock<FieldSet> = LazyLock::new(|| {
    UNOWNED.iter().fold(FieldSet::default(), |mut all, path| {
        all.add(FieldSet::under(path.iter().copied(), FieldSet::here()));
        all
    })
});

/// Who writes what, and when.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// How objects of the kind divide.
    pub view: View<'a>,
    /// The field manager; `unknown` when empty.
    pub manager: &'a str,
    /// The version of the API in which the object is written, for example `apps/v1`.
    pub api_version: &'a str,
    /// The subresource written to; empty for the object itself.
    pub subresource: &'a str,
    /// What of the object this write reaches.
    pub reach: Reach<'a>,
    /// The time of the write.
    pub now: Timestamp,
}

/// What of an object a write can change; all else in its body is without effect, and so nobody owns it by that write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach<'a> {
    /// Everything.
    Whole,
    /// Everything but one field of the object, such as `status`.
    Without(&'a str),
    /// Only the field at this path, such as `status`.
    Only(&'a [&'a str]),
}

/// Why an apply was refused.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The configuration is of another version than the URL's.
    #[error("Incorrect version specified in apply patch. Specified patch version: {given}, expected: {expected}")]
    Version {
        /// What the configuration says.
        given: String,
        /// What the URL says.
        expected: String,
    },
    /// An applied configuration cannot say who owns what.
    #[error("metadata.managedFields must be nil")]
    ManagedFieldsGiven,
    /// The configuration does not fit the kind's schema.
    #[error("failed to create typed patch object ({object}): {errors}")]
    Typed {
        /// `namespace/name; group/version, Kind=kind`.
        object: String,
        /// What does not fit.
        errors: TypeErrors,
    },
    /// Others own fields that would change.
    #[error("{0}")]
    Conflicts(Conflicts),
}

impl From<&ApplyError> for ApiError {
    fn from(error: &ApplyError) -> Self {
        match error {
            ApplyError::Conflicts(conflicts) => Self::from(conflicts),
            other => Self::bad_request(other.to_string()),
        }
    }
}

/// Applies a configuration to the live object, or to nothing.
///
/// The result still lacks defaults, and everything else that the server does to a new object; its `managedFields` are
/// final. With `force` the manager takes what others own and it would change.
pub fn apply(write: &Write<'_>, live: Option<&Value>, applied: &Value, force: bool) -> Result<Value, ApplyError> {
    check(write, applied)?;
    let mut config = write.reach.restrict(applied);
    write.view.canonicalise(&mut config);
    let mut managers = live.map(Managers::of).unwrap_or_default();
    write.reconcile(&mut managers, live);
    if let Some(live) = live.filter(|_| managers.is_empty()) {
        let mut fields = compare(write.view, None, live).added;
        write.own(&mut fields);
        let unknown = Write { manager: BEFORE_FIRST_APPLY, ..*write };
        if !fields.is_empty() {
            managers.give(unknown.entry(Operation::Update, fields));
        }
    }
    let mut merged = merge_and_own(write, live, &config, managers, force)?;
    if write.manager == last_applied::MANAGER {
        last_applied::sync(&mut merged, applied);
    }
    Ok(merged)
}

fn check(write: &Write<'_>, applied: &Value) -> Result<(), ApplyError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let given = text(&applied["apiVersion"]);
    if given != write.api_version {
        return Err(ApplyError::Version { given, expected: write.api_version.to_owned() });
    }
    let metadata = &applied["metadata"];
    if !metadata["managedFields"].is_null() {
        return Err(ApplyError::ManagedFieldsGiven);
    }
    walk::check(write.view, applied).map_err(|errors| {
        let version = if given.contains('/') { given.clone() } else { format!("/{given}") };
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        let object = format!("{namespace}/{name}; {version}, Kind={}", text(&applied["kind"]));
        ApplyError::Typed { object, errors }
    })
}

fn merge_and_own(
    write: &Write<'_>,
    live: Option<&Value>,
    config: &Value,
    mut managers: Managers,
    force: bool,
) -> Result<Value, ApplyError> {
    let view = write.view;
    let mut fields = fields_of(view, config);
    let mut own = write.entry(Operation::Apply, FieldSet::default());
    let last = managers.take(&own);
    let mut merged = merge(view, live, config);
    // Most often nothing was taken out of the configuration.
    if let Some(last) = last.as_ref().filter(|last| !last.fields.get().difference(&fields).is_empty()) {
        // Whatever is applied, the object keeps its name.
        let mut kept = FieldSet::under(["metadata", "name"].into_iter(), FieldSet::here()).union(&fields);
        managers.0.iter().for_each(|entry| kept.add(entry.fields.get().into_owned()));
        merged = prune(view, merged, &last.fields.get(), &kept);
    }
    let changes = compare(view, live, &merged);
    let is_change = !changes.is_empty();
    let mut changed = changes.added;
    changed.add(changes.modified);
    let mut removed = changes.removed;
    write.reach.filter(&mut changed);
    write.reach.filter(&mut removed);
    if !force && let Some(live) = live {
        let mut disputed = changed.clone();
        let conflicts = |disputed: &FieldSet| {
            let owners = managers.0.iter().map(|entry| (entry, entry.fields.get().intersection(disputed)));
            Conflicts::of(owners.filter(|(_, fields)| !fields.is_empty()))
        };
        let mut found = conflicts(&disputed);
        if !found.0.is_empty() && write.manager == last_applied::MANAGER {
            disputed.subtract(&last_applied::unchanged(view, live));
            found = conflicts(&disputed);
        }
        if !found.0.is_empty() {
            return Err(ApplyError::Conflicts(found));
        }
    }
    managers.dispossess(&removed);
    managers.dispossess(&changed);
    write.own(&mut fields);
    if let Some(last) = last.filter(|last| !is_change && *last.fields.get() == fields) {
        own.time = last.time;
    }
    if !fields.is_empty() {
        own.fields = Owned::Set(fields);
        managers.0.push(own);
    }
    set(&mut merged, managers.encode());
    Ok(merged)
}

/// The `managedFields` of an object after a write other than apply; `old` is nothing for a new object.
///
/// `given` is what the client itself sent as `managedFields`, which may correct or forget owners. An object whose owners
/// were forgotten stays without until somebody applies to it.
pub fn update(write: &Write<'_>, old: Option<&Value>, new: &Value, given: Option<Value>) -> Value {
    let stored = old.map_or(&Value::Null, |old| &old["metadata"]["managedFields"]);
    let given = given.filter(|given| write.subresource.is_empty() && !given.is_null());
    if old.is_some() && given.as_ref().is_some_and(is_reset) {
        return Value::Null;
    }
    // Whoever gets, changes and puts an object sends its owners along.
    let (stored, given) = match given {
        Some(given) if given == *stored => (Cow::Owned(given), None),
        given => (Cow::Borrowed(stored), given),
    };
    let given = given.and_then(|given| Managers::decode(given).ok()).filter(|managers| !managers.is_empty());
    let changes = compare(write.view, old, new);
    let (mut changed, mut gone) = (changes.added, changes.removed);
    changed.add(changes.modified);
    write.reach.filter(&mut gone);
    write.own(&mut changed);
    if given.is_none() && changed.is_empty() && gone.is_empty() {
        return stored.into_owned();
    }
    let mut managers = given.unwrap_or_else(|| Managers::read(stored.into_owned()).unwrap_or_default());
    if managers.is_empty() && old.is_some() {
        return Value::Null;
    }
    write.reconcile(&mut managers, old);
    managers.dispossess(&gone);
    managers.dispossess(&changed);
    if !changed.is_empty() {
        managers.give(write.entry(Operation::Update, changed));
    }
    managers.fold_oldest();
    managers.encode()
}

/// Puts back the times of `old`'s owners where nothing else is different: a write that changes nothing is not one.
pub fn settle(old: &Value, new: &mut Value) {
    let (before, after) = (&old["metadata"]["managedFields"], &new["metadata"]["managedFields"]);
    if before == after || !same_but(old, new, "metadata") {
        return;
    }
    let untimed = |list: &Value| {
        let mut managers = Managers::read(list.clone()).unwrap_or_default();
        managers.0.iter_mut().for_each(|entry| entry.time = None);
        managers.encode()
    };
    if same_but(&old["metadata"], &new["metadata"], "managedFields") && untimed(before) == untimed(after) {
        set(new, before.clone());
    }
}

fn same_but(a: &Value, b: &Value, field: &str) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return false };
    let has = |map: &Map<String, Value>| usize::from(map.contains_key(field));
    a.len() - has(a) == b.len() - has(b)
        && a.iter().filter(|(key, _)| *key != field).all(|(key, v)| b.get(key) == Some(v))
}

fn set(object: &mut Value, managed_fields: Value) {
    let Some(object) = object.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if !metadata.is_object() {
        *metadata = json!({});
    }
    let Some(metadata) = metadata.as_object_mut() else { return };
    if managed_fields.is_null() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), managed_fields);
    }
}

impl Write<'_> {
    /// Fits the owners' sets to a schema that may have changed since they were written.
    fn reconcile(&self, managers: &mut Managers, live: Option<&Value>) {
        if self.view.may_change() {
            for entry in &mut managers.0 {
                entry.fields = Owned::Set(reconcile(self.view, &entry.fields.get(), live));
            }
        }
    }

    fn entry(&self, operation: Operation, fields: FieldSet) -> Entry {
        let manager = if self.manager.is_empty() { "unknown" } else { self.manager };
        Entry {
            manager: manager.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
            time: Some(format_time(self.now)),
            fields: Owned::Set(fields),
        }
    }

    /// Leaves of a set what this write can own.
    fn own(&self, fields: &mut FieldSet) {
        self.reach.filter(fields);
        fields.subtract(&UNOWNED_FIELDS);
    }
}

impl Reach<'_> {
    /// Leaves of a set what can be reached.
    fn filter(self, fields: &mut FieldSet) {
        match self {
            Self::Whole => {}
            Self::Without(name) => drop(fields.take(&element::field(name))),
            Self::Only(path) => {
                let found = path.iter().try_fold(&*fields, |set, name| set.field(name)).cloned();
                *fields = FieldSet::under(path.iter().copied(), found.unwrap_or_default());
            }
        }
    }

    /// Leaves of a configuration what can be reached, and what names the object.
    fn restrict(self, applied: &Value) -> Value {
        let mut config = applied.clone();
        match (self, config.as_object_mut()) {
            (Self::Without(name), Some(map)) => drop(map.remove(name)),
            (Self::Only(path), Some(map)) => {
                let found = path.iter().try_fold(applied, |value, name| value.get(*name));
                map.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind"));
                let name = |field: &str| applied["metadata"].get(field).map(|value| (field.to_owned(), value.clone()));
                let names = ["name", "namespace", "resourceVersion", "uid"];
                map.insert("metadata".to_owned(), names.into_iter().filter_map(name).collect::<Map<_, _>>().into());
                if let (Some(found), Some((first, rest))) = (found, path.split_first()) {
                    let inner = rest.iter().rev().fold(found.clone(), |value, name| json!({*name: value}));
                    map.insert((*first).to_owned(), inner);
                }
            }
            _ => {}
        }
        config
    }
}
