//! Whether an object keeps to its schema, in the words of kube-apiserver.
//!
//! An update is not judged by what it leaves alone ("ratcheting"): where the old object has the same value in a place that
//! can be correlated (fields, keys of maps, items of lists that are maps), nothing below is checked again.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-ratcheting>.

use std::collections::HashSet;

use mainstay_model::meta::names;
use mainstay_model::status::FieldError;
use serde_json::{Number, Value, json};

use super::lists::{by_key, check_unique, key_of};
use super::{Kind, Limits, ListType, Schema, format};
use crate::path::{Faults, Path};

impl Schema {
    /// The faults of `object`; `old` is the stored object of an update.
    ///
    /// Rules (`x-kubernetes-validations`) are run only when everything else is in order, as their types count on it.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let root = Path::root("");
        self.check(object, old, &root, &mut faults);
        self.check_structure(object, old, &root, true, &mut faults);
        if faults.list.is_empty() {
            self.run_rules(object, old, &mut faults);
        }
        faults.list
    }

    /// As [`Schema::validate`], for a value that is not a whole object, such as a default.
    pub(crate) fn validate_part(&self, value: &Value, path: &str) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let root = Path::root(path);
        self.check(value, None, &root, &mut faults);
        self.check_structure(value, None, &root, false, &mut faults);
        faults.list
    }

    fn check(&self, value: &Value, old: Option<&Value>, path: &Path<'_>, faults: &mut Faults) {
        if faults.is_full() || old == Some(value) {
            return;
        }
        if !self.check_type(value, path, faults) {
            return;
        }
        if let Some(limits) = &self.limits {
            limits.check(value, path, faults);
        }
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    if let Some(schema) = self.field(name) {
                        let old = old.and_then(|old| old.get(name)).filter(|_| !self.atomic_map);
                        schema.check(value, old, &path.field(name), faults);
                    }
                }
            }
            Value::Array(list) => {
                let Some(items) = self.items.as_deref() else { return };
                let old = Correlated::of(self, old);
                for (i, value) in list.iter().enumerate() {
                    items.check(value, old.find(value), &path.index(i), faults);
                }
            }
            _ => {}
        }
    }

    /// Whether the value has the type; reports it if not.
    fn check_type(&self, value: &Value, path: &Path<'_>, faults: &mut Faults) -> bool {
        if value.is_null() && (self.nullable || (self.kind.is_none() && !self.int_or_string)) {
            return !self.nullable;
        }
        let fits = match self.kind {
            None if self.int_or_string => value.is_string() || is_integer(value),
            None => true,
            Some(Kind::Array) => value.is_array(),
            Some(Kind::Boolean) => value.is_boolean(),
            Some(Kind::Integer) => is_integer(value),
            Some(Kind::Number) => value.is_number(),
            Some(Kind::Object) => value.is_object(),
            Some(Kind::String) => value.is_string(),
        };
        if !fits {
            let wanted = self.kind.map_or("integer,string", Kind::word);
            self.type_fault(wanted, &json!(type_word(value)), path, faults);
            return false;
        }
        if let (Value::String(text), false) = (value, self.format.is_empty())
            && self.kind == Some(Kind::String)
            && !format::is_valid(&self.format, text)
        {
            self.type_fault(&self.format, value, path, faults);
        }
        true
    }

    #[allow(clippy::unused_self)]
    fn type_fault(&self, wanted: &str, value: &Value, path: &Path<'_>, faults: &mut Faults) {
        let place = path.dotted();
        let detail = format!("{place} in body must be of type {wanted}: {value}");
        faults.type_invalid(nil_if_empty(place), value, detail);
    }

    /// List types and embedded objects.
    fn check_structure(&self, value: &Value, old: Option<&Value>, path: &Path<'_>, root: bool, faults: &mut Faults) {
        if faults.is_full() || old == Some(value) {
            return;
        }
        match value {
            Value::Object(map) => {
                if self.embedded && !root {
                    check_embedded(value, path, faults);
                }
                for (name, value) in map {
                    let (declared, schema) = (self.properties.contains_key(name), self.field(name));
                    if let Some(schema) = schema {
                        let old = old.and_then(|old| old.get(name));
                        let here = if declared { path.field(name) } else { path.key(name) };
                        schema.check_structure(value, old, &here, false, faults);
                    }
                }
            }
            Value::Array(list) => {
                check_unique(self, list, path, faults);
                let Some(items) = self.items.as_deref() else { return };
                let old = Correlated::of(self, old);
                for (i, value) in list.iter().enumerate() {
                    items.check_structure(value, old.find(value), &path.index(i), false, faults);
                }
            }
            _ => {}
        }
    }
}

/// The items of the old list, where items can be told apart by keys.
pub(super) struct Correlated<'a> {
    items: std::collections::HashMap<String, &'a Value>,
    keys: &'a [String],
    schema: Option<&'a Schema>,
}

impl<'a> Correlated<'a> {
    pub(super) fn of(schema: &'a Schema, old: Option<&'a Value>) -> Self {
        let items = schema.items.as_deref();
        match (&schema.list_type, old.and_then(Value::as_array)) {
            (ListType::Map(keys), Some(old)) => Self { items: by_key(old, keys, items), keys, schema: items },
            _ => Self { items: std::collections::HashMap::new(), keys: &[], schema: items },
        }
    }

    /// The old item with the same keys.
    pub(super) fn find(&self, item: &Value) -> Option<&'a Value> {
        if self.items.is_empty() {
            return None;
        }
        self.items.get(&key_of(item, self.keys, self.schema).to_string()).copied()
    }
}

fn nil_if_empty(path: String) -> String {
    if path.is_empty() { "<nil>".to_owned() } else { path }
}

fn type_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whole numbers, also written as `1.0`.
fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

/// The parts of `apiVersion`, `kind` and `metadata` that an embedded object must have in order.
fn check_embedded(value: &Value, path: &Path<'_>, faults: &mut Faults) {
    for name in ["apiVersion", "kind"] {
        match &value[name] {
            Value::Null => faults.required(path.field(name), "must not be empty"),
            Value::String(text) if text.is_empty() => faults.required(path.field(name), "must not be empty"),
            Value::String(text) if name == "apiVersion" && text.matches('/').count() > 1 => {
                faults.invalid(path.field(name), &value[name], format!("unexpected GroupVersion string: {text}"));
            }
            Value::String(text) if name == "kind" => {
                for rule in names::check_label_1035(&text.to_lowercase()) {
                    let detail = format!("may have mixed case, but should otherwise match: {rule}");
                    faults.invalid(path.field(name), &value[name], detail);
                }
            }
            Value::String(_) => {}
            other => faults.invalid(path.field(name), other, "must be a string"),
        }
    }
    let metadata = &value["metadata"];
    if !metadata.is_null() && !metadata.is_object() {
        faults.invalid(path.field("metadata"), metadata, "must be an object");
    }
    let here = path.field("metadata");
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let rules = names::check_qualified_name(key).into_iter().map(|rule| (json!(key), rule));
        let rules = rules.chain(names::check_label_value(text).into_iter().map(|rule| (json!(text), rule)));
        for (value, rule) in rules {
            faults.invalid(here.field("labels"), &value, rule);
        }
    }
    for key in metadata["annotations"].as_object().into_iter().flatten().map(|(key, _)| key) {
        for rule in names::check_qualified_name(&key.to_lowercase()) {
            faults.invalid(here.field("annotations"), &json!(key), rule);
        }
    }
    if let Some(name) = metadata["name"].as_str() {
        for rule in names::check_path_segment(name) {
            faults.invalid(here.field("name"), &json!(name), rule);
        }
    }
}

impl Limits {
    fn check(&self, value: &Value, path: &Path<'_>, faults: &mut Faults) {
        if let Some(allowed) = &self.allowed
            && !allowed.iter().any(|one| same(one, value))
        {
            let words: Vec<String> =
                allowed.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            faults.not_supported(nil_if_empty(path.dotted()), value, &words);
        }
        match value {
            Value::String(text) => self.check_text(text, value, path, faults),
            Value::Number(number) => self.check_number(number, value, path, faults),
            Value::Array(list) => self.check_list(list, value, path, faults),
            Value::Object(map) => {
                let place = path.dotted();
                for name in self.required.iter().filter(|name| !map.contains_key(*name)) {
                    faults.required(path.field(name).dotted(), "");
                }
                if let Some(max) = self.properties_max.filter(|max| map.len() as u64 > *max) {
                    faults.too_many(nil_if_empty(place.clone()), map.len(), max);
                }
                if let Some(min) = self.properties_min.filter(|min| (map.len() as u64) < *min) {
                    let detail = format!("{place} in body should have at least {min} properties");
                    faults.invalid(nil_if_empty(place), &json!(map.len()), detail);
                }
            }
            _ => {}
        }
        self.check_combinations(value, path, faults);
    }

    fn check_text(&self, text: &str, value: &Value, path: &Path<'_>, faults: &mut Faults) {
        let place = path.dotted();
        let length = || text.chars().count() as u64;
        if let Some(max) = self.length_max.filter(|max| text.len() as u64 > *max && length() > *max) {
            faults.too_long(&place, max);
        }
        if let Some(min) = self.length_min.filter(|min| length() < *min) {
            faults.invalid(&place, value, format!("{place} in body should be at least {min} chars long"));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            faults.invalid(&place, value, format!("{place} in body should match '{}'", pattern.text()));
        }
    }

    fn check_number(&self, number: &Number, value: &Value, path: &Path<'_>, faults: &mut Faults) {
        let place = path.dotted();
        if let Some(divisor) = self.multiple_of.filter(|divisor| *divisor > 0.0) {
            let quotient = number.as_f64().unwrap_or_default() / divisor;
            if (quotient - quotient.round()).abs() > 1e-9 {
                faults.invalid(&place, value, format!("{place} in body should be a multiple of {divisor}"));
            }
        }
        if let Some(max) = &self.maximum {
            let order = compare(number, max);
            if order.is_gt() || (self.exclusive_maximum && order.is_eq()) {
                let words = if self.exclusive_maximum { "less than" } else { "less than or equal to" };
                faults.invalid(&place, value, format!("{place} in body should be {words} {}", shown(max)));
            }
        }
        if let Some(min) = &self.minimum {
            let order = compare(number, min);
            if order.is_lt() || (self.exclusive_minimum && order.is_eq()) {
                let words = if self.exclusive_minimum { "greater than" } else { "greater than or equal to" };
                faults.invalid(&place, value, format!("{place} in body should be {words} {}", shown(min)));
            }
        }
    }

    fn check_list(&self, list: &[Value], value: &Value, path: &Path<'_>, faults: &mut Faults) {
        let place = path.dotted();
        if let Some(max) = self.items_max.filter(|max| list.len() as u64 > *max) {
            faults.too_many(&place, list.len(), max);
        }
        if let Some(min) = self.items_min.filter(|min| (list.len() as u64) < *min) {
            let detail = format!("{place} in body should have at least {min} items");
            faults.invalid(&place, &json!(list.len()), detail);
        }
        if self.unique_items {
            let mut seen = HashSet::with_capacity(list.len());
            if !list.iter().all(|item| seen.insert(item.to_string())) {
                faults.invalid(&place, value, format!("{place} in body shouldn't contain duplicates"));
            }
        }
    }

    fn check_combinations(&self, value: &Value, path: &Path<'_>, faults: &mut Faults) {
        let place = path.dotted();
        let try_one = |schema: &Schema| {
            let mut own = Faults::default();
            schema.check(value, None, path, &mut own);
            own.list
        };
        if !self.all_of.is_empty() {
            let results: Vec<_> = self.all_of.iter().map(try_one).collect();
            let valid = results.iter().filter(|faults| faults.is_empty()).count();
            results.into_iter().flatten().for_each(|fault| faults.push(fault));
            if valid < self.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                composite(faults, format!("{place:?} must validate all the schemas (allOf){none}"));
            }
        }
        if !self.any_of.is_empty() {
            let results: Vec<_> = self.any_of.iter().map(try_one).collect();
            if results.iter().all(|faults| !faults.is_empty()) {
                composite(faults, format!("{place:?} must validate at least one schema (anyOf)"));
                for fault in closest(results) {
                    faults.push(fault);
                }
            }
        }
        if !self.one_of.is_empty() {
            let results: Vec<_> = self.one_of.iter().map(try_one).collect();
            let valid = results.iter().filter(|faults| faults.is_empty()).count();
            let words = format!("{place:?} must validate one and only one schema (oneOf)");
            if valid == 0 {
                composite(faults, format!("{words}. Found none valid"));
                for fault in closest(results) {
                    faults.push(fault);
                }
            } else if valid > 1 {
                composite(faults, format!("{words}. Found {valid} valid alternatives"));
            }
        }
        if self.not.as_ref().is_some_and(|schema| try_one(schema).is_empty()) {
            composite(faults, format!("{place:?} must not validate the schema (not)"));
        }
    }
}

fn composite(faults: &mut Faults, detail: String) {
    faults.invalid("<nil>", &json!(""), detail);
}

/// The faults of the alternative that came closest.
fn closest(results: Vec<Vec<FieldError>>) -> Vec<FieldError> {
    results.into_iter().min_by_key(Vec::len).unwrap_or_default()
}

/// Equal as JSON, numbers by value.
fn same(a: &Value, b: &Value) -> bool {
    a == b
        || match (a, b) {
            (Value::Number(a), Value::Number(b)) => compare(a, b).is_eq(),
            _ => false,
        }
}

/// The order of two numbers, exact for integers.
fn compare(a: &Number, b: &Number) -> std::cmp::Ordering {
    let whole = |number: &Number| number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().unwrap_or(f64::NAN).total_cmp(&b.as_f64().unwrap_or(f64::NAN)),
    }
}

/// A bound as Go prints a float: without a fraction where there is none.
fn shown(bound: &Number) -> String {
    match bound.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => format!("{number:.0}"),
        _ => bound.to_string(),
    }
}
