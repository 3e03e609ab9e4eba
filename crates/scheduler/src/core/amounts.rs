//! Amounts of resources as integers: what pods ask for and what nodes have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use mainstay_model::quantity::Quantity;

/// What a container without a request is taken to use, for scoring only: 100 milli-cpu, 200 MiB.
const CPU_GUESS_MILLI: i64 = 100;
const MEMORY_GUESS_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts by resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Local ephemeral storage in bytes.
    pub storage_bytes: i64,
    /// Number of pods.
    pub pods: i64,
    /// Every other resource, by name.
    pub extended: BTreeMap<String, i64>,
}

type WrittenAmounts = Option<BTreeMap<String, Written>>;

impl Amounts {
    /// From a Kubernetes resource list; what is not a quantity is left out.
    pub fn of(list: &WrittenAmounts) -> Self {
        let mut amounts = Self::default();
        for (name, written) in list.iter().flatten() {
            let Ok(quantity) = written.0.parse::<Quantity>() else { continue };
            match name.as_str() {
                "cpu" => amounts.cpu_milli = quantity.milli_value(),
                "memory" => amounts.memory_bytes = quantity.value(),
                "ephemeral-storage" => amounts.storage_bytes = quantity.value(),
                "pods" => amounts.pods = quantity.value(),
                _ => drop(amounts.extended.insert(name.clone(), quantity.value())),
            }
        }
        amounts
    }

    /// Adds (`sign` 1) or takes away (-1).
    pub fn add(&mut self, other: &Self, sign: i64) {
        self.cpu_milli += sign * other.cpu_milli;
        self.memory_bytes += sign * other.memory_bytes;
        self.storage_bytes += sign * other.storage_bytes;
        self.pods += sign * other.pods;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_insert(0) += sign * amount;
        }
    }

    fn raise(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.storage_bytes = self.storage_bytes.max(other.storage_bytes);
        for (name, amount) in &other.extended {
            let own = self.extended.entry(name.clone()).or_insert(0);
            *own = (*own).max(*amount);
        }
    }
}

/// What a pod needs, and what it is taken to use when nodes are compared (cpu, memory).
///
/// The containers and sidecars run together; each other init container runs with the sidecars started before it; the larger
/// of the two counts, plus overhead. `spec.resources` of the pod goes before the sum. Source:
/// <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>.
pub(super) fn of_pod(spec: &PodSpec) -> (Amounts, (i64, i64)) {
    let own = |container: &Container| match &container.resources {
        Some(resources) => Amounts::of(&resources.requests),
        None => Amounts::default(),
    };
    let (mut together, mut guess) = (Amounts::default(), (0, 0));
    for container in &spec.containers {
        let amounts = own(container);
        guess.0 += if amounts.cpu_milli == 0 { CPU_GUESS_MILLI } else { amounts.cpu_milli };
        guess.1 += if amounts.memory_bytes == 0 { MEMORY_GUESS_BYTES } else { amounts.memory_bytes };
        together.add(&amounts, 1);
    }
    let (mut sidecars, mut starting) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let mut moment = own(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&moment, 1);
            moment.clone_from(&sidecars);
        } else {
            moment.add(&sidecars, 1);
        }
        starting.raise(&moment);
    }
    together.add(&sidecars, 1);
    together.raise(&starting);
    if let Some(resources) = &spec.resources {
        let whole = Amounts::of(&resources.requests);
        let given = |name: &str| resources.requests.as_ref().is_some_and(|all| all.contains_key(name));
        if given("cpu") {
            together.cpu_milli = whole.cpu_milli;
        }
        if given("memory") {
            together.memory_bytes = whole.memory_bytes;
        }
    }
    together.add(&Amounts::of(&spec.overhead), 1);
    together.pods = 1;
    (together.clone(), (guess.0.max(together.cpu_milli), guess.1.max(together.memory_bytes)))
}
