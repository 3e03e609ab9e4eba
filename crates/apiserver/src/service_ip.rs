//! Addresses and node ports of Services.
//!
//! Flow: a write of a Service that needs an address or port looks at all Services, takes a free one from a position that
//! moves on, and holds a lock until the Service is filled in; a claim keeps what was handed out from being handed out again
//! before its Service is stored.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/>.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use mainstay_model::resource::known;
use mainstay_model::status::{ApiError, FieldError, FieldErrorKind};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::api::Api;
use crate::rest::decode_entry;

/// `nodePort` values that may be used (kube-apiserver's default).
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// How long something handed out stays taken although no Service shows it yet.
const CLAIM: Duration = Duration::from_secs(30);

pub(crate) struct ServiceAddresses {
    first: u32,
    size: u32,
    reserved: u32,
    claims: Mutex<Claims>,
}

#[derive(Default)]
struct Claims {
    addresses: HashMap<Ipv4Addr, Instant>,
    ports: HashMap<u16, Instant>,
}

/// What the stored Services use.
struct Used {
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

impl ServiceAddresses {
    pub(crate) fn new(range: Ipv4Addr, prefix: u8, reserved: u32) -> Self {
        let size = 1u32 << (32 - u32::from(prefix.clamp(8, 30)));
        Self { first: u32::from(range), size, reserved, claims: Mutex::default() }
    }

    /// Gives a Service the addresses and ports it needs and takes what it no longer uses.
    ///
    /// # Errors
    /// 422 for an address outside the range or in use, 500 when the range is exhausted.
    pub(crate) async fn fill(&self, api: &Api, service: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
        if let Some(old) = old {
            inherit(service, old, &kind);
        }
        if kind == "ExternalName" {
            if let Some(spec) = service["spec"].as_object_mut() {
                spec.remove("clusterIP");
                spec.remove("clusterIPs");
            }
            return Ok(());
        }
        let wants_ports = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
            && service["spec"]["allocateLoadBalancerNodePorts"].as_bool() != Some(false);
        let mut claims = self.claims.lock().await;
        claims.addresses.retain(|_, since| since.elapsed() < CLAIM);
        claims.ports.retain(|_, since| since.elapsed() < CLAIM);
        let used = used(api, service).await?;
        self.fill_address(&mut claims, &used, service)?;
        if wants_ports {
            fill_ports(&mut claims, &used, service)?;
        } else {
            drop_ports(service, &kind);
        }
        fill_health_port(&mut claims, &used, service, old)
    }

    fn fill_address(&self, claims: &mut Claims, used: &Used, service: &mut Value) -> Result<(), ApiError> {
        let wanted = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        if wanted == "None" {
            service["spec"]["clusterIPs"] = json!(["None"]);
            return Ok(());
        }
        let refuse = |detail: &str| {
            let value = json!(wanted);
            let cause = FieldError::with_value("spec.clusterIP", FieldErrorKind::Invalid, value, detail);
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            ApiError::invalid("", "Service", name, vec![cause])
        };
        let address = if wanted.is_empty() {
            self.free(claims, used).ok_or_else(|| ApiError::internal("the service address range is exhausted"))?
        } else {
            let address: Ipv4Addr = wanted.parse().map_err(|_| refuse("must be a valid IPv4 address or \"None\""))?;
            if !(1..self.size - 1).contains(&u32::from(address).wrapping_sub(self.first)) {
                return Err(refuse("the provided IP is not in the valid range of service addresses"));
            }
            if used.addresses.contains(&address) {
                return Err(refuse("provided IP is already allocated"));
            }
            address
        };
        claims.addresses.insert(address, Instant::now());
        service["spec"]["clusterIP"] = json!(address);
        service["spec"]["clusterIPs"] = json!([address]);
        Ok(())
    }

    /// A free address from a random position on, so that one given back is not soon given to another.
    fn free(&self, claims: &Claims, used: &Used) -> Option<Ipv4Addr> {
        let (low, high) = (self.reserved + 1, self.size - 1);
        let start = fastrand::u32(low..high);
        (start..high)
            .chain(low..start)
            .map(|offset| Ipv4Addr::from(self.first + offset))
            .find(|address| !used.addresses.contains(address) && !claims.addresses.contains_key(address))
    }
}

/// Fields that a client may leave out of an update keep their values.
fn inherit(service: &mut Value, old: &Value, kind: &str) {
    for field in ["clusterIP", "clusterIPs"] {
        if service["spec"][field].is_null() && kind != "ExternalName" && !old["spec"][field].is_null() {
            service["spec"][field] = old["spec"][field].clone();
        }
    }
    let old_ports = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
        let same = |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        if port["nodePort"].as_u64().unwrap_or(0) == 0
            && let Some(before) = old_ports.iter().find(same)
            && !before["nodePort"].is_null()
        {
            port["nodePort"] = before["nodePort"].clone();
        }
    }
}

fn fill_ports(claims: &mut Claims, used: &Used, service: &mut Value) -> Result<(), ApiError> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut own = HashSet::new();
    for (i, port) in service["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
        let given = port["nodePort"].as_u64().unwrap_or(0) as u16;
        let chosen = if given == 0 {
            free_port(claims, used, &own)?
        } else if used.ports.contains(&given) {
            let field = format!("spec.ports[{i}].nodePort");
            let detail = "provided port is already allocated";
            let cause = FieldError::with_value(field, FieldErrorKind::Invalid, json!(given), detail);
            return Err(ApiError::invalid("", "Service", &name, vec![cause]));
        } else {
            given
        };
        own.insert(chosen);
        claims.ports.insert(chosen, Instant::now());
        port["nodePort"] = json!(chosen);
    }
    Ok(())
}

/// A free port from a random one on.
fn free_port(claims: &Claims, used: &Used, own: &HashSet<u16>) -> Result<u16, ApiError> {
    let start = fastrand::u16(NODE_PORTS);
    let free = |p: &u16| !used.ports.contains(p) && !claims.ports.contains_key(p) && !own.contains(p);
    let found = (start..=*NODE_PORTS.end()).chain(*NODE_PORTS.start()..start).find(free);
    found.ok_or_else(|| ApiError::internal("all node ports are in use"))
}

/// The port at which nodes say whether they have endpoints: only of load balancers that keep to a node's own, and never another
/// one once it is given.
///
/// Source: <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/>, `healthCheckNodePort`.
fn fill_health_port(
    claims: &mut Claims,
    used: &Used,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    const FIELD: &str = "healthCheckNodePort";
    let spec = &service["spec"];
    if spec["type"] != "LoadBalancer" || spec["externalTrafficPolicy"] != "Local" {
        service["spec"].as_object_mut().map(|spec| spec.remove(FIELD));
        return Ok(());
    }
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let before = old.and_then(|old| number(&old["spec"][FIELD]));
    let given = number(&spec[FIELD]);
    let refuse = |port: u16, detail: &str| {
        let field = format!("spec.{FIELD}");
        let cause = FieldError::with_value(field, FieldErrorKind::Invalid, json!(port), detail);
        ApiError::invalid("", "Service", service["metadata"]["name"].as_str().unwrap_or_default(), vec![cause])
    };
    let chosen = match (before, given) {
        (Some(before), Some(given)) if before != given => return Err(refuse(given, "field is immutable")),
        (Some(port), _) => port,
        (None, Some(given)) if used.ports.contains(&given) => {
            return Err(refuse(given, "provided port is already allocated"));
        }
        (None, Some(given)) => given,
        (None, None) => {
            let ports = spec["ports"].as_array().into_iter().flatten();
            let own = ports.filter_map(|port| number(&port["nodePort"])).collect();
            free_port(claims, used, &own)?
        }
    };
    claims.ports.insert(chosen, Instant::now());
    service["spec"][FIELD] = json!(chosen);
    Ok(())
}

fn drop_ports(service: &mut Value, kind: &str) {
    if kind != "ClusterIP" {
        return;
    }
    for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
        port.as_object_mut().map(|port| port.remove("nodePort"));
    }
}

/// What all other Services use.
async fn used(api: &Api, service: &Value) -> Result<Used, ApiError> {
    let resource = known("Service");
    let range = api.store.range(&resource.key_prefix(), None, None, None).await.map_err(ApiError::internal)?;
    let mut used = Used { addresses: HashSet::new(), ports: HashSet::new() };
    for entry in &range.entries {
        let other = decode_entry(resource, entry);
        let same = |field: &str| other["metadata"][field] == service["metadata"][field];
        if same("namespace") && same("name") {
            continue;
        }
        used.addresses.extend(other["spec"]["clusterIP"].as_str().and_then(|text| text.parse::<Ipv4Addr>().ok()));
        let ports = other["spec"]["ports"].as_array().into_iter().flatten();
        let health = other["spec"]["healthCheckNodePort"].as_u64();
        used.ports.extend(ports.filter_map(|port| port["nodePort"].as_u64()).chain(health).map(|port| port as u16));
    }
    Ok(used)
}
