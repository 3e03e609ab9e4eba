//! From what a drill names to what there is: addresses of Services and Gateways, pods, nodes and zones.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Secret, Service};
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use serde_json::Value;

use crate::fault::{FaultError, PodSpec, Target, TargetSpec};
use crate::load::tls::Tls;
use crate::observe::{Observer, pod_is_ready};
use crate::resource::{LedgerSpec, LedgerTarget, LoadSpec, LoadTarget};

/// The label that says a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// How long a Gateway may take to get an address.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(60);

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// For people.
    pub shown: String,
}

fn unusable(target: &str, reason: impl Into<String>) -> FaultError {
    FaultError::Target { target: target.to_owned(), reason: reason.into() }
}

fn halves(name: &str) -> Result<(&str, &str), FaultError> {
    name.split_once('/').ok_or_else(|| unusable(name, "write NAMESPACE/NAME"))
}

/// Where the load goes.
///
/// # Errors
/// When there is no such Service, Gateway or host, or it has no address.
pub async fn load(client: &Client, load: &LoadSpec) -> Result<Place, FaultError> {
    match &load.target {
        LoadTarget::Url(url) => {
            let bare = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
            let authority = bare.map(|rest| rest.trim_end_matches('/')).filter(|it| !it.contains('/'));
            let authority =
                authority.ok_or_else(|| unusable(url, "write http://HOST, https://HOST, or either with :PORT"))?;
            let address = lookup(authority, if load.is_tls() { 443 } else { 80 }).await?;
            Ok(Place { address, host: authority.to_owned(), shown: url.clone() })
        }
        LoadTarget::Service(name) => {
            let address = service_port(client, name, load.is_tls()).await?;
            Ok(Place { address, host: name.replace('/', "."), shown: format!("service {name} at {address}") })
        }
        LoadTarget::Gateway(name) => gateway(client, name, load.is_tls()).await,
    }
}

/// How the load speaks TLS, if it does.
///
/// # Errors
/// When what is to be trusted is not there, or no certificate could be for the host.
pub async fn tls(client: &Client, load: &LoadSpec, place: &Place) -> Result<Option<Tls>, FaultError> {
    if !load.is_tls() {
        return Ok(None);
    }
    let named = load.tls.as_ref().and_then(|tls| tls.secret.as_deref());
    let trusted = match named {
        None => None,
        Some(name) => {
            let data = secret(client, name).await?;
            let pem = data.get("ca.crt").or_else(|| data.get("tls.crt"));
            Some(pem.ok_or_else(|| unusable(name, "the Secret has neither ca.crt nor tls.crt"))?.0.clone())
        }
    };
    let host = load.host.as_deref().unwrap_or(&place.host);
    Tls::new(host, trusted.as_deref()).map(Some).map_err(|error| unusable(host, error.to_string()))
}

/// The addresses of a ledger's store.
///
/// # Errors
/// When there is none.
pub async fn ledger(client: &Client, target: &LedgerTarget) -> Result<Vec<SocketAddr>, FaultError> {
    match target {
        LedgerTarget::Service(name) => Ok(vec![service(client, name).await?]),
        LedgerTarget::Addresses(all) => {
            let mut found = Vec::new();
            for authority in all {
                found.push(lookup(authority, 80).await?);
            }
            if found.is_empty() { Err(unusable("addresses", "name at least one HOST:PORT")) } else { Ok(found) }
        }
    }
}

/// User name and password of a ledger's store; empty where none is said.
///
/// # Errors
/// When there is no such Secret.
pub async fn login(client: &Client, ledger: &LedgerSpec) -> Result<(String, String), FaultError> {
    let data = match &ledger.secret {
        None => BTreeMap::new(),
        Some(name) => secret(client, name).await?,
    };
    let of = |key: &str| data.get(key).map(|value| String::from_utf8_lossy(&value.0).into_owned()).unwrap_or_default();
    let user = ledger.user.clone().unwrap_or_else(|| of("username"));
    Ok((user, ledger.password.clone().unwrap_or_else(|| of("password"))))
}

async fn secret(client: &Client, name: &str) -> Result<BTreeMap<String, ByteString>, FaultError> {
    let (namespace, secret) = halves(name)?;
    let secret = Api::<Secret>::namespaced(client.clone(), namespace).get(secret).await;
    let secret = secret.map_err(|error| unusable(&format!("secret {name}"), error.to_string()))?;
    Ok(secret.data.unwrap_or_default())
}

async fn lookup(authority: &str, port: u16) -> Result<SocketAddr, FaultError> {
    let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:{port}") };
    let found = tokio::net::lookup_host(&with_port).await;
    let found = found.map_err(|error| unusable(authority, error.to_string()))?.next();
    found.ok_or_else(|| unusable(authority, "the name has no address"))
}

/// The load-balancer address of a Service, `NAMESPACE/NAME`, else its cluster address, with its first port.
///
/// # Errors
/// When there is no such Service, or it has no address or port.
pub async fn service(client: &Client, name: &str) -> Result<SocketAddr, FaultError> {
    service_port(client, name, false).await
}

/// The same, for TLS with the port 443 or of the name `https`, if there is one.
async fn service_port(client: &Client, name: &str, tls: bool) -> Result<SocketAddr, FaultError> {
    let (namespace, service) = halves(name)?;
    let service = Api::<Service>::namespaced(client.clone(), namespace).get(service).await;
    let service = service.map_err(|error| unusable(name, error.to_string()))?;
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let outside = ingress.and_then(|ingress| ingress.ingress.as_ref()?.first()?.ip.clone());
    let spec = service.spec.unwrap_or_default();
    let address = outside.or(spec.cluster_ip).and_then(|ip| ip.parse().ok());
    let address = address.ok_or_else(|| unusable(name, "the Service has no address; is it headless?"))?;
    let ports = spec.ports.unwrap_or_default();
    let secure = ports.iter().find(|port| tls && (port.port == 443 || port.name.as_deref() == Some("https")));
    let port = secure.or(ports.first()).map(|port| port.port);
    let port =
        port.and_then(|port| u16::try_from(port).ok()).ok_or_else(|| unusable(name, "the Service has no port"))?;
    Ok(SocketAddr::new(address, port))
}

/// The address in a Gateway's status, which may be new and have none yet, with the port of its first listener for HTTP or, with TLS, HTTPS.
async fn gateway(client: &Client, name: &str, tls: bool) -> Result<Place, FaultError> {
    let (namespace, gateway) = halves(name)?;
    let path = format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways/{gateway}");
    let since = Instant::now();
    let (object, address) = loop {
        let object = object(client, name, &path).await?;
        match object["status"]["addresses"][0]["value"].as_str().map(str::to_owned) {
            Some(address) => break (object, address),
            None if since.elapsed() > ADDRESS_PATIENCE => {
                return Err(unusable(name, format!("it has no address after {} s", ADDRESS_PATIENCE.as_secs())));
            }
            None => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    let protocol = if tls { "HTTPS" } else { "HTTP" };
    let listeners = object["spec"]["listeners"].as_array();
    let listener = listeners.into_iter().flatten().find(|listener| listener["protocol"] == protocol);
    let listener = listener.ok_or_else(|| {
        unusable(name, format!("it has no listener for {protocol}; spec.load.tls says whether the load asks over TLS"))
    })?;
    let port = listener["port"].as_u64().unwrap_or(80);
    // A listener or a route for some hosts serves only those.
    let routes = object_list(client, name, "/apis/gateway.networking.k8s.io/v1/httproutes").await?;
    let host = listener["hostname"]
        .as_str()
        .filter(|host| !host.starts_with('*'))
        .or_else(|| routes.iter().find_map(|route| host_of(route, namespace, gateway)));
    let host = host.unwrap_or(&address).to_owned();
    let address = lookup(&format!("{address}:{port}"), 80).await?;
    Ok(Place { address, shown: format!("gateway {name} at {address}, host {host}"), host })
}

async fn object(client: &Client, name: &str, path: &str) -> Result<Value, FaultError> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| unusable(name, error.to_string()))?;
    client.request(request).await.map_err(|error| unusable(name, error.to_string()))
}

async fn object_list(client: &Client, name: &str, path: &str) -> Result<Vec<Value>, FaultError> {
    Ok(object(client, name, path).await?["items"].as_array().cloned().unwrap_or_default())
}

/// The first host that a route serves at this Gateway, if it names one.
fn host_of<'a>(route: &'a Value, namespace: &str, gateway: &str) -> Option<&'a str> {
    let own = route["metadata"]["namespace"].as_str()?;
    let is_parent =
        |parent: &Value| parent["name"] == gateway && parent["namespace"].as_str().unwrap_or(own) == namespace;
    route["spec"]["parentRefs"].as_array()?.iter().find(|parent| is_parent(parent))?;
    route["spec"]["hostnames"].as_array()?.iter().filter_map(Value::as_str).find(|host| !host.starts_with('*'))
}

/// What a fault's target means now; `any` is drawn. `near` is the namespace whose pods the load reaches.
///
/// # Errors
/// When there is no such thing.
pub fn fault(
    observer: &Observer,
    target: &TargetSpec,
    near: Option<&str>,
    random: &mut fastrand::Rng,
) -> Result<Target, FaultError> {
    let pair = |name: &str| halves(name).map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    match target {
        TargetSpec::Pod(PodSpec::Name(name)) => pair(name).map(|(namespace, name)| Target::Pod(namespace, name)),
        TargetSpec::Pod(PodSpec::Service(name)) => {
            let (namespace, service) = pair(name)?;
            let pods = pods_behind(observer, &namespace, &service);
            let pod = random.choice(&pods).ok_or_else(|| unusable(name, "no ready pod is behind this Service"))?;
            Ok(Target::Pod(namespace, pod.clone()))
        }
        TargetSpec::Node(name) if name == "any" => any_node(observer, near, random).map(Target::Node),
        TargetSpec::Node(name) => Ok(Target::Node(name.clone())),
        TargetSpec::Zone(name) if name == "any" => {
            let node = any_node(observer, near, random)?;
            let zone = observer.nodes.get("", &node).and_then(|node| node.labels().get(ZONE_LABEL).cloned());
            zone.map(Target::Zone).ok_or_else(|| unusable(&node, format!("the node has no label {ZONE_LABEL}")))
        }
        TargetSpec::Zone(name) => Ok(Target::Zone(name.clone())),
        TargetSpec::Deployment(name) => pair(name).map(|(namespace, name)| Target::Deployment(namespace, name)),
        TargetSpec::Secret(name) => pair(name).map(|(namespace, name)| Target::Secret(namespace, name)),
        TargetSpec::ControlPlane => Ok(Target::ControlPlane),
    }
}

/// Whether what a fault names is there, before anything is broken.
///
/// # Errors
/// What is not there, and where to look.
pub async fn exists(observer: &Observer, client: &Client, target: &TargetSpec) -> Result<(), FaultError> {
    let missing = |what: &str, look: String| Err(unusable(&target.to_string(), format!("{what}; {look}")));
    match target {
        TargetSpec::Pod(PodSpec::Service(name)) => ready_behind(observer, name),
        TargetSpec::Pod(PodSpec::Name(name)) => {
            let (namespace, pod) = halves(name)?;
            match observer.pods.get(namespace, pod) {
                Some(_) => Ok(()),
                None => missing("there is no such pod", format!("kubectl get pods -n {namespace}")),
            }
        }
        TargetSpec::Node(name) if name != "any" && observer.nodes.get("", name).is_none() => {
            missing("there is no such node", "kubectl get nodes".to_owned())
        }
        TargetSpec::Zone(name) => {
            let is_in = |node: &Node| name == "any" || node.labels().get(ZONE_LABEL) == Some(name);
            if observer.nodes.filter(is_in).is_empty() {
                return missing("no node is in it", format!("kubectl get nodes -L {ZONE_LABEL}"));
            }
            Ok(())
        }
        TargetSpec::Deployment(name) => {
            let (namespace, deployment) = halves(name)?;
            let found = Api::<Deployment>::namespaced(client.clone(), namespace).get(deployment).await;
            found.map(drop).map_err(|error| unusable(&target.to_string(), error.to_string()))
        }
        TargetSpec::Secret(name) => secret(client, name).await.map(drop),
        TargetSpec::Node(_) | TargetSpec::ControlPlane => Ok(()),
    }
}

/// Whether a Service, `NAMESPACE/NAME`, has a ready pod.
///
/// # Errors
/// That it has none, and why that may be.
pub fn ready_behind(observer: &Observer, name: &str) -> Result<(), FaultError> {
    let (namespace, service) = halves(name)?;
    if !pods_behind(observer, namespace, service).is_empty() {
        return Ok(());
    }
    let reason = format!(
        "no ready pod is behind this Service; is it there, does its selector match the labels of pods, and are these Ready? \
         kubectl describe service -n {namespace} {service}"
    );
    Err(unusable(&format!("service {name}"), reason))
}

/// The names of the ready pods behind a Service, in order.
fn pods_behind(observer: &Observer, namespace: &str, service: &str) -> Vec<String> {
    let slices = observer.slices.filter(|slice| {
        let named = slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == service);
        named && slice.namespace().as_deref() == Some(namespace)
    });
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let named = endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref()?.name.clone());
    let mut pods: Vec<String> =
        named.filter(|name| observer.pods.get(namespace, name).is_some_and(|pod| pod_is_ready(&pod))).collect();
    pods.sort();
    pods
}

/// A node that runs ready pods of the namespace; without a namespace, of any.
fn any_node(observer: &Observer, near: Option<&str>, random: &mut fastrand::Rng) -> Result<String, FaultError> {
    let wanted = |pod: &Pod| pod_is_ready(pod) && near.is_none_or(|near| pod.namespace().as_deref() == Some(near));
    let pods = observer.pods.filter(wanted);
    let mut nodes: Vec<String> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    nodes.sort();
    nodes.dedup();
    random.choice(&nodes).cloned().ok_or_else(|| unusable("any", "no node runs a ready pod of the service"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_host_is_one_that_the_gateway_serves() {
        let route = |namespace: &str, parent: Value, hosts: Value| json!({"metadata": {"namespace": namespace}, "spec": {"parentRefs": [parent], "hostnames": hosts}});
        for (route, host) in [
            (
                route("shop", json!({"name": "web"}), json!(["*.example.com", "shop.example.com"])),
                Some("shop.example.com"),
            ),
            (route("other", json!({"name": "web"}), json!(["a.example.com"])), None),
            (
                route("other", json!({"name": "web", "namespace": "shop"}), json!(["a.example.com"])),
                Some("a.example.com"),
            ),
            (route("shop", json!({"name": "web"}), Value::Null), None),
        ] {
            assert_eq!(host_of(&route, "shop", "web"), host, "{route}");
        }
    }
}
