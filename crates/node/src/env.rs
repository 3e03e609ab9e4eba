//! A container's environment: values, references, service variables. Pure; looking objects up is the caller's.
//!
//! Source: <https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/> and
//! <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use mainstay_model::quantity::Quantity;

use crate::pod::machine::ephemeral;
use crate::pod::qos::Resources;

/// Why an environment could not be put together; the texts are what `kubectl describe` shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It is there, but lacks the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field path that is not supported.
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    /// A resource name that is not supported.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// A source that is not supported.
    #[error("environment variable {0} has no supported source")]
    Source(String),
}

/// A key-value object that an environment or a volume draws from.
pub type Data = BTreeMap<String, Vec<u8>>;

/// The objects a pod refers to, by kind and name; the pod's namespace is meant. Absent ones are `None`.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// ConfigMaps.
    pub config_maps: BTreeMap<String, Option<Data>>,
    /// Secrets.
    pub secrets: BTreeMap<String, Option<Data>>,
    /// Claims.
    pub claims: BTreeMap<String, Claim>,
    /// Tokens of the pod's ServiceAccount.
    pub tokens: BTreeMap<TokenKey, String>,
}

/// What a pod's fields may refer to beyond the object itself.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub host_ip: String,
    /// The pod's address.
    pub pod_ip: Option<String>,
    /// What the node has, for limits that are not set: CPU in thousandths.
    pub node_cpu_milli: i64,
    /// Memory in bytes.
    pub node_memory_bytes: i64,
    /// Most processes and threads of a container; 0 for no limit.
    pub pids_max: u64,
}

/// Which token a projection asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey {
    /// Who is to accept it; the API server if none is named.
    pub audience: Option<String>,
    /// How long it is to live.
    pub seconds: i64,
}

impl TokenKey {
    /// The token of a projection; an hour if it does not say how long.
    pub fn of(projection: &core::ServiceAccountTokenProjection) -> Self {
        let audience = projection.audience.clone().filter(|audience| !audience.is_empty());
        Self { audience, seconds: projection.expiration_seconds.unwrap_or(3600) }
    }
}

/// A claim as far as the node is concerned.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// There is none of this name.
    Missing,
    /// It has no volume yet.
    Unbound,
    /// Its volume.
    Bound(Box<core::PersistentVolumeSpec>),
}

/// The names of what a pod refers to, in environments and volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// ConfigMaps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
    /// Claims.
    pub claims: BTreeSet<String>,
    /// Tokens of its ServiceAccount.
    pub tokens: BTreeSet<TokenKey>,
}

/// What a pod refers to.
pub fn references(pod: &core::Pod) -> References {
    let mut found = References::default();
    let Some(spec) = &pod.spec else { return found };
    let further = ephemeral(pod);
    for container in spec.init_containers.iter().flatten().chain(&spec.containers).chain(&further) {
        for from in container.env_from.iter().flatten() {
            found.config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            found.secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            found.config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            found.secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        found.config_maps.extend(volume.config_map.as_ref().map(|v| v.name.clone()));
        found.secrets.extend(volume.secret.as_ref().and_then(|v| v.secret_name.clone()));
        found.claims.extend(claim_name(pod, volume));
        for part in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            found.config_maps.extend(part.config_map.as_ref().map(|v| v.name.clone()));
            found.secrets.extend(part.secret.as_ref().map(|v| v.name.clone()));
            found.tokens.extend(part.service_account_token.as_ref().map(TokenKey::of));
        }
    }
    found
}

/// The claim of a volume: the one it names, or the one that was made for the pod alone.
pub fn claim_name(pod: &core::Pod, volume: &core::Volume) -> Option<String> {
    let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
    let own = || format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name);
    named.or_else(|| volume.ephemeral.as_ref().map(|_| own()))
}

/// The environment of a container: service variables, then `envFrom`, then `env`; later ones win.
pub fn resolve(
    pod: &core::Pod,
    container: &core::Container,
    sources: &Sources,
    facts: &PodFacts,
    service_variables: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, EnvError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut environment = service_variables;
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let data = if let Some(r) = &from.config_map_ref {
            named("configmap", &sources.config_maps, &r.name, r.optional)?
        } else if let Some(r) = &from.secret_ref {
            named("secret", &sources.secrets, &r.name, r.optional)?
        } else {
            None
        };
        for (key, value) in data.into_iter().flatten() {
            environment.insert(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
        }
    }
    // References see the variables defined before them, and service variables only where nothing overrides them.
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => match from_source(pod, container, variable, source, sources, facts, &namespace)? {
                Some(value) => value,
                None => continue,
            },
            (Some(text), None) => expand(text, &environment),
            (None, None) => String::new(),
        };
        environment.insert(variable.name.clone(), value);
    }
    Ok(environment)
}

fn from_source(
    pod: &core::Pod,
    container: &core::Container,
    variable: &core::EnvVar,
    source: &core::EnvVarSource,
    sources: &Sources,
    facts: &PodFacts,
    namespace: &str,
) -> Result<Option<String>, EnvError> {
    if let Some(r) = &source.config_map_key_ref {
        let data = named("configmap", &sources.config_maps, &r.name, r.optional)?;
        return key_of("ConfigMap", data, namespace, &r.name, &r.key, r.optional);
    }
    if let Some(r) = &source.secret_key_ref {
        let data = named("secret", &sources.secrets, &r.name, r.optional)?;
        return key_of("Secret", data, namespace, &r.name, &r.key, r.optional);
    }
    if let Some(r) = &source.field_ref {
        return field(pod, &r.field_path, facts).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return resource(pod, container, r, facts).map(Some);
    }
    Err(EnvError::Source(variable.name.clone()))
}

fn named<'a>(
    kind: &'static str,
    objects: &'a BTreeMap<String, Option<Data>>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Data>, EnvError> {
    match objects.get(name) {
        Some(Some(data)) => Ok(Some(data)),
        _ if optional == Some(true) => Ok(None),
        _ => Err(EnvError::NotFound { kind, name: name.to_owned() }),
    }
}

fn key_of(
    kind: &'static str,
    data: Option<&Data>,
    namespace: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, EnvError> {
    match data.and_then(|data| data.get(key)) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => {
            Err(EnvError::Key { kind, namespace: namespace.to_owned(), name: name.to_owned(), key: key.to_owned() })
        }
    }
}

/// Replaces `$(NAME)` by the variable's value; `$$` is one `$`; what is not defined stays as it is.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.get(name) {
                Some(value) => result.push_str(value),
                None => result.push_str(&rest[at..=at + 2 + name.len()]),
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// A field of the pod as the downward API gives it.
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/pods/downward-api/#available-fields>.
pub fn field(pod: &core::Pod, path: &str, facts: &PodFacts) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let list = |map: Option<&BTreeMap<String, String>>| {
        let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let subscript = |prefix: &str, map: Option<&BTreeMap<String, String>>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => list(meta.labels.as_ref()),
        "metadata.annotations" => list(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => {
            pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone().unwrap_or_default(),
        _ => subscript("metadata.labels", meta.labels.as_ref())
            .or_else(|| subscript("metadata.annotations", meta.annotations.as_ref()))
            .ok_or_else(|| EnvError::FieldPath(path.to_owned()))?,
    })
}

/// A container's request or limit, divided and rounded up; an absent limit is what the node has.
pub fn resource(
    pod: &core::Pod,
    container: &core::Container,
    selector: &core::ResourceFieldSelector,
    facts: &PodFacts,
) -> Result<String, EnvError> {
    let named = selector.container_name.as_deref();
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let container = named.and_then(|name| all.into_iter().find(|c| c.name == name)).unwrap_or(container);
    let resources = Resources::of(container.resources.as_ref());
    let unknown = || EnvError::Resource(selector.resource.clone());
    let divisor = selector.divisor.as_ref().map(|divisor| divisor.0.parse::<Quantity>());
    let divisor = divisor.transpose().map_err(|_| unknown())?.filter(|divisor| !divisor.is_zero());
    // CPU is divided in thousandths so that a divisor of `1m` is exact.
    let (amount, unit) = match selector.resource.as_str() {
        "limits.cpu" => (resources.cpu_limit_milli.unwrap_or(facts.node_cpu_milli), 1000),
        "requests.cpu" => (resources.cpu_request_milli, 1000),
        "limits.memory" => (resources.memory_limit_bytes.unwrap_or(facts.node_memory_bytes), 1),
        "requests.memory" => (resources.memory_request_bytes, 1),
        _ => return Err(unknown()),
    };
    let divisor = match divisor {
        Some(divisor) if unit == 1000 => divisor.milli_value(),
        Some(divisor) => divisor.value(),
        None => unit,
    };
    Ok((amount / divisor + i64::from(amount % divisor != 0)).to_string())
}

/// The variables for the services of the pod's namespace and for `kubernetes` in `default`.
pub fn service_variables<'a>(
    services: impl IntoIterator<Item = &'a core::Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = of == "default" && name == "kubernetes";
        if !(master || links && of == namespace) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let Some(first) = spec.ports.iter().flatten().next() else { continue };
        let prefix = name.to_uppercase().replace('-', "_");
        variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let name = name.to_uppercase().replace('-', "_");
                variables.insert(format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                variables.insert(format!("{prefix}_PORT"), url.clone());
            }
            let port_prefix = format!("{prefix}_PORT_{}_{protocol}", port.port);
            variables.insert(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
            variables.insert(format!("{port_prefix}_PORT"), port.port.to_string());
            variables.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
            variables.insert(port_prefix, url);
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    fn pod() -> core::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web", "tier": "a\"b"}},
            "spec": {"containers": [{"name": "app", "resources": {"limits": {"cpu": "1500m"}},
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "absent", "optional": true}}],
                "env": [
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "TIER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['tier']"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "URL", "value": "http://$(IP):$(P_port)/$(NOPE)"},
                    {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "MILLI", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                    {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                    {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}}]}]},
        }))
        .unwrap()
    }

    fn facts() -> PodFacts {
        PodFacts { pod_ip: Some("10.0.2.5".to_owned()), node_memory_bytes: 1 << 30, ..PodFacts::default() }
    }

    #[test]
    fn references_are_resolved() {
        let pod = pod();
        let found = references(&pod);
        assert_eq!(found.config_maps, ["m".to_owned()].into());
        assert_eq!(found.secrets, ["absent".to_owned(), "s".to_owned()].into());
        let mut sources = Sources::default();
        sources.config_maps.insert("m".to_owned(), Some(Data::from([("port".to_owned(), b"80".to_vec())])));
        sources.secrets.insert("s".to_owned(), Some(Data::from([("pw".to_owned(), b"x".to_vec())])));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let environment = resolve(&pod, container, &sources, &facts(), BTreeMap::new()).unwrap();
        let shown: Vec<_> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            shown,
            [
                "CPUS=2",
                "IP=10.0.2.5",
                "MEM=1024",
                "MILLI=1500",
                "NAME=web",
                "PW=x",
                "P_port=80",
                "TIER=a\"b",
                "URL=http://10.0.2.5:80/$(NOPE)"
            ]
        );
        assert_eq!(field(&pod, "metadata.labels", &facts()).unwrap(), "app=\"web\"\ntier=\"a\\\"b\"");
        sources.secrets.insert("s".to_owned(), Some(Data::new()));
        let error = resolve(&pod, container, &sources, &facts(), BTreeMap::new()).unwrap_err();
        assert_eq!(error.to_string(), "couldn't find key pw in Secret shop/s");
        sources.config_maps.clear();
        let error = resolve(&pod, container, &sources, &facts(), BTreeMap::new()).unwrap_err();
        assert_eq!(error.to_string(), "configmap \"m\" not found");
    }

    #[test]
    fn services_become_variables() {
        let service = |namespace: &str, name: &str, ports: serde_json::Value| -> core::Service {
            serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name},
                "spec": {"clusterIP": "10.0.128.7", "ports": ports}}))
            .unwrap()
        };
        let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
        let all = [
            service("shop", "front-end", ports.clone()),
            service("other", "hidden", ports),
            service("default", "kubernetes", json!([{"name": "https", "port": 443}])),
        ];
        let variables = service_variables(&all, "shop", true);
        assert_eq!(variables["FRONT_END_SERVICE_HOST"], "10.0.128.7");
        assert_eq!(variables["FRONT_END_SERVICE_PORT"], "80");
        assert_eq!(variables["FRONT_END_SERVICE_PORT_DNS"], "53");
        assert_eq!(variables["FRONT_END_PORT"], "tcp://10.0.128.7:80");
        assert_eq!(variables["FRONT_END_PORT_53_UDP_PROTO"], "udp");
        assert_eq!(variables["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
        assert!(!variables.keys().any(|name| name.starts_with("HIDDEN")));
        assert_eq!(service_variables(&all, "shop", false).len(), 8);
    }
}
