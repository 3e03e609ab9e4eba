//! `metadata.managedFields`: reading, writing, checking, and the limit on its length.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields::{FieldSet, FieldsError};
use crate::meta::{format_time, parse_time};
use crate::status::{FieldError, FieldErrorKind};

/// The most managers whose updates are told apart, as in Kubernetes; the oldest are folded into one.
pub const UPDATE_MANAGERS_MAX: usize = 10;
/// The longest name of a manager, in bytes.
pub const MANAGER_BYTES_MAX: usize = 128;
/// The longest name of a subresource in an entry, in bytes.
const SUBRESOURCE_BYTES_MAX: usize = 256;
/// The manager into which the oldest updates are folded.
const ANCIENT: &str = "ancient-changes";

/// What a manager did to own its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    /// Server-side apply.
    Apply,
    /// Any other write.
    Update,
}

impl Operation {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// The fields of one owner. Most writes touch those of few owners: the others' stay as they were read.
#[derive(Debug, Clone)]
pub(super) enum Owned {
    /// `fieldsV1` as this server wrote it.
    Json(Value),
    /// In a form to compute with.
    Set(FieldSet),
}

impl Owned {
    /// The set.
    pub(super) fn get(&self) -> Cow<'_, FieldSet> {
        match self {
            Self::Json(json) => Cow::Owned(FieldSet::read(json)),
            Self::Set(set) => Cow::Borrowed(set),
        }
    }

    /// The set, to change it.
    pub(super) fn get_mut(&mut self) -> &mut FieldSet {
        if let Self::Json(json) = self {
            *self = Self::Set(FieldSet::read(json));
        }
        match self {
            Self::Set(set) => set,
            Self::Json(_) => unreachable!("made a set above"),
        }
    }

    fn subtract(&mut self, fields: &FieldSet) {
        if let Self::Json(json) = self
            && !fields.overlaps(json)
        {
            return;
        }
        self.get_mut().subtract(fields);
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Json(json) => json.as_object().is_none_or(Map::is_empty),
            Self::Set(set) => set.is_empty(),
        }
    }

    fn into_json(self) -> Value {
        match self {
            Self::Json(json) => json,
            Self::Set(set) => set.into_json(),
        }
    }
}

/// A manager and the fields it owns.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    /// When it last changed something, in whole seconds.
    pub(super) time: Option<String>,
    pub(super) fields: Owned,
}

impl Entry {
    /// Whether both are one owner. An applier is the same in all versions of the API, an updater is not.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// Kubernetes' order of entries.
    fn order(&self) -> impl Ord + '_ {
        (self.operation, self.time.as_deref(), &self.manager, &self.api_version, &self.subresource)
    }

    /// Reads an entry, with its fields as they stand.
    fn decode(json: Value) -> Result<Self, DecodeError> {
        let Value::Object(mut json) = json else { return Err(DecodeError::NotAnObject) };
        let fields = Owned::Json(json.remove("fieldsV1").unwrap_or_default());
        let text = |field: &str| json.get(field).and_then(Value::as_str).unwrap_or_default();
        let operation = match text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err(DecodeError::Operation),
        };
        if text("fieldsType") != "FieldsV1" {
            return Err(DecodeError::FieldsType);
        }
        let time = Some(text("time")).filter(|time| !time.is_empty()).map(str::to_owned);
        Ok(Self {
            manager: text("manager").to_owned(),
            operation,
            api_version: text("apiVersion").to_owned(),
            subresource: text("subresource").to_owned(),
            time,
            fields,
        })
    }

    fn encode(self) -> Value {
        let mut map = Map::new();
        let texts = [
            ("apiVersion", self.api_version.as_str()),
            ("fieldsType", "FieldsV1"),
            ("manager", &self.manager),
            ("operation", self.operation.word()),
            ("subresource", &self.subresource),
            ("time", self.time.as_deref().unwrap_or_default()),
        ];
        for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            map.insert(field.to_owned(), json!(text));
        }
        map.insert("fieldsV1".to_owned(), self.fields.into_json());
        Value::Object(map)
    }
}

/// Why an entry cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("managedFields must be a list")]
    NotAList,
    #[error("an entry of managedFields must be an object")]
    NotAnObject,
    #[error("the operation must be Apply or Update")]
    Operation,
    #[error("the fieldsType must be FieldsV1")]
    FieldsType,
    #[error(transparent)]
    Fields(#[from] FieldsError),
}

/// All owners of an object's fields.
#[derive(Debug, Clone, Default)]
pub(super) struct Managers(pub(super) Vec<Entry>);

impl Managers {
    /// Reads the list that a client sent; entries of one owner become one.
    pub(super) fn decode(json: Value) -> Result<Self, DecodeError> {
        let mut managers = Self::default();
        for mut entry in Self::read(json)?.0 {
            if let Owned::Json(json) = &entry.fields {
                let set = if json.is_null() { FieldSet::default() } else { FieldSet::parse(json)? };
                entry.fields = Owned::Set(set);
            }
            entry.time = entry.time.as_deref().and_then(parse_time).map(format_time);
            managers.give(entry);
        }
        managers.0.retain(|entry| !entry.fields.is_empty());
        Ok(managers)
    }

    /// Reads the list as this server wrote it.
    pub(super) fn read(json: Value) -> Result<Self, DecodeError> {
        match json {
            Value::Null => Ok(Self::default()),
            Value::Array(list) => Ok(Self(list.into_iter().map(Entry::decode).collect::<Result<_, _>>()?)),
            _ => Err(DecodeError::NotAList),
        }
    }

    /// The owners of a stored object. What the server wrote it can read; anything else counts as nobody.
    pub(super) fn of(object: &Value) -> Self {
        Self::read(object["metadata"]["managedFields"].clone()).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives an owner more fields; its time and version become those of `entry`.
    pub(super) fn give(&mut self, entry: Entry) {
        match self.0.iter_mut().find(|known| known.is(&entry)) {
            Some(known) => {
                let mut fields = entry.fields;
                known.fields.get_mut().add(std::mem::take(fields.get_mut()));
                known.time = entry.time;
                known.api_version = entry.api_version;
            }
            None => self.0.push(entry),
        }
    }

    /// Takes an owner out.
    pub(super) fn take(&mut self, like: &Entry) -> Option<Entry> {
        let place = self.0.iter().position(|entry| entry.is(like))?;
        Some(self.0.swap_remove(place))
    }

    /// Takes fields away from all, and out those who own nothing more.
    pub(super) fn dispossess(&mut self, fields: &FieldSet) {
        if !fields.is_empty() {
            for entry in &mut self.0 {
                entry.fields.subtract(fields);
            }
        }
        self.0.retain(|entry| !entry.fields.is_empty());
    }

    /// Folds the oldest updates of each API version into one owner until at most [`UPDATE_MANAGERS_MAX`] are left.
    pub(super) fn fold_oldest(&mut self) {
        let is_update = |entry: &Entry| entry.operation == Operation::Update;
        let mut updates = self.0.iter().filter(|entry| is_update(entry)).count();
        if updates <= UPDATE_MANAGERS_MAX {
            return;
        }
        self.0.sort_by(|a, b| a.order().cmp(&b.order()));
        let mut folded: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for entry in std::mem::take(&mut self.0) {
            if !is_update(&entry) || updates <= UPDATE_MANAGERS_MAX {
                self.0.push(entry);
                continue;
            }
            // The first of a version alone saves nothing; from the second on each is one less.
            let version = folded.entry(entry.api_version.clone()).or_default();
            if !version.is_empty() {
                updates -= 1;
            }
            version.push(entry);
        }
        for (api_version, mut entries) in folded {
            if entries.len() == 1 {
                self.0.append(&mut entries);
                continue;
            }
            let time = entries.last().and_then(|entry| entry.time.clone());
            let mut fields = FieldSet::default();
            for mut entry in entries {
                fields.add(std::mem::take(entry.fields.get_mut()));
            }
            let fields = Owned::Set(fields);
            let (manager, subresource) = (ANCIENT.to_owned(), String::new());
            self.give(Entry { manager, operation: Operation::Update, api_version, subresource, time, fields });
        }
    }

    /// Writes the list, in Kubernetes' order; `null` when nobody owns anything.
    pub(super) fn encode(mut self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        self.0.sort_by(|a, b| a.order().cmp(&b.order()));
        self.0.into_iter().map(Entry::encode).collect()
    }
}

/// Whether the client asks to forget all owners: an empty list, or one with a single empty entry.
pub(super) fn is_reset(json: &Value) -> bool {
    match json.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([Value::Object(entry)]) => entry.values().all(Value::is_null),
        _ => false,
    }
}

/// Checks `metadata.managedFields` as a client sent it.
pub fn validate(managed_fields: &Value) -> Vec<FieldError> {
    if is_reset(managed_fields) {
        return Vec::new();
    }
    let mut errors = Vec::new();
    for (i, entry) in managed_fields.as_array().into_iter().flatten().enumerate() {
        let at = |field: &str| format!("metadata.managedFields[{i}].{field}");
        let mut invalid = |field: &str, rule: &str| {
            errors.push(FieldError::with_value(at(field), FieldErrorKind::Invalid, entry[field].clone(), rule));
        };
        if !matches!(entry["operation"].as_str(), Some("Apply" | "Update")) {
            invalid("operation", "must be `Apply` or `Update`");
        }
        if !matches!(entry["fieldsType"].as_str(), None | Some("" | "FieldsV1")) {
            invalid("fieldsType", "must be `FieldsV1`");
        }
        if entry["subresource"].as_str().is_some_and(|name| name.len() > SUBRESOURCE_BYTES_MAX) {
            let rule = format!("may not be more than {SUBRESOURCE_BYTES_MAX} bytes");
            errors.push(FieldError::new(at("subresource"), FieldErrorKind::TooLong, rule));
        }
        errors.extend(check_manager(entry["manager"].as_str().unwrap_or_default(), &at("manager")));
    }
    errors
}

/// Checks the name of a manager.
pub fn check_manager(name: &str, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if name.len() > MANAGER_BYTES_MAX {
        let rule = format!("may not be more than {MANAGER_BYTES_MAX} bytes");
        errors.push(FieldError::new(path, FieldErrorKind::TooLong, rule));
    }
    if let Some((place, bad)) = name.char_indices().find(|(_, c)| !is_printable(*c)) {
        let rule = format!("invalid character U+{:04X} (at position {place})", u32::from(bad));
        errors.push(FieldError::with_value(path, FieldErrorKind::Invalid, json!(name), rule));
    }
    errors
}

fn is_printable(c: char) -> bool {
    c == ' ' || !(c.is_control() || c.is_whitespace())
}

/// The manager of a write that names none: what its `User-Agent` says before the first slash.
pub fn manager_of_user_agent(user_agent: &str) -> String {
    let mut name = String::new();
    for c in user_agent.split('/').next().unwrap_or_default().chars().filter(|c| is_printable(*c)) {
        if name.len() + c.len_utf8() > MANAGER_BYTES_MAX {
            break;
        }
        name.push(c);
    }
    name
}
