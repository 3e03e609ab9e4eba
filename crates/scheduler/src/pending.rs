//! The pods that wait for a node: those to look at, by priority and age, and those that no node would take, each with the
//! time of its next look.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::core::PodFacts;

/// First wait of a refused pod; it doubles up to the longest. Changes of nodes and pods wake it sooner.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A pod without a node.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) facts: Arc<PodFacts>,
    pub(crate) uid: String,
    pub(crate) priority: i32,
    pub(crate) created: Timestamp,
    /// The pod's latest known `resourceVersion`: a report of a refusal is worth nothing once the pod is bound.
    pub(crate) revision: String,
    /// Refusals in a row.
    pub(crate) refusals: u32,
    /// What its status says about the last one.
    pub(crate) told: Option<String>,
    /// When it is looked at again, while refused.
    again: Option<Duration>,
}

impl Waiting {
    pub(crate) fn new(facts: Arc<PodFacts>, uid: String, priority: i32, created: Timestamp, revision: String) -> Self {
        Self { facts, uid, priority, created, revision, refusals: 0, told: None, again: None }
    }

    fn rank(&self) -> Rank {
        (Reverse(self.priority), self.created, self.facts.key.clone())
    }
}

type Rank = (Reverse<i32>, Timestamp, String);

/// All pods without a node.
#[derive(Default)]
pub(crate) struct Pending {
    ready: BTreeSet<Rank>,
    refused: BTreeSet<(Duration, String)>,
    pods: HashMap<String, Waiting>,
}

impl Pending {
    /// A pod needs a node; one that is known keeps its history.
    pub(crate) fn put(&mut self, mut pod: Waiting) {
        if let Some(known) = self.remove(&pod.facts.key).filter(|known| known.uid == pod.uid) {
            pod.refusals = known.refusals;
            pod.told = known.told;
        }
        self.ready.insert(pod.rank());
        self.pods.insert(pod.facts.key.clone(), pod);
    }

    /// The pod needs no node any more.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Waiting> {
        let pod = self.pods.remove(key)?;
        self.ready.remove(&pod.rank());
        if let Some(again) = pod.again {
            self.refused.remove(&(again, key.to_owned()));
        }
        Some(pod)
    }

    /// The pod to look at next: highest priority first, then oldest.
    pub(crate) fn take(&mut self, now: Duration) -> Option<Waiting> {
        while let Some((when, key)) = self.refused.first().filter(|(when, _)| *when <= now).cloned() {
            self.refused.remove(&(when, key.clone()));
            self.wake(&key);
        }
        let (_, _, key) = self.ready.pop_first()?;
        self.pods.remove(&key)
    }

    /// No node took the pod, or binding failed: it waits.
    pub(crate) fn refuse(&mut self, mut pod: Waiting, now: Duration) {
        pod.refusals += 1;
        let wait = FIRST_WAIT.saturating_mul(1 << (pod.refusals - 1).min(10)).min(LONGEST_WAIT);
        self.delay(pod, now + wait);
    }

    /// The pod waits until the given time.
    pub(crate) fn delay(&mut self, mut pod: Waiting, until: Duration) {
        pod.again = Some(until);
        self.refused.insert((until, pod.facts.key.clone()));
        self.pods.insert(pod.facts.key.clone(), pod);
    }

    /// Something changed: every refused pod gets another look.
    pub(crate) fn wake_all(&mut self) {
        for (_, key) in std::mem::take(&mut self.refused) {
            self.wake(&key);
        }
    }

    fn wake(&mut self, key: &str) {
        if let Some(pod) = self.pods.get_mut(key) {
            pod.again = None;
            let rank = pod.rank();
            self.ready.insert(rank);
        }
    }

    /// When the next refused pod gets its look.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.refused.first().map(|(when, _)| *when)
    }

    /// Takes every waiting pod of a group, refused ones too.
    pub(crate) fn take_group(&mut self, group: &str) -> Vec<Waiting> {
        let is_member = |pod: &&Waiting| pod.facts.group.as_ref().is_some_and(|(name, _)| name == group);
        let keys: Vec<String> = self.pods.values().filter(is_member).map(|pod| pod.facts.key.clone()).collect();
        let mut members: Vec<Waiting> = keys.iter().filter_map(|key| self.remove(key)).collect();
        members.sort_by_key(Waiting::rank);
        members
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Whether any pod has been refused.
    pub(crate) fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// The pod, if it is waiting.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Waiting> {
        self.pods.get_mut(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(name: &str, priority: i32, created: i64) -> Waiting {
        let mut object = Pod::default();
        object.metadata.name = Some(name.to_owned());
        let facts = Arc::new(PodFacts::of(&object));
        Waiting::new(
            facts,
            name.to_owned(),
            priority,
            Timestamp::from_second(created).unwrap_or_default(),
            String::new(),
        )
    }

    #[test]
    fn by_priority_then_age() {
        let mut pending = Pending::default();
        for (name, priority, created) in [("young", 0, 9), ("old", 0, 1), ("urgent", 5, 9)] {
            pending.put(pod(name, priority, created));
        }
        let order: Vec<_> = std::iter::from_fn(|| pending.take(Duration::ZERO)).map(|pod| pod.uid).collect();
        assert_eq!(order, ["urgent", "old", "young"]);
    }

    #[test]
    fn the_refused_wait_longer_each_time_and_wake_on_change() {
        let (mut pending, mut now) = (Pending::default(), Duration::ZERO);
        pending.put(pod("a", 0, 0));
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            let pod = pending.take(now).expect("it is due");
            pending.refuse(pod, now);
            assert_eq!(pending.next_timer(), Some(now + Duration::from_secs(wait)));
            assert!(pending.take(now).is_none());
            now += Duration::from_secs(wait);
        }
        let first = pending.take(now).expect("it is due");
        pending.refuse(first, now);
        pending.wake_all();
        assert!(pending.take(now).is_some());
        assert!(pending.take(now + LONGEST_WAIT * 9).is_none(), "it was taken");
    }

    #[test]
    fn a_changed_pod_keeps_its_history_but_not_a_namesake() {
        let mut pending = Pending::default();
        pending.put(pod("a", 0, 0));
        let taken = pending.take(Duration::ZERO).expect("it is ready");
        pending.refuse(taken, Duration::ZERO);
        pending.put(pod("a", 0, 0));
        assert_eq!(pending.get_mut("/a").map(|pod| pod.refusals), Some(1));
        pending.put(Waiting { uid: "other".to_owned(), ..pod("a", 0, 0) });
        assert_eq!(pending.get_mut("/a").map(|pod| pod.refusals), Some(0));
        assert!(!pending.has_refused());
    }
}
