//! Kinds that decide about others: webhooks, certificates, priorities, limits, quotas; and types of Secrets.

use serde_json::{Value, json};

use super::{cases, create, update};

fn webhooks() -> Value {
    json!({"metadata": {"name": "a"}, "webhooks": [{
        "name": "check.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"name": "s", "namespace": "n", "path": "/check"}},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
    }]})
}

#[test]
fn webhook_configurations() {
    let at = |field: &str| format!("/webhooks/0/{field}");
    let url = |url: &str| json!({"url": url});
    let client = "webhooks[0].clientConfig";
    let rules: Vec<(String, Value, String)> = [
        ("name", json!("check"), "name: Invalid value: \"check\": should be a domain with at least three segments"),
        ("name", json!(""), "name: Required value"),
        ("sideEffects", json!("Some"), "sideEffects: Unsupported value: \"Some\": supported values: \"None\""),
        ("sideEffects", json!(null), "sideEffects: Required value"),
        ("timeoutSeconds", json!(31), "timeoutSeconds: Invalid value: 31: must be between 1 and 30"),
        ("timeoutSeconds", json!(0), "timeoutSeconds: Invalid value: 0"),
        ("failurePolicy", json!("Maybe"), "failurePolicy: Unsupported value: \"Maybe\""),
        ("matchPolicy", json!("Maybe"), "matchPolicy: Unsupported value: \"Maybe\""),
        ("admissionReviewVersions", json!([]), "admissionReviewVersions: Required value"),
        ("admissionReviewVersions", json!(["v3"]), "admissionReviewVersions: Invalid value: [\"v3\"]: must include"),
        ("admissionReviewVersions", json!(["v1", "v1"]), "admissionReviewVersions[1]: Invalid value"),
        ("rules/0/operations", json!(["READ"]), "rules[0].operations[0]: Unsupported value: \"READ\""),
        (
            "rules/0/operations",
            json!(["*", "CREATE"]),
            "rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*'",
        ),
        ("rules/0/resources", json!([]), "rules[0].resources: Required value"),
        ("rules/0/apiGroups", json!([]), "rules[0].apiGroups: Required value"),
        ("rules/0/scope", json!("Here"), "rules[0].scope: Unsupported value: \"Here\""),
        ("namespaceSelector", json!({"matchLabels": {"a b": "c"}}), "namespaceSelector.matchLabels: Invalid value"),
        (
            "clientConfig/service/path",
            json!("check"),
            "clientConfig.service.path: Invalid value: \"check\": must start",
        ),
        ("clientConfig/service/port", json!(0), "clientConfig.service.port: Invalid value: 0"),
    ]
    .into_iter()
    .map(|(field, value, fault)| (at(field), value, format!("webhooks[0].{fault}")))
    .chain(
        [
            (json!({}), ": Required value: exactly one of url or service is required"),
            (url("http://a"), ".url: Invalid value: \"http://a\": 'https' is the only allowed URL scheme"),
            (url("https:///x"), ".url: Invalid value: \"https:///x\": host must be specified"),
            (url("https://a/?b"), ".url: Invalid value: \"https://a/?b\": query parameters are not permitted"),
            (json!({"service": {"name": "s"}}), ".service.namespace: Required value"),
            (url("https://a.example/x"), ""),
        ]
        .into_iter()
        .map(|(value, fault)| {
            (at("clientConfig"), value, if fault.is_empty() { String::new() } else { format!("{client}{fault}") })
        }),
    )
    .collect();
    let rules: Vec<(&str, Value, &str)> = rules.iter().map(|(p, v, f)| (p.as_str(), v.clone(), f.as_str())).collect();
    cases("ValidatingWebhookConfiguration", webhooks(), &rules);
    let mut twice = webhooks();
    twice["webhooks"] = json!([twice["webhooks"][0], twice["webhooks"][0]]);
    assert_eq!(
        create("MutatingWebhookConfiguration", twice),
        ["webhooks[1].name: Duplicate value: \"check.example.com\""]
    );
}

#[test]
fn requests_for_certificates() {
    // The PEM header is enough here; the signer reads the rest.
    let request = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
    let spec =
        json!({"signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"], "request": request});
    let good = json!({"metadata": {"name": "a"}, "spec": spec});
    cases(
        "CertificateSigningRequest",
        good.clone(),
        &[
            ("/spec/signerName", json!("mine"), "spec.signerName: Invalid value: \"mine\": must be a fully qualified"),
            ("/spec/usages", json!([]), "spec.usages: Required value"),
            ("/spec/usages", json!(["dancing"]), "spec.usages[0]: Unsupported value: \"dancing\""),
            ("/spec/usages", json!(["any", "any"]), "spec.usages[1]: Duplicate value: \"any\""),
            ("/spec/expirationSeconds", json!(599), "spec.expirationSeconds: Invalid value: 599: may not specify"),
            ("/spec/expirationSeconds", json!(600), ""),
            ("/spec/request", json!("eA=="), "spec.request: Invalid value: \"eA==\": PEM block type must be"),
        ],
    );
    let mut other = good.clone();
    other["spec"]["usages"] = json!(["any"]);
    assert!(update("CertificateSigningRequest", good, other)[0].ends_with("field is immutable"));
}

#[test]
fn priorities() {
    let class = |name: &str, value: i64| create("PriorityClass", json!({"metadata": {"name": name}, "value": value}));
    assert_eq!(class("high", 1_000_000_000), [""; 0]);
    assert_eq!(class("system-node-critical", 2_000_001_000), [""; 0]);
    assert_eq!(
        class("high", 1_000_000_001),
        ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
    );
    assert_eq!(
        class("system-mine", 5),
        ["metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only"]
    );
    let odd = json!({"value": 1, "preemptionPolicy": "Perhaps"});
    assert!(create("PriorityClass", odd)[0].starts_with("preemptionPolicy: Unsupported value: \"Perhaps\""));
    let of = |value: i64| json!({"metadata": {"name": "a"}, "value": value});
    assert_eq!(update("PriorityClass", of(1), of(2)), ["value: Forbidden: may not be changed in an update."]);
}

#[test]
fn ranges_of_limits() {
    let range = |limit: Value| create("LimitRange", json!({"spec": {"limits": [limit]}}));
    let fine = json!({"type": "Container", "min": {"cpu": "10m"}, "defaultRequest": {"cpu": "20m"}, "default": {"cpu": "30m"}, "max": {"cpu": 1}});
    assert_eq!(range(fine), [""; 0]);
    for (limit, fault) in [
        (
            json!({"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}, "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1"}}),
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
        ),
        (
            json!({"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}, "max": {"cpu": "1"}}),
            "spec.limits[0].default[cpu]: Invalid value: \"2\": default value 2 is greater than max value 1",
        ),
        (
            json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}}),
            "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
        ),
        (
            json!({"type": "Container", "min": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}, "default": {"cpu": "3"}}),
            "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
        ),
        (
            json!({"type": "Pod", "default": {"cpu": "1"}}),
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
        ),
        (json!({"type": "PersistentVolumeClaim"}), "spec.limits[0]: Required value: either minimum or maximum storage"),
        (json!({"type": "Engine"}), "spec.limits[0].type: Invalid value: \"Engine\""),
        (
            json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "500m"}}),
            "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
        ),
    ] {
        let faults = range(limit.clone());
        assert!(faults.iter().any(|found| found.starts_with(fault)), "{limit}: {faults:#?}");
    }
}

#[test]
fn quotas() {
    let quota = |spec: Value| create("ResourceQuota", json!({"spec": spec}));
    assert_eq!(quota(json!({"hard": {"pods": "3", "requests.cpu": "500m"}, "scopes": ["BestEffort"]})), [""; 0]);
    for (spec, fault) in [
        (json!({"hard": {"pods": "-1"}}), "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"),
        (
            json!({"hard": {"count/secrets": "1500m"}}),
            "spec.hard[count/secrets]: Invalid value: \"1500m\": must be an integer",
        ),
        (json!({"hard": {"a b": "1"}}), "spec.hard[a b]: Invalid value: \"a b\""),
        (json!({"scopes": ["Nice"]}), "spec.scopes: Invalid value: [\"Nice\"]: unsupported scope"),
        (
            json!({"scopes": ["Terminating", "NotTerminating"]}),
            "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes",
        ),
        (
            json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}]}}),
            "spec.scopeSelector.matchExpressions[0].values: Required value",
        ),
    ] {
        let faults = quota(spec.clone());
        assert!(faults.len() == 1 && faults[0].starts_with(fault), "{spec}: {faults:#?}");
    }
}

#[test]
fn secrets_of_known_types() {
    let secret =
        |kind: &str, data: Value| create("Secret", json!({"type": format!("kubernetes.io/{kind}"), "data": data}));
    assert_eq!(secret("tls", json!({"tls.crt": "eA=="})), ["data[tls.key]: Required value"]);
    assert_eq!(secret("ssh-auth", json!({})), ["data[ssh-privatekey]: Required value"]);
    let both = ["data[username]: Required value", "data[password]: Required value"];
    assert_eq!(secret("basic-auth", json!({})), both);
    assert_eq!(secret("basic-auth", json!({"password": "eA=="})), [""; 0]);
    assert_eq!(secret("dockerconfigjson", json!({".dockerconfigjson": "e30="})), [""; 0]);
    let broken = secret("dockerconfigjson", json!({".dockerconfigjson": "eA=="}));
    assert!(
        broken[0].starts_with("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": "),
        "{broken:?}"
    );
}

#[test]
fn addresses() {
    let service = |spec: Value| {
        let mut object = json!({"spec": {"ports": [{"port": 80}]}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        create("Service", object)
    };
    for (spec, fault) in [
        (
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (json!({"ipFamilies": ["IPX"]}), "spec.ipFamilies[0]: Unsupported value: \"IPX\": supported values"),
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack",
        ),
        (
            json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0"]}),
            "spec.loadBalancerSourceRanges[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR value",
        ),
        (json!({"healthCheckNodePort": 30000}), "spec.healthCheckNodePort: Invalid value: 30000"),
        (json!({"trafficDistribution": "Far"}), "spec.trafficDistribution: Unsupported value: \"Far\""),
    ] {
        let faults = service(spec.clone());
        assert!(faults.iter().any(|found| found.starts_with(fault)), "{spec}: {faults:#?}");
    }
    assert_eq!(service(json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"]})), [""; 0]);
    let node = |spec: Value| create("Node", json!({"metadata": {"name": "n"}, "spec": spec}));
    assert_eq!(node(json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]})), [""; 0]);
    assert!(node(json!({"podCIDR": "10.1.0.0/33"}))[0].starts_with("spec.podCIDR: Invalid value"));
    assert!(node(json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.2.0.0/24"]}))[0].starts_with("spec.podCIDRs[0]: "));
    let endpoints = |ip: &str| create("Endpoints", json!({"subsets": [{"addresses": [{"ip": ip}]}]}));
    assert_eq!(endpoints("10.1.0.1"), [""; 0]);
    assert!(endpoints("127.0.0.1")[0].starts_with("subsets[0].addresses[0].ip: Invalid value"));
    let class = |controller: &str| {
        create("IngressClass", json!({"metadata": {"name": "c"}, "spec": {"controller": controller}}))
    };
    assert_eq!(class("example.com/one"), [""; 0]);
    assert!(class("one")[0].starts_with("spec.controller: Invalid value: \"one\": must be a domain-prefixed path"));
    let block = json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}}]}]}});
    let faults = create("NetworkPolicy", block);
    assert!(faults[0].ends_with("must be a strict subset of `cidr`"), "{faults:?}");
}
