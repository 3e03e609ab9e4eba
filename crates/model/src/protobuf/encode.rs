//! From JSON to protobuf.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::fields::{Level, Node, Union, message};
use super::wire::{put_bytes, put_double, put_number};
use super::{MAGIC, header, type_of};
use crate::schema::{Scalar, Shape};

/// An object or a list of objects as a body; nothing for kinds without a protobuf form.
pub fn encode(object: &Value) -> Option<Vec<u8>> {
    let (api_version, kind) = header(object);
    let raw = match kind {
        "PartialObjectMetadata" => metadata_only(object),
        "PartialObjectMetadataList" => list(object, &metadata_only),
        "Status" => to_message("Status", object)?,
        _ => {
            if let Some(type_name) = type_of(api_version, kind) {
                to_message(type_name, object)?
            } else {
                let item = type_of(api_version, kind.strip_suffix("List")?)?;
                list(object, &|entry| to_message(item, entry).unwrap_or_default())
            }
        }
    };
    let mut of_type = Vec::new();
    put_bytes(&mut of_type, 1, api_version.as_bytes());
    put_bytes(&mut of_type, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + of_type.len() + 32);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &of_type);
    put_bytes(&mut out, 2, &raw);
    // Go's reader wants both, although empty.
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    Some(out)
}

/// A `WatchEvent` as one frame of a watch: its length in four bytes, highest first, then the message without envelope.
pub fn watch_event(event_type: &str, object: &Value) -> Option<Vec<u8>> {
    let mut holder = Vec::new();
    put_bytes(&mut holder, 1, &encode(object)?);
    let mut event = Vec::with_capacity(holder.len() + 32);
    put_bytes(&mut event, 1, event_type.as_bytes());
    put_bytes(&mut event, 2, &holder);
    let mut frame = u32::try_from(event.len()).ok()?.to_be_bytes().to_vec();
    frame.append(&mut event);
    Some(frame)
}

fn metadata_only(object: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, &to_message("ObjectMeta", &object["metadata"]).unwrap_or_default());
    out
}

/// Every list has its metadata as field 1 and its items as field 2.
fn list(object: &Value, item: &dyn Fn(&Value) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, &to_message("ListMeta", &object["metadata"]).unwrap_or_default());
    for entry in object["items"].as_array().into_iter().flatten() {
        put_bytes(&mut out, 2, &item(entry));
    }
    out
}

fn to_message(type_name: &str, object: &Value) -> Option<Vec<u8>> {
    let message = message(type_name)?;
    let mut out = Vec::new();
    level(&message.level, object, &mut out);
    Some(out)
}

/// Fields in the order of their numbers; an embedded message only when it has something.
fn level(level: &'static Level, object: &Value, out: &mut Vec<u8>) {
    for (number, node) in level {
        match node {
            Node::Embedded(inner) => {
                let mut bytes = Vec::new();
                self::level(inner, object, &mut bytes);
                if !bytes.is_empty() {
                    put_bytes(out, *number, &bytes);
                }
            }
            Node::Field(field) => {
                if let Some(value) = object.get(field.name).filter(|value| !value.is_null()) {
                    put(*number, field.shape, field.union, value, out);
                }
            }
        }
    }
}

fn put(number: u32, shape: &'static Shape, union: Option<Union>, value: &Value, out: &mut Vec<u8>) {
    match shape {
        Shape::Scalar(_) if union.is_some_and(|union| put_either(number, union, value, out)) => {}
        Shape::Scalar(scalar) => put_scalar(number, *scalar, value, out),
        Shape::Object(type_name) => put_bytes(out, number, &to_message(type_name, value).unwrap_or_default()),
        Shape::List(item) => {
            for entry in value.as_array().into_iter().flatten() {
                put(number, item, union, entry, out);
            }
        }
        Shape::Map(inner) => {
            for (key, value) in value.as_object().into_iter().flatten() {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key.as_bytes());
                if let Shape::List(_) = inner.as_ref() {
                    let mut items = Vec::new();
                    put(1, inner, union, value, &mut items);
                    put_bytes(&mut entry, 2, &items);
                } else {
                    put(2, inner, union, value, &mut entry);
                }
                put_bytes(out, number, &entry);
            }
        }
    }
}

/// A field that JSON shows in one of two shapes; false when the value has neither.
fn put_either(number: u32, union: Union, value: &Value, out: &mut Vec<u8>) -> bool {
    let schema = |value: &Value| to_message("JSONSchemaProps", value).unwrap_or_default();
    let mut inner = Vec::new();
    match (union, value) {
        (Union::Allowed, Value::Bool(allowed)) => put_number(&mut inner, 1, u64::from(*allowed)),
        (Union::Allowed, Value::Object(_)) => {
            put_number(&mut inner, 1, 1);
            put_bytes(&mut inner, 2, &schema(value));
        }
        (_, Value::Object(_)) => put_bytes(&mut inner, 1, &schema(value)),
        (Union::Schemas, Value::Array(schemas)) => {
            for one in schemas {
                put_bytes(&mut inner, 2, &schema(one));
            }
        }
        (Union::Names, Value::Array(names)) => {
            for name in names {
                put_bytes(&mut inner, 2, name.as_str().unwrap_or_default().as_bytes());
            }
        }
        _ => return false,
    }
    put_bytes(out, number, &inner);
    true
}

fn put_scalar(number: u32, scalar: Scalar, value: &Value, out: &mut Vec<u8>) {
    let text = value.as_str().unwrap_or_default();
    match scalar {
        Scalar::String => put_bytes(out, number, text.as_bytes()),
        Scalar::Boolean => put_number(out, number, u64::from(value.as_bool().unwrap_or_default())),
        Scalar::Integer32 | Scalar::Integer64 => put_number(out, number, value.as_i64().unwrap_or_default() as u64),
        Scalar::Number => put_double(out, number, value.as_f64().unwrap_or_default()),
        Scalar::Bytes => put_bytes(out, number, &STANDARD.decode(text).unwrap_or_default()),
        Scalar::Quantity => {
            let mut inner = Vec::new();
            match value {
                Value::String(text) => put_bytes(&mut inner, 1, text.as_bytes()),
                other => put_bytes(&mut inner, 1, other.to_string().as_bytes()),
            }
            put_bytes(out, number, &inner);
        }
        Scalar::IntOrString => {
            let mut inner = Vec::new();
            put_number(&mut inner, 1, u64::from(value.is_string()));
            put_number(&mut inner, 2, value.as_i64().unwrap_or_default() as u64);
            put_bytes(&mut inner, 3, text.as_bytes());
            put_bytes(out, number, &inner);
        }
        Scalar::Time | Scalar::MicroTime => {
            let Ok(when) = text.parse::<Timestamp>() else { return };
            let mut inner = Vec::new();
            put_number(&mut inner, 1, when.as_second() as u64);
            put_number(&mut inner, 2, when.subsec_nanosecond() as u64);
            put_bytes(out, number, &inner);
        }
        Scalar::Any => {
            let mut inner = Vec::new();
            put_bytes(&mut inner, 1, value.to_string().as_bytes());
            put_bytes(out, number, &inner);
        }
    }
}
