//! What many cells are made of.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::meta;
use crate::selector::LabelSelector;

pub(super) const NONE: &str = "<none>";
pub(super) const UNKNOWN: &str = "<unknown>";
pub(super) const UNSET: &str = "<unset>";

/// The object a row is made of, and the time.
pub(super) struct Row<'a> {
    pub(super) object: &'a Value,
    pub(super) now: Timestamp,
}

impl<'a> Row<'a> {
    pub(super) fn name(&self) -> Value {
        json!(meta::name(self.object))
    }

    pub(super) fn age(&self) -> Value {
        json!(self.since("metadata.creationTimestamp"))
    }

    /// How long ago the time at a path was.
    pub(super) fn since(&self, path: &str) -> String {
        meta::time_at(self.object, path).map_or_else(|| UNKNOWN.to_owned(), |time| meta::age(time, self.now))
    }

    /// The text at a path, `otherwise` when there is none.
    pub(super) fn text(&self, path: &str, otherwise: &'a str) -> &'a str {
        meta::str_at(self.object, path).filter(|text| !text.is_empty()).unwrap_or(otherwise)
    }

    /// The integer at a path, 0 when there is none.
    pub(super) fn number(&self, path: &str) -> i64 {
        meta::i64_at(self.object, path).unwrap_or(0)
    }

    pub(super) fn list(&self, path: &str) -> &'a [Value] {
        meta::list_at(self.object, path)
    }

    /// Names and images of the containers of the pod spec at a path.
    pub(super) fn containers(&self, spec: &str) -> [Value; 2] {
        let all = self.list(&format!("{spec}.containers"));
        let joined = |field: &str| json!(join(all.iter().filter_map(|container| container[field].as_str())));
        [joined("name"), joined("image")]
    }

    /// A LabelSelector object at a path, as text.
    pub(super) fn selector(&self, path: &str) -> Value {
        let Some(selector) = meta::at(self.object, path) else { return json!(NONE) };
        match LabelSelector::from_object(selector) {
            Ok(selector) if selector.is_everything() => json!(NONE),
            Ok(selector) => json!(selector.to_string()),
            Err(_) => json!("<error>"),
        }
    }
}

/// Texts with commas between them.
pub(super) fn join<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().collect::<Vec<_>>().join(",")
}

/// The first `max` texts, and how many more there are; `empty` when there are none.
pub(super) fn join_some(texts: &[String], max: usize, empty: &str) -> String {
    if texts.is_empty() {
        return empty.to_owned();
    }
    let shown = texts.iter().take(max).map(String::as_str).collect::<Vec<_>>().join(",");
    if texts.len() > max { format!("{shown} + {} more...", texts.len() - max) } else { shown }
}

/// A map of labels as `a=b,c=d`.
pub(super) fn labels(map: Option<&Map<String, Value>>) -> String {
    let pairs: Vec<_> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}
