//! JSON to gRPC and back, by descriptors: a client speaks JSON over HTTP, the endpoint gRPC.
//!
//! # Flow
//! A file descriptor set (`protoc --include_imports --descriptor_set_out`) → [`Transcoder`]: every method under
//! `POST /package.Service/Method`, and under the paths of its `google.api.http` annotations → [`Call::request`] makes a gRPC
//! message of path, query and body → [`Call::answer`] makes JSON of what comes back.
//!
//! # Guarantees
//! The JSON is that of the Protocol Buffers JSON mapping. A gRPC error becomes the HTTP status of `google.rpc.Code`, with
//! `{"code", "message"}` as its body.
//!
//! # Deliberately absent
//! Streaming requests. The answers of a method that streams are collected into one array.

mod template;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;
use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

use template::Template;

/// The annotation that says under which paths a method can be asked for.
const ANNOTATION: &str = "google.api.http";
/// Length of what stands before a gRPC message: a flag and four bytes of length.
const PREFIX_BYTES: usize = 5;

/// Why JSON could not become a message, or a message JSON.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TranscodeError {
    /// The descriptors are none.
    #[error("the descriptors cannot be used: {0}; make them with protoc --include_imports --descriptor_set_out=FILE")]
    Descriptors(String),
    /// A path of an annotation cannot be understood.
    #[error("{method}: the path {path:?} of its annotation is no template")]
    Template { method: String, path: String },
    /// The client's fault.
    #[error("the request does not fit {message}: {reason}")]
    Request { message: String, reason: String },
    /// The endpoint's fault.
    #[error("the endpoint's answer is not {message}: {reason}")]
    Answer { message: String, reason: String },
}

/// One way to ask for a method.
#[derive(Debug, Clone)]
struct Binding {
    method: Method,
    template: Template,
    body: BodyField,
    response_body: Option<String>,
    target: MethodDescriptor,
}

/// What the request's body is.
#[derive(Debug, Clone, PartialEq)]
enum BodyField {
    /// Nothing: fields come from path and query.
    None,
    /// The whole message.
    All,
    /// One field.
    Field(String),
}

/// All methods of a descriptor set.
#[derive(Debug)]
pub(crate) struct Transcoder {
    bindings: Vec<Binding>,
}

/// A request that is for one of the methods.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    binding: &'a Binding,
    fields: Vec<(String, String)>,
}

impl Transcoder {
    /// Reads a file descriptor set.
    ///
    /// # Errors
    /// It is none, or an annotation in it is broken.
    pub(crate) fn new(descriptors: &[u8]) -> Result<Self, TranscodeError> {
        let pool = DescriptorPool::decode(descriptors);
        let pool = pool.map_err(|error| TranscodeError::Descriptors(error.to_string()))?;
        let mut bindings = Vec::new();
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            if method.is_client_streaming() {
                continue;
            }
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            bindings.push(binding(&method, "post", &path, "*", None)?);
            let options = method.options();
            let Some(extension) = pool.get_extension_by_name(ANNOTATION) else { continue };
            if let prost_reflect::Value::Message(rule) = &*options.get_extension(&extension) {
                annotated(&method, rule, &mut bindings)?;
            }
        }
        if bindings.is_empty() {
            return Err(TranscodeError::Descriptors("there is no method in them".to_owned()));
        }
        Ok(Self { bindings })
    }

    /// The method that a request is for.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Option<Call<'_>> {
        self.bindings.iter().filter(|it| it.method == *method).find_map(|binding| {
            let fields = binding.template.matches(path)?;
            Some(Call { binding, fields })
        })
    }
}

/// The bindings of an annotation (`google/api/http.proto`).
fn annotated(method: &MethodDescriptor, rule: &DynamicMessage, out: &mut Vec<Binding>) -> Result<(), TranscodeError> {
    let text = |message: &DynamicMessage, name: &str| {
        let value = message.get_field_by_name(name);
        value.and_then(|it| it.as_str().map(str::to_owned)).filter(|it| !it.is_empty())
    };
    let body = text(rule, "body").unwrap_or_default();
    let response = text(rule, "response_body");
    for verb in ["get", "put", "post", "delete", "patch"] {
        if let Some(path) = text(rule, verb) {
            out.push(binding(method, verb, &path, &body, response.clone())?);
        }
    }
    if let Some(custom) = rule.get_field_by_name("custom")
        && let Some(custom) = custom.as_message()
        && let (Some(kind), Some(path)) = (text(custom, "kind"), text(custom, "path"))
    {
        out.push(binding(method, &kind, &path, &body, response)?);
    }
    if let Some(more) = rule.get_field_by_name("additional_bindings")
        && let Some(more) = more.as_list()
    {
        for rule in more.iter().filter_map(prost_reflect::Value::as_message) {
            annotated(method, rule, out)?;
        }
    }
    Ok(())
}

fn binding(
    target: &MethodDescriptor,
    verb: &str,
    path: &str,
    body: &str,
    response_body: Option<String>,
) -> Result<Binding, TranscodeError> {
    let broken = || TranscodeError::Template { method: target.full_name().to_owned(), path: path.to_owned() };
    let method = Method::from_bytes(verb.to_ascii_uppercase().as_bytes()).map_err(|_| broken())?;
    let body = match body {
        "" => BodyField::None,
        "*" => BodyField::All,
        field => BodyField::Field(field.to_owned()),
    };
    let template = Template::parse(path).ok_or_else(broken)?;
    Ok(Binding { method, template, body, response_body, target: target.clone() })
}

impl Call<'_> {
    /// The path that gRPC asks for the method under.
    pub(crate) fn path(&self) -> String {
        let target = &self.binding.target;
        format!("/{}/{}", target.parent_service().full_name(), target.name())
    }

    /// The gRPC message of a request.
    ///
    /// # Errors
    /// It does not fit the method's message.
    pub(crate) fn request(&self, query: Option<&str>, body: &[u8]) -> Result<Bytes, TranscodeError> {
        let input = self.binding.target.input();
        let wrong = |reason: String| TranscodeError::Request { message: input.full_name().to_owned(), reason };
        let mut object = Value::Object(Map::new());
        if self.binding.body != BodyField::None && !body.trim_ascii().is_empty() {
            let value: Value = serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))?;
            match &self.binding.body {
                BodyField::Field(field) => object[field] = value,
                _ => object = value,
            }
        }
        let Value::Object(map) = &mut object else { return Err(wrong("its body is no JSON object".to_owned())) };
        if self.binding.body != BodyField::All {
            for (name, value) in query.unwrap_or_default().split('&').filter_map(|it| it.split_once('=')) {
                let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
                set(map, &input, &decode(name), decode(value)).map_err(wrong)?;
            }
        }
        for (name, value) in &self.fields {
            set(map, &input, name, value.clone()).map_err(wrong)?;
        }
        let message = DynamicMessage::deserialize(input.clone(), object).map_err(|error| wrong(error.to_string()))?;
        let length = message.encoded_len();
        let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
        out.put_u8(0);
        out.put_u32(u32::try_from(length).map_err(|error| wrong(error.to_string()))?);
        message.encode(&mut out).map_err(|error| wrong(error.to_string()))?;
        Ok(out.freeze())
    }

    /// The JSON of an answer's messages, and its status.
    ///
    /// # Errors
    /// They are not what the descriptors say.
    pub(crate) fn answer(&self, body: &[u8]) -> Result<Vec<u8>, TranscodeError> {
        let output = self.binding.target.output();
        let wrong = |reason: String| TranscodeError::Answer { message: output.full_name().to_owned(), reason };
        let mut values = Vec::new();
        let mut rest = body;
        while !rest.is_empty() {
            let (message, after) = split(rest).ok_or_else(|| wrong("it is cut off, or compressed".to_owned()))?;
            rest = after;
            let message = DynamicMessage::decode(output.clone(), message).map_err(|error| wrong(error.to_string()))?;
            let mut value = serde_json::to_value(&message).map_err(|error| wrong(error.to_string()))?;
            if let Some(field) = &self.binding.response_body {
                let name =
                    output.get_field_by_name(field).map_or_else(|| field.clone(), |it| it.json_name().to_owned());
                value = value[&name].take();
            }
            values.push(value);
        }
        let value = match (self.binding.target.is_server_streaming(), values.len()) {
            (true, _) => Value::Array(values),
            (false, 1) => values.remove(0),
            (false, count) => return Err(wrong(format!("there are {count} messages instead of one"))),
        };
        Ok(value.to_string().into_bytes())
    }
}

/// The first message and what follows it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (prefix, rest) = bytes.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    // A flag other than 0 says that it is compressed, which nobody asked for.
    (prefix[0] == 0).then_some(())?;
    rest.split_at_checked(length as usize)
}

/// Sets a field, `a.b` for one within another, from its text.
fn set(object: &mut Map<String, Value>, message: &MessageDescriptor, path: &str, text: String) -> Result<(), String> {
    let (name, deeper) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name));
    let field = field.ok_or_else(|| format!("there is no field {name:?}"))?;
    // Both spellings are one field: what is there already is found under either.
    let known = if object.contains_key(field.name()) { field.name() } else { field.json_name() }.to_owned();
    match (deeper, field.kind()) {
        (Some(deeper), Kind::Message(inner)) => {
            let slot = object.entry(known).or_insert_with(|| json!({}));
            let Value::Object(slot) = slot else { return Err(format!("{name:?} is no object")) };
            set(slot, &inner, deeper, text)
        }
        (Some(_), _) => Err(format!("{name:?} has no fields")),
        (None, kind) => {
            let value = match kind {
                // The mapping takes numbers as text, but no booleans.
                Kind::Bool => Value::Bool(text.parse().map_err(|_| format!("{name:?} is true or false"))?),
                Kind::Enum(_) => text.parse::<i32>().map_or_else(|_| json!(text), |number| json!(number)),
                _ => Value::String(text),
            };
            if field.is_list() {
                let slot = object.entry(known).or_insert_with(|| json!([]));
                let Value::Array(slot) = slot else { return Err(format!("{name:?} is no list")) };
                slot.push(value);
            } else {
                object.insert(known, value);
            }
            Ok(())
        }
    }
}

/// gRPC's status and message in headers or trailers.
pub(crate) fn status(headers: &HeaderMap) -> Option<(u32, String)> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers.get("grpc-message").and_then(|it| it.to_str().ok()).unwrap_or_default();
    Some((code, percent_decode_str(message).decode_utf8_lossy().into_owned()))
}

/// The HTTP status of a gRPC status (`google/rpc/code.proto`).
pub(crate) fn http_status(code: u32) -> StatusCode {
    let status = match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The JSON of an error (`google.rpc.Status`).
pub(crate) fn error_json(code: u32, message: &str) -> Vec<u8> {
    json!({"code": code, "message": message}).to_string().into_bytes()
}

#[cfg(test)]
mod tests;
