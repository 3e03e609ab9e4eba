//! From protobuf to JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::fields::{Field, Level, Node, Union, Zero, message};
use super::wire::{Raw, Reader};
use super::{DEPTH_MAX, MAGIC, ProtobufError, type_of};
use crate::schema::{Scalar, Shape};

/// Reads a body: the object with its `apiVersion` and `kind`.
///
/// # Errors
/// What is wrong with the bytes, and where.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut api_version, mut kind) = (String::new(), String::new());
    let (mut raw, mut content_type): (&[u8], &str) = (&[], "");
    let mut reader = Reader::new(envelope, "the envelope");
    while let Some((number, field)) = reader.next()? {
        let Raw::Bytes(bytes) = field else { continue };
        match number {
            1 => {
                let mut reader = Reader::new(bytes, "the envelope's type");
                while let Some((number, field)) = reader.next()? {
                    let Raw::Bytes(bytes) = field else { continue };
                    match number {
                        1 => text(bytes, "apiVersion")?.clone_into(&mut api_version),
                        2 => text(bytes, "kind")?.clone_into(&mut kind),
                        _ => {}
                    }
                }
            }
            2 => raw = bytes,
            4 => content_type = text(bytes, "contentType")?,
            _ => {}
        }
    }
    if !matches!(content_type, "" | "application/vnd.kubernetes.protobuf") {
        return Err(ProtobufError::ContentType(content_type.to_owned()));
    }
    let Some(type_name) = type_of(&api_version, &kind) else { return Err(ProtobufError::Kind { api_version, kind }) };
    let mut object = object(type_name, raw, 0)?;
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

fn malformed(field: &str, what: &'static str) -> ProtobufError {
    ProtobufError::Malformed { field: field.to_owned(), what }
}

fn text<'a>(bytes: &'a [u8], field: &str) -> Result<&'a str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| malformed(field, "the text is not UTF-8"))
}

pub(super) fn object(type_name: &'static str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::TooDeep);
    }
    let mut object = Map::new();
    if let Some(message) = message(type_name) {
        level(type_name, &message.level, bytes, depth, &mut object)?;
        for (name, shape) in &message.filled {
            if !object.contains_key(*name) {
                object.insert((*name).to_owned(), zero(shape, depth)?);
            }
        }
    }
    Ok(object)
}

fn level(
    type_name: &str,
    level: &'static Level,
    bytes: &[u8],
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), ProtobufError> {
    let mut reader = Reader::new(bytes, type_name);
    while let Some((number, raw)) = reader.next()? {
        match (level.get(&number), raw) {
            (Some(Node::Field(field)), raw) => put(type_name, field, raw, depth, object)?,
            (Some(Node::Embedded(inner)), Raw::Bytes(bytes)) => {
                self::level(type_name, inner, bytes, depth, object)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads one occurrence of a field into the object.
fn put(
    type_name: &str,
    field: &'static Field,
    raw: Raw<'_>,
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), ProtobufError> {
    let path = || format!("{type_name}.{}", field.name);
    match (field.shape, raw) {
        (Shape::List(item), raw) => {
            let list = object.entry(field.name).or_insert_with(|| json!([]));
            let Value::Array(list) = list else { return Ok(()) };
            match (item.as_ref(), raw) {
                // Writers may put the numbers of a list into one field.
                (Shape::Scalar(Scalar::Integer32 | Scalar::Integer64 | Scalar::Boolean), Raw::Bytes(bytes)) => {
                    let within = path();
                    let mut packed = Reader::new(bytes, &within);
                    while !packed.is_empty() {
                        list.push(value(item, Raw::Varint(packed.varint()?), &path, depth)?);
                    }
                }
                (item, raw) => list.push(value(item, raw, &path, depth)?),
            }
        }
        (Shape::Map(inner), Raw::Bytes(bytes)) => {
            let (key, value) = entry(inner, field.union, bytes, &path, depth)?;
            if let Value::Object(map) = object.entry(field.name).or_insert_with(|| json!({})) {
                map.insert(key, value);
            }
        }
        (shape, raw) => {
            let value = match (field.union, raw) {
                (Some(union), Raw::Bytes(bytes)) => either(union, bytes, &path, depth)?,
                _ => value(shape, raw, &path, depth)?,
            };
            let absent = value.is_null() || (field.zero == Zero::Absent && is_zero(&value));
            if !absent {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(flag) => !flag,
        _ => false,
    }
}

/// What a field is in Go before anything is read into it.
fn zero(shape: &'static Shape, depth: usize) -> Result<Value, ProtobufError> {
    Ok(match shape {
        Shape::Object(type_name) => Value::Object(object(type_name, &[], depth + 1)?),
        Shape::List(_) => json!([]),
        Shape::Map(_) => json!({}),
        Shape::Scalar(Scalar::String | Scalar::Bytes) => json!(""),
        Shape::Scalar(Scalar::Boolean) => json!(false),
        Shape::Scalar(Scalar::Quantity) => json!("0"),
        Shape::Scalar(Scalar::Integer32 | Scalar::Integer64 | Scalar::Number | Scalar::IntOrString) => json!(0),
        Shape::Scalar(Scalar::Time | Scalar::MicroTime | Scalar::Any) => Value::Null,
    })
}

/// A message of two fields of which JSON shows the one that is set; the second counts when it is there.
fn either(union: Union, bytes: &[u8], path: &dyn Fn() -> String, depth: usize) -> Result<Value, ProtobufError> {
    let within = path();
    let mut reader = Reader::new(bytes, &within);
    let (mut first, mut second) = (Value::Null, Value::Null);
    let schema = |bytes: &[u8]| object("JSONSchemaProps", bytes, depth + 1).map(Value::Object);
    let push = |list: &mut Value, item: Value| match list {
        Value::Array(list) => list.push(item),
        other => *other = json!([item]),
    };
    while let Some((number, raw)) = reader.next()? {
        match (union, number, raw) {
            (Union::Allowed, 1, Raw::Varint(n)) => first = json!(n != 0),
            (Union::Allowed, 2, Raw::Bytes(bytes)) => second = schema(bytes)?,
            (Union::Schemas | Union::Names, 1, Raw::Bytes(bytes)) => first = schema(bytes)?,
            (Union::Schemas, 2, Raw::Bytes(bytes)) => push(&mut second, schema(bytes)?),
            (Union::Names, 2, Raw::Bytes(bytes)) => push(&mut second, json!(text(bytes, &within)?)),
            _ => {}
        }
    }
    Ok(match (union, second) {
        (Union::Allowed, Value::Null) if first.is_null() => json!(false),
        (_, Value::Null) => first,
        (_, second) => second,
    })
}

/// A map is a list of messages of key (1) and value (2).
fn entry(
    shape: &'static Shape,
    union: Option<Union>,
    bytes: &[u8],
    path: &dyn Fn() -> String,
    depth: usize,
) -> Result<(String, Value), ProtobufError> {
    let (mut key, mut found) = (String::new(), None);
    let within = path();
    let mut reader = Reader::new(bytes, &within);
    while let Some((number, raw)) = reader.next()? {
        match (number, raw) {
            (1, Raw::Bytes(bytes)) => text(bytes, &within)?.clone_into(&mut key),
            (2, raw) => {
                found = Some(match (union, raw) {
                    (Some(union), Raw::Bytes(bytes)) => either(union, bytes, path, depth)?,
                    _ => value(shape, raw, path, depth)?,
                });
            }
            _ => {}
        }
    }
    let value = match found {
        Some(value) => value,
        None => zero(shape, depth)?,
    };
    Ok((key, value))
}

fn value(shape: &'static Shape, raw: Raw<'_>, path: &dyn Fn() -> String, depth: usize) -> Result<Value, ProtobufError> {
    match (shape, raw) {
        (Shape::Object(type_name), Raw::Bytes(bytes)) => object(type_name, bytes, depth + 1).map(Value::Object),
        // A list as the value of a map is a message with the list as field 1.
        (Shape::List(item), Raw::Bytes(bytes)) => {
            let (mut list, within) = (Vec::new(), path());
            let mut reader = Reader::new(bytes, &within);
            while let Some((number, raw)) = reader.next()? {
                if number == 1 {
                    list.push(value(item, raw, path, depth + 1)?);
                }
            }
            Ok(Value::Array(list))
        }
        (Shape::Scalar(scalar), raw) => self::scalar(*scalar, raw, path),
        _ => Err(malformed(&path(), "the wire type is not that of the field")),
    }
}

fn scalar(scalar: Scalar, raw: Raw<'_>, path: &dyn Fn() -> String) -> Result<Value, ProtobufError> {
    Ok(match (scalar, raw) {
        (Scalar::String, Raw::Bytes(bytes)) => json!(text(bytes, &path())?),
        (Scalar::Boolean, Raw::Varint(n)) => json!(n != 0),
        (Scalar::Integer32, Raw::Varint(n)) => json!(n as i64 as i32),
        (Scalar::Integer64, Raw::Varint(n)) => json!(n as i64),
        (Scalar::Number, Raw::Fixed64(bytes)) => json!(f64::from_le_bytes(bytes)),
        (Scalar::Bytes, Raw::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Scalar::Quantity, Raw::Bytes(bytes)) => quantity(bytes, path)?,
        (Scalar::IntOrString, Raw::Bytes(bytes)) => int_or_string(bytes, path)?,
        (Scalar::Time, Raw::Bytes(bytes)) => time(bytes, path, false)?,
        (Scalar::MicroTime, Raw::Bytes(bytes)) => time(bytes, path, true)?,
        (Scalar::Any, Raw::Bytes(bytes)) => any(bytes, path)?,
        _ => return Err(malformed(&path(), "the wire type is not that of the field")),
    })
}

fn quantity(bytes: &[u8], path: &dyn Fn() -> String) -> Result<Value, ProtobufError> {
    let within = path();
    let mut reader = Reader::new(bytes, &within);
    let mut found = "0";
    while let Some((number, raw)) = reader.next()? {
        if let (1, Raw::Bytes(bytes)) = (number, raw) {
            found = text(bytes, &within)?;
        }
    }
    Ok(json!(found))
}

fn int_or_string(bytes: &[u8], path: &dyn Fn() -> String) -> Result<Value, ProtobufError> {
    let within = path();
    let mut reader = Reader::new(bytes, &within);
    let (mut is_text, mut number, mut words) = (false, 0_i64, "");
    while let Some((field, raw)) = reader.next()? {
        match (field, raw) {
            (1, Raw::Varint(n)) => is_text = n == 1,
            (2, Raw::Varint(n)) => number = i64::from(n as i64 as i32),
            (3, Raw::Bytes(bytes)) => words = text(bytes, &within)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(words) } else { json!(number) })
}

/// Seconds (1) and nanoseconds (2) since 1970; an empty message is no time at all.
fn time(bytes: &[u8], path: &dyn Fn() -> String, micro: bool) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let within = path();
    let mut reader = Reader::new(bytes, &within);
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    while let Some((number, raw)) = reader.next()? {
        match (number, raw) {
            (1, Raw::Varint(n)) => seconds = n as i64,
            (2, Raw::Varint(n)) => nanos = n as i64 as i32,
            _ => {}
        }
    }
    let when = Timestamp::new(seconds, nanos).map_err(|_| malformed(&within, "the time is out of range"))?;
    Ok(json!(if micro { format!("{when:.6}") } else { format!("{when:.0}") }))
}

/// JSON within a message, as field 1.
fn any(bytes: &[u8], path: &dyn Fn() -> String) -> Result<Value, ProtobufError> {
    let within = path();
    let mut reader = Reader::new(bytes, &within);
    let mut found = Value::Null;
    while let Some((number, raw)) = reader.next()? {
        if let (1, Raw::Bytes(bytes)) = (number, raw)
            && !bytes.is_empty()
        {
            found = match decode(bytes) {
                Ok(object) => object,
                Err(ProtobufError::Magic) => {
                    serde_json::from_slice(bytes).map_err(|_| malformed(&within, "holds something else than JSON"))?
                }
                Err(error) => return Err(error),
            };
        }
    }
    Ok(found)
}
