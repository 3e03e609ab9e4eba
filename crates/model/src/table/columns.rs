//! The columns of every kind, as data.

use super::Column;

const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 0 }
}

const fn number(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "integer", format: "", description, priority: 0 }
}

/// Shown with `-o wide` only.
const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 1 }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name of the object, unique in its namespace.",
    priority: 0,
};
const AGE: Column = text("Age", "Time since the object was created.");
const CONTAINERS: Column = wide("Containers", "Names of the containers in the template.");
const IMAGES: Column = wide("Images", "Images of the containers in the template.");
const SELECTOR: Column = wide("Selector", "Which pods belong to it.");

const POD: &[Column] = &[
    NAME,
    text("Ready", "Containers that are ready, of all."),
    text("Status", "State of the pod in one word."),
    text("Restarts", "How often containers were restarted, and when last."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node the pod is bound to."),
    wide("Nominated Node", "Node the pod may be bound to after preemption."),
    wide("Readiness Gates", "Readiness gates that are true, of all."),
];
const NODE: &[Column] = &[
    NAME,
    text("Status", "Whether the node is ready and takes pods."),
    text("Roles", "Roles of the node, from its labels."),
    AGE,
    text("Version", "Version of the node agent."),
    wide("Internal-IP", "Address inside the cluster."),
    wide("External-IP", "Address outside the cluster."),
    wide("OS-Image", "Operating system."),
    wide("Kernel-Version", "Version of the kernel."),
    wide("Container-Runtime", "Container runtime and its version."),
];
const METRICS: &[Column] = &[
    NAME,
    text("Cpu", "Processor time used, in cores."),
    text("Memory", "Memory used."),
    text("Window", "Over which time the usage was measured."),
];
const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", "Pods that are ready, of those wanted."),
    number("Up-to-date", "Pods of the current template."),
    number("Available", "Pods that are available."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired", "Pods wanted."),
    number("Current", "Pods that exist."),
    number("Ready", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const STATEFUL_SET: &[Column] =
    &[NAME, text("Ready", "Pods that are ready, of those wanted."), AGE, CONTAINERS, IMAGES];
const DAEMON_SET: &[Column] = &[
    NAME,
    number("Desired", "Nodes that should run a pod."),
    number("Current", "Nodes that have a pod."),
    number("Ready", "Nodes with a ready pod."),
    number("Up-to-date", "Nodes with a pod of the current template."),
    number("Available", "Nodes with an available pod."),
    text("Node Selector", "Which nodes run a pod."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const JOB: &[Column] = &[
    NAME,
    text("Status", "State of the job in one word."),
    text("Completions", "Pods that succeeded, of those wanted."),
    text("Duration", "Time from start to completion, or until now."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const CRON_JOB: &[Column] = &[
    NAME,
    text("Schedule", "When jobs start, in cron syntax."),
    text("Timezone", "Time zone of the schedule."),
    text("Suspend", "Whether no further jobs start."),
    number("Active", "Jobs that run now."),
    text("Last Schedule", "Time since a job was last started."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const AUTOSCALER: &[Column] = &[
    NAME,
    text("Reference", "What is scaled."),
    text("Targets", "Metrics: current and wanted."),
    text("MinPods", "Fewest pods."),
    number("MaxPods", "Most pods."),
    number("Replicas", "Pods now."),
    AGE,
];
const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    text("Min Available", "Pods that must stay available."),
    text("Max Unavailable", "Pods that may be unavailable."),
    number("Allowed Disruptions", "Pods that may be evicted now."),
    AGE,
];
const SERVICE: &[Column] = &[
    NAME,
    text("Type", "How the service is reached."),
    text("Cluster-IP", "Address inside the cluster."),
    text("External-IP", "Addresses outside the cluster."),
    text("Port(s)", "Ports, and their node ports."),
    AGE,
    SELECTOR,
];
const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    text("AddressType", "Kind of the addresses."),
    text("Ports", "Ports of every endpoint."),
    text("Endpoints", "Addresses."),
    AGE,
];
const INGRESS: &[Column] = &[
    NAME,
    text("Class", "Class that implements it."),
    text("Hosts", "Host names it answers for."),
    text("Address", "Where it is reached."),
    text("Ports", "Ports it listens on."),
    AGE,
];
const INGRESS_CLASS: &[Column] = &[
    NAME,
    text("Controller", "Controller that implements the class."),
    text("Parameters", "Object with its parameters."),
    AGE,
];
const NETWORK_POLICY: &[Column] = &[NAME, text("Pod-Selector", "Pods it applies to."), AGE];
const VOLUME: &[Column] = &[
    NAME,
    text("Capacity", "Size."),
    text("Access Modes", "How it may be mounted."),
    text("Reclaim Policy", "What happens when its claim goes."),
    text("Status", "Phase."),
    text("Claim", "Claim it is bound to."),
    text("StorageClass", "Class it belongs to."),
    text("VolumeAttributesClass", "Class of its attributes."),
    text("Reason", "Why it is in this phase."),
    AGE,
    wide("VolumeMode", "File system or block device."),
];
const CLAIM: &[Column] = &[
    NAME,
    text("Status", "Phase."),
    text("Volume", "Volume it is bound to."),
    text("Capacity", "Size of the volume."),
    text("Access Modes", "How it may be mounted."),
    text("StorageClass", "Class it asks for."),
    text("VolumeAttributesClass", "Class of its attributes."),
    AGE,
    wide("VolumeMode", "File system or block device."),
];
const STORAGE_CLASS: &[Column] = &[
    NAME,
    text("Provisioner", "Who makes volumes of this class."),
    text("ReclaimPolicy", "What happens when a claim goes."),
    text("VolumeBindingMode", "When volumes are made."),
    text("AllowVolumeExpansion", "Whether claims may grow."),
    AGE,
];
const CONFIG_MAP: &[Column] = &[NAME, number("Data", "Number of entries."), AGE];
const SECRET: &[Column] = &[NAME, text("Type", "What it is for."), number("Data", "Number of entries."), AGE];
const NAMESPACE: &[Column] = &[NAME, text("Status", "Phase."), AGE];
const LEASE: &[Column] = &[NAME, text("Holder", "Who holds it."), AGE];
const SERVICE_ACCOUNT: &[Column] = &[NAME, number("Secrets", "Number of secrets."), AGE];
const EVENT: &[Column] = &[
    text("Last Seen", "Time since it was last seen."),
    text("Type", "Normal or Warning."),
    text("Reason", "Why, in one word."),
    text("Object", "What it is about."),
    wide("Subobject", "Part of the object."),
    wide("Source", "Who reported it."),
    text("Message", "What happened."),
    wide("First Seen", "Time since it was first seen."),
    Column { name: "Count", kind: "integer", format: "", description: "How often it was seen.", priority: 1 },
    Column { name: "Name", kind: "string", format: "name", description: "Name of the event.", priority: 1 },
];
const ROLE: &[Column] = &[NAME, text("Created At", "When it was created.")];
const BINDING: &[Column] = &[
    NAME,
    text("Role", "Role that is given."),
    AGE,
    wide("Users", "Users it is given to."),
    wide("Groups", "Groups it is given to."),
    wide("ServiceAccounts", "Service accounts it is given to."),
];
const PRIORITY_CLASS: &[Column] = &[
    NAME,
    number("Value", "Priority of its pods."),
    text("Global-Default", "Whether pods without a class get it."),
    AGE,
    text("PreemptionPolicy", "Whether its pods preempt others."),
];
const RUNTIME_CLASS: &[Column] = &[NAME, text("Handler", "Name of the runtime's configuration."), AGE];
const SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    text("SignerName", "Who is asked to sign."),
    text("Requestor", "Who asks."),
    text("RequestedDuration", "How long the certificate is to hold."),
    text("Condition", "What has become of it."),
];
const TRUST_BUNDLE: &[Column] = &[NAME, text("SignerName", "Whose certificates it is for.")];
const POD_CERTIFICATE: &[Column] = &[
    NAME,
    text("PodName", "Pod it is for."),
    text("ServiceAccountName", "Account the pod runs as."),
    text("NodeName", "Node the pod is on."),
    text("SignerName", "Who is asked to sign."),
    text("State", "What has become of it."),
];
const QUOTA: &[Column] = &[
    NAME,
    text("Request", "Requests and counts in use, of what is allowed."),
    text("Limit", "Limits in use, of what is allowed."),
    AGE,
];
const CREATED: &[Column] = &[NAME, text("Created At", "When it was created.")];
const ENDPOINTS: &[Column] = &[NAME, text("Endpoints", "Ready addresses and ports."), AGE];
const REVISION: &[Column] =
    &[NAME, text("Controller", "Whose template it keeps."), text("Revision", "Its number."), AGE];
const WEBHOOKS: &[Column] = &[NAME, number("Webhooks", "Number of webhooks."), AGE];
const MUTATING_POLICY: &[Column] =
    &[NAME, number("Mutations", "Number of mutations."), text("ParamKind", "Kind of its parameters."), AGE];
const POLICY: &[Column] =
    &[NAME, number("Validations", "Number of validations."), text("ParamKind", "Kind of its parameters."), AGE];
const POLICY_BINDING: &[Column] =
    &[NAME, text("PolicyName", "Policy it puts into force."), text("ParamRef", "Parameters it uses."), AGE];
const CSI_NODE: &[Column] = &[NAME, number("Drivers", "Number of drivers."), AGE];
const ATTACHMENT: &[Column] = &[
    NAME,
    text("Attacher", "Driver that attaches."),
    text("PV", "Volume."),
    text("Node", "Node it is attached to."),
    text("Attached", "Whether it is."),
    AGE,
];
const SERVICE_CIDR: &[Column] = &[NAME, text("CIDRs", "Ranges of addresses."), AGE];
const IP_ADDRESS: &[Column] = &[NAME, text("ParentRef", "Whose address it is."), AGE];
const ATTRIBUTES_CLASS: &[Column] = &[NAME, text("DriverName", "Driver it is for."), AGE];
const API_SERVICE: &[Column] = &[
    NAME,
    text("Service", "Service that answers for the group and version, or Local."),
    text("Available", "Whether it does."),
    AGE,
];
const COMPONENT: &[Column] = &[
    NAME,
    text("Status", "Whether the component is well."),
    text("Message", "What it says."),
    text("Error", "What is wrong with it."),
];
const OTHER: &[Column] = &[NAME, AGE];

/// The columns of a kind; name and age for kinds without columns of their own.
pub fn columns(kind: &str) -> &'static [Column] {
    match kind {
        "Pod" => POD,
        "Node" => NODE,
        "Deployment" => DEPLOYMENT,
        "ReplicaSet" | "ReplicationController" => REPLICA_SET,
        "StatefulSet" => STATEFUL_SET,
        "DaemonSet" => DAEMON_SET,
        "Job" => JOB,
        "CronJob" => CRON_JOB,
        "HorizontalPodAutoscaler" => AUTOSCALER,
        "PodDisruptionBudget" => DISRUPTION_BUDGET,
        "Service" => SERVICE,
        "EndpointSlice" => ENDPOINT_SLICE,
        "Ingress" => INGRESS,
        "IngressClass" => INGRESS_CLASS,
        "NetworkPolicy" => NETWORK_POLICY,
        "PersistentVolume" => VOLUME,
        "PersistentVolumeClaim" => CLAIM,
        "StorageClass" => STORAGE_CLASS,
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "Namespace" => NAMESPACE,
        "Lease" => LEASE,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "Event" => EVENT,
        "Role" | "ClusterRole" => ROLE,
        "RoleBinding" | "ClusterRoleBinding" => BINDING,
        "PriorityClass" => PRIORITY_CLASS,
        "RuntimeClass" => RUNTIME_CLASS,
        "CertificateSigningRequest" => SIGNING_REQUEST,
        "ClusterTrustBundle" => TRUST_BUNDLE,
        "PodCertificateRequest" => POD_CERTIFICATE,
        "ResourceQuota" => QUOTA,
        "LimitRange" | "CustomResourceDefinition" => CREATED,
        "Endpoints" => ENDPOINTS,
        "ControllerRevision" => REVISION,
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => WEBHOOKS,
        "MutatingAdmissionPolicy" => MUTATING_POLICY,
        "ValidatingAdmissionPolicy" => POLICY,
        "MutatingAdmissionPolicyBinding" | "ValidatingAdmissionPolicyBinding" => POLICY_BINDING,
        "CSINode" => CSI_NODE,
        "VolumeAttachment" => ATTACHMENT,
        "ServiceCIDR" => SERVICE_CIDR,
        "IPAddress" => IP_ADDRESS,
        "VolumeAttributesClass" => ATTRIBUTES_CLASS,
        "APIService" => API_SERVICE,
        "ComponentStatus" => COMPONENT,
        "NodeMetrics" | "PodMetrics" => METRICS,
        _ => OTHER,
    }
}
