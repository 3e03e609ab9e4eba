//! Definitions: good ones, bad ones, and their status.
#![allow(clippy::unwrap_used)]

use mainstay_model::meta::{condition, set_at};
use serde_json::{Value, json};

use super::*;

fn definition() -> Value {
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "cronSpec": {"type": "string"}, "replicas": {"type": "integer", "default": 1},
                    }},
                    "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
                }}},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [{"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"}],
                "selectableFields": [{"jsonPath": ".spec.cronSpec"}],
            }],
        },
    });
    apply_defaults(&mut definition);
    definition
}

fn faults(definition: &Value) -> Vec<String> {
    validate(definition, None).iter().map(ToString::to_string).collect()
}

/// The faults when one value of a good definition is another.
fn with(path: &str, value: Value) -> Vec<String> {
    let mut definition = definition();
    if let Some(place) = definition.pointer_mut(path) {
        *place = value;
    } else {
        let (parent, last) = path.rsplit_once('/').unwrap();
        definition.pointer_mut(parent).unwrap()[last] = value;
    }
    faults(&definition)
}

const SPEC: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";

#[test]
fn a_good_definition() {
    let definition = definition();
    assert_eq!(faults(&definition), Vec::<String>::new());
    assert_eq!(definition["spec"]["names"]["singular"], "crontab");
    assert_eq!(definition["spec"]["names"]["listKind"], "CronTabList");
    assert_eq!(definition["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(validate(&definition, Some(&definition)), []);
}

#[test]
fn bad_definitions() {
    let schema = "spec.validation.openAPIV3Schema";
    let field = format!("{schema}.properties[spec].properties[x]");
    let x = |schema: Value| with(&format!("{SPEC}/properties/x"), schema);
    for (found, expected) in [
        (with("/metadata/name", json!("x.example.com")), "metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group".to_owned()),
        (with("/spec/scope", json!("Galaxy")), "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"".to_owned()),
        (with("/spec/preserveUnknownFields", json!(true)), "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead".to_owned()),
        (with("/spec/names/listKind", json!("CronTab")), "spec.names.listKind: Invalid value: \"CronTab\": kind and listKind may not be the same".to_owned()),
        (with("/spec/versions/0/schema", json!(null)), format!("{schema}: Required value: schemas are required")),
        (with("/spec/versions/0/schema/openAPIV3Schema/type", json!(null)), format!("{schema}.type: Required value: must not be empty at the root")),
        (with("/spec/versions/0/additionalPrinterColumns/0/type", json!("text")), "spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string".to_owned()),
        (with("/spec/versions/0/additionalPrinterColumns/0/jsonPath", json!("spec")), "spec.additionalPrinterColumns[0].jsonPath: Invalid value: \"spec\": must be a simple json path starting with .".to_owned()),
        (with("/spec/versions/0/subresources/scale/specReplicasPath", json!(".status.x")), "spec.subresources.scale.specReplicasPath: Invalid value: \".status.x\": should be a json path under .spec".to_owned()),
        (with("/spec/versions/0/selectableFields/0/jsonPath", json!(".spec.nothing")), "spec.selectableFields[0].jsonPath: Invalid value: \".spec.nothing\": is an invalid path: does not refer to a valid field".to_owned()),
        (with("/spec/conversion", json!({"strategy": "Webhook"})), "spec.conversion.webhook.clientConfig: Required value: required when strategy is set to Webhook".to_owned()),
        (x(json!({})), format!("{field}.type: Required value: must not be empty for specified object fields")),
        (x(json!({"type": "text"})), format!("{field}.type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"")),
        (x(json!({"type": "array"})), format!("{field}.items: Required value: must be specified")),
        (x(json!({"type": "array", "items": {}})), format!("{field}.items.type: Required value: must not be empty for specified array items")),
        (x(json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true})), format!("{field}.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic")),
        (x(json!({"type": "object", "additionalProperties": {"type": "string"}, "properties": {"a": {"type": "string"}}})), format!("{field}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive")),
        (x(json!({"type": "string", "pattern": "("})), format!("{field}.pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: unclosed group")),
        (x(json!({"type": "string", "$ref": "#/x"})), format!("{field}.$ref: Forbidden: $ref is not supported")),
        (x(json!({"type": "integer", "default": "a"})), format!("{field}.default: Invalid value: \"string\": {field}.default in body must be of type integer: \"string\"")),
        (x(json!({"type": "object", "default": {"a": 1}})), format!("{field}.default: Invalid value: {{\"a\":1}}: must not have unknown fields")),
        (x(json!({"type": "object", "anyOf": [{"properties": {"q": {"minLength": 1}}}]})), format!("{field}.properties[q]: Required value: because it is defined in {field}.anyOf[0].properties[q]")),
        (x(json!({"type": "object", "anyOf": [{"type": "object"}]})), format!("{field}.anyOf[0].type: Forbidden: must be empty to be structural")),
        (x(json!({"type": "string", "x-kubernetes-list-type": "set"})), format!("{field}.type: Invalid value: \"string\": must be array if x-kubernetes-list-type is specified")),
        (x(json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": {"type": "object", "properties": {"n": {"type": "string"}}}})), format!("{field}.items.properties[n].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property")),
        (x(json!({"x-kubernetes-int-or-string": true, "type": "string"})), format!("{field}.type: Invalid value: \"string\": must be empty if x-kubernetes-int-or-string is true")),
        (x(json!({"type": "string", "x-kubernetes-validations": [{"rule": "self + 1 == 2"}]})), format!("{field}.x-kubernetes-validations[0].rule: Invalid value: \"self + 1 == 2\": compilation failed: ERROR: <input>:1:6: found no matching overload for '_+_' applied to '(string, int)'\n | self + 1 == 2\n | .....^")),
        (x(json!({"type": "string", "x-kubernetes-validations": [{"rule": "self"}]})), format!("{field}.x-kubernetes-validations[0].rule: Invalid value: \"self\": compilation failed: cel expression must evaluate to a bool")),
        (x(json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}})), format!("{field}.items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within {field}")),
        (x(json!({"type": "string", "x-kubernetes-validations": [{"rule": "true", "reason": "Why"}]})), format!("{field}.x-kubernetes-validations[0].reason: Unsupported value: \"Why\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"")),
    ] {
        assert_eq!(found.first(), Some(&expected), "{found:?}");
    }
}

#[test]
fn costs_are_estimated() {
    let lists = |max: Option<u32>| {
        let mut list = json!({"type": "array", "items": {"type": "string"}});
        if let Some(max) = max {
            list["maxItems"] = json!(max);
        }
        with(
            &format!("{SPEC}/properties/x"),
            json!({"type": "object", "properties": {"a": list},
                "x-kubernetes-validations": [{"rule": "self.a.all(p, self.a.all(q, p == q))"}]}),
        )
    };
    assert!(
        lists(None)[0].contains("Forbidden: estimated rule cost exceeds budget by factor of more than 100x"),
        "{:?}",
        lists(None)
    );
    assert_eq!(lists(Some(100)), Vec::<String>::new());
}

#[test]
fn versions_and_updates() {
    let mut two = definition();
    let mut second = two["spec"]["versions"][0].clone();
    second["name"] = json!("v2");
    two["spec"]["versions"].as_array_mut().unwrap().push(second);
    assert!(faults(&two)[0].contains("must have exactly one version marked as storage version"));
    two["spec"]["versions"][1]["storage"] = json!(false);
    assert_eq!(faults(&two), Vec::<String>::new());
    two["spec"]["versions"][1]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["x"] = json!({});
    assert!(faults(&two)[0].starts_with("spec.versions[1].schema.openAPIV3Schema.properties[spec].properties[x].type"));

    let mut old = definition();
    set_status(&mut old, &Names::default(), jiff::Timestamp::UNIX_EPOCH);
    let mut new = old.clone();
    set_at(&mut new, "spec.scope", json!("Cluster"));
    new["spec"]["versions"][0]["name"] = json!("v3");
    let found: Vec<String> = validate(&new, Some(&old)).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "spec.scope: Invalid value: \"Cluster\": field is immutable",
            "status.storedVersions[0]: Invalid value: \"v1\": must appear in spec.versions",
        ]
    );
}

#[test]
fn protected_groups() {
    let mut definition = definition();
    definition["spec"]["group"] = json!("x.k8s.io");
    definition["metadata"]["name"] = json!("crontabs.x.k8s.io");
    assert!(faults(&definition)[0].starts_with("metadata.annotations[api-approved.kubernetes.io]: Required value"));
    definition["metadata"]["annotations"] =
        json!({"api-approved.kubernetes.io": "https://github.com/kubernetes/x/pull/1"});
    assert_eq!(faults(&definition), Vec::<String>::new());
}

#[test]
fn names_are_given_once() {
    let now = jiff::Timestamp::UNIX_EPOCH;
    let mut first = definition();
    set_status(&mut first, &Names::default(), now);
    assert!(is_established(&first));
    assert_eq!(first["status"]["acceptedNames"]["shortNames"], json!(["ct"]));
    assert_eq!(first["status"]["storedVersions"], json!(["v1"]));
    let mut taken = Names::default();
    taken.add(&first);

    let mut second = definition();
    second["spec"]["names"] =
        json!({"plural": "others", "singular": "other", "kind": "CronTab", "listKind": "OtherList"});
    set_status(&mut second, &taken, now);
    assert!(!is_established(&second));
    let accepted = condition(&second, "NamesAccepted").unwrap();
    assert_eq!(
        (&accepted["reason"], &accepted["message"]),
        (&json!("KindConflict"), &json!("\"CronTab\" is already in use"))
    );
    assert_eq!(second["status"]["acceptedNames"]["plural"], "others");
    assert_eq!(second["status"]["acceptedNames"]["kind"], "");
}

#[test]
fn version_priority() {
    let mut versions = ["foo1", "v1alpha1", "v10", "v1beta2", "v2", "v1beta1", "v1", "bar"];
    versions.sort_by(|a, b| by_priority(a, b));
    assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "bar", "foo1"]);
}

#[test]
fn no_definition_panics() {
    for definition in [
        json!(null),
        json!({}),
        json!({"spec": 1}),
        json!({"spec": {"versions": [1, {}], "names": []}}),
        json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {"a": 1}, "items": [1], "allOf": [3]}}}]}}),
    ] {
        let mut copy = definition.clone();
        apply_defaults(&mut copy);
        assert!(!validate(&copy, Some(&definition)).is_empty());
    }
}
