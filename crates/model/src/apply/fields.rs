//! A set of fields, as `metadata.managedFields[].fieldsV1` holds it.

use serde_json::{Map, Value};

use super::element;

/// How deep a set may nest. Objects nest less: their JSON is read with a limit of 128.
const DEPTH_MAX: usize = 200;

/// Why JSON is not a set of fields.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FieldsError {
    /// A place where an object must stand holds something else.
    #[error("fieldsV1 holds {0} where only objects may stand")]
    NotAnObject(String),
    /// A key that is no step of a path.
    #[error(
        "fieldsV1 holds the key {0:?}, which is none of \".\", \"f:NAME\", \"k:{{KEYS}}\", \"v:VALUE\" and \"i:INDEX\""
    )]
    BadElement(String),
    /// It nests deeper than any object can.
    #[error("fieldsV1 nests deeper than {DEPTH_MAX}")]
    TooDeep,
}

/// A set of fields of an object: a tree of steps, each in the set itself or only on the way to others.
///
/// No branch is empty: every leaf is in the set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the place this node stands for is in the set, not only places below it.
    owned: bool,
    /// In the order of the steps' text. Nodes are many and small: a list takes a third of a tree map's time.
    children: Vec<(String, FieldSet)>,
}

impl FieldSet {
    /// The set of one place: where this node stands.
    pub(super) fn here() -> Self {
        Self { owned: true, children: Vec::new() }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        !self.owned && self.children.is_empty()
    }

    /// Whether the place this node stands for is in the set.
    pub(super) fn owns_here(&self) -> bool {
        self.owned
    }

    /// Puts the place this node stands for into the set.
    pub(super) fn own_here(&mut self) {
        self.owned = true;
    }

    /// Whether anything below this node is in the set.
    pub(super) fn has_children(&self) -> bool {
        !self.children.is_empty()
    }

    fn place(&self, element: &str) -> Result<usize, usize> {
        // Most sets are built in order.
        match self.children.last() {
            None => Err(0),
            Some((last, _)) if last.as_str() < element => Err(self.children.len()),
            _ => self.children.binary_search_by(|(known, _)| known.as_str().cmp(element)),
        }
    }

    /// What is in the set at and below one step.
    pub(super) fn child(&self, element: &str) -> Option<&Self> {
        self.place(element).ok().map(|place| &self.children[place].1)
    }

    /// What is in the set at and below one field.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        // Compared without making the step's text.
        let order = |known: &str| match known.strip_prefix("f:") {
            Some(known) => known.cmp(name),
            None => known.cmp("f:"),
        };
        let place = self.children.binary_search_by(|(known, _)| order(known)).ok()?;
        Some(&self.children[place].1)
    }

    /// The steps from here, with what is in the set at and below them.
    pub(super) fn children(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.children.iter().map(|(element, child)| (element.as_str(), child))
    }

    /// Sets what is in the set at and below one step; an empty set takes the step out.
    pub(super) fn put(&mut self, element: String, child: Self) {
        match (self.place(&element), child.is_empty()) {
            (Ok(place), true) => drop(self.children.remove(place)),
            (Ok(place), false) => self.children[place].1 = child,
            (Err(_), true) => {}
            (Err(place), false) => self.children.insert(place, (element, child)),
        }
    }

    /// Takes out what is at and below one step.
    pub(super) fn take(&mut self, element: &str) -> Option<Self> {
        self.place(element).ok().map(|place| self.children.remove(place).1)
    }

    /// The set of a path from here and all that `below` holds under it.
    pub(super) fn under<'a>(path: impl DoubleEndedIterator<Item = &'a str>, below: Self) -> Self {
        path.rev().fold(below, |below, name| {
            let mut set = Self::default();
            set.put(element::field(name), below);
            set
        })
    }

    /// Adds everything in `other`.
    pub fn add(&mut self, other: Self) {
        self.owned |= other.owned;
        if self.children.is_empty() {
            self.children = other.children;
            return;
        }
        for (element, child) in other.children {
            match self.place(&element) {
                Ok(place) => self.children[place].1.add(child),
                Err(place) => self.children.insert(place, (element, child)),
            }
        }
    }

    /// Everything in either set.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.add(other.clone());
        self
    }

    /// Everything in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { owned: self.owned && other.owned, children: Vec::new() };
        for (element, child) in &self.children {
            if let Some(other) = other.child(element) {
                both.put(element.clone(), child.intersection(other));
            }
        }
        both
    }

    /// Takes out what is in `other`. What stands below a place in `other` stays unless it is in `other` too.
    pub fn subtract(&mut self, other: &Self) {
        self.owned &= !other.owned;
        for (element, other) in &other.children {
            if let Ok(place) = self.place(element) {
                let child = &mut self.children[place].1;
                child.subtract(other);
                if child.is_empty() {
                    self.children.remove(place);
                }
            }
        }
    }

    /// Everything in this set but not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.subtract(other);
        rest
    }

    /// The places in the set as messages show them, for example `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths(&mut String::new(), &mut paths);
        paths
    }

    fn collect_paths(&self, path: &mut String, paths: &mut Vec<String>) {
        if self.owned {
            paths.push(path.clone());
        }
        for (element, child) in &self.children {
            let length = path.len();
            path.push_str(&element::shown(element));
            child.collect_paths(path, paths);
            path.truncate(length);
        }
    }

    /// Reads `fieldsV1`.
    ///
    /// # Errors
    /// When a key is no step of a path, or something other than an object stands anywhere.
    pub fn parse(json: &Value) -> Result<Self, FieldsError> {
        Self::parse_at(json, 0)
    }

    fn parse_at(json: &Value, depth: usize) -> Result<Self, FieldsError> {
        if depth > DEPTH_MAX {
            return Err(FieldsError::TooDeep);
        }
        let map = json.as_object().ok_or_else(|| FieldsError::NotAnObject(json.to_string()))?;
        let mut set = Self::default();
        for (key, value) in map {
            if key == "." {
                set.owned = true;
                continue;
            }
            let element = element::canonical(key).ok_or_else(|| FieldsError::BadElement(key.clone()))?;
            let mut child = Self::parse_at(value, depth + 1)?;
            if value.as_object().is_some_and(Map::is_empty) {
                child.owned = true;
            }
            if !child.is_empty() {
                set.add(Self { owned: false, children: vec![(element, child)] });
            }
        }
        Ok(set)
    }

    /// Reads `fieldsV1` that [`FieldSet::into_json`] wrote, without checking how steps are spelled.
    pub(super) fn read(json: &Value) -> Self {
        let mut set = Self::default();
        for (key, value) in json.as_object().into_iter().flatten() {
            if key == "." {
                set.owned = true;
                continue;
            }
            let mut child = Self::read(value);
            child.owned |= child.children.is_empty();
            set.put(key.clone(), child);
        }
        set
    }

    /// Whether anything in the set is also in what `fieldsV1` holds.
    pub(super) fn overlaps(&self, json: &Value) -> bool {
        let Some(map) = json.as_object() else { return false };
        (self.owned && (map.is_empty() || map.contains_key(".")))
            || self.children.iter().any(|(element, child)| map.get(element).is_some_and(|json| child.overlaps(json)))
    }

    /// Writes `fieldsV1`.
    pub fn into_json(self) -> Value {
        let mut map = Map::new();
        if self.owned {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in self.children {
            let json = if child.children.is_empty() { Value::Object(Map::new()) } else { child.into_json() };
            map.insert(element, json);
        }
        Value::Object(map)
    }
}
