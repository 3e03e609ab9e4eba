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
    /// Whether zero means absent.
    pub(super) by_value: bool,
}

/// A type that has a protobuf form.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) type_name: &'static str,
    pub(super) level: Level,
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
    let mut level = Level::new();
    for word in words {
        let (name, number) = word.split_once('=')?;
        let by_value = number.ends_with('-');
        let path: Vec<u32> = number.trim_end_matches('-').split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        insert(&mut level, &path, Field { name, shape: shape(type_name, name)?, by_value });
    }
    Some(Message { type_name, level })
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
        assert!(matches!(&volume.level[&1], Node::Field(field) if field.name == "name" && !field.by_value));
        let Node::Embedded(source) = &volume.level[&2] else { panic!("VolumeSource is embedded") };
        assert!(matches!(&source[&1], Node::Field(field) if field.name == "hostPath"));
    }
}
