//! Policies on writes.
#![allow(clippy::unwrap_used)]

use mainstay_model::resource::known;
use serde_json::{Value, json};

use super::matching::{Write, matches};
use super::*;

fn policy(spec: Value) -> Policy {
    Policy::compile(&object(spec)).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn object(mut spec: Value) -> Value {
    spec["matchConstraints"] = json!({"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]});
    json!({"metadata": {"name": "p"}, "spec": spec})
}

fn ask(policy: &Policy, object: &Value, params: &Value) -> Outcome {
    let request = json!({"operation": "CREATE", "userInfo": {"username": "ann", "groups": ["dev"]}});
    let null = Value::Null;
    policy.evaluate(Question { object, old: &null, request: &request, params, namespace: &null })
}

#[test]
fn validations_and_variables() {
    let policy = policy(json!({
        "variables": [
            {"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "double", "expression": "variables.replicas * 2"},
        ],
        "validations": [
            {"expression": "variables.double <= 10", "messageExpression": "'%d is too many for %s'.format([variables.replicas, request.userInfo.username])"},
            {"expression": "oldObject == null", "message": "no updates", "reason": "Forbidden"},
        ],
        "auditAnnotations": [{"key": "count", "valueExpression": "string(variables.replicas)"}],
    }));
    let good = ask(&policy, &json!({"spec": {"replicas": 5}}), &Value::Null);
    assert_eq!(good, Outcome { failures: vec![], annotations: vec![("count".to_owned(), "5".to_owned())] });
    let bad = ask(&policy, &json!({"spec": {"replicas": 6}}), &Value::Null);
    assert_eq!(bad.failures, [Failure { message: "6 is too many for ann".to_owned(), reason: None }]);
    let broken = ask(&policy, &json!({"spec": {}}), &Value::Null);
    assert!(broken.failures[0].message.contains("no such key: replicas"), "{broken:?}");
}

#[test]
fn conditions_and_parameters() {
    let policy = policy(json!({
        "failurePolicy": "Ignore", "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "not-system", "expression": "!('system:nodes' in request.userInfo.groups)"},
            {"name": "named", "expression": "object.metadata.name.startsWith('web')"}],
        "validations": [{"expression": "object.spec.replicas <= int(params.data.max)"}],
    }));
    let params = json!({"data": {"max": "3"}});
    let named = |name: &str| json!({"metadata": {"name": name}, "spec": {"replicas": 5}});
    assert_eq!(ask(&policy, &named("other"), &params).failures, []);
    let bad = ask(&policy, &named("web"), &params);
    assert_eq!(bad.failures[0].message, "failed expression: object.spec.replicas <= int(params.data.max)");
    assert_eq!(ask(&policy, &named("web"), &Value::Null).failures, [], "what cannot be evaluated is ignored");
}

#[test]
fn mistakes_are_refused() {
    let faults = |spec: Value| validate(&object(spec)).iter().map(ToString::to_string).collect::<Vec<_>>();
    let found = faults(json!({"validations": [{"expression": "object.x +"}]}));
    assert!(
        found[0].starts_with(
            "spec.validations[0].expression: Invalid value: \"object.x +\": compilation failed: ERROR: <input>:1:11"
        ),
        "{found:?}"
    );
    assert!(
        faults(json!({"validations": [{"expression": "params.x"}]}))[0].contains("undeclared reference to 'params'")
    );
    assert!(faults(json!({"validations": [{"expression": "variables.y"}]}))[0].contains("undefined field 'y'"));
    assert!(faults(json!({"validations": [{"expression": "1"}]}))[0].contains("must evaluate to bool"));
    assert!(faults(json!({}))[0].starts_with("spec.validations: Required value"));
    let binding = json!({"spec": {"policyName": "p", "validationActions": ["Deny", "Warn"]}});
    assert!(validate_binding(&binding)[0].to_string().contains("must not contain both Deny and Warn"));
    assert_eq!(validate_binding(&json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}})), []);
}

#[test]
fn writes_are_matched() {
    let object = json!({"metadata": {"labels": {"app": "web"}}});
    let namespace = json!({"metadata": {"labels": {"env": "prod"}}});
    let write = Write {
        operation: "CREATE",
        resource: known("Deployment"),
        subresource: "",
        name: "d",
        namespace: &namespace,
        object: &object,
        old: &Value::Null,
    };
    let rule = |resources: &str| json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": [resources]});
    for (constraints, expected) in [
        (json!(null), true),
        (json!({"resourceRules": [rule("deployments")]}), true),
        (json!({"resourceRules": [rule("*")]}), true),
        (json!({"resourceRules": [rule("deployments/*")]}), true),
        (json!({"resourceRules": [rule("deployments/status")]}), false),
        (json!({"resourceRules": [rule("pods")]}), false),
        (json!({"resourceRules": [rule("*")], "excludeResourceRules": [rule("deployments")]}), false),
        (json!({"resourceRules": [rule("*")], "namespaceSelector": {"matchLabels": {"env": "prod"}}}), true),
        (json!({"resourceRules": [rule("*")], "namespaceSelector": {"matchLabels": {"env": "test"}}}), false),
        (json!({"resourceRules": [rule("*")], "objectSelector": {"matchLabels": {"app": "web"}}}), true),
        (json!({"resourceRules": [rule("*")], "objectSelector": {"matchLabels": {"app": "db"}}}), false),
    ] {
        assert_eq!(matches(&constraints, &write), expected, "{constraints}");
    }
}
