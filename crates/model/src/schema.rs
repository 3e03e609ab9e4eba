//! What fields Kubernetes objects have: names, JSON types, which are required, and how lists merge.
//!
//! Role: one data file, `schema.txt`, is the single place that knows the shape of the built-in kinds. [`check`] finds
//! values of the wrong JSON type and missing required fields before any other rule looks at an object, so that the
//! rules in `validate` can read fields without fear; `patch` reads the merge keys, `apply` the topology.
//!
//! Guarantees: no panic whatever the object holds; errors are limited to [`ERRORS_MAX`]. Deliberately absent: unknown
//! fields are not reported here, and custom resources have their own schemas.
//!
//! Source: the OpenAPI definitions of Kubernetes v1.37 with their `x-kubernetes-patch-strategy`, `-list-type`, `-list-map-keys`
//! and `-map-type` extensions.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::quantity::Quantity;
use crate::status::{FieldError, FieldErrorKind};

/// The largest number of faults [`check`] reports for one object.
pub const ERRORS_MAX: usize = 50;

/// The JSON shape of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// A scalar, by its letter in `schema.txt`.
    Scalar(Scalar),
    /// A list of one shape.
    List(Box<Shape>),
    /// A map from strings to one shape.
    Map(Box<Shape>),
    /// An object of a named type.
    Object(&'static str),
}

/// The scalar types of the Kubernetes API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// JSON string.
    String,
    /// JSON boolean.
    Boolean,
    /// Integer within 32 bits.
    Integer32,
    /// Integer within 64 bits.
    Integer64,
    /// Any number.
    Number,
    /// Resource quantity, a string or a number.
    Quantity,
    /// Integer or string, for example a port or a percentage.
    IntOrString,
    /// RFC 3339 time with seconds.
    Time,
    /// RFC 3339 time with microseconds.
    MicroTime,
    /// Base64 of bytes.
    Bytes,
    /// Anything.
    Any,
}

/// How a strategic merge patch treats a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// Objects merge, lists and scalars are replaced: the default.
    Default,
    /// A list of objects is merged by the value of this key.
    ByKey(&'static str),
    /// A list of primitives is merged as a set.
    Set,
}

/// What server-side apply owns one by one in a field: the whole, its fields, or its items.
///
/// Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// As its type says: a map or a type field by field unless the type is atomic, anything else as a whole.
    Default,
    /// As a whole.
    Atomic,
    /// Field by field, even where the type is atomic.
    Granular,
    /// A list of unique scalars, one by one.
    Set,
    /// A list of objects, told apart by the values of these fields.
    Keys(Vec<&'static str>),
}

/// One field of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// JSON name.
    pub name: &'static str,
    /// JSON shape.
    pub shape: Shape,
    /// Whether the API requires it.
    pub required: bool,
    /// How strategic merge patches treat it.
    pub merge: Merge,
    /// Whether the patch strategy `retainKeys` is set.
    pub retain_keys: bool,
    /// How server-side apply divides it.
    pub topology: Topology,
}

/// A named type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    /// Its fields, by name.
    pub fields: Vec<Field>,
    /// Whether server-side apply owns its objects as a whole.
    pub atomic: bool,
}

static TYPES: LazyLock<HashMap<&'static str, Type>> = LazyLock::new(|| {
    let lines = include_str!("schema.txt").lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (name, mark) = name.split_once('@').unwrap_or((name, ""));
            let mut fields: Vec<Field> = rest.split(' ').filter_map(parse_field).collect();
            fields.sort_unstable_by_key(|field| field.name);
            (name, Type { fields, atomic: mark == "atomic" })
        })
        .collect()
});

fn parse_field(text: &'static str) -> Option<Field> {
    let (name, rest) = text.split_once('=')?;
    let (rest, topology) = rest.split_once('@').unwrap_or((rest, ""));
    let end = rest.find(['!', '+', '~']).unwrap_or(rest.len());
    let (shape, marks) = rest.split_at(end);
    let merge = match marks.split_once('+').map(|(_, key)| key.trim_end_matches('~')) {
        None => Merge::Default,
        Some("") => Merge::Set,
        Some(key) => Merge::ByKey(key),
    };
    Some(Field {
        name,
        shape: parse_shape(shape),
        required: marks.starts_with('!'),
        merge,
        retain_keys: marks.ends_with('~'),
        topology: match (topology, merge) {
            ("", Merge::Default) => Topology::Default,
            ("", Merge::Set) | ("set", _) => Topology::Set,
            ("", Merge::ByKey(key)) => Topology::Keys(vec![key]),
            ("atomic", _) => Topology::Atomic,
            ("granular", _) => Topology::Granular,
            (keys, _) => Topology::Keys(keys.split(',').collect()),
        },
    })
}

fn parse_shape(text: &'static str) -> Shape {
    if let Some(inner) = text.strip_prefix('[') {
        return Shape::List(Box::new(parse_shape(inner.trim_end_matches(']'))));
    }
    if let Some(inner) = text.strip_prefix('{') {
        return Shape::Map(Box::new(parse_shape(inner.trim_end_matches('}'))));
    }
    Shape::Scalar(match text {
        "s" => Scalar::String,
        "b" => Scalar::Boolean,
        "i" => Scalar::Integer32,
        "l" => Scalar::Integer64,
        "d" => Scalar::Number,
        "q" => Scalar::Quantity,
        "x" => Scalar::IntOrString,
        "t" => Scalar::Time,
        "m" => Scalar::MicroTime,
        "y" => Scalar::Bytes,
        "v" => Scalar::Any,
        name => return Shape::Object(name),
    })
}

impl Type {
    /// One of its fields.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let place = self.fields.binary_search_by(|field| field.name.cmp(name)).ok()?;
        Some(&self.fields[place])
    }
}

/// A type such as `Pod` or `PodSpec`; nothing for one the schema does not know.
pub fn named(type_name: &str) -> Option<&'static Type> {
    TYPES.get(type_name)
}

/// The fields of a type such as `Pod` or `PodSpec`; nothing for a type the schema does not know.
pub fn fields(type_name: &str) -> Option<&'static [Field]> {
    TYPES.get(type_name).map(|named| named.fields.as_slice())
}

/// One field of a type.
pub fn field(type_name: &str, name: &str) -> Option<&'static Field> {
    named(type_name)?.field(name)
}

/// Faults of type and missing required fields in an object of a built-in kind. Empty for kinds the schema does not know.
///
/// `null` counts as absent. Required fields inside `status` are not demanded: writers of status patch it in steps.
pub fn check(kind: &str, object: &Value) -> Vec<FieldError> {
    let mut checker = Checker { errors: Vec::new(), demand: true };
    if fields(kind).is_some() {
        checker.object(kind, object, "");
    }
    checker.errors
}

struct Checker {
    errors: Vec<FieldError>,
    demand: bool,
}

impl Checker {
    fn object(&mut self, type_name: &str, value: &Value, path: &str) {
        let Some(fields) = fields(type_name) else { return };
        let Some(map) = value.as_object() else { return self.wrong(path, value, "an object") };
        for field in fields {
            if self.errors.len() >= ERRORS_MAX {
                return;
            }
            let at = join(path, field.name);
            match map.get(field.name).filter(|value| !value.is_null()) {
                Some(value) if at == "status" => {
                    self.demand = false;
                    self.shape(&field.shape, value, &at);
                    self.demand = true;
                }
                Some(value) => self.shape(&field.shape, value, &at),
                None if field.required && self.demand && at != "metadata" => {
                    self.errors.push(FieldError::new(at, FieldErrorKind::Required, ""));
                }
                None => {}
            }
        }
    }

    fn shape(&mut self, shape: &Shape, value: &Value, path: &str) {
        if self.errors.len() >= ERRORS_MAX {
            return;
        }
        match shape {
            Shape::Scalar(scalar) => self.scalar(*scalar, value, path),
            Shape::Object(name) => self.object(name, value, path),
            Shape::List(inner) => match value.as_array() {
                Some(items) => {
                    for (i, item) in items.iter().enumerate() {
                        self.shape(inner, item, &format!("{path}[{i}]"));
                    }
                }
                None => self.wrong(path, value, "a list"),
            },
            Shape::Map(inner) => match value.as_object() {
                Some(items) => {
                    for (key, item) in items {
                        // A null in a map of strings decodes to the empty string in Go.
                        if !item.is_null() {
                            self.shape(inner, item, &format!("{path}[{key}]"));
                        }
                    }
                }
                None => self.wrong(path, value, "an object"),
            },
        }
    }

    fn scalar(&mut self, scalar: Scalar, value: &Value, path: &str) {
        let in_32_bits = |value: &Value| value.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
        let is_time = |value: &Value| value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok());
        let (good, wanted) = match scalar {
            Scalar::String => (value.is_string(), "a string"),
            Scalar::Boolean => (value.is_boolean(), "true or false"),
            Scalar::Integer32 => (in_32_bits(value), "a 32-bit integer"),
            Scalar::Integer64 => (value.is_i64(), "a 64-bit integer"),
            Scalar::Number => (value.is_number(), "a number"),
            Scalar::Quantity => return self.quantity(value, path),
            Scalar::IntOrString => (value.is_string() || in_32_bits(value), "an integer or a string"),
            Scalar::Time | Scalar::MicroTime => (is_time(value), "an RFC 3339 time, for example 2026-01-02T15:04:05Z"),
            Scalar::Bytes => (value.as_str().is_some_and(is_base64), "base64 text"),
            Scalar::Any => (true, ""),
        };
        if !good {
            self.wrong(path, value, wanted);
        }
    }

    fn quantity(&mut self, value: &Value, path: &str) {
        if let Err(error) = Quantity::from_value(value) {
            let detail = error.to_string();
            self.errors.push(FieldError::with_value(path, FieldErrorKind::TypeInvalid, value.clone(), detail));
        }
    }

    fn wrong(&mut self, path: &str, value: &Value, wanted: &str) {
        let detail = format!("must be {wanted}");
        let shown = if value.is_object() || value.is_array() { None } else { Some(value.clone()) };
        self.errors.push(FieldError {
            field: path.to_owned(),
            kind: FieldErrorKind::TypeInvalid,
            detail,
            value: shown,
        });
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether `text` is padded standard base64 (RFC 4648, section 4); line breaks are allowed as in Go.
pub fn is_base64(text: &str) -> bool {
    let bytes: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\n' | b'\r')).collect();
    let padding = bytes.iter().rev().take_while(|b| **b == b'=').count();
    bytes.len().is_multiple_of(4)
        && padding <= 2
        && bytes[..bytes.len() - padding].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

/// The number of bytes that padded base64 `text` stands for.
pub fn base64_len(text: &str) -> usize {
    let (digits, padding) = text.bytes().fold((0, 0), |(digits, padding), b| match b {
        b'\n' | b'\r' => (digits, padding),
        b'=' => (digits + 1, padding + 1),
        _ => (digits + 1, padding),
    });
    (digits / 4 * 3usize).saturating_sub(padding)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn every_named_type_exists() {
        fn leaf(shape: &Shape) -> Option<&'static str> {
            match shape {
                Shape::List(inner) | Shape::Map(inner) => leaf(inner),
                Shape::Object(name) => Some(name),
                Shape::Scalar(_) => None,
            }
        }
        for (name, named) in TYPES.iter() {
            for field in &named.fields {
                if let Some(leaf) = leaf(&field.shape) {
                    assert!(TYPES.contains_key(leaf), "{name}.{} names {leaf}", field.name);
                }
            }
        }
        assert!(TYPES.len() > 300);
    }

    #[test]
    fn marks_are_read() {
        let volumes = field("PodSpec", "volumes").unwrap();
        assert_eq!((volumes.merge, volumes.retain_keys), (Merge::ByKey("name"), true));
        let containers = field("PodSpec", "containers").unwrap();
        assert_eq!((containers.merge, containers.required), (Merge::ByKey("name"), true));
        assert_eq!(field("ObjectMeta", "finalizers").unwrap().merge, Merge::Set);
        assert!(field("DeploymentSpec", "strategy").unwrap().retain_keys);
    }

    #[test]
    fn topologies_are_read() {
        let topology = |name, of| field(name, of).unwrap().topology.clone();
        assert_eq!(topology("PodSpec", "containers"), Topology::Keys(vec!["name"]));
        assert_eq!(topology("Container", "ports"), Topology::Keys(vec!["containerPort", "protocol"]));
        assert_eq!(topology("ServiceSpec", "ports"), Topology::Keys(vec!["port", "protocol"]));
        assert_eq!(field("ServiceSpec", "ports").unwrap().merge, Merge::ByKey("port"));
        assert_eq!(topology("ServiceSpec", "selector"), Topology::Atomic);
        assert_eq!(topology("ServiceSpec", "ipFamilies"), Topology::Default);
        assert_eq!(topology("Endpoint", "addresses"), Topology::Set);
        assert_eq!(topology("ObjectMeta", "finalizers"), Topology::Set);
        assert_eq!(topology("JobStatus", "conditions"), Topology::Atomic);
        assert_eq!(topology("PersistentVolumeSpec", "claimRef"), Topology::Granular);
        assert!(named("LabelSelector").unwrap().atomic && named("RoleRef").unwrap().atomic);
        assert!(!named("PodSpec").unwrap().atomic);
    }

    #[test]
    fn finds_wrong_types_and_missing_fields() {
        let errors = check(
            "Deployment",
            &json!({
                "metadata": {"labels": {"a": 1}},
                "spec": {"replicas": "three", "template": {"spec": {"containers": {"name": "a"}}}},
                "status": {"conditions": [{"lastUpdateTime": "yesterday"}]},
            }),
        );
        let found: Vec<_> = errors.iter().map(|e| (e.field.as_str(), e.kind)).collect();
        assert_eq!(
            found,
            [
                ("metadata.labels[a]", FieldErrorKind::TypeInvalid),
                ("spec.replicas", FieldErrorKind::TypeInvalid),
                ("spec.selector", FieldErrorKind::Required),
                ("spec.template.spec.containers", FieldErrorKind::TypeInvalid),
                ("status.conditions[0].lastUpdateTime", FieldErrorKind::TypeInvalid),
            ]
        );
    }

    #[test]
    fn base64_lengths() {
        for (text, good, len) in [
            ("", true, 0),
            ("YQ==", true, 1),
            ("YWI=", true, 2),
            ("YWJj", true, 3),
            ("YQ", false, 0),
            ("Y-==", false, 1),
        ] {
            assert_eq!(is_base64(text), good, "{text}");
            assert_eq!(base64_len(text), len, "{text}");
        }
    }
}
