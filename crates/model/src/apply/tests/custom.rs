//! Custom resources: views from OpenAPI schemas, and objects without one.

use super::*;

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"type": "integer"},
            "port": {"x-kubernetes-int-or-string": true},
            "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "plain": {"type": "array", "items": {"type": "string"}},
            "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                "items": {"type": "object", "properties": {
                    "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "to": {"type": "string"}}}},
            "selector": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        }},
        "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
    }})
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "x.dev/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": spec})
}

fn write(schema: &Value) -> Write<'_> {
    Write {
        view: View::custom(schema),
        manager: "m",
        api_version: "x.dev/v1",
        subresource: "",
        reach: Reach::Whole,
        now: at(0),
    }
}

#[test]
fn the_schema_says_how_objects_divide() {
    let spec = json!({"size": 1, "port": "http", "tags": ["a"], "plain": ["a"], "rules": [{"port": 1, "to": "x"}],
        "selector": {"a": "b"}, "labels": {"a": "b"}, "free": {"a": {"b": [1]}},
        "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"l": "1"}}, "spec": {"x": 1}}});
    let made = apply(&write(&schema()), None, &object(spec), false).unwrap();
    assert_eq!(
        owned(&made, "m"),
        json!({"f:spec": {
            "f:size": {}, "f:port": {}, "f:plain": {}, "f:selector": {},
            "f:tags": {"v:\"a\"": {}},
            "f:rules": {"k:{\"port\":1,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:to": {}}},
            "f:labels": {"f:a": {}},
            "f:free": {"f:a": {".": {}, "f:b": {}}},
            "f:pod": {"f:apiVersion": {}, "f:kind": {}, "f:metadata": {"f:labels": {"f:l": {}}}, "f:spec": {".": {}, "f:x": {}}},
        }})
    );
    let schema = schema();
    let refused = |spec: Value| apply(&write(&schema), Some(&made), &object(spec), true).unwrap_err().to_string();
    assert!(refused(json!({"sise": 1})).ends_with(".spec.sise: field not declared in schema"));
    assert!(refused(json!({"rules": [{"to": "x"}]})).contains("omits key field \"port\""));
    assert!(refused(json!({"tags": ["a", "a"]})).ends_with("duplicate entries for key [=\"a\"]"));
    assert!(refused(json!({"size": "x"})).contains("expected numeric"));
}

#[test]
fn without_a_schema_lists_are_whole() {
    let write = Write { view: View::deduced(), ..write(&Value::Null) };
    let made = apply(&write, None, &object(json!({"list": [{"name": "a"}], "map": {"a": {"b": 1}}})), false).unwrap();
    assert_eq!(
        owned(&made, "m"),
        json!({"f:spec": {".": {}, "f:list": {}, "f:map": {".": {}, "f:a": {".": {}, "f:b": {}}}}})
    );
    let other = Write { manager: "n", ..write };
    let error = apply(&other, Some(&made), &object(json!({"list": [{"name": "b"}]})), false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"m\": .spec.list");
}

#[test]
fn owners_follow_a_schema_that_changes() {
    let mut atomic = schema();
    atomic["properties"]["spec"]["properties"]["labels"]["x-kubernetes-map-type"] = json!("atomic");
    let (granular, config) = (schema(), object(json!({"labels": {"a": "1", "b": "2"}})));
    let made = apply(&write(&granular), None, &config, false).unwrap();
    let moved =
        apply(&Write { manager: "n", ..write(&atomic) }, Some(&made), &object(json!({"size": 1})), false).unwrap();
    assert_eq!(owned(&moved, "m"), json!({"f:spec": {"f:labels": {}}}));
    let back =
        apply(&Write { manager: "n", ..write(&granular) }, Some(&moved), &object(json!({"size": 2})), false).unwrap();
    assert_eq!(owned(&back, "m"), json!({"f:spec": {"f:labels": {".": {}, "f:a": {}, "f:b": {}}}}));
}
