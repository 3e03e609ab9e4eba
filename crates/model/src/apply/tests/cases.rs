//! Applying to built-in kinds.

use super::*;

#[test]
fn who_applies_owns_what_is_applied() {
    let config = deployment(json!({"replicas": 3, "strategy": {}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "a", "ports": [{"containerPort": 80}], "args": ["x"],
            "resources": {"limits": {"cpu": "1"}}}], "nodeSelector": {"disk": "ssd"}}}}));
    let object = applied("m", None, &config);
    assert_eq!(
        owned(&object, "m"),
        json!({"f:spec": {
            "f:replicas": {},
            "f:strategy": {},
            "f:template": {
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"c\"}": {
                        ".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                        "f:resources": {"f:limits": {"f:cpu": {}}},
                    }},
                    "f:nodeSelector": {},
                },
            },
        }})
    );
    let entry = &object["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["operation"], &entry["apiVersion"], &entry["fieldsType"], &entry["time"]),
        (&json!("Apply"), &json!("apps/v1"), &json!("FieldsV1"), &json!("2026-01-02T15:04:05Z"))
    );
}

#[test]
fn applying_again_changes_nothing_not_even_the_time() {
    let config =
        deployment(json!({"replicas": 3, "template": {"spec": {"containers": [{"name": "c", "image": "a"}]}}}));
    let first = applied("m", None, &config);
    let second = apply(&write("Deployment", "m", 60), Some(&first), &config, false).unwrap();
    assert_eq!(first, second);
}

#[test]
fn conflicts_are_named_as_kubernetes_names_them() {
    let live = updated("kubectl-client-side-apply", None, deployment(json!({"replicas": 1, "paused": true})));
    let message = refused("m", &live, &deployment(json!({"replicas": 2})));
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let both =
        json!({"replicas": 1, "paused": true, "template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}});
    let live = applied("b", None, &deployment(both));
    let live = updated("a", Some(&live), {
        let mut new = live.clone();
        new["spec"]["replicas"] = json!(7);
        new
    });
    let wanted =
        json!({"replicas": 2, "paused": false, "template": {"spec": {"containers": [{"name": "c", "image": "y"}]}}});
    let error = apply(&write("Deployment", "m", 0), Some(&live), &deployment(wanted.clone()), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 3 conflicts: conflicts with \"a\" using apps/v1:\n- .spec.replicas\nconflicts with \"b\":\n- .spec.paused\n- .spec.template.spec.containers[name=\"c\"].image"
    );
    let status = crate::status::ApiError::from(&error).to_status();
    assert_eq!((&status["code"], &status["reason"]), (&json!(409), &json!("Conflict")));
    assert_eq!(
        status["details"]["causes"][1],
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"b\"", "field": ".spec.paused"})
    );
    // With force the fields change hands.
    let forced = apply(&write("Deployment", "m", 0), Some(&live), &deployment(wanted), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(owned(&forced, "a"), Value::Null);
    assert!(owned(&forced, "b").pointer("/f:spec/f:paused").is_none());
    assert!(owned(&forced, "m").pointer("/f:spec/f:paused").is_some());
}

#[test]
fn the_same_value_is_shared_and_no_conflict() {
    let live = applied("a", None, &config_map(json!({"k": "1"})));
    let both = applied("b", Some(&live), &config_map(json!({"k": "1"})));
    assert_eq!(owned(&both, "a"), json!({"f:data": {"f:k": {}}}));
    assert_eq!(owned(&both, "b"), json!({"f:data": {"f:k": {}}}));
    // A shared field stays as long as one of them applies it, and neither can change it alone.
    let one = applied("a", Some(&both), &config_map(json!({})));
    assert_eq!(one["data"], json!({"k": "1"}));
    assert!(refused("a", &both, &config_map(json!({"k": "2"}))).contains("conflict with \"b\": .data.k"));
    let none = applied("b", Some(&one), &config_map(json!({})));
    assert!(none.get("data").is_none_or(|data| *data == json!({})), "{none}");
}

#[test]
fn what_is_no_longer_applied_goes_unless_others_own_it() {
    let full = json!({"template": {"spec": {"containers": [
        {"name": "a", "image": "x", "env": [{"name": "E", "value": "1"}, {"name": "F", "value": "2"}]},
        {"name": "b", "image": "y"}]}}});
    let mut live = applied("m", None, &deployment(full));
    // The server's default and another manager's field.
    live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
    live["spec"]["revisionHistoryLimit"] = json!(10);
    let other = json!({"template": {"spec": {"containers": [{"name": "b", "workingDir": "/w"}]}}});
    let live = applied("other", Some(&live), &deployment(other));
    let less = json!({"template": {"spec": {"containers": [{"name": "a", "image": "x", "env": [{"name": "F", "value": "2"}]}]}}});
    let object = applied("m", Some(&live), &deployment(less));
    assert_eq!(
        object["spec"],
        json!({"revisionHistoryLimit": 10, "template": {"spec": {"containers": [
            {"name": "a", "image": "x", "env": [{"name": "F", "value": "2"}], "imagePullPolicy": "Always"},
            {"name": "b", "workingDir": "/w"},
        ]}}})
    );
}

#[test]
fn a_struct_goes_with_the_defaults_inside_it() {
    let mut live =
        applied("m", None, &deployment(json!({"replicas": 1, "strategy": {"rollingUpdate": {"maxSurge": 1}}})));
    live["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = json!("25%");
    live["metadata"]["uid"] = json!("u");
    let object = applied("m", Some(&live), &deployment(json!({"replicas": 1})));
    assert_eq!(object["spec"], json!({"replicas": 1}));
    assert_eq!(object["metadata"]["uid"], "u");
}

#[test]
fn items_keep_their_places() {
    let names = |object: &Value| -> Vec<String> {
        let list = object["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        list.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let with = |names: &[&str]| {
        let list: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        deployment(json!({"template": {"spec": {"containers": list}}}))
    };
    let live = applied("a", None, &with(&["1", "2", "3"]));
    for (config, wanted) in [
        (&["4"][..], vec!["1", "2", "3", "4"]),
        (&["0", "2"], vec!["1", "0", "2", "3"]),
        (&["3", "1"], vec!["2", "3", "1"]),
        (&["1", "9", "3"], vec!["1", "2", "9", "3"]),
    ] {
        assert_eq!(names(&applied("b", Some(&live), &with(config))), wanted, "{config:?}");
    }
}

#[test]
fn sets_merge_and_atomic_lists_are_replaced() {
    let with = |finalizers: Value, list: Value| {
        let mut object = deployment(json!({"template": {"spec": {"tolerations": list}}}));
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let live = applied("a", None, &with(json!(["x/a"]), json!([{"key": "a"}])));
    let only_set =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "finalizers": ["x/b"]}});
    let object = applied("b", Some(&live), &only_set);
    assert_eq!(object["metadata"]["finalizers"], json!(["x/a", "x/b"]));
    assert_eq!(owned(&object, "b"), json!({"f:metadata": {"f:finalizers": {"v:\"x/b\"": {}}}}));
    let message = refused("b", &live, &with(json!([]), json!([{"key": "b"}])));
    assert_eq!(message, "Apply failed with 1 conflict: conflict with \"a\": .spec.template.spec.tolerations");
}

#[test]
fn what_does_not_fit_the_schema_is_refused() {
    let live = applied("a", None, &deployment(json!({"replicas": 1})));
    assert_eq!(
        refused("m", &live, &deployment(json!({"replica": 1}))),
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replica: field not declared in schema"
    );
    assert_eq!(
        refused(
            "m",
            &live,
            &deployment(json!({"replicas": "three", "template": {"spec": {"containers": [{"name": "c", "x": 1}]}}}))
        ),
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): errors:\n  .spec.replicas: expected numeric (int or float), got \"three\"\n  .spec.template.spec.containers[name=\"c\"].x: field not declared in schema"
    );
    let twice = json!({"template": {"spec": {"containers": [{"name": "c"}, {"name": "c"}]}}});
    assert!(refused("m", &live, &deployment(twice)).ends_with("containers: duplicate entries for key [name=\"c\"]"));
    let mut given = deployment(json!({}));
    given["metadata"]["managedFields"] = json!([]);
    assert_eq!(refused("m", &live, &given), "metadata.managedFields must be nil");
    given["apiVersion"] = json!("apps/v2");
    assert_eq!(
        refused("m", &live, &given),
        "Incorrect version specified in apply patch. Specified patch version: apps/v2, expected: apps/v1"
    );
}

#[test]
fn an_object_without_owners_belongs_to_before_first_apply() {
    let live = deployment(json!({"replicas": 1, "paused": true}));
    assert!(
        refused("m", &live, &deployment(json!({"replicas": 2})))
            .contains("\"before-first-apply\" using apps/v1: .spec.replicas")
    );
    let object = applied("m", Some(&live), &deployment(json!({"replicas": 1})));
    assert_eq!(owned(&object, "before-first-apply"), json!({"f:spec": {"f:paused": {}, "f:replicas": {}}}));
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client() {
    let mut config = deployment(json!({"replicas": 1, "paused": true}));
    let mut live = config.clone();
    live["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": config.to_string()});
    let live = updated("kubectl-client-side-apply", None, live);
    config["spec"]["replicas"] = json!(2);
    assert!(refused("m", &live, &config).contains("kubectl-client-side-apply"));
    let object = applied("kubectl", Some(&live), &config);
    assert_eq!(object["spec"]["replicas"], 2);
    let annotation = &object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    let annotation: Value = serde_json::from_str(annotation.as_str().unwrap()).unwrap();
    assert_eq!(annotation["spec"]["replicas"], 2);
    // What somebody changed since is theirs.
    let changed = updated("other", Some(&live), {
        let mut new = live.clone();
        new["spec"]["replicas"] = json!(5);
        new
    });
    assert!(refused("kubectl", &changed, &config).ends_with("conflict with \"other\" using apps/v1: .spec.replicas"));
}

#[test]
fn a_subresource_has_owners_of_its_own() {
    let live = applied("m", None, &deployment(json!({"replicas": 1})));
    let status = Write { subresource: "status", reach: Reach::Only(&["status"]), ..write("Deployment", "m", 1) };
    let mut config = deployment(json!({"replicas": 9}));
    config["metadata"]["labels"] = json!({"a": "b"});
    config["status"] = json!({"replicas": 4, "conditions": [{"type": "Available", "status": "True"}]});
    let object = apply(&status, Some(&live), &config, false).unwrap();
    assert_eq!((&object["spec"]["replicas"], &object["status"]["replicas"]), (&json!(1), &json!(4)));
    assert!(object["metadata"].get("labels").is_none());
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["subresource"] == "status").unwrap();
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {"f:replicas": {}, "f:conditions": {"k:{\"type\":\"Available\"}": {".": {}, "f:type": {}, "f:status": {}}}}})
    );
    // And through the object itself nobody can own its status.
    let object = applied("n", Some(&object), &config_status());
    assert_eq!(owned(&object, "n"), Value::Null);
    assert_eq!(object["status"]["replicas"], 4);
}

fn config_status() -> Value {
    let mut config = deployment(json!({}));
    config.as_object_mut().unwrap().remove("spec");
    config["status"] = json!({"replicas": 6});
    config
}

#[test]
fn a_null_takes_a_field_out() {
    let live = updated("a", None, config_map(json!({"k": "1"})));
    let mut config = config_map(json!({}));
    config["immutable"] = Value::Null;
    let object = applied("m", Some(&live), &config);
    assert!(object.get("immutable").is_none());
    assert!(owned(&object, "m").get("f:immutable").is_some());
}

#[test]
fn the_same_quantity_in_other_words_is_no_conflict() {
    let with = |cpu: Value| {
        deployment(
            json!({"template": {"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": cpu}}}]}}}),
        )
    };
    let live = applied("a", None, &with(json!("1")));
    for same in [json!("1000m"), json!(1)] {
        assert_eq!(applied("b", Some(&live), &with(same))["spec"], live["spec"]);
    }
    assert!(refused("b", &live, &with(json!("1001m"))).contains("limits.cpu"));
}
