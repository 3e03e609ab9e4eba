//! ResourceQuota: a namespace has only so much.
//!
//! Flow: what the object counts as → every quota of the namespace that counts it must have room → its `status.used` is
//! raised by compare-and-swap before the object is stored. Two writers at once cannot both take the last place; what an
//! object gave back is found by the quota controller, and at once when the object was not stored after all.
//!
//! A quota whose figures are not there yet is counted here first.
//!
//! Source: <https://kubernetes.io/docs/concepts/policy/resource-quotas/>.

use std::sync::Arc;

use mainstay_model::quota::{charge, difference, in_scope, limited, to_value, unstated, usage};
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use mainstay_model::workload::{Resources, resources};
use mainstay_model::{meta, quantity::Quantity};
use serde_json::Value;

use super::{Operation, Review, forbidden};
use crate::api::Api;
use crate::registry::Served;
use crate::request::{Call, Verb};
use crate::rest::{self, Filter};

/// Kinds that may come to count as more than when they were made.
const GROWING: &[&str] = &["persistentvolumeclaims", "pods", "services"];

/// Takes what the object needs off the quotas.
pub(super) async fn validate(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    let Some(needed) = needed(review, object) else { return Ok(()) };
    let mut charged: Vec<(Arc<Value>, Resources)> = Vec::new();
    for quota in quotas(api, review, object).await? {
        let hard = hard(&quota);
        if review.operation == Operation::Create
            && review.call.resource.plural == "pods"
            && let Some(why) = unstated(&hard, object)
        {
            refund(api, charged).await;
            return Err(forbidden(review, object, &format!("failed quota: {}: {why}", meta::name(&quota))));
        }
        let delta = limited(&hard, &needed);
        if delta.is_empty() {
            continue;
        }
        if let Err(error) = take(api, review, &quota, &delta, object).await {
            refund(api, charged).await;
            return Err(error);
        }
        charged.push((quota, delta));
    }
    Ok(())
}

/// Gives back what [`validate`] took for an object that was not stored.
pub(super) async fn undo(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    let Some(needed) = needed(review, object) else { return Ok(()) };
    let quotas = quotas(api, review, object).await?;
    let charged = quotas.into_iter().map(|quota| {
        let delta = limited(&hard(&quota), &needed);
        (quota, delta)
    });
    refund(api, charged.filter(|(_, delta)| !delta.is_empty()).collect()).await;
    Ok(())
}

/// What the write adds; `None` when it adds nothing.
fn needed(review: Review<'_>, object: &Value) -> Option<Resources> {
    let (call, resource) = (review.call, &review.call.resource);
    call.namespace.as_ref()?;
    let delta = match (review.operation, review.old) {
        _ if review.dry_run => return None,
        (Operation::Create, _) if call.subresource.is_none() => usage(resource, object),
        (Operation::Update, Some(old)) if resource.group.is_empty() && GROWING.contains(&resource.plural.as_str()) => {
            if !matches!(call.subresource.as_deref(), None | Some("resize")) {
                return None;
            }
            difference(&usage(resource, object), &usage(resource, old))
        }
        _ => return None,
    };
    (!delta.is_empty()).then_some(delta)
}

async fn quotas(api: &Api, review: Review<'_>, object: &Value) -> Result<Vec<Arc<Value>>, ApiError> {
    let all = api.followed.list("ResourceQuota", review.call.namespace.as_deref()).await?;
    Ok(all.into_iter().filter(|quota| in_scope(quota, &review.call.resource.kind, object)).collect())
}

fn hard(quota: &Value) -> Resources {
    resources(quota.pointer("/spec/hard"))
}

fn call_on(quota: &Value) -> Call {
    Call {
        name: Some(meta::name(quota).to_owned()),
        subresource: Some("status".to_owned()),
        ..Call::internal(Verb::Update, known("ResourceQuota").into(), meta::namespace(quota))
    }
}

/// Adds `delta` to the quota's figures.
async fn take(api: &Api, review: Review<'_>, quota: &Value, delta: &Resources, object: &Value) -> Result<(), ApiError> {
    let known = |quota: &Value| resources(quota.pointer("/status/used"));
    let has_all = |used: &Resources| delta.keys().all(|name| used.contains_key(name));
    let counted = if has_all(&known(quota)) { None } else { Some(count(api, quota).await?) };
    let call = call_on(quota);
    // Its own write passes admission, too: a future that contains itself needs a box.
    let written = Box::pin(rest::change(api, &call, |old| {
        let mut used = known(old);
        if !has_all(&used) {
            used = counted.clone().unwrap_or_default();
        }
        let hard = hard(old);
        let after = charge(meta::name(old), &hard, &used, delta).map_err(|why| forbidden(review, object, &why))?;
        let mut new = old.clone();
        new["status"]["hard"] = old["spec"]["hard"].clone();
        new["status"]["used"] = to_value(&limited(&hard, &after));
        Ok(new)
    }));
    match written.await {
        // A quota that went away limits nothing.
        Err(error) if error.code == 404 && error.about.as_ref().is_some_and(|about| about.kind == "resourcequotas") => {
            Ok(())
        }
        other => other.map(drop),
    }
}

async fn refund(api: &Api, charged: Vec<(Arc<Value>, Resources)>) {
    for (quota, delta) in charged {
        let call = call_on(&quota);
        let written = Box::pin(rest::change(api, &call, |old| {
            let used = resources(old.pointer("/status/used"));
            let mut new = old.clone();
            new["status"]["used"] = to_value(&difference_or_zero(&used, &delta));
            Ok(new)
        }));
        if let Err(error) = written.await {
            tracing::warn!(quota = meta::name(&quota), %error.message, "could not give back to a quota; its controller will");
        }
    }
}

/// `used` less `delta`, keeping the names whose rest is zero.
fn difference_or_zero(used: &Resources, delta: &Resources) -> Resources {
    let less = |(name, amount): (&String, &Quantity)| {
        let rest = *amount - delta.get(name).copied().unwrap_or(Quantity::ZERO);
        (name.clone(), rest.max(Quantity::ZERO))
    };
    used.iter().map(less).collect()
}

/// Everything in the namespace that the quota limits.
async fn count(api: &Api, quota: &Value) -> Result<Resources, ApiError> {
    let hard = hard(quota);
    let mut used: Resources = hard.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    let catalogue = api.registry.now().await?;
    for resource in catalogue.all().iter().filter(|resource| is_limited(resource, &hard)) {
        let list = Call::internal(Verb::List, resource.clone(), meta::namespace(quota));
        let (objects, _) = rest::select(api, &list, &Filter::of(&list)?).await?;
        for object in objects.iter().filter(|object| in_scope(quota, &resource.kind, object)) {
            for (name, amount) in limited(&hard, &usage(resource, object)) {
                used.entry(name).and_modify(|sum| *sum = *sum + amount);
            }
        }
    }
    Ok(used)
}

/// Whether objects of a kind may count; of kinds that are counted by amounts it depends on the object.
fn is_limited(resource: &Served, hard: &Resources) -> bool {
    if !resource.namespaced || !resource.has_verb("list") || resource.group == "events.k8s.io" {
        return false;
    }
    let by_amount = resource.group.is_empty() && GROWING.contains(&resource.plural.as_str());
    by_amount || usage(resource, &Value::Null).keys().any(|name| hard.contains_key(name))
}
