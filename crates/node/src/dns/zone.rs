//! The names of the cluster: what each of them answers. Pure.
//!
//! Source: <https://github.com/kubernetes/dns/blob/master/docs/specification.md> (version 1.1.0); where it is silent, what
//! CoreDNS does by default.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use simple_dns::TYPE;

/// The domain of the cluster.
pub const DOMAIN: &str = "cluster.local";
/// The label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The version of the specification that is followed.
const SCHEMA: &str = "1.1.0";

/// What a record holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An address.
    Address(Ipv4Addr),
    /// A port at a name.
    Port(u16, String),
    /// The name of an address.
    Pointer(String),
    /// Another name for the same.
    Alias(String),
    /// Text.
    Text(String),
}

/// A name and what it holds; names are in lower case and without the last dot.
pub type Record = (String, Data);

/// What a question is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These records, and further ones that the client will ask for next.
    Records(Vec<Record>, Vec<Record>),
    /// The name exists, but not with this type.
    Empty,
    /// There is no such name.
    Missing,
    /// The name is not the cluster's.
    Elsewhere,
}

/// One endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Host {
    name: String,
    address: Ipv4Addr,
    /// Ports by name and protocol.
    ports: BTreeMap<(String, String), u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Address(Ipv4Addr),
    Headless(BTreeSet<Host>),
    External(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    /// Ports by name and protocol.
    ports: BTreeMap<(String, String), u16>,
}

/// All names of the cluster at one moment.
#[derive(Debug, Default)]
pub struct Zone {
    services: HashMap<(String, String), Entry>,
    namespaces: BTreeSet<String>,
    pointers: HashMap<Ipv4Addr, BTreeSet<String>>,
}

impl Zone {
    /// From Services and EndpointSlices.
    pub fn new<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut hosts = hosts(slices);
        let mut zone = Self::default();
        for service in services {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let key = (text(&service.metadata.namespace), text(&service.metadata.name));
            let Some(spec) = &service.spec else { continue };
            zone.namespaces.insert(key.0.clone());
            let own = format!("{}.{}.svc.{DOMAIN}", key.1, key.0);
            let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
                (Some("ExternalName"), _) => Kind::External(plain(&text(&spec.external_name))),
                (_, Some("None")) => Kind::Headless(hosts.remove(&key).unwrap_or_default()),
                (_, Some(address)) => match address.parse() {
                    Ok(address) => Kind::Address(address),
                    Err(_) => continue,
                },
                (_, None) => continue,
            };
            match &kind {
                Kind::Address(address) => drop(zone.pointers.entry(*address).or_default().insert(own)),
                Kind::Headless(hosts) => {
                    for host in hosts {
                        zone.pointers.entry(host.address).or_default().insert(format!("{}.{own}", host.name));
                    }
                }
                Kind::External(_) => {}
            }
            let ports = spec.ports.iter().flatten().filter_map(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
                Some(((text(&port.name), protocol), u16::try_from(port.port).ok()?))
            });
            zone.services.insert(key, Entry { kind, ports: ports.collect() });
        }
        zone
    }

    /// The answer to a question; `name` in any letters, with or without the last dot.
    pub fn answer(&self, name: &str, wanted: TYPE) -> Answer {
        let name = plain(name);
        if let Some(address) = reversed(&name) {
            return match self.pointers.get(&address) {
                Some(names) if wanted == TYPE::PTR => {
                    let records = names.iter().map(|own| (name.clone(), Data::Pointer(own.clone())));
                    Answer::Records(records.collect(), Vec::new())
                }
                Some(_) => Answer::Empty,
                None => Answer::Elsewhere,
            };
        }
        let Some(inner) = name.strip_suffix(DOMAIN) else { return Answer::Elsewhere };
        if inner.is_empty() {
            return Answer::Empty;
        }
        let Some(inner) = inner.strip_suffix('.') else { return Answer::Elsewhere };
        let labels: Vec<&str> = inner.split('.').rev().collect();
        match labels.as_slice() {
            ["dns-version"] if wanted == TYPE::TXT => {
                Answer::Records(vec![(name, Data::Text(SCHEMA.to_owned()))], Vec::new())
            }
            ["dns-version" | "svc" | "pod"] => Answer::Empty,
            ["svc" | "pod", namespace] if self.namespaces.contains(*namespace) => Answer::Empty,
            ["pod", namespace, dashed] if self.namespaces.contains(*namespace) => match undashed(dashed) {
                Some(address) if wanted == TYPE::A => Answer::Records(vec![(name, Data::Address(address))], Vec::new()),
                Some(_) => Answer::Empty,
                None => Answer::Missing,
            },
            ["svc", namespace, service, rest @ ..] => {
                match self.services.get(&((*namespace).to_owned(), (*service).to_owned())) {
                    Some(entry) => entry.answer(&name, &format!("{service}.{namespace}.svc.{DOMAIN}"), rest, wanted),
                    None => Answer::Missing,
                }
            }
            _ => Answer::Missing,
        }
    }
}

impl Entry {
    /// `rest` are the labels before the service's own name `own`, the last one first.
    fn answer(&self, name: &str, own: &str, rest: &[&str], wanted: TYPE) -> Answer {
        let of_type = |type_: TYPE, records: Vec<Record>, further: Vec<Record>| {
            if wanted == type_ && !records.is_empty() { Answer::Records(records, further) } else { Answer::Empty }
        };
        let address = |address: &Ipv4Addr| (name.to_owned(), Data::Address(*address));
        match (&self.kind, rest) {
            (Kind::External(target), []) => {
                Answer::Records(vec![(name.to_owned(), Data::Alias(target.clone()))], Vec::new())
            }
            (Kind::Address(_), []) if wanted == TYPE::SRV => self.ports(name, own, |_| true),
            (Kind::Headless(_), []) if wanted == TYPE::SRV => self.ports(name, own, |_| true),
            (Kind::Address(own), []) => of_type(TYPE::A, vec![address(own)], Vec::new()),
            // A name without anybody behind it is not there, so that clients go on searching.
            (Kind::Headless(hosts), []) if hosts.is_empty() => Answer::Missing,
            (Kind::Headless(hosts), []) => {
                of_type(TYPE::A, hosts.iter().map(|host| address(&host.address)).collect(), Vec::new())
            }
            (Kind::Headless(hosts), [host]) if !host.starts_with('_') => {
                let found: Vec<Record> =
                    hosts.iter().filter(|h| h.name == *host).map(|h| address(&h.address)).collect();
                if found.is_empty() { Answer::Missing } else { of_type(TYPE::A, found, Vec::new()) }
            }
            (Kind::Address(_) | Kind::Headless(_), [protocol, port]) => {
                let (Some(protocol), Some(port)) = (protocol.strip_prefix('_'), port.strip_prefix('_')) else {
                    return Answer::Missing;
                };
                let found = self.ports(name, own, |(name, of)| name == port && of == protocol);
                match found {
                    Answer::Records(..) if wanted != TYPE::SRV => Answer::Empty,
                    Answer::Empty => Answer::Missing,
                    found => found,
                }
            }
            _ => Answer::Missing,
        }
    }

    /// The ports that are wanted, and the addresses of the names they are at.
    fn ports(&self, name: &str, own: &str, wanted: impl Fn(&(String, String)) -> bool) -> Answer {
        let (mut records, mut further) = (Vec::new(), Vec::new());
        match &self.kind {
            Kind::Address(address) => {
                for port in self.ports.iter().filter(|(key, _)| wanted(key)).map(|(_, port)| *port) {
                    records.push((name.to_owned(), Data::Port(port, own.to_owned())));
                    further.push((own.to_owned(), Data::Address(*address)));
                }
            }
            Kind::Headless(hosts) => {
                for host in hosts {
                    let target = format!("{}.{own}", host.name);
                    for port in host.ports.iter().filter(|(key, _)| wanted(key)).map(|(_, port)| *port) {
                        records.push((name.to_owned(), Data::Port(port, target.clone())));
                        further.push((target.clone(), Data::Address(host.address)));
                    }
                }
            }
            Kind::External(_) => {}
        }
        further.dedup();
        if records.is_empty() { Answer::Empty } else { Answer::Records(records, further) }
    }
}

/// The ready endpoints of each service, by namespace and name.
fn hosts<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> HashMap<(String, String), BTreeSet<Host>> {
    let mut found: HashMap<_, BTreeSet<Host>> = HashMap::new();
    for slice in slices.into_iter().filter(|slice| slice.address_type == "IPv4") {
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) else { continue };
        let ports: BTreeMap<_, _> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
                Some(((port.name.clone().unwrap_or_default(), protocol), u16::try_from(port.port?).ok()?))
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<Ipv4Addr>().ok()) else {
                continue;
            };
            if ready {
                let dashed = address.to_string().replace('.', "-");
                let name = endpoint.hostname.clone().unwrap_or(dashed).to_lowercase();
                let host = Host { name, address, ports: ports.clone() };
                found.entry((namespace.clone(), service.clone())).or_default().insert(host);
            }
        }
    }
    found
}

/// In small letters, without the last dot.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The address of `4.3.2.1.in-addr.arpa`.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let inner = name.strip_suffix(".in-addr.arpa")?;
    let parts: Vec<u8> = inner.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [d, c, b, a] = parts.as_slice() else { return None };
    Some(Ipv4Addr::new(*a, *b, *c, *d))
}

/// The address of `1-2-3-4`.
fn undashed(label: &str) -> Option<Ipv4Addr> {
    label.replace('-', ".").parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use super::*;
    use serde_json::{Value, json};

    fn zone() -> Zone {
        let service = |name: &str, spec: Value| -> Service {
            serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})).unwrap()
        };
        let services = [
            service("front", json!({"clusterIP": "10.90.128.20", "ports": [{"name": "http", "port": 80}]})),
            service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
            service("none", json!({"clusterIP": "None"})),
            service("out", json!({"type": "ExternalName", "externalName": "Example.org."})),
        ];
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}], "endpoints": [
                {"addresses": ["10.90.2.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.90.4.7"]},
                {"addresses": ["10.90.4.8"], "conditions": {"ready": false}}]}))
        .unwrap();
        Zone::new(&services, [&slice])
    }

    fn ask(name: &str, wanted: TYPE) -> String {
        match zone().answer(name, wanted) {
            Answer::Records(records, further) => {
                let show = |(name, data): Record| format!("{} {data:?}", name.split('.').next().unwrap());
                let all = [records, further].map(|list| list.into_iter().map(show).collect::<Vec<_>>().join(", "));
                all.join(" + ").trim_end_matches(" + ").to_owned()
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn names_of_services() {
        let d = "shop.svc.cluster.local";
        assert_eq!(ask(&format!("Front.{d}."), TYPE::A), "front Address(10.90.128.20)");
        assert_eq!(ask(&format!("front.{d}"), TYPE::AAAA), "Empty");
        assert_eq!(ask(&format!("db.{d}"), TYPE::A), "db Address(10.90.4.7), db Address(10.90.2.5)");
        assert_eq!(ask(&format!("db-0.db.{d}"), TYPE::A), "db-0 Address(10.90.2.5)");
        assert_eq!(ask(&format!("10-90-4-7.db.{d}"), TYPE::A), "10-90-4-7 Address(10.90.4.7)");
        assert_eq!(ask(&format!("none.{d}"), TYPE::A), "Missing");
        assert_eq!(ask(&format!("out.{d}"), TYPE::A), "out Alias(\"example.org\")");
        for name in [
            format!("nobody.{d}"),
            format!("x.front.{d}"),
            format!("www.example.org.{d}"),
            "x.cluster.local".to_owned(),
        ] {
            assert_eq!(ask(&name, TYPE::A), "Missing", "{name}");
        }
        assert_eq!(ask(d, TYPE::A), "Empty");
        assert_eq!(ask("nowhere.svc.cluster.local", TYPE::A), "Missing");
        assert_eq!(ask("www.example.org", TYPE::A), "Elsewhere");
        assert_eq!(ask("notcluster.local", TYPE::A), "Elsewhere");
    }

    #[test]
    fn ports_pods_pointers_and_the_version() {
        let d = "shop.svc.cluster.local";
        assert_eq!(
            ask(&format!("_http._tcp.front.{d}"), TYPE::SRV),
            format!("_http Port(80, \"front.{d}\") + front Address(10.90.128.20)")
        );
        let found = ask(&format!("_sql._tcp.db.{d}"), TYPE::SRV);
        assert!(found.contains(&format!("Port(5432, \"db-0.db.{d}\")")) && found.contains("db-0 Address(10.90.2.5)"));
        assert_eq!(ask(&format!("_none._tcp.db.{d}"), TYPE::SRV), "Missing");
        assert_eq!(ask("10-90-2-5.shop.pod.cluster.local", TYPE::A), "10-90-2-5 Address(10.90.2.5)");
        assert_eq!(ask("20.128.90.10.in-addr.arpa", TYPE::PTR), format!("20 Pointer(\"front.{d}\")"));
        assert_eq!(ask("5.2.90.10.in-addr.arpa", TYPE::PTR), format!("5 Pointer(\"db-0.db.{d}\")"));
        assert_eq!(ask("8.8.8.8.in-addr.arpa", TYPE::PTR), "Elsewhere");
        assert_eq!(ask("dns-version.cluster.local", TYPE::TXT), "dns-version Text(\"1.1.0\")");
    }
}
