//! Ownership after creates, updates and patches.

use super::*;

fn changed(old: &Value, edit: impl Fn(&mut Value)) -> Value {
    let mut new = old.clone();
    new["metadata"].as_object_mut().unwrap().remove("managedFields");
    edit(&mut new);
    new
}

/// What `update` leaves when `given` is sent as `managedFields`.
fn with_given(old: &Value, new: &Value, given: Value) -> Value {
    update(&write("Deployment", "m", 5), Some(old), new, Some(given))
}

#[test]
fn a_creator_owns_what_it_created() {
    let mut object = deployment(
        json!({"replicas": 1, "strategy": {"type": "RollingUpdate"}, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
            {"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {}}], "securityContext": {}}}}),
    );
    object["metadata"]["labels"] = json!({"app": "web"});
    object["metadata"]["uid"] = json!("u");
    object["status"] = json!({"replicas": 0});
    // As kube-apiserver 1.37 writes it for `kubectl create`.
    assert_eq!(
        owned(&updated("kubectl-create", None, object), "kubectl-create"),
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:replicas": {},
                "f:selector": {},
                "f:strategy": {"f:type": {}},
                "f:template": {
                    "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                    "f:spec": {
                        "f:containers": {"k:{\"name\":\"c\"}": {
                            ".": {}, "f:name": {}, "f:resources": {},
                            "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}":
                                {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                        }},
                        "f:securityContext": {},
                    },
                },
            },
        })
    );
}

#[test]
fn an_update_takes_what_it_changes_and_drops_what_it_removes() {
    let old = updated("a", None, deployment(json!({"replicas": 1, "paused": true, "minReadySeconds": 5})));
    let mut new = changed(&old, |new| {
        new["spec"]["replicas"] = json!(2);
        new["spec"].as_object_mut().unwrap().remove("minReadySeconds");
    });
    new["metadata"]["managedFields"] = update(&write("Deployment", "b", 60), Some(&old), &new, None);
    assert_eq!(owned(&new, "a"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(owned(&new, "b"), json!({"f:spec": {"f:replicas": {}}}));
    let entries = new["metadata"]["managedFields"].as_array().unwrap();
    let time = |manager: &str| entries.iter().find(|e| e["manager"] == manager).unwrap()["time"].clone();
    assert_eq!((time("a"), time("b")), (json!("2026-01-02T15:04:05Z"), json!("2026-01-02T15:05:05Z")));
}

#[test]
fn an_update_that_changes_nothing_changes_no_owners() {
    let old = updated("a", None, deployment(json!({"replicas": 1})));
    let same = changed(&old, |_| {});
    assert_eq!(update(&write("Deployment", "b", 60), Some(&old), &same, None), old["metadata"]["managedFields"]);
}

#[test]
fn an_owner_whose_fields_are_gone_is_gone() {
    let old = updated("a", None, config_map(json!({"k": "1"})));
    let new = changed(&old, |new| drop(new.as_object_mut().unwrap().remove("data")));
    assert_eq!(update(&write("ConfigMap", "b", 1), Some(&old), &new, None), Value::Null);
}

#[test]
fn clients_can_correct_and_forget_owners() {
    let old = updated("a", None, deployment(json!({"replicas": 1})));
    let new = changed(&old, |_| {});
    for reset in [json!([]), json!([{}])] {
        assert_eq!(with_given(&old, &new, reset), Value::Null);
    }
    let mut given = old["metadata"]["managedFields"].clone();
    given[0]["manager"] = json!("z");
    given[0]["operation"] = json!("Apply");
    assert_eq!(with_given(&old, &new, given.clone()), given);
    // What cannot be read, and what comes through a subresource, is without effect.
    for bad in [json!([{"manager": "z"}]), json!([7]), json!({}), json!("x"), json!([null])] {
        assert_eq!(with_given(&old, &new, bad), old["metadata"]["managedFields"]);
    }
    let status = Write { subresource: "status", reach: Reach::Only(&["status"]), ..write("Deployment", "m", 5) };
    assert_eq!(update(&status, Some(&old), &new, Some(json!([]))), old["metadata"]["managedFields"]);
    // An object without owners gets none by an update.
    let nobody = changed(&old, |_| {});
    let new = changed(&old, |new| new["spec"]["replicas"] = json!(2));
    assert_eq!(update(&write("Deployment", "m", 5), Some(&nobody), &new, None), Value::Null);
}

#[test]
fn the_oldest_updates_are_folded() {
    let mut object = updated("m0", None, config_map(json!({"k0": "v"})));
    for n in 1..14 {
        let new = changed(&object, |new| new["data"][format!("k{n}")] = json!("v"));
        let manager = format!("m{n}");
        let fields = update(&write("ConfigMap", &manager, n), Some(&object), &new, None);
        object = new;
        object["metadata"]["managedFields"] = fields;
    }
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), UPDATE_MANAGERS_MAX);
    assert_eq!(entries[0]["manager"], "ancient-changes");
    assert_eq!(
        owned(&object, "ancient-changes"),
        json!({"f:data": {".": {}, "f:k0": {}, "f:k1": {}, "f:k2": {}, "f:k3": {}, "f:k4": {}}})
    );
    assert_eq!(entries[0]["time"], "2026-01-02T15:04:09Z");
}

#[test]
fn a_stored_object_that_differs_only_in_times_is_not_written() {
    let old = updated("a", None, deployment(json!({"replicas": 1})));
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = json!("2026-02-02T15:04:05Z");
    let mut other = new.clone();
    settle(&old, &mut new);
    assert_eq!(new, old);
    other["spec"]["replicas"] = json!(2);
    settle(&old, &mut other);
    assert_eq!(other["metadata"]["managedFields"][0]["time"], "2026-02-02T15:04:05Z");
}

#[test]
fn managers_by_user_agent() {
    assert_eq!(manager_of_user_agent("kubectl/v1.37.1 (linux/amd64) kubernetes/abc"), "kubectl");
    assert_eq!(manager_of_user_agent("a\u{7}b"), "ab");
    assert_eq!(manager_of_user_agent(&"x".repeat(300)).len(), MANAGER_BYTES_MAX);
    assert!(check_manager("kubectl-client-side-apply", "fieldManager").is_empty());
    let errors: Vec<String> = check_manager("a\nb", "fieldManager").iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)"]);
    assert_eq!(check_manager(&"x".repeat(129), "fieldManager").len(), 1);
    let errors = validate(&json!([{"manager": "a", "operation": "Create", "fieldsType": "v2"}]));
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "metadata.managedFields[0].operation: Invalid value: \"Create\": must be `Apply` or `Update`",
            "metadata.managedFields[0].fieldsType: Invalid value: \"v2\": must be `FieldsV1`",
        ]
    );
}
