//! Schemas on objects.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[allow(clippy::needless_pass_by_value)]
fn schema(spec: Value) -> Schema {
    Schema::compile(&json!({"type": "object", "properties": {"spec": spec}})).unwrap()
}

fn faults(schema: &Schema, object: &Value, old: Option<&Value>) -> Vec<String> {
    schema.validate(object, old).iter().map(ToString::to_string).collect()
}

#[allow(clippy::needless_pass_by_value)]
fn only(spec: Value, value: Value) -> Vec<String> {
    faults(&schema(spec), &json!({"spec": value}), None)
}

#[test]
fn faults_as_kubernetes_words_them() {
    for (spec, value, expected) in [
        (
            json!({"type": "integer"}),
            json!("x"),
            "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
        ),
        (
            json!({"type": "string"}),
            json!(null),
            "spec: Invalid value: \"null\": spec in body must be of type string: \"null\"",
        ),
        (
            json!({"type": "integer", "minimum": 1}),
            json!(0),
            "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
        ),
        (
            json!({"type": "integer", "maximum": 10}),
            json!(15),
            "spec: Invalid value: 15: spec in body should be less than or equal to 10",
        ),
        (
            json!({"type": "number", "maximum": 1.5, "exclusiveMaximum": true}),
            json!(1.5),
            "spec: Invalid value: 1.5: spec in body should be less than 1.5",
        ),
        (
            json!({"type": "integer", "multipleOf": 3}),
            json!(4),
            "spec: Invalid value: 4: spec in body should be a multiple of 3",
        ),
        (
            json!({"type": "string", "pattern": "^a$"}),
            json!("b"),
            "spec: Invalid value: \"b\": spec in body should match '^a$'",
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("b"),
            "spec: Invalid value: \"b\": spec in body should be at least 2 chars long",
        ),
        (json!({"type": "string", "maxLength": 2}), json!("abc"), "spec: Too long: may not be more than 2 bytes"),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            "spec: Unsupported value: \"c\": supported values: \"a\", \"b\"",
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("c"),
            "spec: Invalid value: \"c\": spec in body must be of type date-time: \"c\"",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", "b"]),
            "spec: Too many: 2: must have at most 1 item",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "minItems": 2}),
            json!(["a"]),
            "spec: Invalid value: 1: spec in body should have at least 2 items",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}}),
            json!([1]),
            "spec[0]: Invalid value: \"integer\": spec[0] in body must be of type string: \"integer\"",
        ),
        (
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}),
            json!({}),
            "spec.a: Required value",
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            json!({"k": 1}),
            "spec.k: Invalid value: \"integer\": spec.k in body must be of type string: \"integer\"",
        ),
        (
            json!({"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}}),
            json!({"k": "", "l": ""}),
            "spec: Too many: 2: must have at most 1 item",
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            "spec: Invalid value: \"boolean\": spec in body must be of type integer,string: \"boolean\"",
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
            json!(["a", "a"]),
            "spec[1]: Duplicate value: \"a\"",
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": {"type": "object",
            "required": ["n"], "properties": {"n": {"type": "string"}, "v": {"type": "integer"}}}}),
            json!([{"n": "a", "v": 1}, {"n": "a", "v": 2}]),
            "spec[1]: Duplicate value: {\"n\":\"a\"}",
        ),
        (
            json!({"x-kubernetes-int-or-string": true, "not": {"pattern": "^a"}}),
            json!("ab"),
            "<nil>: Invalid value: \"\": \"spec\" must not validate the schema (not)",
        ),
        (
            json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
            json!({"apiVersion": "v1"}),
            "spec.kind: Required value: must not be empty",
        ),
    ] {
        assert_eq!(only(spec.clone(), value), [expected], "{spec}");
    }
    let one_of = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
    assert_eq!(
        only(one_of.clone(), json!({})),
        [
            "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found none valid",
            "spec.a: Required value"
        ]
    );
    assert_eq!(only(one_of, json!({"a": ""})), Vec::<String>::new());
}

#[test]
fn good_values_pass() {
    for (spec, value) in [
        (json!({"type": "integer"}), json!(1.0)),
        (json!({"type": "string", "nullable": true, "enum": ["a"]}), json!(null)),
        (json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}), json!("50%")),
        (json!({"x-kubernetes-preserve-unknown-fields": true}), json!({"any": [1, null]})),
        (json!({"type": "string", "maxLength": 2}), json!("éé")),
        (json!({"type": "string", "format": "int32"}), json!("whatever")),
        (json!({"type": "number", "enum": [1]}), json!(1.0)),
    ] {
        assert_eq!(only(spec.clone(), value), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn defaults_fill_in() {
    let schema = schema(json!({"type": "object", "default": {}, "properties": {
        "replicas": {"type": "integer", "default": 1},
        "strategy": {"type": "object", "default": {"kind": "a"}, "properties": {
            "kind": {"type": "string"}, "max": {"type": "integer", "default": 5}}},
        "ports": {"type": "array", "items": {"type": "object", "properties": {"protocol": {"type": "string", "default": "TCP"}}}},
        "maybe": {"type": "string", "nullable": true, "default": "x"},
        "plain": {"type": "string"},
    }}));
    let mut object = json!({});
    schema.default(&mut object);
    assert_eq!(object, json!({"spec": {"replicas": 1, "strategy": {"kind": "a", "max": 5}, "maybe": "x"}}));
    let mut object =
        json!({"spec": {"replicas": null, "ports": [{}, {"protocol": "UDP"}], "maybe": null, "plain": null}});
    schema.default(&mut object);
    let expected = json!({"spec": {"replicas": 1, "strategy": {"kind": "a", "max": 5},
        "ports": [{"protocol": "TCP"}, {"protocol": "UDP"}], "maybe": null}});
    assert_eq!(object, expected);
}

#[test]
fn unknown_fields_go() {
    let schema = schema(json!({"type": "object", "properties": {
        "a": {"type": "string"},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"strict": {"type": "object", "properties": {"y": {"type": "string"}}}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"n": {"type": "string"}}}},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
    }}));
    let mut object = json!({"apiVersion": "v1", "kind": "K", "metadata": {"labels": {"x": "y"}}, "other": 1, "spec": {
        "a": "x", "b": 1, "free": {"any": {"thing": 1}, "strict": {"y": "1", "z": 2}}, "list": [{"n": "1", "m": 2}],
        "map": {"k": {"n": "1", "m": 2}}, "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "x": 1}}});
    let mut pruned = schema.prune(&mut object);
    pruned.sort();
    let expected = ["other", "spec.b", "spec.free.strict.z", "spec.list[0].m", "spec.map.k.m", "spec.pod.x"];
    assert_eq!(pruned, expected);
    assert_eq!(object["spec"]["free"], json!({"any": {"thing": 1}, "strict": {"y": "1"}}));
    assert_eq!(object["spec"]["pod"], json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}));
}

#[test]
fn an_update_is_judged_by_what_it_changes() {
    let schema = schema(json!({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": {"type": "object",
            "required": ["n"], "properties": {"n": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}},
    }}));
    let old = json!({"spec": {"a": "long", "b": "x", "list": [{"n": "x", "v": 5}]}});
    let new = json!({"spec": {"a": "long", "b": "y", "list": [{"n": "y", "v": 1}, {"n": "x", "v": 5}]}});
    assert_eq!(faults(&schema, &new, Some(&old)), Vec::<String>::new());
    let new = json!({"spec": {"a": "longer", "b": "y", "list": [{"n": "x", "v": 6}]}});
    assert_eq!(faults(&schema, &new, Some(&old)).len(), 2);
}

#[test]
fn rules() {
    let schema = schema(json!({"type": "object",
    "x-kubernetes-validations": [
        {"rule": "self.min <= self.max", "message": "min must not be above max"},
        {"rule": "!has(self.name) || self.name != 'bad'", "reason": "FieldValueForbidden", "fieldPath": ".name"},
        {"rule": "self.max < 100", "messageExpression": "'max is %d, must be below 100'.format([self.max])"},
    ],
    "properties": {
        "min": {"type": "integer", "default": 0}, "max": {"type": "integer", "default": 1},
        "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}]},
        "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": {"type": "object",
            "required": ["n"], "properties": {"n": {"type": "string"}, "v": {"type": "integer"}},
            "x-kubernetes-validations": [
                {"rule": "self.v >= oldSelf.v", "message": "v must not shrink"},
                {"rule": "oldSelf.hasValue() || self.v == 0", "optionalOldSelf": true, "message": "new items begin at 0"},
            ]}},
    }}));
    let object = |spec: Value| json!({"spec": spec});
    let check = |spec: Value, old: Option<Value>| {
        let old = old.map(object);
        faults(&schema, &object(spec), old.as_ref())
    };
    assert_eq!(check(json!({"min": 1, "max": 2}), None), Vec::<String>::new());
    assert_eq!(check(json!({"min": 3, "max": 2}), None), ["spec: Invalid value: min must not be above max"]);
    assert_eq!(check(json!({"min": 3, "max": 200}), None), ["spec: Invalid value: max is 200, must be below 100"]);
    assert_eq!(
        check(json!({"min": 1, "max": 2, "name": "bad"}), None),
        ["spec.name: Forbidden: failed rule: !has(self.name) || self.name != 'bad'"]
    );
    assert_eq!(check(json!({"min": 1, "max": 2, "name": "a"}), None), Vec::<String>::new());
    let old = json!({"min": 1, "max": 2, "name": "b", "items": [{"n": "x", "v": 2}]});
    assert_eq!(
        check(json!({"min": 1, "max": 2, "name": "a", "items": [{"n": "y", "v": 1}, {"n": "x", "v": 1}]}), Some(old)),
        [
            "spec.items[0]: Invalid value: new items begin at 0",
            "spec.items[1]: Invalid value: v must not shrink",
            "spec.name: Invalid value: \"a\": name is immutable",
        ]
    );
    assert_eq!(
        check(json!({"max": 2}), None),
        ["spec: Invalid value: \"object\": no such key: min evaluating rule: min must not be above max"]
    );
}

#[test]
fn a_costly_rule_ends() {
    let list = json!({"type": "array", "items": {"type": "integer"}});
    let schema = schema(json!({"type": "object", "properties": {"a": list},
        "x-kubernetes-validations": [{"rule": "self.a.all(x, self.a.all(y, self.a.all(z, x + y + z > 0)))"}]}));
    let numbers: Vec<u32> = (1..5000).collect();
    let faults = faults(&schema, &json!({"spec": {"a": numbers}}), None);
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("call cost exceeds limit for rule"), "{}", faults[0]);
}

/// Any JSON of some depth.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        "[a-c]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::hash_map("[a-e]", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A structural schema over the field names of [`any_json`], sound enough to be compiled.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string"})),
        Just(json!({"type": "string", "default": "d"})),
        Just(json!({"type": "string", "nullable": true, "default": "n"})),
        Just(json!({"type": "integer", "minimum": 0, "default": 3})),
        Just(json!({"type": "boolean"})),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "string", "maxLength": 2, "pattern": "^[ab]*$"})),
    ];
    leaf.prop_recursive(4, 30, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|items| json!({"type": "array", "items": items, "maxItems": 3})),
            inner.clone().prop_map(|values| json!({"type": "object", "additionalProperties": values})),
            (proptest::collection::hash_map("[a-e]", inner, 0..4), any::<bool>(), any::<bool>()).prop_map(
                |(fields, keep, fill)| {
                    let mut schema = json!({"type": "object", "properties": fields});
                    if keep {
                        schema["x-kubernetes-preserve-unknown-fields"] = json!(true);
                    }
                    if fill {
                        schema["default"] = json!({});
                    }
                    schema
                }
            ),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn defaulting_and_pruning_are_idempotent(spec in any_schema(), value in any_json(), old in any_json()) {
        let schema = schema(spec);
        let mut object = json!({"spec": value});
        schema.default(&mut object);
        let defaulted = object.clone();
        schema.default(&mut object);
        prop_assert_eq!(&object, &defaulted);
        schema.prune(&mut object);
        let pruned = object.clone();
        prop_assert!(schema.prune(&mut object).is_empty());
        prop_assert_eq!(&object, &pruned);
        // What was pruned needs no more defaults, and an object has no new faults against itself.
        schema.default(&mut object);
        prop_assert_eq!(&object, &pruned);
        schema.validate(&object, Some(&old));
        prop_assert!(schema.validate(&object, Some(&object)).is_empty());
    }

    #[test]
    fn valid_objects_stay_valid(spec in any_schema(), value in any_json()) {
        let schema = schema(spec);
        let mut object = json!({"spec": value});
        if schema.validate(&object, None).is_empty() {
            schema.default(&mut object);
            schema.prune(&mut object);
            prop_assert!(schema.validate(&object, None).is_empty());
        }
    }
}
