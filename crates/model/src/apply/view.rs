//! How an object divides into fields that can be owned.
//!
//! A view stands for one place in an object. [`View::layout`] says whether the value there is owned as a whole, field by
//! field, or item by item, and leads on to the views of what is inside.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy>; for custom resources the
//! `x-kubernetes-list-type`, `-list-map-keys`, `-map-type` and `-preserve-unknown-fields` extensions of their schemas.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::element;
use crate::quantity::Quantity;
use crate::schema::{self, Scalar, Shape, Topology, Type};

/// What is known of one place in an object.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(Source<'a>);

#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    /// An object of a built-in type; a type that is atomic can be granular in one place.
    Type { named: &'static Type, granular: bool },
    /// Anything else that the schema of the built-in kinds describes.
    Field { shape: &'static Shape, topology: &'static Topology },
    /// A structural OpenAPI schema. An object, not a part of one, has `apiVersion`, `kind` and `metadata` besides.
    Schema { schema: &'a Value, object: bool, lenient: bool },
    /// Nothing: objects divide into their fields, lists do not.
    Deduced,
}

/// How the value at one place divides.
pub(super) enum Layout<'a> {
    /// Not at all.
    Whole,
    /// Into fields, or the keys of a map.
    Fields(Fields<'a>),
    /// Into items.
    Items(Items<'a>),
}

impl<'a> View<'a> {
    /// An object of a built-in kind; deduced for one the schema does not know.
    pub fn built_in(kind: &str) -> Self {
        Self(schema::named(kind).map_or(Source::Deduced, |named| Source::Type { named, granular: false }))
    }

    /// A custom resource with this `openAPIV3Schema`.
    pub fn custom(schema: &'a Value) -> Self {
        Self(Source::Schema { schema, object: true, lenient: false })
    }

    /// An object of which nothing is known.
    pub fn deduced() -> Self {
        Self(Source::Deduced)
    }

    /// Whether `null` and a missing field are the same, as they are for the typed objects of built-in kinds.
    pub(super) fn nulls_are_absent(self) -> bool {
        matches!(self.0, Source::Type { .. } | Source::Field { .. })
    }

    /// Whether the schema can be another one than when the object was written.
    pub(super) fn may_change(self) -> bool {
        matches!(self.0, Source::Schema { .. })
    }

    /// Whether the kind of value that stands here is declared, not deduced.
    pub(super) fn is_declared(self) -> bool {
        match self.0 {
            Source::Schema { schema, .. } => !json_type(schema).is_empty(),
            Source::Deduced => false,
            _ => true,
        }
    }

    /// How the value here divides. Where the kind of value is not declared, `sample` shows it.
    pub(super) fn layout(self, sample: Option<&Value>) -> Layout<'a> {
        match self.0 {
            Source::Type { named, granular } if named.atomic && !granular => Layout::Whole,
            Source::Field { topology: Topology::Atomic, .. } => Layout::Whole,
            Source::Type { .. } | Source::Field { shape: Shape::Map(_), .. } => Layout::Fields(Fields(self.0)),
            Source::Field { shape: Shape::List(inner), topology } => match topology {
                Topology::Set => Layout::Items(Items { item: Self::of(inner, &Topology::Default), keys: Keys::None }),
                Topology::Keys(keys) => {
                    Layout::Items(Items { item: Self::of(inner, &Topology::Default), keys: Keys::Names(keys) })
                }
                _ => Layout::Whole,
            },
            Source::Schema { schema, .. } => self.schema_layout(schema, sample),
            Source::Deduced if sample.is_some_and(Value::is_object) => Layout::Fields(Fields(Source::Deduced)),
            Source::Field { .. } | Source::Deduced => Layout::Whole,
        }
    }

    fn schema_layout(self, schema: &'a Value, sample: Option<&Value>) -> Layout<'a> {
        match json_type(schema) {
            "object" if schema["x-kubernetes-map-type"] == "atomic" => Layout::Whole,
            "object" => Layout::Fields(Fields(self.0)),
            "array" => {
                let Source::Schema { lenient, .. } = self.0 else { return Layout::Whole };
                let item = Self(Source::Schema { schema: &schema["items"], object: false, lenient });
                match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => Layout::Items(Items { item, keys: Keys::None }),
                    Some("map") => {
                        let keys = schema["x-kubernetes-list-map-keys"].as_array().map_or(&[][..], Vec::as_slice);
                        Layout::Items(Items { item, keys: Keys::Json(keys) })
                    }
                    _ => Layout::Whole,
                }
            }
            "" => Self::deduced().layout(sample),
            _ => Layout::Whole,
        }
    }

    fn of(shape: &'static Shape, topology: &'static Topology) -> Self {
        match (shape, topology) {
            (Shape::Object(name), Topology::Default | Topology::Granular) => match schema::named(name) {
                Some(named) => Self(Source::Type { named, granular: *topology == Topology::Granular }),
                None => Self::deduced(),
            },
            _ => Self(Source::Field { shape, topology }),
        }
    }

    /// Writes quantities of built-in kinds as stored objects have them, so that `1000m` and `1` are no difference.
    pub(super) fn canonicalise(self, value: &mut Value) {
        match (self.0, value) {
            (Source::Field { shape: Shape::Scalar(Scalar::Quantity), .. }, value) => {
                if let Ok(quantity) = Quantity::from_value(value) {
                    *value = Value::String(quantity.to_string());
                }
            }
            (Source::Field { shape: Shape::List(item), .. }, Value::Array(list)) => {
                for value in list {
                    Self::of(item, &Topology::Default).canonicalise(value);
                }
            }
            (Source::Type { .. } | Source::Field { .. }, Value::Object(map)) => {
                for (name, value) in map.iter_mut() {
                    if let Some((view, _)) = Fields(self.0).child(name) {
                        view.canonicalise(value);
                    }
                }
            }
            _ => {}
        }
    }

    /// What must stand here, when `value` is something else.
    pub(super) fn mismatch(self, value: &Value) -> Option<&'static str> {
        let (good, wanted) = match self.0 {
            Source::Type { .. } | Source::Field { shape: Shape::Map(_) | Shape::Object(_), .. } => {
                (value.is_object(), "map")
            }
            Source::Field { shape: Shape::List(_), .. } => (value.is_array(), "list"),
            Source::Field { shape: Shape::Scalar(scalar), .. } => match scalar {
                Scalar::String | Scalar::Time | Scalar::MicroTime | Scalar::Bytes => (value.is_string(), "string"),
                Scalar::Boolean => (value.is_boolean(), "boolean"),
                Scalar::Integer32 | Scalar::Integer64 | Scalar::Number => (value.is_number(), "numeric (int or float)"),
                Scalar::Quantity | Scalar::IntOrString => (value.is_string() || value.is_number(), "string or number"),
                Scalar::Any => (true, ""),
            },
            Source::Schema { schema, .. } => match json_type(schema) {
                "object" => (value.is_object(), "map"),
                "array" => (value.is_array(), "list"),
                "string" => (value.is_string(), "string"),
                "boolean" => (value.is_boolean(), "boolean"),
                "integer" | "number" => (value.is_number(), "numeric (int or float)"),
                _ => (true, ""),
            },
            Source::Deduced => (true, ""),
        };
        (!good && !value.is_null()).then_some(wanted)
    }
}

/// The declared JSON type, empty where none is: then any value may stand there.
fn json_type(schema: &Value) -> &str {
    if schema["x-kubernetes-int-or-string"] == true {
        return "int-or-string";
    }
    match schema["type"].as_str() {
        Some(name) => name,
        None if schema["properties"].is_object() || schema["additionalProperties"].is_object() => "object",
        None if schema["items"].is_object() => "array",
        None => "",
    }
}

static TEXT: Shape = Shape::Scalar(Scalar::String);
static EMPTY_OBJECT: LazyLock<Value> = LazyLock::new(|| json!({}));
static EMPTY_LIST: LazyLock<Value> = LazyLock::new(|| json!([]));

/// The fields of a value that divides into fields.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(Source<'a>);

impl<'a> Fields<'a> {
    /// The view of one field, and whether it is a named field and not the key of a map. Nothing for a field that the
    /// schema does not have.
    pub(super) fn child(self, name: &str) -> Option<(View<'a>, bool)> {
        match self.0 {
            Source::Type { named, .. } => {
                let field = named.field(name)?;
                Some((View::of(&field.shape, &field.topology), true))
            }
            Source::Field { shape: Shape::Map(inner), .. } => Some((View::of(inner, &Topology::Default), false)),
            Source::Field { .. } => None,
            Source::Schema { schema, object, lenient } => Self::schema_child(schema, object, lenient, name),
            Source::Deduced => Some((View::deduced(), false)),
        }
    }

    fn schema_child(schema: &'a Value, object: bool, lenient: bool, name: &str) -> Option<(View<'a>, bool)> {
        if object || schema["x-kubernetes-embedded-resource"] == true {
            match name {
                "apiVersion" | "kind" => return Some((View::of(&TEXT, &Topology::Default), true)),
                "metadata" => return Some((View::built_in("ObjectMeta"), true)),
                _ => {}
            }
        }
        let lenient = lenient || schema["x-kubernetes-preserve-unknown-fields"] == true;
        let view = |schema| View(Source::Schema { schema, object: false, lenient });
        if let Some(property) = schema["properties"].get(name) {
            return Some((view(property), true));
        }
        match &schema["additionalProperties"] {
            Value::Bool(false) => None,
            additional @ Value::Object(_) => Some((view(additional), false)),
            Value::Bool(true) => Some((View::deduced(), false)),
            // An object of which no field is declared may have any.
            _ if lenient || schema["properties"].as_object().is_none_or(serde_json::Map::is_empty) => {
                Some((View::deduced(), false))
            }
            _ => None,
        }
    }

    /// What stands in a field of a new object before anybody wrote it. In Go some structs of the built-in kinds are values,
    /// not pointers: they are there in every object, if only empty, so who fills one does not own the struct itself.
    pub(super) fn initial(self, name: &str) -> Option<&'static Value> {
        let Source::Type { .. } = self.0 else { return None };
        match name {
            "metadata" | "spec" | "status" | "strategy" | "updateStrategy" | "template" | "jobTemplate"
            | "loadBalancer" => Some(&EMPTY_OBJECT),
            "containers" => Some(&EMPTY_LIST),
            _ => None,
        }
    }
}

/// The items of a list that divides into items.
#[derive(Clone, Copy)]
pub(super) struct Items<'a> {
    /// What each item is.
    pub(super) item: View<'a>,
    keys: Keys<'a>,
}

#[derive(Clone, Copy)]
enum Keys<'a> {
    /// A set of scalars.
    None,
    Names(&'a [&'static str]),
    Json(&'a [Value]),
}

impl Items<'_> {
    /// The step that leads to `item`.
    ///
    /// # Errors
    /// Why the item has no place in this list.
    pub(super) fn element(&self, item: &Value) -> Result<String, String> {
        let names: Vec<&str> = match self.keys {
            Keys::None if item.is_object() || item.is_array() || item.is_null() => {
                return Err("a list that is a set may hold only scalars".to_owned());
            }
            Keys::None => return Ok(element::value(item)),
            Keys::Names(names) => names.to_vec(),
            Keys::Json(names) => names.iter().filter_map(Value::as_str).collect(),
        };
        let Some(map) = item.as_object() else {
            return Err("associative list with keys may not have non-map elements".to_owned());
        };
        let mut keys = Vec::with_capacity(names.len());
        let given = |name: &str| map.get(name).filter(|value| !value.is_null());
        let defaults: Vec<Option<Value>> =
            names.iter().map(|name| if given(name).is_some() { None } else { self.default_of(name) }).collect();
        for (name, default) in names.iter().zip(&defaults) {
            let value = given(name).or(default.as_ref()).ok_or_else(|| {
                format!(
                    "associative list with keys has an element that omits key field {name:?} (and doesn't have default value)"
                )
            })?;
            keys.push((*name, value));
        }
        keys.sort_unstable_by_key(|(name, _)| *name);
        Ok(element::keyed(keys.into_iter()))
    }

    /// The steps to all items, or the index of the first item that has none and why.
    pub(super) fn elements(&self, items: &[Value]) -> Result<Vec<String>, (usize, String)> {
        items.iter().enumerate().map(|(i, item)| self.element(item).map_err(|why| (i, why))).collect()
    }

    /// The value of a key field that an item does not give.
    fn default_of(&self, name: &str) -> Option<Value> {
        match self.item.0 {
            // The only key fields with a default in the built-in kinds; the zero value of Go in all others.
            Source::Type { .. } if name == "protocol" => Some(json!("TCP")),
            Source::Type { named, .. } => match named.field(name)?.shape {
                Shape::Scalar(Scalar::Integer32 | Scalar::Integer64) => Some(json!(0)),
                Shape::Scalar(_) => Some(json!("")),
                _ => None,
            },
            Source::Schema { schema, .. } => schema["properties"][name].get("default").cloned(),
            _ => None,
        }
    }
}
