//! Rules of Service, EndpointSlice, Ingress and NetworkPolicy.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::faults::{Faults, get, items, text};
use super::{IMMUTABLE, metadata};
use crate::meta::{self, names};

/// Ports of nodes that services may use, both ends included.
pub const NODE_PORTS: (i64, i64) = (30_000, 32_767);

/// The rule for ranges of addresses.
pub(super) const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
    (length <= if address.is_ipv6() { 128 } else { 32 }).then_some((address, length))
}

/// Whether a text is a range of addresses, such as `10.0.0.0/8`.
pub(super) fn is_cidr(text: &str) -> bool {
    range(text).is_some()
}

/// Whether a range lies within another and is smaller. What is no range is not judged.
fn is_within(inner: &str, outer: &str) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let (Some((inner, length)), Some((outer, wide))) = (range(inner), range(outer)) else { return true };
    let mask = u128::MAX.checked_shl(128 - u32::from(wide)).unwrap_or(0);
    inner.is_ipv6() == outer.is_ipv6() && length > wide && bits(inner) & mask == bits(outer) & mask
}

pub(super) fn service(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec.ports", "") };
    let service_type = text(spec, "type").unwrap_or("ClusterIP");
    faults.one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    let headless = text(spec, "clusterIP") == Some("None");
    if service_type == "ExternalName" {
        match text(spec, "externalName") {
            Some(name) => faults.named("spec.externalName", name, names::check_subdomain(name.trim_end_matches('.'))),
            None => faults.required("spec.externalName", ""),
        }
        if text(spec, "clusterIP").is_some() {
            faults.forbidden("spec.clusterIPs[0]", "may not be set when `type` is 'ExternalName'");
        }
    } else if items(spec, "ports").is_empty() && !headless {
        faults.required("spec.ports", "");
    }
    if headless && matches!(service_type, "NodePort" | "LoadBalancer") {
        faults.invalid(
            "spec.clusterIPs[0]",
            &json!("None"),
            format!("may not be set to 'None' for {service_type} services"),
        );
    }
    if let Some(address) =
        text(spec, "clusterIP").filter(|address| *address != "None" && address.parse::<IpAddr>().is_err())
    {
        faults.invalid(
            "spec.clusterIPs[0]",
            &json!(address),
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
    service_ports(faults, spec, service_type, headless);
    faults.one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"]);
    if let Some(client) = get(spec, "sessionAffinityConfig").and_then(|config| get(config, "clientIP")) {
        faults.between(client, "spec.sessionAffinityConfig.clientIP", "timeoutSeconds", (1, 86_400));
    }
    faults.one_of(spec, "spec", "internalTrafficPolicy", &["Cluster", "Local"]);
    faults.one_of(spec, "spec", "externalTrafficPolicy", &["Cluster", "Local"]);
    faults.one_of(spec, "spec", "ipFamilyPolicy", &["SingleStack", "PreferDualStack", "RequireDualStack"]);
    if text(spec, "externalTrafficPolicy").is_some()
        && service_type == "ClusterIP"
        && items(spec, "externalIPs").is_empty()
    {
        let rule = "may only be set for externally-accessible services";
        faults.invalid("spec.externalTrafficPolicy", &spec["externalTrafficPolicy"], rule);
    }
    families(faults, spec);
    balancer(faults, spec, service_type);
    metadata::labels(faults, spec, "spec", "selector");
    for (i, address) in items(spec, "externalIPs").iter().enumerate() {
        if address.as_str().is_none_or(|address| address.parse::<IpAddr>().is_err()) {
            faults.invalid(format!("spec.externalIPs[{i}]"), address, "must be a valid IP address");
        }
    }
}

/// Families of addresses: this engine gives IPv4 addresses to Services, and no others.
fn families(faults: &mut Faults, spec: &Value) {
    let families = items(spec, "ipFamilies");
    if families.len() > 2 {
        faults.invalid("spec.ipFamilies", &json!(families), "may only hold up to 2 values");
    }
    for (i, family) in families.iter().enumerate() {
        let at = format!("spec.ipFamilies[{i}]");
        match family.as_str() {
            Some("IPv4") if families[..i].contains(family) => faults.duplicate(at, family),
            Some("IPv4") => {}
            Some("IPv6") => faults.invalid(at, family, "not configured on this cluster"),
            _ => faults.not_supported(at, family, &["IPv4", "IPv6"]),
        }
    }
    if text(spec, "ipFamilyPolicy") == Some("RequireDualStack") {
        let rule = "this cluster is not configured for dual-stack services";
        faults.invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], rule);
    }
}

/// What only balancers have.
fn balancer(faults: &mut Faults, spec: &Value, service_type: &str) {
    let ranges = items(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() && service_type != "LoadBalancer" {
        faults.forbidden("spec.loadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'");
    }
    for (i, range) in ranges.iter().enumerate() {
        if !range.as_str().is_some_and(|range| is_cidr(range.trim())) {
            faults.invalid(format!("spec.loadBalancerSourceRanges[{i}]"), range, CIDR);
        }
    }
    if text(spec, "loadBalancerClass").is_some() && service_type != "LoadBalancer" {
        faults.forbidden("spec.loadBalancerClass", "may only be used when `type` is 'LoadBalancer'");
    }
    let local = service_type == "LoadBalancer" && text(spec, "externalTrafficPolicy") == Some("Local");
    if spec["healthCheckNodePort"].as_i64().is_some_and(|port| port != 0) && !local {
        let rule = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        faults.invalid("spec.healthCheckNodePort", &spec["healthCheckNodePort"], rule);
    }
    faults.one_of(spec, "spec", "trafficDistribution", &["PreferClose", "PreferSameNode", "PreferSameZone"]);
}

fn service_ports(faults: &mut Faults, spec: &Value, service_type: &str, headless: bool) {
    let ports = items(spec, "ports");
    faults.unique(ports, "spec.ports", "name");
    let (mut seen, mut node_ports) = (HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        match text(port, "name") {
            Some(name) => faults.named(&format!("{path}.name"), name, names::check_label(name)),
            None if ports.len() > 1 => faults.required(format!("{path}.name"), ""),
            None => {}
        }
        faults.between(port, &path, "port", (1, 65_535));
        faults.one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]);
        if let Some(target) = get(port, "targetPort") {
            faults.port(&format!("{path}.targetPort"), target);
        }
        let protocol = text(port, "protocol").unwrap_or("TCP");
        if !seen.insert((protocol, port["port"].as_i64())) {
            faults.duplicate(&path, &json!({"port": port["port"], "protocol": protocol}));
        }
        let Some(node_port) = get(port, "nodePort").and_then(Value::as_i64).filter(|number| *number != 0) else {
            continue;
        };
        let path = format!("{path}.nodePort");
        if headless || matches!(service_type, "ClusterIP" | "ExternalName") {
            faults.forbidden(path, format!("may not be used when `type` is '{service_type}'"));
        } else if node_port < NODE_PORTS.0 || node_port > NODE_PORTS.1 {
            let rule = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                NODE_PORTS.0, NODE_PORTS.1
            );
            faults.invalid(path, &json!(node_port), rule);
        } else if !node_ports.insert((protocol, node_port)) {
            faults.duplicate(path, &json!(node_port));
        }
    }
}

pub(super) fn service_update(faults: &mut Faults, old: &Value, new: &Value) {
    let external = |object: &Value| meta::str_at(object, "spec.type") == Some("ExternalName");
    let set = meta::str_at(old, "spec.clusterIP").is_some_and(|address| !address.is_empty());
    if set && !external(old) && !external(new) && meta::at(old, "spec.clusterIP") != meta::at(new, "spec.clusterIP") {
        let value = meta::at(new, "spec.clusterIP").unwrap_or(&Value::Null);
        faults.invalid("spec.clusterIPs[0]", value, IMMUTABLE);
    }
}

pub(super) fn endpoint_slice(faults: &mut Faults, slice: &Value) {
    let family = text(slice, "addressType").unwrap_or_default();
    if !matches!(family, "IPv4" | "IPv6" | "FQDN") && !family.is_empty() {
        faults.not_supported("addressType", &json!(family), &["FQDN", "IPv4", "IPv6"]);
    }
    if family.is_empty() {
        faults.required("addressType", "");
    }
    let endpoints = items(slice, "endpoints");
    if endpoints.len() > 1000 {
        faults.too_many("endpoints", endpoints.len(), 1000);
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{i}].addresses");
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            faults.required(&path, "must contain at least 1 address");
        } else if addresses.len() > 100 {
            faults.too_many(&path, addresses.len(), 100);
        }
        for (j, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let good = match family {
                "IPv4" => text.parse::<Ipv4Addr>().is_ok(),
                "IPv6" => text.parse::<Ipv6Addr>().is_ok(),
                _ => names::check_subdomain(text).is_empty(),
            };
            if !good {
                faults.invalid(format!("{path}[{j}]"), address, format!("must be a valid {family} address"));
            }
        }
    }
    let ports = items(slice, "ports");
    if ports.len() > 20_000 {
        faults.too_many("ports", ports.len(), 20_000);
    }
    faults.unique(ports, "ports", "name");
    for (i, port) in ports.iter().enumerate() {
        let path = format!("ports[{i}]");
        faults.one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]);
        if let Some(name) = text(port, "name") {
            faults.named(&format!("{path}.name"), name, names::check_label(name));
        }
    }
}

pub(super) fn ingress(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    let (rules, default) = (items(spec, "rules"), get(spec, "defaultBackend"));
    if rules.is_empty() && default.is_none() {
        faults.invalid("spec", spec, "either `defaultBackend` or `rules` must be specified");
    }
    if let Some(backend) = default {
        ingress_backend(faults, backend, "spec.defaultBackend");
    }
    if let Some(class) = text(spec, "ingressClassName") {
        faults.named("spec.ingressClassName", class, names::check_subdomain(class));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        if let Some(host) = text(rule, "host") {
            let plain = host.strip_prefix("*.").unwrap_or(host);
            if host.parse::<IpAddr>().is_ok() {
                faults.invalid(format!("{path}.host"), &json!(host), "must be a DNS name, not an IP address");
            }
            faults.named(&format!("{path}.host"), host, names::check_subdomain(plain));
        }
        let Some(http) = get(rule, "http") else { continue };
        for (j, one) in items(http, "paths").iter().enumerate() {
            ingress_path(faults, one, &format!("{path}.http.paths[{j}]"));
        }
    }
}

fn ingress_path(faults: &mut Faults, one: &Value, at: &str) {
    match text(one, "pathType") {
        None => faults.required(format!("{at}.pathType"), "pathType must be specified"),
        Some(kind @ ("Exact" | "Prefix")) => match text(one, "path") {
            Some(path) if path.starts_with('/') => {
                for bad in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|bad| path.contains(**bad)) {
                    faults.invalid(format!("{at}.path"), &json!(path), format!("must not contain '{bad}'"));
                }
            }
            _ => faults.invalid(
                format!("{at}.path"),
                &one["path"],
                format!("must be an absolute path for pathType {kind}"),
            ),
        },
        Some(_) => faults.one_of(one, at, "pathType", &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    if let Some(backend) = get(one, "backend") {
        ingress_backend(faults, backend, &format!("{at}.backend"));
    }
}

fn ingress_backend(faults: &mut Faults, backend: &Value, path: &str) {
    match (get(backend, "service"), get(backend, "resource")) {
        (Some(_), Some(_)) => faults.invalid(path, &json!(""), "cannot set both resource and service backends"),
        (None, None) => faults.required(path, "resource or service backend is required"),
        (Some(service), None) => {
            let at = format!("{path}.service");
            match text(service, "name") {
                Some(name) => faults.named(&format!("{at}.name"), name, names::check_label_1035(name)),
                None => faults.required(format!("{at}.name"), ""),
            }
            let port = &service["port"];
            match (text(port, "name"), get(port, "number")) {
                (None, None) => faults.required(&at, "port name or number is required"),
                (Some(_), Some(_)) => faults.invalid(&at, &json!(""), "cannot set both port name & port number"),
                (Some(name), None) => faults.port(&format!("{at}.port.name"), &json!(name)),
                (None, Some(number)) => faults.port(&format!("{at}.port.number"), number),
            }
        }
        (None, Some(_)) => {}
    }
}

pub(super) fn policy(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return };
    if let Some(selector) = get(spec, "podSelector") {
        metadata::selector(faults, selector, "spec.podSelector");
    }
    for (i, word) in items(spec, "policyTypes").iter().enumerate() {
        if !matches!(word.as_str(), Some("Ingress" | "Egress")) {
            faults.not_supported(format!("spec.policyTypes[{i}]"), word, &["Egress", "Ingress"]);
        }
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in items(spec, direction).iter().enumerate() {
            let path = format!("spec.{direction}[{i}]");
            for (j, port) in items(rule, "ports").iter().enumerate() {
                let at = format!("{path}.ports[{j}]");
                faults.one_of(port, &at, "protocol", &["SCTP", "TCP", "UDP"]);
                if let Some(number) = get(port, "port") {
                    faults.port(&format!("{at}.port"), number);
                }
            }
            for (j, peer) in items(rule, peers).iter().enumerate() {
                policy_peer(faults, peer, &format!("{path}.{peers}[{j}]"));
            }
        }
    }
}

fn policy_peer(faults: &mut Faults, peer: &Value, path: &str) {
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = get(peer, field) {
            metadata::selector(faults, selector, &format!("{path}.{field}"));
        }
    }
    let selectors = get(peer, "podSelector").is_some() || get(peer, "namespaceSelector").is_some();
    match get(peer, "ipBlock") {
        Some(_) if selectors => faults.forbidden(path, "may not specify both ipBlock and another peer"),
        Some(block) => {
            if !text(block, "cidr").is_some_and(is_cidr) {
                faults.invalid(format!("{path}.ipBlock.cidr"), &block["cidr"], CIDR);
            }
            for (i, range) in items(block, "except").iter().enumerate() {
                let at = format!("{path}.ipBlock.except[{i}]");
                if !range.as_str().is_some_and(is_cidr) {
                    faults.invalid(at, range, CIDR);
                } else if !is_within(range.as_str().unwrap_or_default(), text(block, "cidr").unwrap_or_default()) {
                    faults.invalid(at, range, "must be a strict subset of `cidr`");
                }
            }
        }
        None if !selectors => faults.required(path, "must specify a peer"),
        None => {}
    }
}

/// The longest name of a controller of an IngressClass, in characters.
const CONTROLLER_MAX: usize = 250;

pub(super) fn ingress_class(faults: &mut Faults, class: &Value) {
    let controller = text(&class["spec"], "controller").unwrap_or_default();
    let at = "spec.controller";
    if controller.is_empty() {
        return faults.required(at, "");
    }
    if controller.chars().count() > CONTROLLER_MAX {
        faults.too_long(at, CONTROLLER_MAX);
    }
    match controller.split_once('/') {
        Some((domain, path)) if !path.is_empty() => faults.named(at, controller, names::check_subdomain(domain)),
        _ => {
            let rule = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            faults.invalid(at, &json!(controller), rule);
        }
    }
}

pub(super) fn endpoints(faults: &mut Faults, object: &Value) {
    for (i, subset) in items(object, "subsets").iter().enumerate() {
        let path = format!("subsets[{i}]");
        if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
            faults.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (j, address) in items(subset, field).iter().enumerate() {
                let at = format!("{path}.{field}[{j}].ip");
                let ip = text(address, "ip").map(|text| (text, text.parse::<IpAddr>()));
                match ip {
                    None => faults.required(at, ""),
                    Some((text, Err(_))) => faults.invalid(at, &json!(text), "must be a valid IP address"),
                    Some((text, Ok(ip))) if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => {
                        let rule = "may not be in the loopback, unspecified or multicast range";
                        faults.invalid(at, &json!(text), rule);
                    }
                    Some(_) => {}
                }
            }
        }
        let ports = items(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            let at = format!("{path}.ports[{j}]");
            match text(port, "name") {
                Some(name) => faults.named(&format!("{at}.name"), name, names::check_label(name)),
                None if ports.len() > 1 => faults.required(format!("{at}.name"), ""),
                None => {}
            }
            faults.between(port, &at, "port", (1, 65_535));
            faults.one_of(port, &at, "protocol", &["SCTP", "TCP", "UDP"]);
        }
    }
}
