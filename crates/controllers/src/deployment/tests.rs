//! Rollouts played through: every step of the controllers and the agent in a seeded random order.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};
use serde_json::{Value, json};

use super::*;
use crate::object::{annotation, is_active, is_ready};
use crate::replica_set::ReplicaSets;
use crate::testing::World;

fn manifest(replicas: i32, image: &str, extra: &Value) -> Value {
    let mut manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": image}]}},
        },
    });
    manifest["spec"] = mainstay_model::patch::merge(&manifest["spec"], extra).unwrap();
    manifest
}

/// The two controllers, a scheduler and an agent over a world.
struct Play {
    world: World,
    random: fastrand::Rng,
    attempts: [Attempt; 2],
    /// Pods of these images never become ready.
    broken: Vec<&'static str>,
}

impl Play {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { world: World::new(), random, attempts: Default::default(), broken: Vec::new() }
    }

    fn deployment(&self) -> Arc<Deployment> {
        self.world.caches().deployments.get("shop", "web").unwrap()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.world.caches().pods.list();
        pods.sort_by_key(|pod| name(&**pod).to_owned());
        pods
    }

    fn sets(&self) -> Vec<Arc<ReplicaSet>> {
        let mut sets = self.world.caches().replica_sets.list();
        sets.sort_by_key(|set| revision::of(set));
        sets
    }

    /// One step of anyone; whether something happened.
    fn step(&mut self) -> bool {
        match self.random.u8(0..4) {
            0 => {
                let key = ObjectKey::new("shop", "web");
                !self.world.look(&Deployments, &key, &mut self.attempts[0]).actions.is_empty()
            }
            1 => {
                let sets = self.sets();
                let Some(set) = self.random.choice(sets) else { return false };
                !self.world.look(&ReplicaSets, &ObjectKey::of(&*set), &mut self.attempts[1]).actions.is_empty()
            }
            2 => {
                let starting = |pod: &&Arc<Pod>| {
                    let image = pod.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap();
                    is_active(pod) && !is_ready(pod) && !self.broken.contains(&image)
                };
                let pods = self.pods();
                let pods: Vec<_> = pods.iter().filter(starting).collect();
                let Some(pod) = self.random.choice(pods) else { return false };
                self.world.start_pod(pod);
                true
            }
            _ => {
                let pods: Vec<_> = self.pods().into_iter().filter(|pod| is_terminating(&**pod)).collect();
                let Some(pod) = self.random.choice(pods) else { return false };
                self.world.stop_pod(&pod);
                true
            }
        }
    }

    /// Until nobody has anything to do; `each` is called after every step.
    fn settle(&mut self, mut each: impl FnMut(&Self)) {
        let mut idle = 0;
        for _ in 0..20_000 {
            idle = if self.step() { 0 } else { idle + 1 };
            each(self);
            if idle > 300 {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn condition(&self, type_: &str) -> DeploymentCondition {
        let status = self.deployment().status.clone().unwrap();
        status.conditions.unwrap().into_iter().find(|c| c.type_.as_deref() == Some(type_)).unwrap()
    }

    fn reason(&self, type_: &str) -> String {
        self.condition(type_).reason.unwrap()
    }

    fn assert_complete(&self, replicas: i32, image: &str) {
        let deployment = self.deployment();
        let status = deployment.status.clone().unwrap();
        let count = (replicas > 0).then_some(replicas);
        assert_eq!(
            (status.replicas, status.updated_replicas, status.available_replicas, status.unavailable_replicas),
            (count, count, count, None)
        );
        assert_eq!(status.observed_generation, deployment.metadata.generation);
        let pods = self.pods();
        assert_eq!(pods.len() as i32, replicas);
        assert!(pods.iter().all(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image)));
        assert_eq!(self.reason("Progressing"), "NewReplicaSetAvailable");
        assert_eq!(self.reason("Available"), "MinimumReplicasAvailable");
    }
}

#[test]
fn rollouts_keep_their_bounds_and_converge() {
    for seed in 0..40 {
        let mut play = Play::new(seed);
        let replicas = play.random.i32(1..9);
        let (surge, unavailable) = (play.random.i32(0..4), play.random.i32(0..3));
        let strategy = json!({"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}});
        play.world.apply(manifest(replicas, "v1", &strategy));
        play.settle(|_| {});
        play.assert_complete(replicas, "v1");
        let (surge, unavailable) = if surge + unavailable == 0 { (0, 1) } else { (surge, unavailable.min(replicas)) };
        for image in ["v2", "v3", "v1"] {
            play.world.apply(manifest(replicas, image, &strategy));
            // In the middle of it, sometimes, comes the next one.
            if play.random.bool() {
                for _ in 0..play.random.u32(0..60) {
                    play.step();
                }
                continue;
            }
            play.settle(|play| {
                let wanted: i32 = play.sets().iter().map(|set| rollout::size(set)).sum();
                assert!(wanted <= replicas + surge, "seed {seed}: {wanted} pods asked for");
                let serving = play.pods().iter().filter(|pod| is_active(pod) && is_ready(pod)).count() as i32;
                assert!(serving >= replicas - unavailable, "seed {seed}: {serving} of {replicas} pods serve");
            });
            play.assert_complete(replicas, image);
        }
        play.settle(|_| {});
        play.assert_complete(replicas, "v1");
    }
}

#[test]
fn revisions_count_up_and_a_rollback_finds_its_old_set() {
    let mut play = Play::new(1);
    for image in ["v1", "v2", "v3"] {
        play.world.apply(manifest(3, image, &json!({})));
        play.settle(|_| {});
    }
    assert_eq!(play.sets().len(), 3);
    play.world.apply(manifest(3, "v1", &json!({})));
    play.settle(|_| {});
    play.assert_complete(3, "v1");
    assert_eq!(play.sets().iter().map(|set| revision::of(set)).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(annotation(&**play.sets().last().unwrap(), revision::HISTORY), Some("1"));
    assert_eq!(annotation(&*play.deployment(), revision::REVISION), Some("4"));
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut play = Play::new(2);
    for image in ["v1", "v2", "v3", "v4", "v5"] {
        play.world.apply(manifest(2, image, &json!({"revisionHistoryLimit": 2})));
        play.settle(|_| {});
    }
    assert_eq!(play.sets().iter().map(|set| revision::of(set)).collect::<Vec<_>>(), [3, 4, 5]);
}

#[test]
fn recreate_never_runs_two_templates_at_once() {
    for seed in 0..20 {
        let mut play = Play::new(seed);
        let recreate = json!({"strategy": {"type": "Recreate"}});
        play.world.apply(manifest(3, "v1", &recreate));
        play.settle(|_| {});
        play.world.apply(manifest(3, "v2", &recreate));
        play.settle(|play| {
            let mut images: Vec<_> =
                play.pods().iter().map(|p| p.spec.as_ref().unwrap().containers[0].image.clone()).collect();
            images.dedup();
            assert!(images.len() <= 1, "seed {seed}: {images:?}");
        });
        play.assert_complete(3, "v2");
    }
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut play = Play::new(3);
    play.world.apply(manifest(2, "v1", &json!({})));
    play.settle(|_| {});
    play.world.apply(manifest(4, "v2", &json!({"paused": true})));
    play.settle(|_| {});
    let images = |play: &Play| -> Vec<String> {
        play.pods().iter().map(|p| p.spec.as_ref().unwrap().containers[0].image.clone().unwrap()).collect()
    };
    assert_eq!(images(&play), ["v1"; 4]);
    assert_eq!(play.reason("Progressing"), "DeploymentPaused");
    play.world.apply(manifest(4, "v2", &json!({"paused": false})));
    play.settle(|_| {});
    play.assert_complete(4, "v2");
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_the_proportion() {
    let mut play = Play::new(4);
    let strategy = json!({"strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 2}}});
    play.broken.push("bad");
    play.world.apply(manifest(10, "v1", &strategy));
    play.settle(|_| {});
    play.world.apply(manifest(10, "bad", &strategy));
    play.settle(|_| {});
    let sizes = |play: &Play| play.sets().iter().map(|set| rollout::size(set)).collect::<Vec<_>>();
    assert_eq!(sizes(&play), [8, 4]);
    play.world.apply(manifest(20, "bad", &strategy));
    play.settle(|_| {});
    // 22 pods in all: a third of them stays the broken third.
    let sizes = sizes(&play);
    assert_eq!(sizes.iter().sum::<i32>(), 22);
    assert!((14..=18).contains(&sizes[0]), "{sizes:?}");
}

#[test]
fn a_rollout_that_stands_still_times_out_and_recovers() {
    let mut play = Play::new(5);
    play.broken.push("bad");
    let deadline = json!({"progressDeadlineSeconds": 30});
    play.world.apply(manifest(3, "v1", &deadline));
    play.settle(|_| {});
    play.world.apply(manifest(3, "bad", &deadline));
    play.settle(|_| {});
    assert_eq!(play.reason("Available"), "MinimumReplicasAvailable", "the old pods serve on");
    assert_eq!(play.condition("Progressing").status.as_deref(), Some("True"));
    let plan = play.world.look(&Deployments, &ObjectKey::new("shop", "web"), &mut Attempt::default());
    assert_eq!(plan.requeue_after, Some(Duration::from_secs(30)), "it wants to look when the deadline runs out");
    play.world.pass(Duration::from_secs(31));
    play.settle(|_| {});
    assert_eq!(play.reason("Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(play.condition("Progressing").status.as_deref(), Some("False"));
    play.world.apply(manifest(3, "v2", &deadline));
    play.settle(|_| {});
    play.assert_complete(3, "v2");
}

#[test]
fn what_keeps_pods_from_being_created_is_shown() {
    let mut play = Play::new(6);
    play.world.refuse_pods = Some("exceeded quota".to_owned());
    play.world.apply(manifest(2, "v1", &json!({})));
    for _ in 0..200 {
        play.step();
    }
    assert_eq!(play.condition("ReplicaFailure").message.as_deref(), Some("exceeded quota"));
    play.world.refuse_pods = None;
    play.settle(|_| {});
    play.assert_complete(2, "v1");
    let conditions = play.deployment().status.clone().unwrap().conditions.unwrap();
    assert!(!conditions.iter().any(|c| c.type_.as_deref() == Some("ReplicaFailure")));
}

#[test]
fn a_taken_name_changes_the_hash() {
    let mut play = Play::new(7);
    play.world.apply(manifest(1, "v1", &json!({})));
    let wanted = set_name(&play.deployment(), &hash(&play.deployment()));
    let stranger = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": wanted, "labels": {"app": "other"}},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "other"}}},
    });
    play.world.apply(stranger);
    play.settle(|_| {});
    play.assert_complete(1, "v1");
    assert_eq!(play.deployment().status.as_ref().unwrap().collision_count, Some(1));
}

#[test]
fn orphans_are_adopted() {
    let mut play = Play::new(8);
    play.world.apply(manifest(2, "v1", &json!({})));
    play.settle(|_| {});
    let set = play.sets()[0].clone();
    let mut orphan = ReplicaSet::clone(&set);
    orphan.metadata.owner_references = None;
    play.world.put(&Object::of(&orphan));
    let pods = play.pods();
    play.settle(|_| {});
    assert_eq!(play.sets().len(), 1);
    assert!(controller_of(&*play.sets()[0]).is_some_and(|owner| owner.uid == uid(&*play.deployment())));
    assert_eq!(play.pods().len(), pods.len());
}
