//! Pressure: what happens when a node runs out of memory, disk, inodes or process ids.
//!
//! Flow: every [`LOOK`] the machine is looked at ([`signals`]). What is below its threshold makes a condition of the node, which
//! the lease loop writes at once; then something is given back: unused images first where the disk is low, else one pod
//! ([`rank`]), and nothing more until that one is down. Beside it, every [`STORAGE_LOOK`], pods that take more on disk than they
//! may are evicted ([`local_storage`]).
//!
//! Guarantees: one eviction at a time; critical pods and those from files stay; a pod that comes to a node under pressure is
//! refused before anything of it runs ([`refusal`]), if it would make things worse.
//!
//! Deliberately absent: soft thresholds; image file systems apart from the node's.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>.

pub mod local_storage;
pub mod rank;
pub mod signals;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use mainstay_runtime::cgroup::{Cgroups, NodeCgroup};
use tokio::time::{Instant, MissedTickBehavior};

use self::local_storage::{PodTaken, Taken, is_limited};
use self::rank::{Candidate, first, is_critical};
use self::signals::{History, Pressures, Seen, Signal};
use crate::context::{Context, PodView};
use crate::images;
use crate::pod::dir::PodDir;
use crate::pod::io::{Input, Stopped};
use crate::pod::qos::{QosClass, class_of};

/// How often the machine is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often what pods take on disk is counted.
const STORAGE_LOOK: Duration = Duration::from_secs(10);
/// How long an evicted pod may take to be down before the next one is chosen.
const EVICTION_WAIT: Duration = Duration::from_secs(30);
/// The grace period of an eviction, as the kubelet's for hard thresholds.
const GRACE: SignedDuration = SignedDuration::from_secs(1);
/// After images were removed, and no pod, the disk gets this long to show it.
const IMAGES_WAIT: Duration = Duration::from_secs(2);

/// An eviction that is under way.
struct Under {
    uid: String,
    since: Instant,
}

/// Watches over the node, for ever.
pub async fn serve(context: Arc<Context>) {
    let Ok(cgroups) = Cgroups::detect() else { return };
    let group = cgroups.node(&context.config.instance, &context.config.name);
    let mut history = History::default();
    let mut under: Option<Under> = None;
    let mut storage_at = Instant::now();
    let mut images_at: Option<Instant> = None;
    let mut beat = tokio::time::interval(LOOK);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let Some(seen) = look(&context, &group).await else { continue };
        let low: Vec<Signal> = seen.low(&context.config.eviction).collect();
        let pressures = history.step(&low, context.clock.now());
        context.vitals.send_if_modified(|known| std::mem::replace(&mut known.pressures, pressures) != pressures);
        if storage_at.elapsed() >= STORAGE_LOOK {
            storage_at = Instant::now();
            evict_excessive(&context).await;
        }
        under = under.filter(|under| under.since.elapsed() < EVICTION_WAIT && is_up(&context, &under.uid));
        let Some(signal) = low.first().copied().filter(|_| under.is_none()) else { continue };
        tracing::warn!(resource = signal.resource(), "the node runs out of it");
        let of_disk = matches!(signal, Signal::Disk | Signal::Inodes);
        if of_disk && images_at.is_none_or(|at| at.elapsed() > EVICTION_WAIT) {
            images_at = Some(Instant::now());
            if images::remove_unused(&context).await {
                tokio::time::sleep(IMAGES_WAIT).await;
                continue;
            }
        }
        under = evict(&context, &group, signal, &seen).await;
    }
}

async fn look(context: &Arc<Context>, group: &NodeCgroup) -> Option<Seen> {
    let (context, group) = (context.clone(), group.clone());
    let capacity = u64::try_from(context.capacity().1).unwrap_or(0);
    let look = move || Seen::look(&context.config.data_dir, (capacity, group.usage().memory_bytes));
    tokio::task::spawn_blocking(look).await.ok()
}

fn is_up(context: &Context, uid: &str) -> bool {
    context.with_views(|views| views.get(uid).is_some_and(runs))
}

/// Whether any container of the pod is up.
fn runs(view: &PodView) -> bool {
    view.containers.values().any(|container| container.running.is_some())
}

fn running(context: &Context) -> Vec<(String, PodView)> {
    context.with_views(|views| {
        views.iter().filter(|(_, view)| runs(view)).map(|(uid, view)| (uid.clone(), view.clone())).collect()
    })
}

/// Evicts the pod that has to go first.
async fn evict(context: &Arc<Context>, group: &NodeCgroup, signal: Signal, seen: &Seen) -> Option<Under> {
    let pods = running(context);
    let used = usage(context, group, signal, &pods).await;
    let candidates = pods
        .iter()
        .filter_map(|(uid, view)| Candidate::of(&view.pod, signal, used.get(uid).copied().unwrap_or_default()));
    let Some(chosen) = first(candidates) else {
        tracing::warn!(resource = signal.resource(), "no pod may be evicted");
        return None;
    };
    let mut message = seen.message(signal, &context.config.eviction);
    if signal == Signal::Memory || signal == Signal::Disk {
        let (used, requested) = (chosen.used / 1024, chosen.requested / 1024);
        let _ = write!(message, "The pod was using {used}Ki, request is {requested}Ki. ");
    }
    tracing::warn!(pod = chosen.uid, priority = chosen.priority, used = chosen.used, message, "pod evicted");
    context.tell(&chosen.uid, Input::Stop(Stopped::evicted(message, GRACE)));
    Some(Under { uid: chosen.uid, since: Instant::now() })
}

/// What each pod uses of something.
async fn usage(
    context: &Arc<Context>,
    group: &NodeCgroup,
    signal: Signal,
    pods: &[(String, PodView)],
) -> HashMap<String, u64> {
    let (group, pods, data) = (group.clone(), pods.to_vec(), context.config.data_dir.clone());
    let read = move || {
        let of = |uid: &String, view: &PodView| match signal {
            Signal::Memory => group.pod(uid).usage().memory_bytes,
            Signal::Disk => taken(&data, view).sum().bytes,
            Signal::Inodes => taken(&data, view).sum().inodes,
            Signal::Pids => 0,
        };
        pods.iter().map(|(uid, view)| (uid.clone(), of(uid, view))).collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

fn taken(data_dir: &std::path::Path, view: &PodView) -> PodTaken {
    let dir = PodDir::new(data_dir, view.pod.metadata.uid.as_deref().unwrap_or_default());
    let containers: Vec<_> =
        view.containers.iter().map(|(name, container)| (name.clone(), container.running.clone())).collect();
    PodTaken::look(&view.pod, &dir, &containers)
}

/// Evicts the pods that take more on disk than they may.
async fn evict_excessive(context: &Arc<Context>) {
    let limited: Vec<_> = running(context).into_iter().filter(|(_, view)| is_limited(&view.pod)).collect();
    if limited.is_empty() {
        return;
    }
    let data = context.config.data_dir.clone();
    let find = move || -> Vec<(String, String, Taken)> {
        let excess = |(uid, view): (String, PodView)| {
            let taken = taken(&data, &view);
            Some((uid, taken.excess(&view.pod)?, taken.sum()))
        };
        limited.into_iter().filter_map(excess).collect()
    };
    for (uid, message, taken) in tokio::task::spawn_blocking(find).await.unwrap_or_default() {
        tracing::warn!(pod = uid, bytes = taken.bytes, message, "pod evicted");
        context.tell(&uid, Input::Stop(Stopped::evicted(message, GRACE)));
    }
}

/// Why a pod that just came is not run, if the node's pressure forbids it: for want of memory those that request nothing, unless
/// they tolerate that; for want of anything else all but critical ones.
pub fn refusal(pod: &Pod, pressures: Pressures) -> Option<String> {
    if is_critical(pod) || pressures == Pressures::default() {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let tolerates = |key: &str| {
        let fits = |toleration: &Toleration| {
            let effect = toleration.effect.as_deref().is_none_or(|effect| effect == "NoSchedule");
            effect && toleration.key.as_deref().is_none_or(|own| own.is_empty() || own == key)
        };
        spec.tolerations.iter().flatten().any(fits)
    };
    let greedy = class_of(spec) == QosClass::BestEffort && !tolerates("node.kubernetes.io/memory-pressure");
    let mut conditions = Vec::new();
    for (name, refused) in [
        ("MemoryPressure", pressures.memory && greedy),
        ("DiskPressure", pressures.disk),
        ("PIDPressure", pressures.pids),
    ] {
        if refused {
            conditions.push(name);
        }
    }
    (!conditions.is_empty()).then(|| format!("Pod was rejected: The node had condition: [{}]. ", conditions.join(", ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn who_is_refused() {
        let pod = |spec: serde_json::Value| -> Pod { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let memory = Pressures { memory: true, ..Pressures::default() };
        let disk = Pressures { disk: true, ..Pressures::default() };
        let plain = pod(json!({"containers": [{"name": "c"}]}));
        let burstable = pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}));
        let tolerant = pod(json!({"containers": [{"name": "c"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}));
        let critical = pod(json!({"priority": 2_000_000_000, "containers": [{"name": "c"}]}));
        assert_eq!(refusal(&plain, Pressures::default()), None);
        assert!(refusal(&plain, memory).unwrap().contains("[MemoryPressure]"));
        assert_eq!(
            [refusal(&burstable, memory), refusal(&tolerant, memory), refusal(&critical, disk)],
            [None, None, None]
        );
        assert!(refusal(&burstable, disk).unwrap().contains("[DiskPressure]"));
    }
}
