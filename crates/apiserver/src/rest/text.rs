//! Objects as JSON for a client, from the text that lies in the store and without a tree in between.
//!
//! Role: the short way of lists and watches, which are nearly all reading there is. What is stored lacks only
//! `resourceVersion`; so the members of the object are copied as they stand, and that one is put in. A list is sent chunk
//! by chunk as it is read, so it costs the memory of one chunk however long it is.
//!
//! Guarantees: the same objects as by the long way, down to the last value; the order of members may differ.
//!
//! Deliberately absent: kinds whose text depends on more than the store: those of definitions, whose defaults and pruning
//! may have changed since, and the second face of events. They take the long way, and so does any text that does not
//! look as expected.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use mainstay_model::convert;
use mainstay_model::status::ApiError;
use mainstay_store::{Entry, Range};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::list::{Filter, Item, Page, Read, Walk, page};
use super::object::decode;
use super::options::ListOptions;
use super::shape::metadata_only;
use crate::api::Api;
use crate::limits::Seat;
use crate::registry::Served;
use crate::reply::{self, Body, BodyError};
use crate::request::{Accepted, Call, Encoding, Form};

/// Room for an object of ordinary size.
const ORDINARY: usize = 4096;

/// How much of an object is given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of it.
    Whole,
    /// All but its kind, as in lists.
    Item,
    /// A `PartialObjectMetadata`.
    Metadata,
}

impl Shape {
    /// What a client gets that asked for objects so; `None` where a tree is needed.
    pub(crate) fn of(resource: &Served, accepted: Accepted) -> Option<Self> {
        let is_otherwise = resource.custom().is_some() || convert::is_stored_otherwise(resource);
        if accepted.encoding != Encoding::Json || is_otherwise {
            return None;
        }
        match accepted.form {
            Form::Object => Some(Self::Whole),
            Form::Metadata => Some(Self::Metadata),
            Form::Table => None,
        }
    }

    fn has(self, member: &str) -> bool {
        match self {
            Self::Whole => true,
            Self::Item => !matches!(member, "apiVersion" | "kind"),
            Self::Metadata => member == "metadata",
        }
    }
}

/// Appends the object of a stored text.
pub(crate) fn append(out: &mut Vec<u8>, resource: &Served, stored: &[u8], revision: u64, shape: Shape) {
    let begin = out.len();
    if splice(out, resource, stored, revision, shape).is_some() {
        return;
    }
    out.truncate(begin);
    let mut object = decode(resource, stored, revision);
    if shape == Shape::Metadata {
        object = metadata_only(&object);
    } else if let Some(map) = object.as_object_mut() {
        map.retain(|member, _| shape.has(member));
    }
    // A `Value` always serialises, and a `Vec` takes everything.
    let _ = serde_json::to_writer(out, &object);
}

fn splice(out: &mut Vec<u8>, resource: &Served, stored: &[u8], revision: u64, shape: Shape) -> Option<()> {
    let members: BTreeMap<&str, &RawValue> = serde_json::from_slice(stored).ok()?;
    let version: &str = serde_json::from_str(members.get("apiVersion")?.get()).ok()?;
    if version != resource.api_version() {
        return None;
    }
    let begin: &[u8] = match shape {
        Shape::Metadata => br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1""#,
        Shape::Whole | Shape::Item => b"{",
    };
    out.extend_from_slice(begin);
    let empty = out.len();
    for (name, value) in members.into_iter().filter(|(name, _)| shape.has(name)) {
        if out.len() > empty || shape == Shape::Metadata {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, name).ok()?;
        out.push(b':');
        if name == "metadata" {
            let rest = value.get().strip_prefix('{')?.trim_start();
            out.extend_from_slice(format!("{{\"resourceVersion\":\"{revision}\"").as_bytes());
            out.extend_from_slice(if rest.starts_with('}') { b"" } else { b"," });
            out.extend_from_slice(rest.as_bytes());
        } else {
            out.extend_from_slice(value.get().as_bytes());
        }
    }
    out.push(b'}');
    Some(())
}

/// The text of an entry as an item of a list, if the filter chooses it.
pub(super) fn item(resource: &Served, filter: &Filter, entry: &Entry, shape: Shape) -> Option<Vec<u8>> {
    let is_chosen = filter.is_open() || filter.matches(&decode(resource, &entry.value, entry.mod_revision));
    is_chosen.then(|| {
        let mut text = Vec::with_capacity(ORDINARY);
        append(&mut text, resource, &entry.value, entry.mod_revision, shape);
        text
    })
}

/// A list or one page of it; `shape` is [`Shape::of`] the call.
///
/// # Errors
/// As for every list. What goes wrong once the answer has begun ends the connection, so that nobody takes a part for the
/// whole.
pub(crate) async fn list(api: &Arc<Api>, call: &Call, shape: Shape, seat: Seat) -> Result<Response<Body>, ApiError> {
    let shape = if shape == Shape::Whole { Shape::Item } else { shape };
    let filter = Filter::of(call)?;
    let options = ListOptions::read(call)?;
    if options.limit > 0 {
        let page = page(api, call, &filter, &options, Read::Texts(shape)).await?;
        options.check_fresh(page.revision)?;
        return Ok(reply::json_text(reply::full(page_text(call, &filter, shape, page))));
    }
    let mut walk = Walk::begin(call, &options)?;
    let first = walk.next(api, call, &options, usize::MAX).await?;
    options.check_fresh(first.revision)?;
    let mut begin = head(call, shape, &json!({"resourceVersion": first.revision.to_string()}));
    let (api, call) = (api.clone(), call.clone());
    let mut listing = Listing { api, call, filter, options, shape, walk, is_first: true, is_over: false, _seat: seat };
    listing.append(&mut begin, &first);
    if listing.is_over {
        return Ok(reply::json_text(reply::full(begin)));
    }
    let begin = stream::once(async { Ok(Frame::data(Bytes::from(begin))) });
    let rest = stream::unfold(listing, |mut listing| async move {
        let chunk = listing.next().await?;
        Some((chunk.map(Frame::data), listing))
    });
    Ok(reply::json_text(reply::boxed(StreamBody::new(begin.chain(rest)))))
}

/// A list on its way.
struct Listing {
    api: Arc<Api>,
    call: Call,
    filter: Filter,
    options: ListOptions,
    shape: Shape,
    walk: Walk,
    is_first: bool,
    is_over: bool,
    _seat: Seat,
}

impl Listing {
    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.is_over {
            return None;
        }
        let range = match self.walk.next(&self.api, &self.call, &self.options, usize::MAX).await {
            Ok(range) => range,
            Err(error) => {
                self.is_over = true;
                tracing::warn!(message = %error.message, "a list broke off");
                return Some(Err(error.message.into()));
            }
        };
        let mut text = Vec::new();
        self.append(&mut text, &range);
        Some(Ok(text.into()))
    }

    /// The items of a chunk, and the end of the list after the last.
    fn append(&mut self, out: &mut Vec<u8>, range: &Range) {
        for entry in &range.entries {
            if let Some(text) = item(&self.call.resource, &self.filter, entry, self.shape) {
                if !std::mem::take(&mut self.is_first) {
                    out.push(b',');
                }
                out.extend_from_slice(&text);
            }
        }
        self.is_over = range.remaining == 0;
        if self.is_over {
            out.extend_from_slice(b"]}");
        }
    }
}

fn head(call: &Call, shape: Shape, metadata: &Value) -> Vec<u8> {
    let (kind, version) = match shape {
        Shape::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
        Shape::Whole | Shape::Item => (call.resource.list_kind.as_str(), call.resource.api_version()),
    };
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[").into_bytes()
}

fn page_text(call: &Call, filter: &Filter, shape: Shape, page: Page) -> Vec<u8> {
    let mut text = head(call, shape, &page.metadata(filter));
    for (i, item) in page.items.into_iter().filter_map(Item::text).enumerate() {
        text.extend_from_slice(if i > 0 { b"," } else { b"" });
        text.extend_from_slice(&item);
    }
    text.extend_from_slice(b"]}");
    text
}
