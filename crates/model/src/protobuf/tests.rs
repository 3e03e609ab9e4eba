//! Objects made up from the table go to protobuf and come back; bytes made up from nothing are refused or read.
#![allow(clippy::unwrap_used)]

use fastrand::Rng;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::fields::{Level, Node, Union, Zero, all};
use super::*;
use crate::resource::BUILT_IN;
use crate::schema::{Scalar, Shape};

fn one_in(seeded: &mut Rng, n: usize) -> bool {
    seeded.usize(..n) == 0
}

fn object(type_name: &str, seeded: &mut Rng, depth: usize) -> Value {
    let Some(message) = fields::message(type_name) else { return json!({}) };
    let mut map = Map::new();
    fill(&message.level, seeded, depth, &mut map);
    Value::Object(map)
}

fn fill(level: &'static Level, seeded: &mut Rng, depth: usize, map: &mut Map<String, Value>) {
    for node in level.values() {
        match node {
            Node::Embedded(inner) => fill(inner, seeded, depth, map),
            Node::Field(field) if field.zero == Zero::Filled || (one_in(seeded, depth + 1) && depth < 12) => {
                let made = match (field.union, field.shape) {
                    (Some(union), Shape::Map(_)) => json!({"k": either(union, seeded, depth + 1)}),
                    (Some(union), _) => either(union, seeded, depth + 1),
                    (None, shape) => value(shape, seeded, depth + 1),
                };
                map.insert(field.name.to_owned(), made);
            }
            Node::Field(_) => {}
        }
    }
}

fn either(union: Union, seeded: &mut Rng, depth: usize) -> Value {
    let first = one_in(seeded, 2);
    match union {
        Union::Allowed if first => json!(one_in(seeded, 2)),
        Union::Schemas if first => json!([object("JSONSchemaProps", seeded, depth)]),
        Union::Names if first => json!(["a", "b"]),
        _ => object("JSONSchemaProps", seeded, depth),
    }
}

fn value(shape: &'static Shape, seeded: &mut Rng, depth: usize) -> Value {
    let number = seeded.u64(..);
    match shape {
        Shape::Object(type_name) => object(type_name, seeded, depth),
        Shape::List(item) => (0..=number % 2).map(|_| value(item, seeded, depth)).collect(),
        Shape::Map(item) => (0..=number % 2).map(|i| (format!("k{i}"), value(item, seeded, depth))).collect(),
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => json!(format!("t{}", number % 1000)),
            Scalar::Boolean => json!(true),
            Scalar::Integer32 => json!((number as i32).max(i32::MIN + 1) | 1),
            Scalar::Integer64 => json!((number as i64) | 1),
            Scalar::Number => json!(0.5),
            Scalar::Quantity => json!(format!("{}m", number % 100_000)),
            Scalar::IntOrString if number.is_multiple_of(2) => json!("25%"),
            Scalar::IntOrString => json!((number as i32) | 1),
            Scalar::Time => json!("2026-01-02T03:04:05Z"),
            Scalar::MicroTime => json!("2026-01-02T03:04:05.678901Z"),
            Scalar::Bytes => json!("AAEC/w=="),
            Scalar::Any => json!({"any": [1, "x", null]}),
        },
    }
}

/// What the table can hold of a kind, with its envelope.
fn made_up(api_version: &str, kind: &str, seed: u64) -> Value {
    let mut object = object(type_of(api_version, kind).unwrap(), &mut Rng::with_seed(seed), 0);
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    object
}

/// All built-in kinds but those that only Mainstay's own answers have.
fn with_a_form() -> impl Iterator<Item = &'static std::sync::Arc<crate::resource::Resource>> {
    BUILT_IN.iter().filter(|row| row.group != "metrics.k8s.io")
}

#[test]
fn every_built_in_kind_has_a_form() {
    for row in with_a_form() {
        assert!(type_of(&row.api_version(), &row.kind).is_some(), "{}", row.kind);
        assert!(can_encode(&row.api_version(), &row.list_kind), "{}", row.list_kind);
    }
    assert_eq!(type_of("example.com/v1", "Pod"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read_again(seed: u64) {
        for row in with_a_form() {
            let object = made_up(&row.api_version(), &row.kind, seed);
            prop_assert_eq!(&decode(&encode(&object).unwrap()).unwrap(), &object);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>, seed: u64) {
        let _ = decode(&[MAGIC.as_slice(), &bytes].concat());
        // And a good body with some of its bytes changed or cut off.
        let mut body = encode(&made_up("v1", "Pod", seed)).unwrap();
        for (i, byte) in bytes.iter().enumerate() {
            let at = (i * 7919 + usize::from(*byte)) % body.len();
            body[at] ^= byte;
        }
        let _ = decode(&body);
        let _ = decode(&body[..bytes.len() % body.len()]);
    }
}

#[test]
fn zero_by_value_is_absent_and_zero_by_pointer_is_zero() {
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": ""},
        "spec": {"replicas": 0, "minReadySeconds": 0, "paused": false, "selector": {},
            "template": {"spec": {"hostNetwork": false, "terminationGracePeriodSeconds": 0,
                "runtimeClassName": "", "containers": [{"ports": [{"hostPort": 0}]}]}}}});
    let read = decode(&encode(&object).unwrap()).unwrap();
    assert_eq!(read["metadata"], json!({"name": "a"}));
    assert_eq!(read["spec"]["replicas"], 0);
    assert_eq!(read["spec"].as_object().unwrap().len(), 3);
    // What Go never leaves out is there, although it was not on the wire.
    let spec = json!({"terminationGracePeriodSeconds": 0, "runtimeClassName": "",
        "containers": [{"name": "", "ports": [{"containerPort": 0}]}]});
    assert_eq!(read["spec"]["template"]["spec"], spec);
}

#[test]
fn a_list_and_a_watch_event() {
    let item = json!({"metadata": {"name": "a"}});
    let list =
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"}, "items": [item]});
    let body = encode(&list).unwrap();
    assert_eq!(&body[..4], MAGIC);
    let event = watch_event("ADDED", &json!({"apiVersion": "v1", "kind": "ConfigMap"})).unwrap();
    assert_eq!(u32::from_be_bytes(event[..4].try_into().unwrap()) as usize, event.len() - 4);
}

#[test]
fn refusals_say_why() {
    assert_eq!(decode(b"{}"), Err(ProtobufError::Magic));
    let custom = encode_as("example.com/v1", "Basket");
    assert!(decode(&custom).unwrap_err().to_string().contains("Basket (example.com/v1)"));
    let cut = encode(&made_up("v1", "Pod", 1)).unwrap();
    assert!(matches!(decode(&cut[..cut.len() - 5]), Err(ProtobufError::Truncated(_))));
}

/// An empty object under a name of one's own.
fn encode_as(api_version: &str, kind: &str) -> Vec<u8> {
    let (mut of_type, mut body) = (Vec::new(), MAGIC.to_vec());
    put_bytes(&mut of_type, 1, api_version.as_bytes());
    put_bytes(&mut of_type, 2, kind.as_bytes());
    put_bytes(&mut body, 1, &of_type);
    body
}

#[test]
fn every_number_belongs_to_a_type_of_the_schema() {
    for message in all() {
        assert!(schema::fields(message.type_name).is_some(), "{}", message.type_name);
        // And whatever it must have, it can be made of nothing.
        assert!(decode::object(message.type_name, &[], 0).is_ok(), "{}", message.type_name);
    }
}

#[test]
fn every_field_of_every_numbered_type_has_a_number() {
    // Kind and version stand in the envelope; what the server keeps for itself stands nowhere.
    let elsewhere = |name: &str| matches!(name, "apiVersion" | "kind");
    for message in all() {
        let mut names = Vec::new();
        collect(&message.level, &mut names);
        for field in schema::fields(message.type_name).unwrap() {
            assert!(names.contains(&field.name) || elsewhere(field.name), "{}.{}", message.type_name, field.name);
        }
    }
}

fn collect(level: &Level, names: &mut Vec<&'static str>) {
    for node in level.values() {
        match node {
            Node::Field(field) => names.push(field.name),
            Node::Embedded(inner) => collect(inner, names),
        }
    }
}
