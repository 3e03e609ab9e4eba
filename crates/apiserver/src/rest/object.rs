//! Objects as JSON values: from and to the store, and the metadata fields the server keeps.

use bytes::Bytes;
use mainstay_custom::served::Version;
use mainstay_model::convert;
use mainstay_model::protobuf::{self, ProtobufError};
use mainstay_model::resource::Resource;
use mainstay_model::status::ApiError;
use mainstay_store::Entry;
use serde_json::{Map, Value, json};

use crate::decode::{self, Language, read_json, read_yaml};
use crate::registry::Stored;
use crate::request::{Call, PROTOBUF};

/// A stored object with its `resourceVersion`, which is the entry's revision and is not stored inside it.
pub(crate) fn decode_entry(resource: &impl Stored, entry: &Entry) -> Value {
    decode(resource, &entry.value, entry.mod_revision)
}

/// A stored value at a revision.
pub(crate) fn decode(stored: &impl Stored, bytes: &[u8], revision: u64) -> Value {
    let resource = stored.row();
    let mut object = parse(resource, bytes);
    convert::from_stored(resource, &mut object);
    if let Some(version) = stored.version() {
        finish(version, &mut object);
    }
    meta_mut(&mut object).insert("resourceVersion".to_owned(), json!(revision.to_string()));
    object
}

/// A stored value as it lies there.
pub(super) fn parse(resource: &Resource, bytes: &[u8]) -> Value {
    // What is in the store was written by `encode`; anything else is a damaged file, and shows as an empty object.
    serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::error!(kind = resource.kind, %error, "an object in the store is damaged");
        json!({"metadata": {}})
    })
}

/// A definition may have changed since an object was stored: it is seen with its new defaults and without old fields.
pub(super) fn finish(version: &Version, object: &mut Value) {
    version.schema.default(object);
    version.schema.prune(object);
}

/// The bytes to store. The object loses its `resourceVersion`, which is not stored inside it.
pub(super) fn encode(stored: &impl Stored, object: &mut Value) -> Bytes {
    meta_mut(object).remove("resourceVersion");
    let mut other = None;
    if let Some(version) = stored.version() {
        other.insert(object.clone())["apiVersion"] = json!(version.storage_api_version());
    } else if convert::is_stored_otherwise(stored.row()) {
        convert::to_stored(stored.row(), other.insert(object.clone()));
    }
    // A `Value` always serialises: its keys are strings.
    Bytes::from(serde_json::to_vec(other.as_ref().unwrap_or(object)).unwrap_or_default())
}

/// The object's metadata, made if it is not there.
pub(crate) fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    match &mut object["metadata"] {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// A metadata field that is text; empty when missing.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// A new version 4 UUID (RFC 9562).
pub(crate) fn new_uid() -> String {
    let mut bytes = fastrand::u128(..).to_be_bytes();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn protobuf_error(error: ProtobufError) -> ApiError {
    match error {
        ProtobufError::Kind { .. } => ApiError::new(415, "UnsupportedMediaType", error.to_string()),
        error => ApiError::bad_request(format!("the body of the request is not valid Kubernetes protobuf: {error}")),
    }
}

/// Reads a body: JSON, or YAML or protobuf where the media type says so.
///
/// # Errors
/// 400 for a body that is not an object, 415 for other media types.
pub(crate) fn parse_body(media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    read_body(media_type, body).map(|(value, _, _)| value)
}

/// As [`parse_body`] for an object of the call's kind: brought into the shape of the kind, and what is wrong with its
/// fields told as the caller wishes.
///
/// # Errors
/// Also 400 for what does not fit the kind, and when the caller wishes objects with such fields to be refused.
pub(crate) fn parse_object(call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    let (mut value, language, repeated) = read_body(media_type, body)?;
    decode::check_body(call, &mut value, language, body, &repeated)?;
    Ok(value)
}

fn read_body(media_type: &str, body: &[u8]) -> Result<(Value, Language, Vec<String>), ApiError> {
    let broken = |language: &str, error: &dyn std::fmt::Display| {
        ApiError::bad_request(format!("the body of the request is not valid {language}: {error}"))
    };
    let (value, language, repeated) = match media_type {
        "application/json" | "" => {
            let (value, repeated) = read_json(body).map_err(|error| broken("JSON", &error))?;
            (value, Language::Json, repeated)
        }
        "application/yaml" => {
            let (value, repeated) = read_yaml(body).map_err(|error| broken("YAML", &error))?;
            (value, Language::Yaml, repeated)
        }
        PROTOBUF => (protobuf::decode(body).map_err(protobuf_error)?, Language::Protobuf, Vec::new()),
        other => {
            let known = ["application/json", "application/yaml", PROTOBUF];
            return Err(ApiError::unsupported_media_type(other, &known));
        }
    };
    if value.is_object() {
        Ok((value, language, repeated))
    } else {
        Err(ApiError::bad_request("the body of the request is not an object"))
    }
}
