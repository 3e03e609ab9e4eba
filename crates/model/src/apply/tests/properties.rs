//! Properties that hold for all objects.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Configurations of one Deployment with few names and values, so that managers meet.
fn config() -> impl Strategy<Value = Value> {
    let name = || select(vec!["a", "b", "c"]);
    let text = || select(vec!["1", "2"]);
    let map = || btree_map(name(), text(), 0..3);
    let env = btree_map(name(), text(), 0..3)
        .prop_map(|map| map.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect::<Vec<_>>());
    let ports = btree_map(select(vec![80, 81]), name(), 0..2).prop_map(|map| {
        map.into_iter().map(|(port, name)| json!({"containerPort": port, "name": name})).collect::<Vec<_>>()
    });
    let container = (option(text()), option(env), option(ports), option(vec(text(), 0..3)));
    let containers = btree_map(name(), container, 0..3).prop_map(|map| {
        map.into_iter()
            .map(|(name, (image, env, ports, args))| {
                let mut one = json!({"name": name});
                put(&mut one, "image", image.map(|value| json!(value)));
                put(&mut one, "env", env.map(|value| json!(value)));
                put(&mut one, "ports", ports.map(|value| json!(value)));
                put(&mut one, "args", args.map(|value| json!(value)));
                one
            })
            .collect::<Vec<_>>()
    });
    let spec = (option(0..3), option(map()), option(containers), option(map()), option(any::<bool>()));
    (option(map()), option(spec), option(vec(name(), 0..3))).prop_map(|(labels, spec, finalizers)| {
        let mut object = deployment(json!({}));
        object.as_object_mut().unwrap().remove("spec");
        put(&mut object["metadata"], "labels", labels.map(|value| json!(value)));
        let set = finalizers.map(|list| list.into_iter().collect::<std::collections::BTreeSet<_>>());
        put(&mut object["metadata"], "finalizers", set.map(|value| json!(value)));
        if let Some((replicas, selector, containers, node_selector, paused)) = spec {
            object["spec"] = json!({});
            put(&mut object["spec"], "replicas", replicas.map(|value| json!(value)));
            put(&mut object["spec"], "selector", selector.map(|map| json!({"matchLabels": map})));
            put(&mut object["spec"], "paused", paused.map(|value| json!(value)));
            if containers.is_some() || node_selector.is_some() {
                object["spec"]["template"] = json!({"spec": {}});
                put(&mut object["spec"]["template"]["spec"], "containers", containers.map(|value| json!(value)));
                put(&mut object["spec"]["template"]["spec"], "nodeSelector", node_selector.map(|value| json!(value)));
            }
        }
        object
    })
}

fn option<T: std::fmt::Debug>(inner: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::of(inner)
}

fn put(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(value) = value {
        object[field] = value;
    }
}

fn bare() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}})
}

/// The object without its owners, and without what is empty: an empty list and none are the same to readers.
fn content(object: &Value) -> Value {
    fn clean(value: &Value) -> Option<Value> {
        match value {
            Value::Object(map) => {
                let map: serde_json::Map<String, Value> =
                    map.iter().filter_map(|(key, value)| Some((key.clone(), clean(value)?))).collect();
                (!map.is_empty()).then_some(Value::Object(map))
            }
            Value::Array(list) if list.is_empty() => None,
            Value::Array(list) => Some(list.iter().filter_map(clean).collect()),
            other => Some(other.clone()),
        }
    }
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    clean(&object).unwrap_or(Value::Null)
}

/// JSON of any shape, with the names that the code looks at.
fn any_json() -> impl Strategy<Value = Value> {
    let word = || {
        select(vec![
            "apiVersion",
            "kind",
            "metadata",
            "name",
            "managedFields",
            "fieldsV1",
            "fieldsType",
            "FieldsV1",
            "operation",
            "Apply",
            "Update",
            "manager",
            ".",
            "f:spec",
            "spec",
            "status",
            "template",
            "containers",
            "ports",
            "k:{\"name\":\"a\"}",
            "v:1",
            "i:0",
            "k:{",
            "labels",
            "apps/v1",
            "type",
            "items",
            "x-kubernetes-list-type",
            "map",
            "set",
            "properties",
            "x-kubernetes-list-map-keys",
            "object",
            "array",
            "annotations",
            "time",
        ])
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        word().prop_map(|text| json!(text)),
    ];
    leaf.prop_recursive(6, 48, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            btree_map(word().prop_map(str::to_owned), inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_twice_is_applying_once(first in config(), second in config()) {
        let live = applied("a", None, &first);
        let write = write("Deployment", "b", 1);
        let once = apply(&write, Some(&live), &second, true).unwrap();
        let twice = apply(&Write { now: at(2), ..write }, Some(&once), &second, false).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn what_is_applied_is_there(first in config(), second in config()) {
        let live = applied("a", None, &first);
        let object = apply(&write("Deployment", "b", 1), Some(&live), &second, true).unwrap();
        let merged = apply(&write("Deployment", "c", 1), Some(&object), &second, false);
        prop_assert_eq!(merged.map(|merged| content(&merged)).map_err(|e| e.to_string()), Ok(content(&object)));
    }

    /// A conflict if and only if another manager owns a field whose value would change.
    #[test]
    fn conflicts_are_exact(first in config(), second in config(), third in config()) {
        let live = applied("a", None, &first);
        let live = updated("u", Some(&live), {
            let mut new = apply(&write("Deployment", "x", 1), Some(&live), &third, true).unwrap();
            new["metadata"]["managedFields"] = Value::Null;
            new
        });
        // Without owners all belongs to `before-first-apply`.
        prop_assume!(!managers::Managers::of(&live).is_empty());
        let forced = apply(&write("Deployment", "b", 1), Some(&live), &second, true).unwrap();
        let changes = compare::compare(View::built_in("Deployment"), Some(&live), &forced);
        let changed = changes.added.union(&changes.modified);
        let mut disputed: Vec<String> = managers::Managers::of(&live).0.iter()
            .flat_map(|entry| entry.fields.get().intersection(&changed).paths()).collect();
        disputed.sort();
        let mut found = match apply(&write("Deployment", "b", 1), Some(&live), &second, false) {
            Ok(object) => { prop_assert_eq!(object, forced); Vec::new() }
            Err(ApplyError::Conflicts(conflicts)) => conflicts.0.into_iter().map(|conflict| conflict.path).collect(),
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        found.sort();
        prop_assert_eq!(found, disputed);
    }

    #[test]
    fn who_applies_nothing_leaves_no_trace(first in config(), second in config()) {
        let live = applied("a", None, &first);
        // Only what does not touch the other's fields: what was taken by force cannot come back.
        if let Ok(both) = apply(&write("Deployment", "b", 1), Some(&live), &second, false) {
            let without = applied("b", Some(&both), &bare());
            prop_assert_eq!(content(&without), content(&live));
            prop_assert_eq!(owned(&without, "b"), Value::Null);
            prop_assert_eq!(owned(&without, "a"), owned(&live, "a"));
        }
    }

    #[test]
    fn two_managers_agree_in_any_order(first in config(), second in config()) {
        let ab = apply(&write("Deployment", "b", 1), Some(&applied("a", None, &first)), &second, false);
        let ba = apply(&write("Deployment", "a", 1), Some(&applied("b", None, &second)), &first, false);
        prop_assert_eq!(ab.is_ok(), ba.is_ok());
        if let (Ok(ab), Ok(ba)) = (ab, ba) {
            prop_assert_eq!((owned(&ab, "a"), owned(&ab, "b")), (owned(&ba, "a"), owned(&ba, "b")));
        }
    }

    /// After an update every field has the owner that wrote it last.
    #[test]
    fn updates_own_what_they_change(first in config(), second in config()) {
        let old = updated("a", None, first);
        let mut new = second;
        new["metadata"]["managedFields"] = update(&write("Deployment", "b", 1), Some(&old), &new, None);
        let changes = compare::compare(View::built_in("Deployment"), Some(&old), &new);
        let of = |manager: &str| match owned(&new, manager) {
            Value::Null => FieldSet::default(),
            fields => FieldSet::parse(&fields).unwrap(),
        };
        let changed = changes.added.clone().union(&changes.modified);
        prop_assert!(of("a").intersection(&changed).is_empty());
        prop_assert!(of("a").intersection(&changes.removed).is_empty());
        prop_assert!(of("b").difference(&changed).is_empty());
    }

    #[test]
    fn sets_obey_the_laws_of_sets(a in config(), b in config()) {
        let view = View::built_in("Deployment");
        let (a, b) = (walk::fields_of(view, &a), walk::fields_of(view, &b));
        let both = a.intersection(&b);
        prop_assert_eq!(a.clone().union(&b), b.clone().union(&a));
        prop_assert_eq!(&both, &b.intersection(&a));
        prop_assert_eq!(a.difference(&b).union(&both), a.clone());
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        prop_assert_eq!(FieldSet::parse(&a.clone().into_json()), Ok(a));
    }

    #[test]
    fn comparing_finds_nothing_only_in_equals(a in config(), b in config()) {
        let changes = compare::compare(View::built_in("Deployment"), Some(&a), &b);
        prop_assert_eq!(changes.is_empty(), a == b);
    }

    #[test]
    fn nothing_panics(live in any_json(), config in any_json(), schema in any_json(), kind in select(vec!["Pod", "Deployment", "Service", "None"])) {
        let mut config = config;
        if config.is_object() {
            config["apiVersion"] = json!("apps/v1");
        }
        for view in [View::built_in(kind), View::custom(&schema), View::deduced()] {
            for manager in ["m", "kubectl"] {
                let write = Write { view, ..write("Deployment", manager, 0) };
                for force in [false, true] {
                    if let Ok(object) = apply(&write, Some(&live), &config, force) {
                        let _ = apply(&write, Some(&object), &live, force);
                    }
                }
                let given = &live["metadata"]["managedFields"];
                let _ = update(&write, Some(&live), &config, Some(given.clone()));
                let _ = update(&write, None, &config, Some(given.clone()));
                let _ = validate(given);
                settle(&live, &mut config.clone());
            }
        }
        if let Ok(set) = FieldSet::parse(&live) {
            let _ = set.paths();
            prop_assert_eq!(FieldSet::parse(&set.clone().into_json()), Ok(set));
        }
    }
}
