//! Endpoints: the older form of EndpointSlices, one object per Service, for programs that read it still.
//!
//! Flow: the pods of the Service's selector → grouped by the ports they have, ready and not ready apart → written if it
//! differs.
//!
//! Guarantees: nothing of ours reads it; the traffic follows EndpointSlices. Endpoints of a Service without a selector are
//! their author's, and are [mirrored](crate::endpoint_mirror).
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/service/#endpoints>.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_informer::ObjectKey;

use crate::action::{Action, Attempt, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::endpoint_slice::{
    HEADLESS_LABEL, Ports, hostname, is_headless, pods_of, ports, publishes_all, selector_of, services_of,
};
use crate::object::{Labels, annotation, is_finished, is_ready, is_terminating, name, reference};

/// Addresses in one object; those beyond are left out, and it says so.
const ADDRESSES_MAX: usize = 1000;
const CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGER_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) service: Option<Arc<Service>>,
    /// Pods its selector chooses.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// The object of its name.
    pub(crate) endpoints: Option<Arc<Endpoints>>,
}

/// Decides about one Service.
pub(crate) fn reconcile(view: &View) -> Plan {
    let Some(service) = &view.service else {
        let mut plan = Plan::nothing("the Service is gone");
        let own = view.endpoints.iter().filter(|old| is_own(old) && !is_terminating(&***old));
        plan.actions.extend(own.map(|old| Action::delete(Target::of(&**old))));
        return plan;
    };
    if is_terminating(&**service) || selector_of(service).is_none() {
        return Plan::nothing("no selector, or on its way out");
    }
    let (subsets, is_cut) = subsets(service, &view.pods);
    let new = Endpoints { metadata: metadata(service, is_cut), subsets: Some(subsets).filter(|all| !all.is_empty()) };
    let mut plan = Plan::nothing("it is as the pods are");
    match &view.endpoints {
        None => plan.push(Action::Create(Object::of(&new))),
        Some(old) if is_terminating(&**old) => {}
        Some(old) => {
            let same = old.subsets == new.subsets
                && old.metadata.labels == new.metadata.labels
                && annotation(&**old, CAPACITY).is_some() == is_cut;
            if !same {
                let mut annotations = old.metadata.annotations.clone().unwrap_or_default();
                annotations.remove(CAPACITY);
                annotations.extend(new.metadata.annotations.clone().unwrap_or_default());
                let annotations = Some(annotations).filter(|all| !all.is_empty());
                let metadata = ObjectMeta { labels: new.metadata.labels, annotations, ..old.metadata.clone() };
                plan.push(Action::Replace(Object::of(&Endpoints { metadata, subsets: new.subsets })));
            }
        }
    }
    plan
}

fn is_own(endpoints: &Endpoints) -> bool {
    let label = endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGER_LABEL));
    label.is_some_and(|manager| manager == MANAGER)
}

fn metadata(service: &Service, is_cut: bool) -> ObjectMeta {
    let mut labels: Labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGER_LABEL.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: is_cut.then(|| [(CAPACITY.to_owned(), "truncated".to_owned())].into()),
        ..ObjectMeta::default()
    }
}

/// The addresses by the ports they have, and whether there were too many.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let all = publishes_all(service);
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut sorted: Vec<&Arc<Pod>> = pods.iter().filter(|pod| !is_finished(pod)).collect();
    sorted.retain(|pod| all || !is_terminating(&***pod));
    // Those that are ready are the last to be left out.
    sorted.sort_by_key(|pod| (!is_ready(pod), name(&***pod).to_owned()));
    let mut count = 0;
    for pod in sorted {
        let Some(address) = address(service, pod) else { continue };
        count += 1;
        if count > ADDRESSES_MAX {
            break;
        }
        let (ready, unready) = groups.entry(ports(service, pod)).or_default();
        if all || is_ready(pod) { ready.push(address) } else { unready.push(address) }
    }
    let has_ports = service.spec.iter().any(|spec| spec.ports.iter().flatten().next().is_some());
    let subsets = groups.into_iter().filter(|(ports, _)| !ports.is_empty() || !has_ports);
    let listed = |addresses: Vec<EndpointAddress>| Some(addresses).filter(|all| !all.is_empty());
    let subset = |(ports, (ready, unready)): (Ports, (Vec<_>, Vec<_>))| EndpointSubset {
        addresses: listed(ready),
        not_ready_addresses: listed(unready),
        ports: Some(ports.into_iter().map(port).collect::<Vec<_>>()).filter(|all| !all.is_empty()),
    };
    (subsets.map(subset).collect(), count > ADDRESSES_MAX)
}

fn port((name, protocol, port, app_protocol): (String, String, i32, Option<String>)) -> EndpointPort {
    EndpointPort { name: Some(name).filter(|name| !name.is_empty()), protocol: Some(protocol), port, app_protocol }
}

fn address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    Some(EndpointAddress {
        ip: pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?,
        hostname: hostname(service, pod),
        node_name: pod.spec.as_ref()?.node_name.clone(),
        target_ref: Some(ObjectReference { api_version: None, ..reference(pod) }),
    })
}

/// The controller of Endpoints.
pub(crate) struct EndpointsOfServices;

impl Controller for EndpointsOfServices {
    type Key = ObjectKey;
    const NAME: &'static str = "endpoint-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.services, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.pods, services_of);
        wiring.on(&caches.endpoints, |change, _| vec![change.key.clone()]);
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let service = caches.services.get_key(key);
        let chosen = service.as_ref().and_then(|service| Some((service, selector_of(service)?)));
        let pods = chosen.map_or_else(Vec::new, |(service, selector)| pods_of(caches, service, selector));
        reconcile(&View { service, pods, endpoints: caches.endpoints.get_key(key) })
    }
}
