//! Endpoints that people write for a Service without a selector, as the EndpointSlices that traffic follows.
//!
//! Flow: each subset becomes a slice per family of addresses; slices that fit already stay.
//!
//! Deliberately absent: more than [`ADDRESSES_MAX`] addresses of a subset; Endpoints that say so
//! (`endpointslice.kubernetes.io/skip-mirror`) or are the lock of an election are left alone.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#endpointslice-mirroring>.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_informer::{Change, ObjectKey};

use crate::action::{Action, Attempt, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::endpoint_slice::{MANAGER_LABEL, SERVICE_LABEL, selector_of, slice_of};
use crate::object::{annotation, is_terminating, name};

/// Addresses of one subset; those beyond are left out.
pub(crate) const ADDRESSES_MAX: usize = 1000;
/// Endpoints in one slice.
const SLICE_MAX: usize = 100;
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LOCK: &str = "control-plane.alpha.kubernetes.io/leader";

/// What one look needs to see.
pub(crate) struct View {
    /// Whether there is a Service of the name, and it has no selector.
    pub(crate) is_wanted: bool,
    pub(crate) endpoints: Option<Arc<Endpoints>>,
    /// The slices this controller has written.
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

/// Decides about one object.
pub(crate) fn reconcile(view: &View) -> Plan {
    let source = view.endpoints.as_deref().filter(|endpoints| view.is_wanted && is_mirrored(endpoints));
    let wanted = source.map(slices).unwrap_or_default();
    let mut plan = Plan::nothing(format!("{} slices", wanted.len()));
    let mut old: Vec<&Arc<EndpointSlice>> = view.slices.iter().filter(|slice| !is_terminating(&***slice)).collect();
    old.sort_by_key(|slice| name(&***slice));
    let alike = |a: &EndpointSlice, b: &EndpointSlice| {
        (&a.endpoints, &a.ports, &a.address_type, &a.metadata.labels)
            == (&b.endpoints, &b.ports, &b.address_type, &b.metadata.labels)
    };
    let mut missing = Vec::new();
    for slice in wanted {
        match old.iter().position(|known| alike(known, &slice)) {
            Some(at) => drop(old.remove(at)),
            None => missing.push(slice),
        }
    }
    for mut slice in missing {
        // The family of a slice's addresses cannot change.
        match old.iter().position(|known| known.address_type == slice.address_type) {
            Some(at) => {
                let known = old.remove(at);
                let labels = slice.metadata.labels.take();
                slice.metadata = ObjectMeta { labels, ..known.metadata.clone() };
                plan.push(Action::Replace(Object::of(&slice)));
            }
            None => plan.push(Action::Create(Object::of(&slice))),
        }
    }
    plan.actions.extend(old.into_iter().map(|slice| Action::delete(Target::of(&**slice))));
    plan
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let label = endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(SKIP));
    label.is_none_or(|skip| skip != "true") && annotation(endpoints, LOCK).is_none() && !is_terminating(endpoints)
}

fn slices(source: &Endpoints) -> Vec<EndpointSlice> {
    let mut all = Vec::new();
    for subset in source.subsets.iter().flatten() {
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let addresses: Vec<_> = ready.chain(unready).take(ADDRESSES_MAX).collect();
        for family in ["IPv4", "IPv6"] {
            let own = addresses.iter().filter(|(address, _)| family_of(&address.ip) == Some(family));
            let endpoints: Vec<Endpoint> = own.map(|(address, ready)| endpoint(address, *ready)).collect();
            let chunks = endpoints.chunks(SLICE_MAX);
            all.extend(chunks.map(|chunk| slice(source, subset, family, chunk.to_vec())));
        }
    }
    all
}

fn family_of(address: &str) -> Option<&'static str> {
    Some(match address.parse().ok()? {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    })
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: None, terminating: None }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice(source: &Endpoints, subset: &EndpointSubset, family: &str, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    });
    slice_of(source, MANAGER, family, ports.collect(), endpoints)
}

/// The controller that mirrors Endpoints.
pub(crate) struct EndpointMirror;

fn is_ours(slice: &EndpointSlice) -> Option<&String> {
    let labels = slice.metadata.labels.as_ref()?;
    labels.get(SERVICE_LABEL).filter(|_| labels.get(MANAGER_LABEL).is_some_and(|manager| manager == MANAGER))
}

impl Controller for EndpointMirror {
    type Key = ObjectKey;
    const NAME: &'static str = "endpointslicemirroring-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.services, |change: &Change<Service>, _| vec![change.key.clone()]);
        wiring.on(&caches.endpoints, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.endpoint_slices, |change, _| {
            let services = change.versions().filter_map(|slice| is_ours(slice));
            services.map(|service| ObjectKey::new(&change.key.namespace, service)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let is_wanted = caches.services.get_key(key).is_some_and(|service| {
            let external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
            selector_of(&service).is_none() && !external && !is_terminating(&*service)
        });
        let own = |slice: &EndpointSlice| is_ours(slice) == Some(&key.name);
        let slices = caches.endpoint_slices.in_namespace(&key.namespace, own);
        reconcile(&View { is_wanted, endpoints: caches.endpoints.get_key(key), slices })
    }
}
