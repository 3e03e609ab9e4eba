//! Policies on writes.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use mainstay_model::resource::known;
use serde_json::{Value, json};

use super::matching::{Write, matches};
use super::*;

/// Lets everybody do everything with pods, and the ServiceAccount `a/b` everything.
#[derive(Debug)]
struct OnlyPods;

impl Judge for OnlyPods {
    fn decide(&self, asked: &Asked) -> Result<(bool, String), String> {
        if asked.verb == "break" {
            return Err("broken".to_owned());
        }
        let account = asked.service_account.as_ref().is_some_and(|(namespace, name)| namespace == "a" && name == "b");
        Ok((account || (asked.resource == "pods" && asked.path.is_none()), format!("{} asked", asked.verb)))
    }
}

fn policy(spec: Value) -> Policy {
    Policy::compile(VALIDATING, &object(spec)).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn object(mut spec: Value) -> Value {
    spec["matchConstraints"] = json!({"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]});
    json!({"metadata": {"name": "p"}, "spec": spec})
}

fn ask(policy: &Policy, object: &Value, params: &Value) -> Outcome {
    let request = json!({"operation": "CREATE", "userInfo": {"username": "ann", "groups": ["dev"]}});
    let null = Value::Null;
    policy.evaluate(Question { object, old: &null, request: &request, params, namespace: &null, judge: &OnlyPods })
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
    let faults = |spec: Value| validate(VALIDATING, &object(spec)).iter().map(ToString::to_string).collect::<Vec<_>>();
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
    // A word of the language, but the request's field has no other name.
    assert_eq!(faults(json!({"validations": [{"expression": "request.namespace == ''"}]})), Vec::<String>::new());
    assert!(faults(json!({}))[0].starts_with("spec.validations: Required value"));
    let binding = json!({"spec": {"policyName": "p", "validationActions": ["Deny", "Warn"]}});
    let validate_binding = |binding: &Value| validate("ValidatingAdmissionPolicyBinding", binding);
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

fn mutating(mutations: Value) -> Value {
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]);
    json!({"metadata": {"name": "m"}, "spec": {"reinvocationPolicy": "Never", "matchConstraints": {"resourceRules": rules},
        "variables": [{"name": "app", "expression": "object.metadata.?labels.?app.orValue('none')"}], "mutations": mutations}})
}

fn configuration(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn json_patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

fn mutate(mutations: Value, object: &Value) -> (Option<Value>, Vec<String>) {
    let policy = Policy::compile(MUTATING, &mutating(mutations)).unwrap_or_else(|faults| panic!("{faults:?}"));
    let null = Value::Null;
    let request = json!({"operation": "CREATE"});
    let question =
        Question { object, old: &null, request: &request, params: &null, namespace: &null, judge: &OnlyPods };
    policy.mutate(question, mainstay_model::apply::View::built_in("Pod"))
}

#[test]
fn configurations_and_patches_change_objects_one_after_another() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (changed, failures) = mutate(
        json!([
            configuration(
                "Object{metadata: Object.metadata{labels: {'app': variables.app}},
                   spec: Object.spec{initContainers: [Object.spec.initContainers{name: 'mesh', image: 'mesh:1', restartPolicy: 'Always'}],
                   ?hostNetwork: optional.none()}}"
            ),
            json_patch(
                "object.spec.containers.all(c, has(c.tty)) ? [] : [
                   JSONPatch{op: 'test', path: '/metadata/labels/app', value: 'none'},
                   JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/n~'), value: string(object.spec.containers.size())},
                   JSONPatch{op: 'add', path: '/spec/containers/0/resources', value: Object.spec.containers.resources{limits: {'cpu': 1.0}}}]"
            ),
        ]),
        &pod,
    );
    assert_eq!(failures, [""; 0]);
    assert_eq!(
        changed.unwrap(),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"app": "none", "example.com/n~": "1"}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": 1}}}],
                "initContainers": [{"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"}]}})
    );
}

#[test]
fn a_mutation_that_fails_says_why_and_changes_nothing() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}});
    for (mutation, part) in [
        (configuration("Object{spec: Object.spec{nodeName: object.spec.nowhere}}"), "no such key: nowhere"),
        (configuration("Object{spec: Object.spec{nonsense: 1}}"), "Invalid ApplyConfiguration: .spec.nonsense"),
        (
            configuration("Object{spec: Object.spec{dnsConfig: Object.spec.dnsConfig{searches: ['a']}}}"),
            "may not mutate atomic",
        ),
        (json_patch("[JSONPatch{op: 'test', path: '/spec/x', value: 1}]"), "JSON Patch: "),
    ] {
        let (changed, failures) = mutate(json!([mutation]), &pod);
        assert!(changed.is_none() && failures[0].contains(part), "{mutation}: {failures:?}");
    }
}

#[test]
fn mistakes_in_mutations_are_refused() {
    for (mutation, part) in [
        (configuration("Object.spec{replicas: 1}"), "must evaluate to Object"),
        (
            configuration("Object{spec: Object.metadata{}}"),
            "unexpected type name \"Object.metadata\", expected \"Object.spec\"",
        ),
        (configuration("Thing{a: 1}"), "undeclared reference to 'Thing'"),
        (
            json_patch("[JSONPatch{op: 1, path: '/a'}]"),
            "expected type of field 'op' is 'string' but provided type is 'int'",
        ),
        (json_patch("[JSONPatch{what: 1}]"), "undefined field 'what'"),
        (json_patch("'x'"), "must evaluate to list(JSONPatch)"),
        (json!({"patchType": "Else"}), "spec.mutations[0].patchType: Unsupported value: \"Else\""),
        (
            json!({"patchType": "JSONPatch"}),
            "spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch",
        ),
    ] {
        let faults: Vec<String> =
            validate(MUTATING, &mutating(json!([mutation]))).iter().map(ToString::to_string).collect();
        assert!(faults.iter().any(|fault| fault.contains(part)), "{mutation}: {faults:?}");
    }
    let mut policy = mutating(json!([]));
    policy["spec"]["matchConstraints"]["resourceRules"][0]["operations"] = json!(["DELETE"]);
    let faults: Vec<String> = validate(MUTATING, &policy).iter().map(ToString::to_string).collect();
    assert!(faults.iter().any(|fault| fault.starts_with("spec.mutations: Required value")), "{faults:?}");
    assert!(faults.iter().any(|fault| fault.contains("operations[0]: Unsupported value: \"DELETE\"")), "{faults:?}");
    // Objects are made by mutations only.
    let validating = object(json!({"validations": [{"expression": "Object{} == object"}]}));
    assert!(validate(VALIDATING, &validating)[0].to_string().contains("undeclared reference to 'Object'"));
}

#[test]
fn the_authorizer_is_asked_what_the_caller_may_do_besides() {
    let holds = |expression: &str| {
        let policy = policy(json!({"validations": [{"expression": expression}]}));
        ask(&policy, &json!({}), &Value::Null).failures
    };
    for expression in [
        "authorizer.group('').resource('pods').namespace('n').name('x').check('delete').allowed()",
        "!authorizer.group('apps').resource('deployments').subresource('scale').check('update').allowed()",
        "authorizer.serviceAccount('a', 'b').path('/healthz').check('get').allowed()",
        "!authorizer.path('/healthz').check('get').allowed()",
        "authorizer.group('').resource('pods').check('get').reason() == 'get asked'",
        "authorizer.path('/x').check('break').errored() && authorizer.path('/x').check('break').error() == 'broken'",
        "!authorizer.requestResource.check('get').allowed()",
    ] {
        assert_eq!(holds(expression), [], "{expression}");
    }
    // Each question costs: no expression asks many.
    let many = "[1, 2, 3, 4, 5].all(x, authorizer.path('/x').check('get').allowed() || true)";
    assert!(holds(many)[0].message.contains("cost limit exceeded"));
    let wrong = object(json!({"validations": [{"expression": "authorizer.resource('pods').check('get').allowed()"}]}));
    assert!(validate(VALIDATING, &wrong)[0].to_string().contains("found no matching overload for 'resource'"));
}
