//! The standard set: what every service should survive, in under three minutes.

use std::time::Duration;

use serde_json::Value;

use super::{
    ApiVersion, Drill, DrillSpec, FaultSettings, FaultSpec, Kind, LoadSpec, LoadTarget, Metadata, Objective, Require,
};
use crate::fault::{FaultKind, PodSpec, TargetSpec};
use crate::load::schedule::Arrivals;

/// What a standard drill is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whom users ask.
    pub target: LoadTarget,
    /// The Service behind it whose pods are hit, `NAMESPACE/NAME`.
    pub service: String,
    /// Its Deployment, `NAMESPACE/NAME`.
    pub deployment: String,
}

/// Requests per second, unless told otherwise.
pub const RATE: f64 = 500.0;

/// Each fault: its name, what it is, and how long it lasts, in milliseconds. Long enough for what it is to set in motion: a
/// node counts as dead after 2.5 s, a hung pod leaves the endpoints after two failed probes.
const SET: [(&str, FaultKind, u64); 8] = [
    ("pod kill", FaultKind::Kill, 3000),
    ("hang", FaultKind::Pause, 6000),
    ("node kill", FaultKind::Kill, 6000),
    ("zone kill", FaultKind::Kill, 6000),
    ("bad release", FaultKind::BadRelease, 6000),
    ("rolling update", FaultKind::Rollout, 8000),
    ("drain", FaultKind::Drain, 3000),
    ("control plane", FaultKind::Kill, 5000),
];

/// The standard drill.
pub fn drill(name: &str, entry: &Entry) -> Drill {
    let pod = || TargetSpec::Pod(PodSpec::Service(entry.service.clone()));
    let deployment = || TargetSpec::Deployment(entry.deployment.clone());
    let target = |name: &str| match name {
        "pod kill" | "hang" => pod(),
        "zone kill" => TargetSpec::Zone("any".to_owned()),
        "bad release" | "rolling update" => deployment(),
        "control plane" => TargetSpec::ControlPlane,
        _ => TargetSpec::Node("any".to_owned()),
    };
    let fault = |(name, fault, hold_ms): (&str, FaultKind, u64)| FaultSpec {
        name: Some(name.to_owned()),
        fault,
        target: target(name),
        after: Duration::from_secs(3),
        hold: Duration::from_millis(hold_ms),
        heal_within: Duration::from_secs(30),
        settings: FaultSettings::default(),
    };
    Drill {
        api_version: ApiVersion::V1alpha1,
        kind: Kind::Drill,
        metadata: Metadata {
            name: name.to_owned(),
            namespace: entry.service.split_once('/').map(|(namespace, _)| namespace.to_owned()),
        },
        spec: DrillSpec {
            load: LoadSpec {
                target: entry.target.clone(),
                host: None,
                tls: None,
                keep_alive: true,
                rate: RATE,
                arrivals: Arrivals::Uniform,
                requests: Vec::new(),
                sessions: None,
                timeout: Duration::from_secs(2),
                connect_timeout: Duration::from_secs(1),
                tries: 1,
            },
            ledgers: Vec::new(),
            faults: SET.into_iter().map(fault).collect(),
            random: None,
            seed: 1,
            objective: Objective::default(),
            require: Require::default(),
        },
    }
}

impl Entry {
    /// What users ask among these manifests: a Gateway if there is one, and the Service that has an address outside, else the
    /// first one that a Deployment stands behind.
    pub fn among(objects: &[&Value]) -> Option<Self> {
        let of = |kind: &'static str| objects.iter().copied().filter(move |object| object["kind"] == kind);
        let name = |object: &Value| {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
            Some(format!("{namespace}/{}", object["metadata"]["name"].as_str()?))
        };
        let behind = |service: &Value| {
            let selector = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty())?;
            of("Deployment").find(|deployment| {
                let labels = &deployment["spec"]["template"]["metadata"]["labels"];
                let same = deployment["metadata"]["namespace"] == service["metadata"]["namespace"];
                same && selector.iter().all(|(key, value)| labels[key] == *value)
            })
        };
        let mut services: Vec<&Value> = of("Service").filter(|service| behind(service).is_some()).collect();
        services.sort_by_key(|service| service["spec"]["type"] != "LoadBalancer");
        let service = services.first()?;
        let gateway = of("Gateway").find_map(name).map(LoadTarget::Gateway);
        let target = gateway.or_else(|| name(service).map(LoadTarget::Service))?;
        Some(Self { target, service: name(service)?, deployment: behind(service).and_then(name)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, of_type: &str) -> Value {
        json!({"kind": "Service", "metadata": {"name": name, "namespace": "shop"},
               "spec": {"type": of_type, "selector": {"app": name}}})
    }

    fn deployment(name: &str) -> Value {
        json!({"kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
               "spec": {"template": {"metadata": {"labels": {"app": name, "tier": "web"}}}}})
    }

    #[test]
    fn the_entry_is_what_users_reach() {
        let all = [
            service("cart", "ClusterIP"),
            deployment("cart"),
            service("front", "LoadBalancer"),
            deployment("front"),
            service("nothing", "LoadBalancer"),
        ];
        let entry = Entry::among(&all.iter().collect::<Vec<_>>());
        let found = entry.as_ref().map(|entry| (entry.service.as_str(), entry.deployment.as_str()));
        assert_eq!(found, Some(("shop/front", "shop/front")));
        let gateway = json!({"kind": "Gateway", "metadata": {"name": "g", "namespace": "shop"}});
        let with: Vec<&Value> = all.iter().chain([&gateway]).collect();
        assert_eq!(Entry::among(&with).map(|entry| entry.target), Some(LoadTarget::Gateway("shop/g".to_owned())));
        assert_eq!(Entry::among(&[&all[0]]), None);
    }
}
