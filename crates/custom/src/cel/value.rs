//! Values of expressions. Objects stay the JSON they are and are looked into as the expression asks.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use base64::Engine as _;
use jiff::{SignedDuration, Timestamp};
use mainstay_model::quantity::Quantity;
use serde_json::Value as Json;

use super::functions::authz::{Check, Decision};
use super::functions::net::{Cidr, Url};
use super::functions::time::{parse_date_time, parse_duration};
use super::types::{ListShape, ObjectType, Type, unescape};
use super::{EvalError, Meter};
use crate::schema::ListType;

/// A value. Lives no longer than the objects and programs it was made from.
#[derive(Debug, Clone)]
pub enum Val<'a> {
    /// `null`
    Null,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `uint`
    Uint(u64),
    /// `double`
    Double(f64),
    /// `string`
    Text(Text<'a>),
    /// `bytes`
    Bytes(Rc<[u8]>),
    /// A length of time.
    Duration(SignedDuration),
    /// A moment.
    Timestamp(Timestamp),
    /// A list.
    List(List<'a>),
    /// A map or an object.
    Map(Map<'a>),
    /// `optional`
    Optional(Option<Rc<Val<'a>>>),
    /// The name of a type.
    Type(Rc<str>),
    /// A resource quantity.
    Quantity(Quantity),
    /// A URL.
    Url(Rc<Url>),
    /// An IP address.
    Ip(IpAddr),
    /// A range of IP addresses.
    Cidr(Cidr),
    /// A semantic version.
    Semver(Rc<semver::Version>),
    /// A named format.
    Format(&'static str),
    /// A question to the authorizer.
    Check(Rc<Check<'a>>),
    /// The authorizer's answer.
    Decision(Rc<Decision>),
}

/// A string, borrowed where it can be.
#[derive(Debug, Clone)]
pub enum Text<'a> {
    /// Of an object or a program.
    Borrowed(&'a str),
    /// Made while evaluating.
    Owned(Rc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Owned(text) => text,
        }
    }
}

/// A list.
#[derive(Debug, Clone)]
pub enum List<'a> {
    /// Of an object, with what its schema says of the items.
    Json(&'a [Json], Option<&'a ListShape>),
    /// Made while evaluating.
    Owned(Rc<Vec<Val<'a>>>),
}

/// A map.
#[derive(Debug, Clone)]
pub enum Map<'a> {
    /// Of an object, with the type of its values.
    Json(&'a serde_json::Map<String, Json>, &'a Type),
    /// Of an object with declared fields.
    Object(&'a serde_json::Map<String, Json>, &'a ObjectType),
    /// Made while evaluating.
    Owned(Rc<BTreeMap<Key, Val<'a>>>),
}

/// A key of a map. Whole numbers are equal whether they are signed or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `bool`
    Bool(bool),
    /// `int` or `uint`
    Whole(i128),
    /// `string`
    Text(Rc<str>),
}

static DYN: Type = Type::Dyn;

impl<'a> Val<'a> {
    /// A string made while evaluating.
    pub fn text(text: impl AsRef<str>) -> Self {
        Self::Text(Text::Owned(text.as_ref().into()))
    }

    /// A list made while evaluating.
    pub fn list(items: Vec<Self>) -> Self {
        Self::List(List::Owned(Rc::new(items)))
    }

    /// `optional.of` or `optional.none`.
    pub fn optional(inner: Option<Self>) -> Self {
        Self::Optional(inner.map(Rc::new))
    }

    /// JSON as a value of a type. What does not fit the type is taken for what it is.
    pub fn of(json: &'a Json, value_type: &'a Type) -> Self {
        match (json, value_type) {
            (Json::Null, _) => Self::Null,
            (Json::Bool(value), _) => Self::Bool(*value),
            (Json::Number(number), Type::Double) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            (Json::Number(number), wanted) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => Self::Int(whole),
                (None, Some(double)) if *wanted == Type::Int && double.fract() == 0.0 => Self::Int(double as i64),
                (None, double) => number.as_u64().map_or(Self::Double(double.unwrap_or(f64::NAN)), Self::Uint),
            },
            (Json::String(text), wanted) => Self::of_text(text, wanted),
            (Json::Array(items), Type::List(shape)) => Self::List(List::Json(items, Some(shape))),
            (Json::Array(items), _) => Self::List(List::Json(items, None)),
            (Json::Object(map), Type::Object(object)) => Self::Map(Map::Object(map, object)),
            (Json::Object(map), Type::Map(entry)) => Self::Map(Map::Json(map, &entry.1)),
            (Json::Object(map), _) => Self::Map(Map::Json(map, &DYN)),
        }
    }

    fn of_text(text: &'a str, wanted: &Type) -> Self {
        let special = match wanted {
            Type::Timestamp => parse_date_time(text).map(Self::Timestamp),
            Type::Duration => parse_duration(text).map(Self::Duration),
            Type::Bytes => {
                base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| Self::Bytes(bytes.into()))
            }
            _ => None,
        };
        special.unwrap_or(Self::Text(Text::Borrowed(text)))
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(Map::Object(..)) => "object",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Check(check) => check.type_name(),
            Self::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    /// As JSON, charging for each part of it: what is made may be many times what it was made from.
    ///
    /// # Errors
    /// When JSON has no such value, or the meter has not enough left.
    pub fn to_json(&self, meter: &mut Meter) -> Result<Json, EvalError> {
        meter.charge(1)?;
        Ok(match self {
            Self::Null | Self::Optional(None) => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Uint(value) => Json::from(*value),
            // Whole numbers are written as such: fields of integers take no `1.0`.
            Self::Double(value) if value.fract() == 0.0 && value.abs() < 9e15 => Json::from(*value as i64),
            Self::Double(value) => Json::from(*value),
            Self::Text(text) => {
                meter.charge(text.len() as u64 / 10)?;
                Json::from(&**text)
            }
            Self::Bytes(bytes) => Json::from(base64::engine::general_purpose::STANDARD.encode(bytes)),
            Self::Optional(Some(inner)) => return inner.to_json(meter),
            Self::List(List::Json(items, _)) => {
                items.iter().try_for_each(|item| charge_for(item, meter))?;
                Json::Array(items.to_vec())
            }
            Self::List(list) => Json::Array(list.iter().map(|item| item.to_json(meter)).collect::<Result<_, _>>()?),
            Self::Map(Map::Json(map, _) | Map::Object(map, _)) => {
                map.values().try_for_each(|value| charge_for(value, meter))?;
                Json::Object((*map).clone())
            }
            Self::Map(Map::Owned(map)) => {
                let entry = |(key, value): (&Key, &Val<'a>)| match key {
                    Key::Text(name) => Ok((name.to_string(), value.to_json(meter)?)),
                    _ => Err(EvalError::Other("keys of objects must be strings".to_owned())),
                };
                Json::Object(map.iter().map(entry).collect::<Result<_, EvalError>>()?)
            }
            _ => return Err(EvalError::Other(format!("a {} cannot stand in an object", self.type_name()))),
        })
    }

    /// How much there is to look at, for the cost of functions that look at all of it.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            _ => 1,
        }
    }

    /// Whether two values are equal; values of different types are not, but numbers are compared by value.
    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => **a == **b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Quantity(a), Self::Quantity(b)) => a == b,
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Semver(a), Self::Semver(b)) => a == b,
            (Self::Format(a), Self::Format(b)) => a == b,
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Self::List(a), Self::List(b)) => a.equals(b),
            (Self::Map(a), Self::Map(b)) => a.equals(b),
            _ => number_order(self, other) == Some(Ordering::Equal),
        }
    }

    /// The order of two values of a kind that has one.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some((**a).cmp(&**b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            _ => number_order(self, other),
        }
    }

    /// Whether it is the empty value of its type.
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(value) => !value,
            Self::Int(value) => *value == 0,
            Self::Uint(value) => *value == 0,
            Self::Double(value) => *value == 0.0,
            Self::Duration(value) => value.is_zero(),
            Self::Text(_) | Self::Bytes(_) | Self::List(_) | Self::Map(_) => self.size() == 0,
            Self::Optional(inner) => inner.is_none(),
            _ => false,
        }
    }
}

/// Charges for a copy of JSON.
fn charge_for(json: &Json, meter: &mut Meter) -> Result<(), EvalError> {
    meter.charge(1)?;
    match json {
        Json::String(text) => meter.charge(text.len() as u64 / 10),
        Json::Array(items) => items.iter().try_for_each(|item| charge_for(item, meter)),
        Json::Object(map) => map.values().try_for_each(|value| charge_for(value, meter)),
        _ => Ok(()),
    }
}

/// The order of two numbers of any type; none when one is no number or not a number.
fn number_order(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    let whole = |value: &Val<'_>| match value {
        Val::Int(value) => Some(i128::from(*value)),
        Val::Uint(value) => Some(i128::from(*value)),
        _ => None,
    };
    match (a, b) {
        (Val::Double(a), Val::Double(b)) => a.partial_cmp(b),
        (Val::Double(a), b) => a.partial_cmp(&(whole(b)? as f64)),
        (a, Val::Double(b)) => (whole(a)? as f64).partial_cmp(b),
        (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
    }
}

impl<'a> List<'a> {
    /// How many items.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(items, _) => items.len(),
            Self::Owned(items) => items.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item at a position.
    pub fn get(&self, index: usize) -> Option<Val<'a>> {
        match self {
            Self::Json(items, shape) => {
                Some(Val::of(items.get(index)?, shape.as_ref().map_or(&DYN, |shape| &shape.item)))
            }
            Self::Owned(items) => items.get(index).cloned(),
        }
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = Val<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// What the schema promises of it.
    pub(super) fn kind(&self) -> &ListType {
        match self {
            Self::Json(_, Some(shape)) => &shape.kind,
            _ => &ListType::Atomic,
        }
    }

    fn equals(&self, other: &Self) -> bool {
        if self.len() != other.len() {
            return false;
        }
        let kind = if *self.kind() == ListType::Atomic { other.kind() } else { self.kind() };
        if *kind == ListType::Atomic {
            return self.iter().zip(other.iter()).all(|(a, b)| a.equals(&b));
        }
        // Sets and maps ignore order; `key` makes this linear for maps.
        self.iter().all(|item| other.iter().any(|one| one.equals(&item)))
    }
}

/// The values of the keys of a map-like list's item.
pub(super) fn item_key(item: &Val<'_>, keys: &[String]) -> Option<Vec<String>> {
    let Val::Map(map) = item else { return None };
    Some(keys.iter().map(|key| map.get_field(key).map_or_else(String::new, |value| format!("{value:?}"))).collect())
}

impl<'a> Map<'a> {
    /// How many entries.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(map, _) | Self::Object(map, _) => map.len(),
            Self::Owned(map) => map.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a field, by its name in expressions.
    pub fn get_field(&self, field: &str) -> Option<Val<'a>> {
        match self {
            Self::Object(map, object) => {
                let field = object.fields.get(field)?;
                Some(Val::of(map.get(&field.name)?, &field.field_type))
            }
            Self::Json(map, value_type) => match map.get(field) {
                Some(value) => Some(Val::of(value, value_type)),
                None if field.contains("__") => Some(Val::of(map.get(&unescape(field))?, value_type)),
                None => None,
            },
            Self::Owned(map) => map.get(&Key::Text(field.into())).cloned(),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &Val<'a>) -> Option<Val<'a>> {
        match (self, key) {
            (Self::Object(..), Val::Text(text)) => self.get_field(text),
            (Self::Json(map, value_type), Val::Text(text)) => Some(Val::of(map.get(&**text)?, value_type)),
            (Self::Owned(map), key) => map.get(&Key::of(key)?).cloned(),
            _ => None,
        }
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Val<'a>> {
        match self {
            Self::Json(map, _) => map.keys().map(|key| Val::Text(Text::Borrowed(key))).collect(),
            Self::Object(map, object) => {
                let known = object.fields.iter().filter(|(_, field)| map.contains_key(&field.name));
                known.map(|(name, _)| Val::Text(Text::Borrowed(name))).collect()
            }
            Self::Owned(map) => map.keys().map(Key::value).collect(),
        }
    }

    fn equals(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.keys().iter().all(|key| match (self.get(key), other.get(key)) {
                (Some(a), Some(b)) => a.equals(&b),
                _ => false,
            })
    }
}

impl Key {
    /// A value as a key, if it can be one.
    pub fn of(value: &Val<'_>) -> Option<Self> {
        Some(match value {
            Val::Bool(value) => Self::Bool(*value),
            Val::Int(value) => Self::Whole(i128::from(*value)),
            Val::Uint(value) => Self::Whole(i128::from(*value)),
            Val::Double(value) if value.fract() == 0.0 => Self::Whole(*value as i128),
            Val::Text(text) => Self::Text((**text).into()),
            _ => return None,
        })
    }

    fn value<'a>(&self) -> Val<'a> {
        match self {
            Self::Bool(value) => Val::Bool(*value),
            Self::Whole(value) => i64::try_from(*value).map_or(Val::Uint(*value as u64), Val::Int),
            Self::Text(text) => Val::Text(Text::Owned(text.clone())),
        }
    }
}

/// A list of many keys and values made into a map.
///
/// # Errors
/// When a key stands twice or cannot be one.
pub(super) fn map_of<'a>(entries: Vec<(Val<'a>, Val<'a>)>) -> Result<Val<'a>, EvalError> {
    let mut map = BTreeMap::new();
    for (key, value) in entries {
        let plain =
            Key::of(&key).ok_or_else(|| EvalError::Other(format!("unsupported key type: {}", key.type_name())))?;
        if map.insert(plain, value).is_some() {
            return Err(EvalError::Other(format!(
                "insert failed: key {} already exists",
                super::functions::format::shown(&key)
            )));
        }
    }
    Ok(Val::Map(Map::Owned(Rc::new(map))))
}
