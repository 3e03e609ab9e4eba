//! LoadBalancer services: each gets an address from a range and keeps it.
//!
//! Guarantees: no two services have the same address; an address stays while the service lives, unless
//! `spec.loadBalancerIP` asks for another that is free. Nothing is remembered outside the services' own status.
//!
//! All services are looked at together, because the choice for one depends on all others.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::action::{Action, Attempt, Note, Now, Object, Plan};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{created, is_terminating, name, namespace, reference, time, uid};

/// The condition that says why a service has no address.
const CONDITION: &str = "LoadBalancerAddress";

/// Decides about all services.
pub(crate) fn reconcile(services: &[Arc<Service>], range: Option<(Ipv4Addr, Ipv4Addr)>, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing("every service has the address it should have");
    let Some((first, last)) = range else { return Plan::nothing("there is no address range") };
    let mut services: Vec<&Arc<Service>> = services.iter().collect();
    services.sort_by_cached_key(|s| (created(&***s), namespace(&***s).to_owned(), name(&***s).to_owned()));
    let mut taken: BTreeMap<Ipv4Addr, &str> = BTreeMap::new();
    for service in services.iter().filter(|service| wants_address(service)) {
        if let Some(address) = held(service).filter(|address| (first..=last).contains(address)) {
            taken.entry(address).or_insert(uid(&***service));
        }
    }
    for service in services {
        if !wants_address(service) {
            release(service, &mut plan);
            continue;
        }
        let own = held(service).filter(|address| taken.get(address) == Some(&uid(&**service)));
        let asked = spec(service).load_balancer_ip.and_then(|text| text.parse::<Ipv4Addr>().ok());
        let is_free = |address: &Ipv4Addr| (first..=last).contains(address) && !taken.contains_key(address);
        let chosen = match asked {
            Some(asked) if own == Some(asked) || is_free(&asked) => Some(asked),
            Some(_) => own,
            None => own.or_else(|| (u32::from(first)..=u32::from(last)).map(Ipv4Addr::from).find(is_free)),
        };
        if let Some(chosen) = chosen {
            if let Some(own) = own.filter(|own| *own != chosen) {
                taken.remove(&own);
            }
            taken.insert(chosen, uid(&**service));
        }
        let refusal = match (chosen, asked) {
            (Some(chosen), Some(asked)) if chosen != asked => Some(format!("{asked} is not free in {first}-{last}")),
            (None, Some(asked)) => Some(format!("{asked} is not free in {first}-{last}")),
            (None, None) => Some(format!("no address is free in {first}-{last}")),
            _ => None,
        };
        assign(service, chosen, refusal, now, &mut plan);
    }
    plan
}

fn spec(service: &Service) -> ServiceSpec {
    service.spec.clone().unwrap_or_default()
}

fn wants_address(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let is_balanced = spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    // Another class is another controller's.
    is_balanced && spec.is_some_and(|spec| spec.load_balancer_class.is_none()) && !is_terminating(service)
}

fn held(service: &Service) -> Option<Ipv4Addr> {
    let balancer = service.status.as_ref()?.load_balancer.as_ref()?;
    balancer.ingress.as_ref()?.first()?.ip.as_ref()?.parse().ok()
}

fn assign(service: &Service, address: Option<Ipv4Addr>, refusal: Option<String>, now: Timestamp, plan: &mut Plan) {
    let mut status = service.status.clone().unwrap_or_default();
    let ingress = address.map(|address| LoadBalancerIngress {
        ip: Some(address.to_string()),
        ip_mode: Some("VIP".to_owned()),
        ..LoadBalancerIngress::default()
    });
    if held(service) != address {
        status.load_balancer = Some(LoadBalancerStatus { ingress: ingress.map(|ingress| vec![ingress]) });
    }
    let mut conditions = status.conditions.take().unwrap_or_default();
    let told = conditions.iter().find(|condition| condition.type_ == CONDITION).map(|c| c.message.clone());
    if told != refusal {
        conditions.retain(|condition| condition.type_ != CONDITION);
        if let Some(message) = refusal {
            conditions.push(Condition {
                type_: CONDITION.to_owned(),
                status: "False".to_owned(),
                reason: "NoFreeAddress".to_owned(),
                message: message.clone(),
                last_transition_time: time(now),
                observed_generation: None,
            });
            plan.push(Action::Note(Note {
                regarding: reference(service),
                warning: true,
                reason: "NoFreeAddress",
                message,
            }));
        }
    }
    status.conditions = Some(conditions).filter(|all| !all.is_empty());
    if service.status.as_ref() != Some(&status) {
        plan.push(Action::ReplaceStatus(Object::of(&Service { status: Some(status), ..service.clone() })));
    }
}

/// A service that is no load balancer any more gives its address back. One of another class is left alone.
fn release(service: &Service, plan: &mut Plan) {
    let is_other = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) != Some("LoadBalancer");
    if held(service).is_some() && is_other && !is_terminating(service) {
        let mut status = service.status.clone().unwrap_or_default();
        status.load_balancer = Some(LoadBalancerStatus::default());
        plan.push(Action::ReplaceStatus(Object::of(&Service { status: Some(status), ..service.clone() })));
    }
}

/// The controller of load-balancer addresses.
pub(crate) struct LoadBalancers {
    pub(crate) range: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl Controller for LoadBalancers {
    type Key = &'static str;
    const NAME: &'static str = "service-controller";

    fn wire(&self, wiring: &mut Wiring<&'static str>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.services, |change, _| {
            let balanced = |service: &Arc<Service>| wants_address(service) || held(service).is_some();
            if change.versions().any(balanced) { vec!["services"] } else { Vec::new() }
        });
    }

    fn plan(&self, caches: &Caches, _: &&'static str, _: &Attempt, now: Now) -> Plan {
        reconcile(&caches.services.list(), self.range, now.wall)
    }
}
