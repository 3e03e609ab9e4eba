//! The three patch types: cases from their definitions, and properties.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::{self, Merge, Shape};

fn pod(spec: Value) -> Value {
    json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": spec})
}

fn patched(original: Value, patch: Value) -> Value {
    strategic("Pod", &pod(original), &json!({"spec": patch})).unwrap()["spec"].clone()
}

#[test]
fn json_patch() {
    let original = json!({"a": 1, "list": [1]});
    let result = json(
        &original,
        &json!([{"op": "test", "path": "/a", "value": 1}, {"op": "add", "path": "/list/-", "value": 2}]),
    );
    assert_eq!(result.unwrap(), json!({"a": 1, "list": [1, 2]}));
    let error = json(&original, &json!([{"op": "test", "path": "/a", "value": 2}])).unwrap_err();
    assert_eq!(error.to_string(), "testing path /a failed: the value there is not the expected one");
    let error = json(&original, &json!([{"op": "remove", "path": "/b"}])).unwrap_err();
    assert!(matches!(error, PatchError::Operation { operation: 0, .. }), "{error}");
    assert!(matches!(json(&original, &json!({"op": "add"})), Err(PatchError::Decode(_))));
    let many = vec![json!({"op": "test", "path": "/a", "value": 1}); OPERATIONS_MAX + 1];
    assert!(matches!(json(&original, &json!(many)), Err(PatchError::TooManyOperations(_))));
}

#[test]
fn merge_patch() {
    let original = json!({"a": {"b": 1, "c": 2}, "list": [1, 2]});
    assert_eq!(merge(&original, &json!({"a": {"b": null}, "list": [3]})).unwrap(), json!({"a": {"c": 2}, "list": [3]}));
    assert!(matches!(merge(&original, &json!([])), Err(PatchError::NotAnObject)));
}

#[test]
fn content_types() {
    assert_eq!(PatchType::from_content_type("application/json-patch+json"), Some(PatchType::Json));
    assert_eq!(PatchType::from_content_type("application/merge-patch+json; charset=utf-8"), Some(PatchType::Merge));
    assert_eq!(PatchType::from_content_type("application/strategic-merge-patch+json"), Some(PatchType::Strategic));
    assert_eq!(PatchType::from_content_type("application/apply-patch+yaml"), None);
}

#[test]
fn lists_merge_by_key() {
    let original = json!({"containers": [{"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}]}, {"name": "b", "image": "y"}]});
    let result = patched(
        original,
        json!({"containers": [
        {"name": "a", "image": "z", "env": [{"name": "L", "value": "2"}]}, {"name": "c", "image": "w", "args": null}]}),
    );
    // As upstream documents it, new items stand before those the patch does not name.
    assert_eq!(
        result["containers"],
        json!([
            {"name": "a", "image": "z", "env": [{"name": "L", "value": "2"}, {"name": "K", "value": "1"}]},
            {"name": "c", "image": "w"},
            {"name": "b", "image": "y"},
        ])
    );
}

#[test]
fn atomic_lists_are_replaced_and_null_deletes() {
    let original =
        json!({"tolerations": [{"key": "a"}], "nodeName": "n", "containers": [{"name": "a", "args": ["1", "2"]}]});
    let result = patched(
        original,
        json!({"tolerations": [{"key": "b"}], "nodeName": null, "containers": [{"name": "a", "args": ["3"]}]}),
    );
    assert_eq!(result, json!({"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["3"]}]}));
}

#[test]
fn patch_directives() {
    let original = json!({"containers": [{"name": "a"}, {"name": "b"}], "securityContext": {"runAsUser": 1}, "nodeSelector": {"x": "y"}});
    let result = patched(
        original.clone(),
        json!({
            "containers": [{"name": "a", "$patch": "delete"}],
            "securityContext": {"$patch": "replace", "fsGroup": 2},
            "nodeSelector": {"$patch": "delete"},
        }),
    );
    assert_eq!(result, json!({"containers": [{"name": "b"}], "securityContext": {"fsGroup": 2}, "nodeSelector": {}}));
    let result = patched(original.clone(), json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}));
    assert_eq!(result["containers"], json!([{"name": "c"}]));
    let error = strategic("Pod", &pod(original.clone()), &json!({"spec": {"securityContext": {"$patch": "burn"}}}))
        .unwrap_err();
    assert_eq!(error.to_string(), "unknown $patch directive \"burn\" at spec.securityContext");
    let error = strategic("Pod", &pod(original), &json!({"spec": {"containers": [{"image": "x"}]}})).unwrap_err();
    assert_eq!(error.to_string(), "an item of spec.containers does not contain the declared merge key: name");
}

#[test]
fn retain_keys() {
    let deployment = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let result = strategic("Deployment", &deployment, &patch).unwrap();
    assert_eq!(result, json!({"spec": {"strategy": {"type": "Recreate"}}}));
    let result = patched(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}),
    );
    assert_eq!(result["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
    assert!(matches!(strategic("Deployment", &deployment, &patch), Err(PatchError::NotRetained { .. })));
}

#[test]
fn primitive_sets() {
    let original = json!({"metadata": {"finalizers": ["a", "b"]}});
    let add = strategic("Pod", &original, &json!({"metadata": {"finalizers": ["b", "c"]}})).unwrap();
    assert_eq!(add["metadata"]["finalizers"], json!(["a", "b", "c"]));
    let remove =
        strategic("Pod", &original, &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}})).unwrap();
    assert_eq!(remove["metadata"]["finalizers"], json!(["b"]));
    let bad = strategic("Pod", &original, &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}));
    assert!(matches!(bad, Err(PatchError::DirectiveNotAList(_))));
}

#[test]
fn element_order() {
    let original = json!({"containers": [{"name": "a"}, {"name": "x"}, {"name": "b"}]});
    let result = patched(
        original.clone(),
        json!({
            "$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c"}],
        }),
    );
    let names: Vec<_> = result["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["x", "b", "c", "a"]);
    let result = patched(original, json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}));
    let names: Vec<_> = result["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["x", "b", "a"]);
}

#[test]
fn long_lists_take_no_longer_than_their_length() {
    let list =
        |image: &str| -> Value { (0..5_000).map(|i| json!({"name": format!("c{i}"), "image": image})).collect() };
    let result = patched(json!({"containers": list("old")}), json!({"containers": list("new")}));
    assert_eq!(result["containers"], list("new"));
}

#[test]
fn unknown_kinds_are_refused() {
    let error = strategic("Widget", &json!({}), &json!({})).unwrap_err();
    assert!(error.to_string().starts_with("strategic merge patch is not supported for Widget"));
}

/// The strategic patch from one object to another, as kubectl would send it: used to test the way back.
fn strategic_diff(type_name: &str, from: &Map<String, Value>, to: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, new) in to.iter().filter(|(key, new)| from.get(*key) != Some(new)) {
        let field = schema::field(type_name, key);
        match (from.get(key), new, field.map(|f| (&f.shape, f.merge))) {
            (Some(Value::Object(old)), Value::Object(new), Some((Shape::Object(inner), _))) => {
                patch.insert(key.clone(), Value::Object(strategic_diff(inner, old, new)));
            }
            (Some(Value::Object(old)), Value::Object(new), _) => {
                patch.insert(key.clone(), Value::Object(strategic_diff("", old, new)));
            }
            (Some(Value::Array(old)), Value::Array(new), Some((Shape::List(inner), Merge::ByKey(by)))) => {
                let Shape::Object(inner) = **inner else { panic!("{key}") };
                diff_list(&mut patch, key, (inner, by), old, new);
            }
            (Some(Value::Array(old)), Value::Array(new), Some((_, Merge::Set))) => {
                let gone: Vec<_> = old.iter().filter(|item| !new.contains(item)).cloned().collect();
                patch.insert(format!("$deleteFromPrimitiveList/{key}"), json!(gone));
                patch.insert(format!("$setElementOrder/{key}"), json!(new));
                patch.insert(key.clone(), json!(new.iter().filter(|item| !old.contains(item)).collect::<Vec<_>>()));
            }
            _ => {
                patch.insert(key.clone(), new.clone());
            }
        }
    }
    patch
}

fn diff_list(patch: &mut Map<String, Value>, key: &str, (inner, by): (&str, &str), old: &[Value], new: &[Value]) {
    let mut items = Vec::new();
    for item in new {
        match old.iter().find(|o| o[by] == item[by]) {
            Some(o) if o == item => {}
            Some(o) => {
                let mut diff = strategic_diff(inner, o.as_object().unwrap(), item.as_object().unwrap());
                diff.insert(by.to_owned(), item[by].clone());
                items.push(Value::Object(diff));
            }
            None => items.push(item.clone()),
        }
    }
    for item in old.iter().filter(|o| !new.iter().any(|n| n[by] == o[by])) {
        items.push(json!({by: item[by], "$patch": "delete"}));
    }
    let order: Vec<_> = new.iter().map(|item| json!({by: item[by]})).collect();
    patch.insert(format!("$setElementOrder/{key}"), json!(order));
    patch.insert(key.to_owned(), json!(items));
}

prop_compose! {
    fn keyed(names: &'static str)(items in prop::collection::btree_map(names, ("[xyz]", prop::option::of("[pq]")), 0..4), flip in any::<bool>()) -> Value {
        let mut list: Vec<_> = items.into_iter().map(|(name, (image, dir))| {
            let mut item = json!({"name": name, "image": image, "args": [image], "env": [{"name": image, "value": "1"}, {"name": "k"}]});
            if let Some(dir) = dir { item["workingDir"] = json!(dir); }
            item
        }).collect();
        if flip { list.reverse(); }
        json!(list)
    }
}

prop_compose! {
    fn any_pod()(
        containers in keyed("[a-e]"), volumes in keyed("[v-z]"), labels in prop::collection::btree_map("[kl]", "[12]", 0..3),
        finalizers in prop::collection::btree_set("[fgh]", 0..4), node in prop::option::of("[n]"), tolerations in prop::collection::vec("[t]", 0..3),
    ) -> Value {
        let mut pod = json!({
            "kind": "Pod", "metadata": {"name": "a", "labels": labels, "finalizers": finalizers},
            "spec": {"containers": containers, "volumes": volumes, "tolerations": tolerations.iter().map(|key| json!({"key": key})).collect::<Vec<_>>()},
        });
        if let Some(node) = node { pod["spec"]["nodeName"] = json!(node); }
        pod
    }
}

proptest! {
    #[test]
    fn strategic_diff_leads_to_the_target(from in any_pod(), to in any_pod()) {
        let patch = Value::Object(strategic_diff("Pod", from.as_object().unwrap(), to.as_object().unwrap()));
        let once = strategic("Pod", &from, &patch).unwrap();
        prop_assert_eq!(&once, &to, "{}", patch);
        prop_assert_eq!(&strategic("Pod", &once, &patch).unwrap(), &once, "twice {}", patch);
    }

    #[test]
    fn merge_diff_leads_to_the_target(from in any_pod(), to in any_pod()) {
        let patch = merge_diff(&from, &to);
        let once = merge(&from, &patch).unwrap();
        prop_assert_eq!(&once, &to);
        prop_assert_eq!(&merge(&once, &patch).unwrap(), &once);
        prop_assert_eq!(merge_diff(&to, &to), json!({}));
    }

    #[test]
    fn plain_patches_are_idempotent(from in any_pod(), patch in any_pod()) {
        let once = strategic("Pod", &from, &patch).unwrap();
        prop_assert_eq!(&strategic("Pod", &once, &patch).unwrap(), &once);
    }
}

/// The examples of RFC 6902, appendix A: original, patch, result; null where the patch must fail.
#[test]
fn json_patches_of_the_rfc() {
    for (original, patch, result) in [
        (
            json!({"foo": "bar"}),
            json!([{"op": "add", "path": "/baz", "value": "qux"}]),
            json!({"baz": "qux", "foo": "bar"}),
        ),
        (
            json!({"foo": ["bar", "baz"]}),
            json!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
            json!({"foo": ["bar", "qux", "baz"]}),
        ),
        (json!({"baz": "qux", "foo": "bar"}), json!([{"op": "remove", "path": "/baz"}]), json!({"foo": "bar"})),
        (
            json!({"foo": ["bar", "qux", "baz"]}),
            json!([{"op": "remove", "path": "/foo/1"}]),
            json!({"foo": ["bar", "baz"]}),
        ),
        (
            json!({"baz": "qux", "foo": "bar"}),
            json!([{"op": "replace", "path": "/baz", "value": "boo"}]),
            json!({"baz": "boo", "foo": "bar"}),
        ),
        (
            json!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}),
            json!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
            json!({"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}}),
        ),
        (
            json!({"foo": ["all", "grass", "cows", "eat"]}),
            json!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
            json!({"foo": ["all", "cows", "eat", "grass"]}),
        ),
        (
            json!({"baz": "qux", "foo": ["a", 2, "c"]}),
            json!([{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}]),
            json!({"baz": "qux", "foo": ["a", 2, "c"]}),
        ),
        (json!({"baz": "qux"}), json!([{"op": "test", "path": "/baz", "value": "bar"}]), Value::Null),
        (
            json!({"foo": "bar"}),
            json!([{"op": "add", "path": "/child", "value": {"grandchild": {}}}]),
            json!({"foo": "bar", "child": {"grandchild": {}}}),
        ),
        (
            json!({"foo": "bar"}),
            json!([{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}]),
            json!({"foo": "bar", "baz": "qux"}),
        ),
        (json!({"foo": "bar"}), json!([{"op": "add", "path": "/baz/bat", "value": "qux"}]), Value::Null),
        (json!({"/": 9, "~1": 10}), json!([{"op": "test", "path": "/~01", "value": 10}]), json!({"/": 9, "~1": 10})),
        (json!({"/": 9, "~1": 10}), json!([{"op": "test", "path": "/~01", "value": "10"}]), Value::Null),
        (
            json!({"foo": ["bar"]}),
            json!([{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}]),
            json!({"foo": ["bar", ["abc", "def"]]}),
        ),
    ] {
        assert_eq!(json(&original, &patch).unwrap_or_default(), result, "{patch}");
    }
}

/// The examples of RFC 7396, appendix A, whose patch is an object.
#[test]
fn merge_patches_of_the_rfc() {
    for (original, patch, result) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ] {
        assert_eq!(merge(&original, &patch).unwrap(), result, "{patch}");
    }
}

#[test]
fn a_small_json_patch_makes_no_large_object() {
    let original = json!({"data": {"a": "x".repeat(1000)}});
    // Each copy doubles the object.
    let doubling: Vec<_> =
        (0..40).map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/{i}")})).collect();
    let error = json(&original, &json!(doubling)).unwrap_err();
    assert!(matches!(error, PatchError::TooMuchCopied | PatchError::TooDeep { .. }), "{error}");
    let wide: Vec<_> = (0..40).map(|i| json!({"op": "copy", "from": "", "path": format!("/c{i}")})).collect();
    assert!(matches!(json(&original, &json!(wide)), Err(PatchError::TooMuchCopied)));
    let mut deep = Vec::new();
    let mut path = String::new();
    for _ in 0..2 * DEPTH_MAX {
        path.push_str("/a");
        deep.push(json!({"op": "add", "path": path, "value": {}}));
    }
    assert!(matches!(json(&json!({}), &json!(deep)), Err(PatchError::TooDeep { .. })));
}
