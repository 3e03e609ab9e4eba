//! Kubernetes' protobuf form of objects, from and to JSON values, by one table for all kinds.
//!
//! Role: typed clients (`kubectl create`, client-go) may send and ask for `application/vnd.kubernetes.protobuf`. A body is
//! the four bytes `k8s\0` and an envelope (`runtime.Unknown`) that names `apiVersion` and `kind` and holds the object. The
//! shapes of the fields are those of [`crate::schema`], their numbers stand in `numbers.txt`.
//!
//! Guarantees: reading never panics, is limited in depth and cannot be made to take more memory than a small multiple of
//! the body; what has no number is skipped, as protobuf asks. Deliberately absent: custom resources, which Kubernetes
//! itself serves in JSON only.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>,
//! <https://protobuf.dev/programming-guides/encoding/>.

mod decode;
mod encode;
mod fields;
#[cfg(test)]
mod tests;
mod wire;

use serde_json::Value;

use crate::meta;
use crate::schema;

pub use decode::decode;
pub use encode::{encode, watch_event};
pub use wire::{put_bytes, put_number};

/// The first bytes of every body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Deepest nesting of messages.
const DEPTH_MAX: usize = 64;

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not begin with [`MAGIC`].
    #[error("the body does not begin with the four bytes of Kubernetes protobuf")]
    Magic,
    /// The envelope holds something else than protobuf.
    #[error("the envelope holds {0:?} instead of protobuf")]
    ContentType(String),
    /// A kind that has no protobuf form here.
    #[error("{kind} ({api_version}) has no protobuf form; send it as application/json")]
    Kind {
        /// `apiVersion` of the envelope.
        api_version: String,
        /// `kind` of the envelope.
        kind: String,
    },
    /// The bytes end in the middle of something.
    #[error("the body ends within {0}")]
    Truncated(String),
    /// Bytes that are no protobuf, or not of this type.
    #[error("{field}: {what}")]
    Malformed {
        /// Where, for example `PodSpec.containers`.
        field: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Messages within messages without end.
    #[error("messages are nested more than {DEPTH_MAX} deep")]
    TooDeep,
}

/// The type in the tables of a kind, when it has a protobuf form.
///
/// Types are called by their kind, but for kinds of the same name in another group.
pub fn type_of(api_version: &str, kind: &str) -> Option<&'static str> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let name = match (group, kind) {
        ("events.k8s.io", "Event") => "EventsEvent",
        ("authentication.k8s.io", "TokenRequest") => "AuthenticationTokenRequest",
        // Options travel under the version of what they are about.
        (_, "DeleteOptions") => "DeleteOptions",
        _ if !is_built_in(group) => return None,
        _ => kind,
    };
    fields::message(name).map(|message| message.type_name)
}

/// Whether answers of a kind, or of a list of it, can be given in protobuf.
pub fn can_encode(api_version: &str, kind: &str) -> bool {
    let item = kind.strip_suffix("List").filter(|item| !item.is_empty());
    type_of(api_version, kind).or_else(|| type_of(api_version, item?)).is_some()
        || matches!(kind, "Status" | "PartialObjectMetadata" | "PartialObjectMetadataList")
}

/// Groups with dots that are not Kubernetes' own belong to custom resources, whatever their kinds are called.
fn is_built_in(group: &str) -> bool {
    !group.contains('.') || group.ends_with(".k8s.io")
}

/// The name of the type in the schema under which the objects of a kind are checked; empty for custom resources.
pub fn schema_type<'a>(api_version: &str, kind: &'a str) -> &'a str {
    match (api_version.split_once('/').map_or("", |(group, _)| group), kind) {
        (group, _) if !is_built_in(group) => "",
        ("events.k8s.io", "Event") => "EventsEvent",
        ("authentication.k8s.io", "TokenRequest") => "AuthenticationTokenRequest",
        _ => kind,
    }
}

fn header(object: &Value) -> (&str, &str) {
    (meta::api_version(object), meta::kind(object))
}

/// The shape of a field, which every numbered field has.
fn shape(type_name: &str, field: &str) -> Option<&'static schema::Shape> {
    schema::field(type_name, field).map(|field| &field.shape)
}
