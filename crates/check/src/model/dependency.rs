//! Who calls whom: Services that a workload's settings name.
//!
//! Looked through: values of `env`, commands and arguments, and the ConfigMaps and Secrets a pod template refers to. A name
//! counts where it stands as a host: `http://cart:8080`, `cart:6379`, `redis.shop.svc`, or a variable such as `CART_HOST`
//! that holds nothing but a name. The annotation [`DEPENDS_ON`] replaces all that: names by commas, `?` after one that can
//! be done without.
//!
//! Deliberately absent: what a program reads from elsewhere (a database of addresses, a discovery service, its own defaults).

use std::collections::BTreeMap;

use mainstay_model::meta::{self, list_at};
use serde_json::Value;

use super::workload::Workload;
use crate::manifest::Object;

/// The annotation of a workload: what it needs, `cart, shop/redis, ads?`.
pub const DEPENDS_ON: &str = "check.mainstay.dev/depends-on";
/// Ends of names of variables that hold a bare host.
const HOST_VARIABLES: &[&str] = &[
    "HOST",
    "HOSTS",
    "HOSTNAME",
    "ADDR",
    "ADDRESS",
    "SERVER",
    "SERVERS",
    "SERVICE",
    "ENDPOINT",
    "ENDPOINTS",
    "URL",
    "URLS",
    "URI",
    "UPSTREAM",
    "BACKEND",
    "BROKERS",
    "NODES",
    "PEERS",
];

/// How a workload needs a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Does without it, with less.
    Soft,
    /// Cannot answer without it.
    Hard,
    /// Its liveness probe asks it: without it the containers are killed.
    Liveness,
}

/// A service that a workload needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// `namespace/name`.
    pub service: String,
    /// How.
    pub need: Need,
    /// Where in the workload's object that is said, or found.
    pub path: String,
    /// How it was found, for people.
    pub found: String,
}

/// The services that can be named: `namespace/name`.
pub(crate) type Names<'n> = &'n std::collections::BTreeSet<String>;

/// What a workload needs, each service once, the strongest need first.
pub(crate) fn of(workload: &Workload, object: &Object, objects: &[Object], names: Names<'_>) -> Vec<Dependency> {
    let mut all: BTreeMap<String, Dependency> = BTreeMap::new();
    let mut add = |dependency: Dependency| {
        let slot = all.entry(dependency.service.clone()).or_insert_with(|| dependency.clone());
        if dependency.need > slot.need {
            *slot = dependency;
        }
    };
    if let Some(text) = object.annotation(DEPENDS_ON) {
        stated(text, &workload.namespace, names).into_iter().for_each(&mut add);
    } else {
        let read = Reading { namespace: &workload.namespace, names };
        for (path, name, text) in texts(workload, objects) {
            let found = |service: String| Dependency {
                found: if name.is_empty() { format!("{path} names it") } else { format!("{name} names it") },
                service,
                need: Need::Hard,
                path: workload.path(&path),
            };
            read.services_in(&name, &text).into_iter().map(found).for_each(&mut add);
        }
    }
    for (index, container) in list_at(workload.spec(), "containers").iter().enumerate() {
        let path = format!("containers[{index}].livenessProbe");
        let read = Reading { namespace: &workload.namespace, names };
        for service in probed(&container["livenessProbe"], &read) {
            let found = "the liveness probe asks it".to_owned();
            add(Dependency { service, need: Need::Liveness, path: workload.path(&path), found });
        }
    }
    all.into_values().collect()
}

fn stated(text: &str, namespace: &str, names: Names<'_>) -> Vec<Dependency> {
    let one = |written: &str| {
        let (name, need) = match written.strip_suffix('?') {
            Some(name) => (name, Need::Soft),
            None => (written, Need::Hard),
        };
        let service = if name.contains('/') { name.to_owned() } else { format!("{namespace}/{name}") };
        let path = "metadata.annotations".to_owned();
        names.contains(&service).then(|| Dependency { service, need, path, found: format!("annotation {DEPENDS_ON}") })
    };
    text.split(',').map(str::trim).filter(|written| !written.is_empty()).filter_map(one).collect()
}

/// Services whose answer a probe needs: named in its command, or as its host.
fn probed(probe: &Value, read: &Reading<'_>) -> Vec<String> {
    let command = list_at(probe, "exec.command").iter().filter_map(Value::as_str);
    let mut all: Vec<String> = command.flat_map(|word| read.services_in("", word)).collect();
    // The word after `-h` or `--host` is a host, whatever stands around it.
    let words: Vec<&str> =
        list_at(probe, "exec.command").iter().filter_map(Value::as_str).flat_map(str::split_whitespace).collect();
    let hosts = words.windows(2).filter(|pair| matches!(pair[0], "-h" | "--host" | "-host" | "nc" | "-z" | "-zv"));
    all.extend(hosts.flat_map(|pair| read.services_in("PROBE_HOST", pair[1])));
    for action in ["httpGet", "tcpSocket"] {
        if let Some(host) = probe[action]["host"].as_str() {
            all.extend(read.services_in("PROBE_HOST", host));
        }
    }
    all
}

/// Texts of a pod template: path in its spec, name of the variable or key, value.
fn texts(workload: &Workload, objects: &[Object]) -> Vec<(String, String, String)> {
    let spec = workload.spec();
    let mut all = Vec::new();
    let config = |kind: &str, name: &str| {
        let is_it = |object: &&Object| {
            object.kind() == kind && object.namespace() == workload.namespace && object.name() == name
        };
        objects.iter().find(is_it)
    };
    let of_config = |kind: &str, name: &Value, key: Option<&str>, path: &str| {
        let object = name.as_str().and_then(|name| config(kind, name));
        let data = object.into_iter().flat_map(|object| ["data", "stringData"].map(|field| &object.written[field]));
        let pairs =
            data.filter_map(Value::as_object).flatten().filter(|(own, _)| key.is_none_or(|key| key == own.as_str()));
        let texts = pairs.filter_map(|(own, value)| Some((path.to_owned(), own.clone(), value.as_str()?.to_owned())));
        texts.collect::<Vec<_>>()
    };
    for list in ["initContainers", "containers"] {
        for (index, container) in list_at(spec, list).iter().enumerate() {
            let base = format!("{list}[{index}]");
            for (at, variable) in list_at(container, "env").iter().enumerate() {
                let (path, name) = (format!("{base}.env[{at}]"), variable["name"].as_str().unwrap_or_default());
                if let Some(value) = variable["value"].as_str() {
                    all.push((path.clone(), name.to_owned(), value.to_owned()));
                }
                for (kind, source) in [("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")] {
                    let from = &variable["valueFrom"][source];
                    let texts = of_config(kind, &from["name"], from["key"].as_str(), &path);
                    all.extend(texts.into_iter().map(|(path, _, text)| (path, name.to_owned(), text)));
                }
            }
            for (at, from) in list_at(container, "envFrom").iter().enumerate() {
                let path = format!("{base}.envFrom[{at}]");
                all.extend(of_config("ConfigMap", &from["configMapRef"]["name"], None, &path));
                all.extend(of_config("Secret", &from["secretRef"]["name"], None, &path));
            }
            for field in ["command", "args"] {
                let words = list_at(container, field).iter().enumerate();
                all.extend(words.filter_map(|(at, word)| {
                    Some((format!("{base}.{field}[{at}]"), String::new(), word.as_str()?.to_owned()))
                }));
            }
        }
    }
    for (at, volume) in list_at(spec, "volumes").iter().enumerate() {
        let path = format!("volumes[{at}]");
        // A file's name says nothing of what it holds: only hosts that look like hosts count there.
        let files = of_config("ConfigMap", &volume["configMap"]["name"], None, &path);
        let secret = of_config("Secret", &volume["secret"]["secretName"], None, &path);
        all.extend(files.into_iter().chain(secret).map(|(path, _, text)| (path, String::new(), text)));
    }
    all
}

struct Reading<'n> {
    namespace: &'n str,
    names: Names<'n>,
}

impl Reading<'_> {
    /// Services that a text names as hosts; `variable` is the name of what holds it.
    fn services_in(&self, variable: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let mut rest = text;
        let mut before = "";
        while let Some(start) = rest.find(is_host) {
            before = if start == 0 { before } else { &rest[..start] };
            let word = &rest[start..];
            let end = word.find(|c| !is_host(c)).unwrap_or(word.len());
            let (token, after) = word.split_at(end);
            let with_port = after.strip_prefix(':').is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()));
            let in_address = before.ends_with("://") || before.ends_with('@') || with_port;
            let is_alone = token.len() == text.trim().len() || is_list(text);
            let is_named = is_alone && holds_hosts(variable);
            if let Some(service) = self.service(token, in_address || is_named) {
                found.push(service);
            }
            before = "";
            rest = after;
        }
        found
    }

    /// The service of a host name; one with a single part only where it must be a host.
    fn service(&self, token: &str, is_host: bool) -> Option<String> {
        let parts: Vec<&str> = token.trim_matches('.').split('.').collect();
        let known = |namespace: &str, name: &str| {
            let key = format!("{namespace}/{name}");
            self.names.contains(&key).then_some(key)
        };
        // `pod.service.namespace.svc` and `service.namespace.svc`, with or without the cluster's domain.
        if let Some(svc) = parts.iter().position(|part| *part == "svc").filter(|svc| *svc >= 2) {
            return known(parts[svc - 1], parts[svc - 2]);
        }
        match parts.as_slice() {
            [name] if is_host => known(self.namespace, name),
            [name, namespace] => {
                known(namespace, name).or_else(|| known(self.namespace, namespace).filter(|_| is_host))
            }
            [_, name, namespace] if is_host => known(namespace, name),
            _ => None,
        }
    }
}

/// Whether a text is nothing but names by commas or blanks.
fn is_list(text: &str) -> bool {
    text.split([',', ' ']).all(|part| part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')))
}

fn holds_hosts(variable: &str) -> bool {
    let upper = variable.to_ascii_uppercase().replace(['.', '-'], "_");
    HOST_VARIABLES.iter().any(|end| upper == *end || upper.ends_with(&format!("_{end}")))
}

/// Whether an object of the network leads to a service: the backends of an Ingress or a route.
pub(crate) fn backends(object: &Object) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let value = &object.written;
    let mut add = |name: &Value, namespace: Option<&str>, path: String| {
        if let Some(name) = name.as_str() {
            all.push((format!("{}/{name}", namespace.unwrap_or(object.namespace())), path));
        }
    };
    match object.kind() {
        "Ingress" => {
            add(&value["spec"]["defaultBackend"]["service"]["name"], None, "spec.defaultBackend".to_owned());
            for (rule, written) in list_at(value, "spec.rules").iter().enumerate() {
                for (path, written) in list_at(written, "http.paths").iter().enumerate() {
                    let place = format!("spec.rules[{rule}].http.paths[{path}].backend");
                    add(&written["backend"]["service"]["name"], None, place);
                }
            }
        }
        "HTTPRoute" | "GRPCRoute" | "TCPRoute" | "TLSRoute" => {
            for (rule, written) in list_at(value, "spec.rules").iter().enumerate() {
                for (at, backend) in list_at(written, "backendRefs").iter().enumerate() {
                    let is_service = backend.get("kind").is_none_or(|kind| kind == "Service");
                    if is_service {
                        let place = format!("spec.rules[{rule}].backendRefs[{at}]");
                        add(&backend["name"], meta::str_at(backend, "namespace"), place);
                    }
                }
            }
        }
        _ => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn hosts_are_found_where_they_stand_as_hosts() {
        let names: BTreeSet<String> = ["shop/cart", "shop/redis", "data/db", "shop/zk"].map(str::to_owned).into();
        let read = Reading { namespace: "shop", names: &names };
        for (variable, text, expected) in [
            ("CART_URL", "http://cart:8080/items", vec!["shop/cart"]),
            ("X", "http://cart", vec!["shop/cart"]),
            ("X", "redis.shop.svc", vec!["shop/redis"]),
            ("X", "postgres://user:pw@db.data.svc.cluster.local:5432/x", vec!["data/db"]),
            ("X", "db.data", vec!["data/db"]),
            ("X", "zk-0.zk.shop.svc:2181,zk-1.zk.shop.svc:2181", vec!["shop/zk", "shop/zk"]),
            ("X", "cart:6379", vec!["shop/cart"]),
            ("REDIS_HOST", "redis", vec!["shop/redis"]),
            ("redis.host", "redis", vec!["shop/redis"]),
            ("BROKERS", "cart,redis", vec!["shop/cart", "shop/redis"]),
            ("TITLE", "cart", vec![]),
            ("TITLE", "the cart of the shop", vec![]),
            ("X", "http://other:8080/cart", vec![]),
            ("X", "http://cart.example.com/", vec![]),
        ] {
            assert_eq!(read.services_in(variable, text), expected, "{variable}={text}");
        }
    }

    #[test]
    fn the_annotation_says_what_can_be_done_without() {
        let names: BTreeSet<String> = ["a/cart", "b/redis"].map(str::to_owned).into();
        let all = stated(" cart?, b/redis, nothing", "a", &names);
        let shown: Vec<_> = all.iter().map(|one| (one.service.as_str(), one.need)).collect();
        assert_eq!(shown, [("a/cart", Need::Soft), ("b/redis", Need::Hard)]);
    }
}
