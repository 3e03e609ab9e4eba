//! The files every container gets: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`. Pure.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1 as core;

/// The domain of the cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// A host name's longest label (RFC 1123).
const LABEL_MAX: usize = 63;

/// The pod's host name.
pub fn hostname(pod: &core::Pod) -> String {
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|spec| spec.hostname_override.clone().or_else(|| spec.hostname.clone()));
    let mut name = own.filter(|name| !name.is_empty()).or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.truncate(LABEL_MAX);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The fully qualified name of a pod that belongs to a subdomain.
fn qualified(pod: &core::Pod) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|name| !name.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}", hostname(pod)))
}

/// `/etc/hosts`.
pub fn hosts(pod: &core::Pod, ip: Option<&str>) -> String {
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
    if let Some(ip) = ip {
        let names = qualified(pod).map_or_else(|| hostname(pod), |full| format!("{full}\t{}", hostname(pod)));
        let _ = writeln!(text, "{ip}\t{names}");
    }
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
    }
    text
}

/// `/etc/resolv.conf`; `of_node` is the node's own.
pub fn resolv_conf(pod: &core::Pod, dns_service: &str, of_node: &str) -> String {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let (mut servers, mut searches, mut options) = match policy {
        "None" => (Vec::new(), Vec::new(), Vec::new()),
        "ClusterFirst" if !host_network => cluster_first(dns_service, namespace),
        "ClusterFirstWithHostNet" => cluster_first(dns_service, namespace),
        _ => parse(of_node),
    };
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|known: &String| known.split(':').next() != Some(name.as_str()));
            options.push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (word, list) in [("search", searches), ("options", options)] {
        if !list.is_empty() {
            let _ = writeln!(text, "{word} {}", list.join(" "));
        }
    }
    text
}

fn cluster_first(dns_service: &str, namespace: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let svc = format!("svc.{CLUSTER_DOMAIN}");
    let searches = vec![format!("{namespace}.{svc}"), svc, CLUSTER_DOMAIN.to_owned()];
    (vec![dns_service.to_owned()], searches, vec!["ndots:5".to_owned()])
}

fn parse(text: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => servers.extend(words),
            Some("search") => searches = words.collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
    (servers, searches, options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    #[test]
    fn names_and_aliases() {
        let pod = pod(
            json!({"containers": [], "subdomain": "web", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        let text = hosts(&pod, Some("10.0.2.5"));
        assert!(text.contains("\n10.0.2.5\tweb-0.web.shop.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn policies_of_name_resolution() {
        let node = "# x\nnameserver 9.9.9.9\nsearch example.org\n";
        let first =
            "nameserver 10.0.128.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
        assert_eq!(resolv_conf(&pod(json!({"containers": []})), "10.0.128.10", node), first);
        let own = "nameserver 9.9.9.9\nsearch example.org\n";
        assert_eq!(resolv_conf(&pod(json!({"containers": [], "dnsPolicy": "Default"})), "10.0.128.10", node), own);
        let custom = pod(json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}}));
        assert_eq!(resolv_conf(&custom, "10.0.128.10", node), "nameserver 1.1.1.1\noptions ndots:2\n");
    }
}
