//! Bodies as JSON values, from JSON and YAML, with the fields that stand twice: legal, and nearly always a mistake that
//! should be told.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::{self, Write as _};

use mainstay_model::patch::{DEPTH_MAX, depth};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, Spanned, options, with_deserializer_from_slice_with_options};

/// Most repeated fields that are told.
const TOLD_MAX: usize = 100;

/// Reads JSON; answers the value, in which the last of equal fields counts, and the paths of the others.
///
/// # Errors
/// When it is not JSON, is nested too deep, or has something after its end.
pub(crate) fn read_json(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let notes = RefCell::default();
    let value = read(body, &notes)?;
    Ok((value, notes.into_inner().repeated))
}

/// Reads YAML; answers the value, in which the last of equal keys counts, and of the others what a Go reader would say:
/// `line 5: key "name" already set in map`.
///
/// # Errors
/// When it is not one YAML document, or nested deeper than JSON may be: what is stored must be readable again.
pub(crate) fn read_yaml(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    let notes = RefCell::default();
    let how = options! { strict_booleans: true, duplicate_keys: DuplicateKeyPolicy::LastWins };
    let seed = Seed { notes: &notes, yaml: true };
    let value = with_deserializer_from_slice_with_options(body, how, |reader| seed.deserialize(reader));
    let value = value.map_err(|error| error.to_string())?;
    if depth(&value) > DEPTH_MAX {
        return Err(format!("it nests deeper than {DEPTH_MAX}"));
    }
    Ok((value, notes.into_inner().repeated))
}

/// The faults of a JSON body in the order in which they stand in it, as sentences. A field that is not known is told
/// once and as unknown only, with whatever is below it.
pub(crate) fn in_order(body: &[u8], unknown: &[String], repeated: &[String]) -> Vec<String> {
    let below = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with(['.', '[']));
    let known: Vec<&String> = repeated.iter().filter(|path| !unknown.iter().any(|top| below(path, top))).collect();
    let wanted = unknown.iter().chain(known).cloned().collect();
    let notes = RefCell::new(Notes { wanted, ..Notes::default() });
    // It was read before; were it not, there would be no faults to order.
    let _ = read(body, &notes);
    let (mut once, mut faults) = (HashSet::new(), Vec::new());
    for path in notes.into_inner().met {
        let fault = match (unknown.contains(&path), once.insert(path.clone())) {
            (true, _) => format!("unknown field {path:?}"),
            (false, true) => continue,
            (false, false) => format!("duplicate field {path:?}"),
        };
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    faults
}

fn read(body: &[u8], notes: &RefCell<Notes>) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Seed { notes, yaml: false }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// What is noticed while reading.
#[derive(Default)]
struct Notes {
    /// Where the reader is, for example `spec.ports[0]`.
    path: String,
    repeated: Vec<String>,
    /// Paths that are to be noted whenever they are met.
    wanted: HashSet<String>,
    met: Vec<String>,
}

#[derive(Clone, Copy)]
struct Seed<'n> {
    notes: &'n RefCell<Notes>,
    /// Keys have lines.
    yaml: bool,
}

impl Seed<'_> {
    /// Goes a step further down; answers how to come back.
    fn enter(self, step: fmt::Arguments<'_>) -> usize {
        let mut notes = self.notes.borrow_mut();
        let back = notes.path.len();
        // Writing to a string cannot fail.
        let _ = notes.path.write_fmt(step);
        if notes.wanted.contains(&notes.path) {
            let path = notes.path.clone();
            notes.met.push(path);
        }
        back
    }

    fn leave(self, back: usize) {
        self.notes.borrow_mut().path.truncate(back);
    }

    fn repeats(self, name: &str, line: u64) {
        let mut notes = self.notes.borrow_mut();
        if notes.repeated.len() < TOLD_MAX {
            let told =
                if self.yaml { format!("line {line}: key {name:?} already set in map") } else { notes.path.clone() };
            notes.repeated.push(told);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
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
        loop {
            let back = self.enter(format_args!("[{}]", list.len()));
            let item = items.next_element_seed(self)?;
            self.leave(back);
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        loop {
            let key = if self.yaml {
                entries.next_key::<Spanned<String>>()?.map(|key| (key.value, key.referenced.line()))
            } else {
                entries.next_key::<String>()?.map(|name| (name, 0))
            };
            let Some((name, line)) = key else { return Ok(Value::Object(map)) };
            let dot = if self.notes.borrow().path.is_empty() { "" } else { "." };
            let back = self.enter(format_args!("{dot}{name}"));
            if map.contains_key(&name) {
                self.repeats(&name, line);
            }
            map.insert(name, entries.next_value_seed(self)?);
            self.leave(back);
        }
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
        assert_eq!(told, ["spec.list[0].x", "a"]);
    }

    #[test]
    fn faults_stand_in_the_order_of_the_body() {
        let body = br#"{"z": {"odd": 1, "odd": {"x": 1, "x": 2}}, "b": 1, "a": [{"c": 1}, {"c": 1, "c": 2}], "b": 2}"#;
        let (_, repeated) = read_json(body).unwrap();
        let faults = in_order(body, &["a[0].c".to_owned(), "z.odd".to_owned()], &repeated);
        let told = ["unknown field \"z.odd\"", "unknown field \"a[0].c\"", "duplicate field \"a[1].c\""];
        assert_eq!(faults, [told.as_slice(), &["duplicate field \"b\""]].concat());
    }

    #[test]
    fn yaml_tells_the_lines() {
        let (value, told) = read_yaml(b"a: 1\nspec:\n  x: 1\n  list:\n  - {y: no, 7: null}\n  x: 2.5\na: b\n").unwrap();
        assert_eq!(value, json!({"a": "b", "spec": {"x": 2.5, "list": [{"y": "no", "7": null}]}}));
        assert_eq!(told, ["line 6: key \"x\" already set in map", "line 7: key \"a\" already set in map"]);
        assert!(read_yaml(b"a: [").is_err());
        assert!(read_yaml(b"a: 1\n---\na: 2\n").is_err());
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for body in [&b"{"[..], b"", b"{} x", b"{\"a\" 1}", &[b'['; 10_000]] {
            assert!(read_json(body).is_err());
        }
    }
}
