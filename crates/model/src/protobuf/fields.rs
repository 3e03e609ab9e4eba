//! The table of field numbers, as a tree for each type.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use super::shape;
use crate::schema::Shape;

/// The fields of a message by their numbers.
pub(super) type Level = BTreeMap<u32, Node>;

/// What stands under a number.
#[derive(Debug)]
pub(super) enum Node {
    /// A field that JSON shows.
    Field(Field),
    /// A message whose fields JSON shows as if they were the outer one's.
    Embedded(Level),
}

/// A field with its shape.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: &'static Shape,
    pub(super) zero: Zero,
    /// Set where JSON may hold one of two shapes.
    pub(super) union: Option<Union>,
}

/// How a field and its zero go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zero {
    /// Zero is a value like any other.
    Value,
    /// Zero on the wire means that the field is absent.
    Absent,
    /// A field that is absent on the wire is zero.
    Filled,
}

/// Fields of a JSONSchemaProps that are a schema or something else; a message of two fields on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Union {
    /// A schema (1) or schemas (2).
    Schemas,
    /// A boolean (1) or a schema (2), for which the boolean is true.
    Allowed,
    /// A schema (1) or names (2).
    Names,
}

/// A type that has a protobuf form.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) type_name: &'static str,
    pub(super) level: Level,
    /// The fields of [`Zero::Filled`], on whatever level.
    pub(super) filled: Vec<(&'static str, &'static Shape)>,
}

static MESSAGES: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| {
    let lines = include_str!("numbers.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(parse).map(|message| (message.type_name, message)).collect()
});

/// The message of a type of the schema.
pub(super) fn message(type_name: &str) -> Option<&'static Message> {
    MESSAGES.get(type_name)
}

fn parse(line: &'static str) -> Option<Message> {
    let mut words = line.split(' ');
    let type_name = words.next().filter(|name| !name.is_empty())?;
    let (mut level, mut filled) = (Level::new(), Vec::new());
    for word in words {
        let (name, number) = word.split_once('=')?;
        let (number, union) = number.split_once('/').unwrap_or((number, ""));
        let (number, zero) = match number.strip_suffix(['-', '!']) {
            Some(digits) if number.ends_with('-') => (digits, Zero::Absent),
            Some(digits) => (digits, Zero::Filled),
            None => (number, Zero::Value),
        };
        let union = match union {
            "schemas" => Some(Union::Schemas),
            "allowed" => Some(Union::Allowed),
            "names" => Some(Union::Names),
            _ => None,
        };
        let path: Vec<u32> = number.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        let shape = shape(type_name, name)?;
        if zero == Zero::Filled {
            filled.push((name, shape));
        }
        insert(&mut level, &path, Field { name, shape, zero, union });
    }
    Some(Message { type_name, level, filled })
}

fn insert(level: &mut Level, path: &[u32], field: Field) {
    match path {
        [] => {}
        [number] => drop(level.insert(*number, Node::Field(field))),
        [number, rest @ ..] => {
            let node = level.entry(*number).or_insert_with(|| Node::Embedded(Level::new()));
            if let Node::Embedded(inner) = node {
                insert(inner, rest, field);
            }
        }
    }
}

#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static Message> {
    MESSAGES.values()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_message() {
        let lines = include_str!("numbers.txt").lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(MESSAGES.len(), lines);
    }

    #[test]
    fn embedded_messages_are_levels() {
        let volume = message("Volume").expect("in the table");
        assert!(matches!(&volume.level[&1], Node::Field(field) if field.name == "name" && field.zero == Zero::Filled));
        let Node::Embedded(source) = &volume.level[&2] else { panic!("VolumeSource is embedded") };
        assert!(matches!(&source[&1], Node::Field(field) if field.name == "hostPath"));
    }
}
