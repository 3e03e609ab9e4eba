//! JSON in which a field stands twice: legal, and nearly always a mistake that should be told.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most repeated fields that are told.
const TOLD_MAX: usize = 100;

/// Reads JSON; answers the value, in which the last of equal fields counts, and `duplicate field "…"` for each other.
///
/// # Errors
/// When it is not JSON, is nested too deep, or has something after its end.
pub(crate) fn read_json(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let told = Rc::new(RefCell::new(Vec::new()));
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Seed { told: told.clone(), path: String::new() }.deserialize(&mut reader)?;
    reader.end()?;
    let told = told.take();
    Ok((value, told))
}

struct Seed {
    told: Rc<RefCell<Vec<String>>>,
    path: String,
}

impl Seed {
    fn below(&self, path: String) -> Self {
        Self { told: self.told.clone(), path }
    }
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is too large"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.below(format!("{}[{}]", self.path, list.len())))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            let value = entries.next_value_seed(self.below(path.clone()))?;
            if map.insert(name, value).is_some() {
                let mut told = self.told.borrow_mut();
                if told.len() < TOLD_MAX {
                    told.push(format!("duplicate field {path:?}"));
                }
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_counts_and_the_others_are_told() {
        let body = br#"{"a": 1, "spec": {"list": [{"x": 1, "x": 2.5}]}, "a": null}"#;
        let (value, told) = read_json(body).unwrap();
        assert_eq!(value, json!({"a": null, "spec": {"list": [{"x": 2.5}]}}));
        assert_eq!(told, ["duplicate field \"spec.list[0].x\"", "duplicate field \"a\""]);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for body in [&b"{"[..], b"", b"{} x", b"{\"a\" 1}", &[b'['; 10_000]] {
            assert!(read_json(body).is_err());
        }
    }
}
