//! YAML with the place of every value: what a finding points at.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Where things stand in one document: line and column, both from 1, by path (`spec.ports[0].name`).
pub(super) type Marks = BTreeMap<String, (u32, u32)>;

/// A value with the place where it stands.
pub(super) struct Located {
    line: u32,
    column: u32,
    content: Content,
}

enum Content {
    Scalar(Value),
    List(Vec<Located>),
    /// Keys with their places.
    Map(Vec<(Spanned<String>, Located)>),
}

impl Located {
    /// The value itself, and the place of everything in it; of a field that is the place of its name.
    pub(super) fn take_apart(self) -> (Value, Marks) {
        let mut marks = Marks::from([(String::new(), (self.line, self.column))]);
        let value = self.flatten("", &mut marks);
        (value, marks)
    }

    fn flatten(self, path: &str, marks: &mut Marks) -> Value {
        match self.content {
            Content::Scalar(value) => value,
            Content::List(items) => {
                let each = items.into_iter().enumerate().map(|(index, item)| {
                    let path = format!("{path}[{index}]");
                    marks.insert(path.clone(), (item.line, item.column));
                    item.flatten(&path, marks)
                });
                Value::Array(each.collect())
            }
            Content::Map(fields) => {
                let mut map = Map::new();
                for (key, value) in fields {
                    let below = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                    let (line, column) = (key.referenced.line() as u32, key.referenced.column() as u32);
                    marks.insert(below.clone(), (line, column));
                    map.insert(key.value, value.flatten(&below, marks));
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(reader)?;
        let (line, column) = (spanned.referenced.line() as u32, spanned.referenced.column() as u32);
        Ok(Self { line, column, content: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Scalar(Value::String(value)))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Content, D::Error> {
        Content::deserialize(reader)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Content::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Content, A::Error> {
        let mut all = Vec::new();
        while let Some(field) = fields.next_entry()? {
            all.push(field);
        }
        Ok(Content::Map(all))
    }
}
