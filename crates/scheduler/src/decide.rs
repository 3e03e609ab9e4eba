//! Deciding about one waiting pod, or about a group of them: place, wait for a volume, make others go, or refuse.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::ObjectKey;

use crate::claims::{Demand, has_claims};
use crate::core::{Budget, HELD, NoRoom, PodFacts, Preemption, Refusal};
use crate::driver::{Driver, Ended};
use crate::pending::Waiting;
use crate::selector::clauses;

/// Bindings under way at once.
const BINDINGS_MAX: usize = 64;
/// Reports of refusals under way at once; above it they wait for the next refusal.
const REPORTS_MAX: usize = 32;
/// When a pod that lacks something itself is looked at again before anybody is told.
const SECOND_LOOK: Duration = Duration::from_millis(100);
/// How long a pod keeps its node while its volumes are made.
const VOLUMES_MAX: Duration = Duration::from_secs(60);

/// A pod that has a node here and waits for its volumes.
pub(crate) struct Awaiting {
    pod: Waiting,
    node: String,
    /// When it gives up.
    pub(crate) until: Duration,
}

impl Driver {
    /// Decides about the pods that are due.
    pub(crate) fn decide_due(&mut self, now: Duration) {
        while self.bindings < BINDINGS_MAX
            && let Some(pod) = self.pending.take(now)
        {
            match pod.facts.group.clone() {
                Some((group, size)) => self.decide_group(pod, &group, size, now),
                None => match self.try_place(&pod) {
                    Ok((node, unbound)) => self.place(pod, node, unbound),
                    Err(refusal) => self.refuse(pod, refusal, now),
                },
            }
        }
    }

    /// Gives the pod a node in the snapshot. The result is the node and the claims that want to be told of it.
    fn try_place(&mut self, pod: &Waiting) -> Result<(String, Vec<ObjectKey>), Why> {
        let Demand { terms, findable, unbound } = match self.object(&pod.facts.key).filter(|object| has_claims(object))
        {
            Some(object) => self.caches.storage.demand(&object, &self.caches.pods).map_err(Why::Pod)?,
            None => Demand::default(),
        };
        let facts = if terms.is_empty() && findable.is_empty() {
            pod.facts.clone()
        } else {
            Arc::new(PodFacts::clone(&pod.facts).with_volumes(terms).with_findable(findable))
        };
        let chosen = self.snapshot.schedule(&facts);
        chosen.map(|node| (node, unbound)).map_err(|refusal| Why::Nodes(refusal, facts))
    }

    /// All of a group that are there, or none.
    fn decide_group(&mut self, first: Waiting, group: &str, size: usize, now: Duration) {
        let mut members = vec![first];
        members.extend(self.pending.take_group(group));
        let placed = self.snapshot.group_count(group);
        if placed + members.len() < size {
            let text = format!("group {group:?} has {} of {size} pods", placed + members.len());
            for pod in members {
                self.refuse(pod, Why::Pod(text.clone()), now);
            }
            return;
        }
        let (mut chosen, mut refused) = (Vec::new(), Vec::new());
        for pod in members {
            match self.try_place(&pod) {
                Ok((node, unbound)) => chosen.push((pod, node, unbound)),
                Err(why) => refused.push((pod, why)),
            }
        }
        if placed + chosen.len() >= size {
            for (pod, node, unbound) in chosen {
                self.place(pod, node, unbound);
            }
            for (pod, why) in refused {
                self.refuse(pod, why, now);
            }
            return;
        }
        let why = refused.first().map(|(_, why)| why.to_text(self.snapshot.node_count())).unwrap_or_default();
        let text = format!(
            "only {} of {size} pods of group {group:?} fit: {}",
            placed + chosen.len(),
            why.trim_end_matches('.')
        );
        for (pod, ..) in chosen {
            self.snapshot.remove_pod(&pod.facts.key);
            self.refuse(pod, Why::Pod(text.clone()), now);
        }
        for (pod, _) in refused {
            self.refuse(pod, Why::Pod(text.clone()), now);
        }
    }

    fn place(&mut self, pod: Waiting, node: String, unbound: Vec<ObjectKey>) {
        self.assumed.insert(pod.facts.key.clone(), pod.uid.clone());
        if unbound.is_empty() {
            return self.bind(pod, node);
        }
        let until = self.now() + VOLUMES_MAX;
        for claim in unbound {
            let (api, node) = (self.api.clone(), node.clone());
            self.requests.push(async move { Ended::Asked(api.select_node(&claim, &node).await) }.boxed());
        }
        self.awaiting.insert(pod.facts.key.clone(), Awaiting { pod, node, until });
    }

    fn bind(&mut self, pod: Waiting, node: String) {
        self.bindings += 1;
        let api = self.api.clone();
        let future = async move {
            match api.bind(&pod, &node).await {
                Ok(()) => {
                    api.note(&pod, false, "Scheduled", &format!("Successfully assigned {} to {node}", pod.facts.key));
                    Ended::Bound(pod.facts.key.clone())
                }
                Err(error) => Ended::NotBound(Box::new(pod), error),
            }
        };
        self.requests.push(future.boxed());
    }

    /// Storage has changed: whoever has all volumes now is bound.
    pub(crate) fn volumes_came(&mut self) {
        let is_ready = |key: &String| {
            let object = self.object(key)?;
            let demand = self.caches.storage.demand(&object, &self.caches.pods).ok()?;
            demand.unbound.is_empty().then(|| key.clone())
        };
        let ready: Vec<String> = self.awaiting.keys().filter_map(is_ready).collect();
        for awaiting in ready.iter().filter_map(|key| self.awaiting.remove(key)).collect::<Vec<_>>() {
            self.bind(awaiting.pod, awaiting.node);
        }
    }

    /// Who has waited too long for volumes gives the node back.
    pub(crate) fn give_up_waiting(&mut self, now: Duration) {
        let late = self.awaiting.iter().filter(|(_, awaiting)| awaiting.until <= now).map(|(key, _)| key.clone());
        for key in late.collect::<Vec<_>>() {
            let Some(Awaiting { pod, node, .. }) = self.awaiting.remove(&key) else { continue };
            self.assumed.remove(&key);
            self.snapshot.remove_pod(&key);
            self.refuse(pod, Why::Pod(format!("volumes for node {node} were not made in time")), now);
        }
    }

    fn refuse(&mut self, mut pod: Waiting, mut why: Why, now: Duration) {
        match &mut why {
            Why::Nodes(refusal, facts) => self.make_room(&pod, facts, refusal),
            // What it lacks may only not be seen yet: its set made the claim just before it.
            Why::Pod(_) if pod.refusals == 0 => {
                pod.refusals = 1;
                return self.pending.delay(pod, now + SECOND_LOOK);
            }
            Why::Pod(_) => {}
        }
        let message = why.to_text(self.snapshot.node_count());
        if pod.told.as_ref() != Some(&message) && self.reports < REPORTS_MAX {
            self.report(&pod, message.clone());
            pod.told = Some(message);
        }
        self.pending.refuse(pod, now);
    }

    /// Makes less important pods go, if that helps and is not under way already.
    /// `facts` are the pod's, with what its volumes demand.
    fn make_room(&mut self, pod: &Waiting, facts: &PodFacts, refusal: &mut Refusal) {
        let is_leaving = |node: &str| {
            let leaves = |other: &Pod| {
                let spec = other.spec.as_ref();
                other.metadata.deletion_timestamp.is_some()
                    && spec.and_then(|spec| spec.node_name.as_deref()) == Some(node)
                    && spec.and_then(|spec| spec.priority).unwrap_or(0) < pod.facts.priority
            };
            !self.caches.pods.filter(leaves).is_empty()
        };
        if self.snapshot.nomination(&pod.facts.key).is_some_and(is_leaving) {
            return;
        }
        let budgets = self.budgets();
        let Some(Preemption { node, victims, .. }) = self.snapshot.preempt(facts, refusal, &budgets) else {
            self.snapshot.drop_nomination(&pod.facts.key);
            return;
        };
        // A place that is only held for another is taken from it.
        for held in victims.iter().filter_map(|key| key.strip_prefix(HELD)) {
            self.snapshot.drop_nomination(held);
        }
        self.snapshot.nominate(&pod.facts, &node);
        tracing::info!(pod = pod.facts.key, node, ?victims, "making room");
        let objects: Vec<Arc<Pod>> = victims.iter().filter_map(|key| self.object(key)).collect();
        let (api, pod) = (self.api.clone(), pod.clone());
        let asked = async move {
            let mut result = api.nominate(&pod, &node).await;
            for victim in objects {
                result = result.and(api.displace(&victim, &pod).await);
            }
            Ended::Asked(result)
        };
        self.requests.push(asked.boxed());
    }

    fn budgets(&self) -> Vec<Budget> {
        let all = self.caches.budgets.list();
        let budgets = all.iter().filter_map(|budget| {
            let selector = clauses(budget.spec.as_ref()?.selector.as_ref())?;
            let allowed = budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0);
            let namespace = budget.metadata.namespace.clone().unwrap_or_default();
            Some(Budget { namespace, selector, allowed: i64::from(allowed) })
        });
        budgets.collect()
    }

    fn report(&mut self, pod: &Waiting, message: String) {
        self.reports += 1;
        let (api, pod) = (self.api.clone(), pod.clone());
        let future = async move {
            if let Err(error) = api.refused(&pod, &message).await {
                tracing::debug!(pod = pod.facts.key, %error, "the refusal was not recorded");
            }
            api.note(&pod, true, "FailedScheduling", &message);
            Ended::Reported
        };
        self.requests.push(future.boxed());
    }

    /// Evicts one misplaced pod, if that is wanted, nobody waits for a node, and budgets allow it.
    pub(crate) fn rebalance(&mut self, now: Duration) {
        let Some(every) = self.settings.rebalance_every else { return };
        if now < self.rebalanced + every || !self.pending.is_empty() || !self.awaiting.is_empty() || self.bindings > 0 {
            return;
        }
        self.rebalanced = now;
        let Some(pod) = self.snapshot.misplaced().and_then(|key| self.object(&key)) else { return };
        let api = self.api.clone();
        let facts = Arc::new(PodFacts::of(&pod));
        let about = Waiting::new(
            facts,
            pod.metadata.uid.clone().unwrap_or_default(),
            0,
            jiff::Timestamp::UNIX_EPOCH,
            String::new(),
        );
        let evicted = async move {
            let result = api.evict(&pod).await;
            if result.is_ok() {
                api.note(&about, false, "Rebalanced", "Evicted, so that the pods of its owner are spread better again");
            }
            Ended::Asked(result)
        };
        self.requests.push(evicted.boxed());
    }
}

/// Why a pod gets no node.
enum Why {
    /// Each node has its reason.
    Nodes(Refusal, Arc<PodFacts>),
    /// The pod itself: no node can do.
    Pod(String),
}

impl Why {
    fn to_text(&self, nodes: usize) -> String {
        match self {
            Self::Nodes(refusal, _) => refusal.to_string(),
            Self::Pod(text) => {
                let mut text = format!("0/{nodes} nodes are available: {text}.");
                if nodes > 0 {
                    // Writing to a text cannot fail.
                    let _ = NoRoom::Hopeless(nodes).write(&mut text, nodes);
                }
                text
            }
        }
    }
}
