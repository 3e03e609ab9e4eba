//! Who answers: the pod's name, node, zone and version, from the environment the pod was given.
//!
//! Kubernetes tells a program its own name only if the manifest asks for it (`fieldRef`); outside a pod, or where the
//! manifest does not, the host name stands in, which in a pod is the pod's name.

use serde::Serialize;

/// What `/whoami` says, without the uptime. Empty where the environment does not tell.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) zone: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
}

impl Identity {
    /// Reads `POD_NAME`, `NODE_NAME`, `ZONE`, `VERSION` and the kernel's host name.
    pub(crate) fn from_environment() -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Self::new(hostname, |name| std::env::var(name).ok())
    }

    fn new(hostname: String, variable: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name| variable(name).unwrap_or_default();
        Self {
            pod: variable("POD_NAME").unwrap_or_else(|| hostname.clone()),
            node: text("NODE_NAME"),
            zone: text("ZONE"),
            version: text("VERSION"),
            pid: std::process::id(),
            hostname,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_name_stands_in_for_a_missing_pod_name() {
        let bare = Identity::new("host-1".into(), |_| None);
        assert_eq!((bare.pod.as_str(), bare.node.as_str()), ("host-1", ""));
        let named = Identity::new("host-1".into(), |name| Some(format!("<{name}>")));
        assert_eq!((named.pod.as_str(), named.zone.as_str()), ("<POD_NAME>", "<ZONE>"));
    }
}
