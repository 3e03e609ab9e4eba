//! The node's own objects: Node and Lease.
//!
//! Flow: the Node is created, or brought up to date after a restart; the Lease is renewed several times a second. When a
//! renewal succeeds and the Node says that it is not ready, others have marked it so while the agent was not heard: its
//! conditions are written again, until they stand.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use mainstay_informer::{Cache, Scope};
use mainstay_model::fencing;
use mainstay_runtime::fence;
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::{AGENT_PORT, NodeConfig};
use crate::pod::status::time;
use crate::pressure::signals::{Pressures, Thresholds};

/// Where the leases of nodes are.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Pods per node, as the kubelet's default.
const PODS_MAX: &str = "110";
/// The version this agent behaves like.
pub const VERSION: &str = "v1.37.0+mainstay";
/// How long one renewal may take before it counts as failed: several must fit into the fencing time.
const RENEWAL_TIMEOUT: Duration = Duration::from_millis(700);
/// The conditions' heartbeat, as the kubelet's `nodeStatusReportFrequency`.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// The wait between attempts to register.
const RETRY: Duration = Duration::from_millis(200);

/// What the machine has.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// CPUs.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// The disk of the node's directory, in bytes.
    pub disk_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Name of the operating system.
    pub os_image: String,
    /// Identity of this boot.
    pub boot_id: String,
    /// Identity of the installation.
    pub machine_id: String,
}

impl Machine {
    /// Reads what `/proc` and `/etc` say; what is missing stays empty.
    pub fn read(data_dir: &Path) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory = file("/proc/meminfo");
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|text| text.trim().trim_end_matches(" kB").parse::<i64>().ok()).unwrap_or(0);
        let release = file("/etc/os-release");
        let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: kib * 1024,
            disk_bytes: statvfs(data_dir).map_or(0, |disk| disk.blocks() * disk.fragment_size()),
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            os_image: name.unwrap_or("Linux").trim_matches('"').to_owned(),
            boot_id: file("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            machine_id: file("/etc/machine-id").trim().to_owned(),
        }
    }
}

/// Go's name of this processor architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// How the node is, beyond what never changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vitals {
    /// What it runs out of.
    pub pressures: Pressures,
    /// The images that are here.
    pub images: Vec<core::ContainerImage>,
    /// It shuts down: it is not ready, and takes no more pods.
    pub shutting_down: bool,
}

/// The labels of a node.
pub fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    let region = config.region.as_deref().map(|region| ("topology.kubernetes.io/region", region));
    let own = [
        ("kubernetes.io/hostname", config.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("topology.kubernetes.io/zone", config.zone.as_str()),
    ];
    labels.extend(own.into_iter().chain(region).map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

/// The status of a node. `last` is the one that stands: conditions that stay keep their time of transition.
pub fn status(
    config: &NodeConfig,
    machine: &Machine,
    vitals: &Vitals,
    last: Option<&core::NodeStatus>,
    now: Timestamp,
) -> core::NodeStatus {
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), Quantity(machine.cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", machine.memory_bytes / 1024))),
        ("pods".to_owned(), Quantity(PODS_MAX.to_owned())),
        ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", machine.disk_bytes / 1024))),
    ]);
    capacity.extend(config.capacity.iter().map(|(name, amount)| (name.clone(), Quantity(amount.clone()))));
    let allocatable = allocatable(&capacity, &config.eviction);
    let condition = |name: &str, status: &str, reason: &str, message: &str| {
        let before = last.and_then(|last| last.conditions.iter().flatten().find(|condition| condition.type_ == name));
        let since =
            before.filter(|before| before.status == status).and_then(|before| before.last_transition_time.clone());
        core::NodeCondition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(time(now)),
            last_transition_time: Some(since.unwrap_or_else(|| time(now))),
        }
    };
    let address = |kind: &str, address: String| core::NodeAddress { type_: kind.to_owned(), address };
    core::NodeStatus {
        addresses: Some(vec![
            address("InternalIP", config.address.to_string()),
            address("Hostname", config.name.clone()),
        ]),
        allocatable: Some(allocatable),
        capacity: Some(capacity),
        conditions: Some(
            claims(vitals).map(|(name, status, reason, text)| condition(name, status, reason, text)).into(),
        ),
        images: Some(vitals.images.clone()).filter(|images| !images.is_empty()),
        daemon_endpoints: Some(core::NodeDaemonEndpoints {
            kubelet_endpoint: Some(core::DaemonEndpoint { port: i32::from(AGENT_PORT) }),
        }),
        node_info: Some(core::NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("mainstay://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: machine.kernel.clone(),
            kubelet_version: VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            ..core::NodeSystemInfo::default()
        }),
        ..core::NodeStatus::default()
    }
}

/// The node's conditions: type, status, reason and message, as the kubelet's.
fn claims(vitals: &Vitals) -> [(&'static str, &'static str, &'static str, &'static str); 4] {
    let Pressures { memory, disk, pids } = vitals.pressures;
    [
        if memory {
            ("MemoryPressure", "True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
        } else {
            ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
        },
        if disk {
            ("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure")
        } else {
            ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
        },
        if pids {
            ("PIDPressure", "True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available")
        } else {
            ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")
        },
        if vitals.shutting_down {
            ("Ready", "False", "KubeletNotReady", "node is shutting down")
        } else {
            ("Ready", "True", "KubeletReady", "kubelet is posting ready status")
        },
    ]
}

/// What of the capacity pods may have: what has to stay free is nobody's.
///
/// Source: <https://kubernetes.io/docs/tasks/administer-cluster/reserve-compute-resources/#node-allocatable>.
fn allocatable(capacity: &BTreeMap<String, Quantity>, thresholds: &Thresholds) -> BTreeMap<String, Quantity> {
    let mut allocatable = capacity.clone();
    for (name, reserved) in [
        ("memory", Thresholds::memory_bytes as fn(&Thresholds, u64) -> u64),
        ("ephemeral-storage", Thresholds::disk_bytes),
    ] {
        let bytes = capacity.get(name).and_then(|text| text.0.parse::<mainstay_model::quantity::Quantity>().ok());
        if let Some(bytes) = bytes.and_then(|quantity| u64::try_from(quantity.value()).ok()) {
            let left = bytes.saturating_sub(reserved(thresholds, bytes));
            allocatable.insert(name.to_owned(), Quantity(format!("{}Ki", left / 1024)));
        }
    }
    allocatable
}

/// Creates the Node, or brings labels, pod range and status of the existing one up to date. Tries until it succeeds.
pub async fn register(config: &NodeConfig, machine: &Machine, vitals: &Vitals) -> core::Node {
    loop {
        match try_register(config, machine, vitals).await {
            Ok(node) => return node,
            Err(error) => tracing::debug!(%error, node = config.name, "not registered yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_register(config: &NodeConfig, machine: &Machine, vitals: &Vitals) -> kube::Result<core::Node> {
    let api: Api<core::Node> = Api::all(config.client.clone());
    let ranges = vec![config.pod_cidr.to_string()];
    let known = api.get_opt(&config.name).await?;
    if known.is_none() {
        let mut node = core::Node::default();
        node.metadata.name = Some(config.name.clone());
        node.metadata.labels = Some(labels(config));
        node.metadata.annotations = Some(promise(config));
        let spec = core::NodeSpec {
            pod_cidr: ranges.first().cloned(),
            pod_cidrs: Some(ranges.clone()),
            ..core::NodeSpec::default()
        };
        node.spec = Some(spec);
        node.status = Some(status(config, machine, vitals, None, Timestamp::now()));
        match api.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(answer)) if answer.code == 409 => {}
            other => drop(other?),
        }
    } else {
        let patch = json!({"metadata": {"labels": labels(config), "annotations": promise(config)}, "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges}});
        api.patch(&config.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    write_status(config, machine, vitals).await
}

/// What the node promises to the control plane.
fn promise(config: &NodeConfig) -> BTreeMap<String, String> {
    [(fencing::ANNOTATION.to_owned(), config.fence().stop_after_ms.to_string())].into()
}

/// Writes the Node's status as it is now.
async fn write_status(config: &NodeConfig, machine: &Machine, vitals: &Vitals) -> kube::Result<core::Node> {
    let api: Api<core::Node> = Api::all(config.client.clone());
    let known = api.get(&config.name).await?;
    let mine = status(config, machine, vitals, known.status.as_ref(), Timestamp::now());
    let mut patch = json!({ "status": mine });
    // Conditions that others set stay: a strategic merge would keep them, a plain merge replaces the list.
    let own: Vec<_> = mine.conditions.iter().flatten().map(|condition| condition.type_.as_str()).collect();
    let others = known.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let others = others.filter(|condition| !own.contains(&condition.type_.as_str())).map(|condition| json!(condition));
    if let Some(Value::Array(conditions)) = patch.pointer_mut("/status/conditions") {
        conditions.extend(others);
    }
    api.patch_status(&config.name, &PatchParams::default(), &Patch::Merge(patch)).await
}

/// Renews the node's Lease for ever, and writes the Node's status again after having been cut off and when the node's vitals
/// have changed.
pub async fn keep_lease(config: NodeConfig, machine: Machine, node_uid: String, mut vitals: watch::Receiver<Vitals>) {
    let api: Api<Lease> = Api::namespaced(config.lease_client.clone(), LEASE_NAMESPACE);
    let mut beat = interval(config.lease_renewal.max(Duration::from_millis(10)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let own = Cache::<core::Node>::new();
    let scope = Scope { fields: Some(format!("metadata.name={}", config.name)), ..Scope::default() };
    let mut watch = pin!(own.clone().run(config.client.clone(), scope));
    let mut reported = tokio::time::Instant::now();
    let mut unwritten = false;
    loop {
        tokio::select! {
            () = &mut watch => {}
            _ = beat.tick() => {}
        }
        let sent = fence::now();
        let renewed = tokio::select! {
            () = &mut watch => continue,
            renewed = timeout(RENEWAL_TIMEOUT, renew(&api, &config.name, &node_uid)) => renewed,
        };
        match renewed {
            Ok(Ok(())) => {
                if let Err(error) = fence::note(&config.fence().file, sent) {
                    tracing::warn!(%error, "the acknowledged renewal cannot be noted; pods that must not run twice will stop");
                }
                unwritten |= vitals.has_changed().unwrap_or(false);
                let now = vitals.borrow_and_update().clone();
                let doubted = own.get("", &config.name).is_some_and(|node| says_ready(&node) == now.shutting_down);
                let due = doubted || unwritten || reported.elapsed() > HEARTBEAT;
                if due && register_again(&config, &machine, &now).await {
                    (reported, unwritten) = (tokio::time::Instant::now(), false);
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "lease not renewed"),
            Err(_) => tracing::debug!("lease not renewed in time"),
        }
    }
}

fn says_ready(node: &core::Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn register_again(config: &NodeConfig, machine: &Machine, vitals: &Vitals) -> bool {
    timeout(RENEWAL_TIMEOUT, try_register(config, machine, vitals)).await.is_ok_and(|result| result.is_ok())
}

async fn renew(api: &Api<Lease>, name: &str, node_uid: &str) -> kube::Result<()> {
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {"renewTime": now, "holderIdentity": name}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => {}
        other => return other.map(drop),
    }
    let mut lease = Lease::default();
    lease.metadata.name = Some(name.to_owned());
    lease.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid: node_uid.to_owned(),
        ..OwnerReference::default()
    }]);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: Some(40),
        renew_time: Some(now),
        ..LeaseSpec::default()
    });
    api.create(&PostParams::default(), &lease).await.map(drop)
}
