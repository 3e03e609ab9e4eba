//! The second version in protobuf, which client-go reads: the messages of `openapi.v2`, as far as the document uses them.
//!
//! Source: `OpenAPIv2.proto` of <https://github.com/google/gnostic>.

use mainstay_model::protobuf::{put_bytes, put_number};
use serde_json::{Map, Value};

/// `Document`: version 1, info 2, paths 8, definitions 9.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, text(document, "swagger").as_bytes());
    let mut info = Vec::new();
    put_bytes(&mut info, 1, text(&document["info"], "title").as_bytes());
    put_bytes(&mut info, 2, text(&document["info"], "version").as_bytes());
    put_bytes(&mut out, 2, &info);
    put_bytes(&mut out, 8, &named(&document["paths"], 2, path_item));
    put_bytes(&mut out, 9, &named(&document["definitions"], 1, schema));
    out
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// A map as a list of messages of name 1 and value 2, under `field`.
fn named(map: &Value, field: u32, encode: impl Fn(&Value) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in map.as_object().into_iter().flatten() {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, name.as_bytes());
        put_bytes(&mut entry, 2, &encode(value));
        put_bytes(&mut out, field, &entry);
    }
    out
}

/// `PathItem`: get 2, put 3, post 4, delete 5, patch 8.
fn path_item(item: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (method, field) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if item[method].is_object() {
            put_bytes(&mut out, field, &operation(&item[method]));
        }
    }
    out
}

/// `Operation`: id 5, parameters 8, extensions 13.
fn operation(operation: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 5, text(operation, "operationId").as_bytes());
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        if parameter["in"] == "query" {
            put_bytes(&mut out, 8, &query_parameter(parameter));
        }
    }
    extensions(&mut out, 13, operation.as_object());
    out
}

/// Through `ParametersItem`, `Parameter` and `NonBodyParameter` to `QueryParameterSubSchema`: place 2, name 4, type 6.
fn query_parameter(parameter: &Value) -> Vec<u8> {
    let mut query = Vec::new();
    put_bytes(&mut query, 2, b"query");
    put_bytes(&mut query, 4, text(parameter, "name").as_bytes());
    put_bytes(&mut query, 6, text(parameter, "type").as_bytes());
    [3, 2, 1].into_iter().fold(query, |inner, field| {
        let mut outer = Vec::new();
        put_bytes(&mut outer, field, &inner);
        outer
    })
}

/// `Schema`.
fn schema(schema: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (field, number) in [("$ref", 1), ("format", 2), ("description", 4)] {
        if let Some(text) = schema[field].as_str() {
            put_bytes(&mut out, number, text.as_bytes());
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        put_bytes(&mut out, 19, name.as_bytes());
    }
    match &schema["additionalProperties"] {
        Value::Bool(allowed) => {
            let mut item = Vec::new();
            put_number(&mut item, 2, u64::from(*allowed));
            put_bytes(&mut out, 21, &item);
        }
        Value::Object(_) => {
            let mut item = Vec::new();
            put_bytes(&mut item, 1, &self::schema(&schema["additionalProperties"]));
            put_bytes(&mut out, 21, &item);
        }
        _ => {}
    }
    if let Some(name) = schema["type"].as_str() {
        let mut item = Vec::new();
        put_bytes(&mut item, 1, name.as_bytes());
        put_bytes(&mut out, 22, &item);
    }
    if schema["items"].is_object() {
        let mut item = Vec::new();
        put_bytes(&mut item, 1, &self::schema(&schema["items"]));
        put_bytes(&mut out, 23, &item);
    }
    if schema["properties"].is_object() {
        put_bytes(&mut out, 25, &named(&schema["properties"], 1, self::schema));
    }
    extensions(&mut out, 31, schema.as_object());
    out
}

/// `x-…` as `NamedAny`, whose value is YAML text; JSON is YAML.
fn extensions(out: &mut Vec<u8>, field: u32, map: Option<&Map<String, Value>>) {
    for (name, value) in map.into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        let (mut any, mut entry) = (Vec::new(), Vec::new());
        put_bytes(&mut any, 2, format!("{value}\n").as_bytes());
        put_bytes(&mut entry, 1, name.as_bytes());
        put_bytes(&mut entry, 2, &any);
        put_bytes(out, field, &entry);
    }
}
