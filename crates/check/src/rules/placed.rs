//! What only shows once pods are placed and things are taken away: no reader of manifests alone can see it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Context, rule};
use crate::finding::Element::{E1, E4, E5, E8};
use crate::finding::Rule;
use crate::finding::Severity::{Error, Note, Warning};
use crate::model::dependency::Need;
use crate::model::quorum::Rule as Members;
use crate::model::{Kind, Model};
use crate::survive::{FailureKind, Outcome, Row, seconds_shown};

static NOT_PLACED: Rule =
    rule("pod-fits-nowhere", E8, Error, "The scheduler finds no node for a pod, with nothing lost yet.", &[]);
static NODE: Rule = rule("one-node-takes-it-down", E1, Error, "The loss of one node takes the service down.", &[]);
static ZONE: Rule = rule("one-zone-takes-it-down", E1, Warning, "The loss of one zone takes the service down.", &[]);
static DATA: Rule = rule("one-loss-takes-data", E1, Error, "One loss takes data that was acknowledged.", &[]);
static NO_ROOM: Rule =
    rule("no-room-after-loss", E8, Error, "After one loss the nodes that are left cannot take the lost pods.", &[]);
static BLOCKED: Rule = rule(
    "replacement-blocked",
    E5,
    Warning,
    "After one loss a rule of the pod's own keeps its replacement from every node that is left.",
    &[],
);
static PINNED: Rule = rule(
    "volume-pins-pod",
    E5,
    Warning,
    "After the loss of a node or zone the pod waits for its volume, which cannot be reached from elsewhere.",
    &[],
);
static QUORUM_EVEN: Rule =
    rule("quorum-even", E5, Warning, "An even number of members survives no more losses than one less.", &[]);
static QUORUM_TWO: Rule =
    rule("quorum-of-two", E5, Error, "Two members need both: either one's loss takes the set down.", &[]);
static QUORUM_ZONE: Rule =
    rule("quorum-in-one-zone", E1, Error, "One zone holds so many members that its loss takes the quorum.", &[]);
static QUORUM_ZONES: Rule = rule(
    "zones-too-few-for-quorum",
    E1,
    Warning,
    "A majority cannot survive the loss of either of two zones: that takes three.",
    &[],
);
static NEEDS: Rule = rule(
    "needs-a-weaker-service",
    E4,
    Warning,
    "The service has replicas, but needs one that a single loss takes down.",
    &[],
);
static CYCLE: Rule = rule("needs-in-a-circle", E4, Note, "Services need each other: none can start first.", &[]);
static SLOW: Rule =
    rule("slow-to-heal", E5, Warning, "After the loss of a node it takes over a minute until all is as before.", &[]);
static STUCK: Rule =
    rule("stays-on-dead-node", E5, Error, "The pods of a dead node are not replaced until somebody acts.", &[]);
static CONTROL: Rule = rule(
    "control-plane-not-redundant",
    E5,
    Note,
    "One loss takes the control plane: pods go on, but nothing heals meanwhile.",
    &[],
);
static CROWD: Rule =
    rule("replicas-crowded", E1, Warning, "Most replicas are on one node although there are others.", &[]);

pub(super) static RULES: &[&Rule] = &[
    &NOT_PLACED,
    &DATA,
    &NODE,
    &QUORUM_TWO,
    &QUORUM_ZONE,
    &NO_ROOM,
    &STUCK,
    &ZONE,
    &NEEDS,
    &BLOCKED,
    &PINNED,
    &QUORUM_EVEN,
    &QUORUM_ZONES,
    &CROWD,
    &SLOW,
    &CONTROL,
    &CYCLE,
];

/// A service whose healing takes longer is told.
const SLOW_S: f64 = 60.0;

pub(super) fn look(context: &mut Context<'_>) {
    not_placed(context);
    downfalls(context);
    stuck(context);
    quorums(context);
    needs(context);
    slow(context);
    crowds(context);
    control(context);
}

fn not_placed(context: &mut Context<'_>) {
    let model = context.model;
    for workload in model.workloads.iter().filter(|workload| workload.kind != Kind::DaemonSet) {
        let Some(refusal) = workload.pods.iter().find_map(|pod| model.pods[*pod].refusal.as_ref()) else { continue };
        let without = workload.pods.iter().filter(|pod| model.pods[**pod].refusal.is_some()).count();
        let message = format!("{without} of {} pods of {} get no node: {refusal}", workload.pods.len(), workload.key());
        context.say(
            &NOT_PLACED,
            model.object_of(workload),
            &workload.path(""),
            message,
            "more or larger nodes, smaller requests, or fewer constraints",
            None,
        );
    }
}

/// Services that a node or zone takes down, or that lose data.
fn downfalls(context: &mut Context<'_>) {
    let model = context.model;
    for (at, service) in model.services.iter().enumerate() {
        let object = &model.objects[service.object];
        for (rule, kinds) in [
            (&NODE, &[FailureKind::Node][..]),
            (&ZONE, &[FailureKind::Zone][..]),
            (&DATA, &[FailureKind::Pod, FailureKind::Node, FailureKind::Volume, FailureKind::Zone][..]),
        ] {
            let of_kind = context.rows.iter().filter(|row| kinds.contains(&row.failure.kind()));
            let hits: Vec<&Row> = of_kind
                .filter(|row| {
                    let cell = &row.cells[at];
                    if rule.id == DATA.id { cell.data_lost } else { cell.outcome == Outcome::Down && !cell.data_lost }
                })
                .collect();
            let Some(worst) = hits.iter().max_by_key(|row| row.cells[at].rank()) else { continue };
            let cell = &worst.cells[at];
            // What it only suffers with another is told there.
            if cell.is_felt() {
                continue;
            }
            // On a single zone every loss of it takes everything: that is a matter of the topology.
            if rule.id == ZONE.id && model.topology.zone_count() < 2 {
                continue;
            }
            let more = if hits.len() > 1 { format!(" (and {} more)", hits.len() - 1) } else { String::new() };
            let message =
                format!("{} takes {} down: {} ({}){more}", cell.failure, service.key(), cell.shown(), cell.why);
            let change = if rule.id == DATA.id {
                "more copies on other nodes, volumes that last, and a backup that was restored once"
            } else {
                "more replicas, spread over nodes and zones, and what they need as well"
            };
            context.say(rule, object, "metadata.name", message, change, None);
        }
    }
}

/// Pods that do not come back after one loss.
fn stuck(context: &mut Context<'_>) {
    let model = context.model;
    let mut told: BTreeSet<(usize, &str)> = BTreeSet::new();
    let kinds = [FailureKind::Node, FailureKind::Zone];
    for row in context.rows.iter().filter(|row| kinds.contains(&row.failure.kind())) {
        for (pod, why) in &row.stuck {
            let workload = &model.workloads[model.pods[*pod].workload];
            let is_node = row.failure.kind() == FailureKind::Node;
            let says = |text: &str| why.contains(text);
            let rule: &'static Rule = if says("PersistentVolume's node affinity") {
                &PINNED
            } else if says("Insufficient") || says("Too many pods") {
                &NO_ROOM
            } else if says("affinity") || says("spread constraints") {
                &BLOCKED
            } else if says("Kubernetes replaces") {
                &STUCK
            } else {
                continue;
            };
            if !workload.kind.serves() || !told.insert((model.pods[*pod].workload, rule.id)) {
                continue;
            }
            let target = row.failure.target(model);
            let message = format!(
                "after the loss of {target}, pod {} of {} gets no node: {why}",
                model.pods[*pod].key,
                workload.key()
            );
            let change = match rule.id {
                id if id == PINNED.id => "members that replicate, or a class that every node reaches",
                id if id == NO_ROOM.id && is_node => "one node more, or smaller requests",
                id if id == NO_ROOM.id => "room for a zone's pods in the others",
                id if id == STUCK.id => {
                    "an out-of-service taint by hand or by a fencing agent; or the engine that fences"
                }
                _ => "whenUnsatisfiable: ScheduleAnyway, or preferred instead of required anti-affinity",
            };
            context.say(rule, model.object_of(workload), &workload.path(""), message, change, None);
        }
    }
}

fn quorums(context: &mut Context<'_>) {
    let model = context.model;
    for workload in &model.workloads {
        let Some(quorum) = &workload.quorum else { continue };
        let members = workload.pods.len();
        if quorum.rule != Members::Majority || members < 2 {
            continue;
        }
        let object = model.object_of(workload);
        let (key, needed) = (workload.key(), quorum.rule.needed(members));
        let say_replicas = |context: &mut Context<'_>, rule| {
            let message = format!("{key} has {members} members and needs {needed} ({})", quorum.source);
            let fix = crate::finding::Fix::patch(object, json!({"spec": {"replicas": members + 1}}));
            let change = format!("replicas: {}", members + 1);
            context.say(rule, object, "spec.replicas", message, &change, Some(fix));
        };
        match members {
            2 => say_replicas(context, &QUORUM_TWO),
            even if even % 2 == 0 => say_replicas(context, &QUORUM_EVEN),
            _ => {}
        }
        let zones = model.topology.zone_count();
        let most =
            most_per(workload.pods.iter().filter_map(|pod| Some(model.topology.nodes[model.pods[*pod].node?].zone)));
        let Some((zone, count)) = most.filter(|(_, count)| members - count < needed && members > 2) else { continue };
        let zone = &model.topology.zones[zone];
        match zones {
            0 | 1 => {}
            2 => {
                let message = format!("{key}: {count} of {members} members are in {zone}, and there are two zones");
                context.say(
                    &QUORUM_ZONES,
                    object,
                    "metadata.name",
                    message,
                    "a third zone, if only for one member",
                    None,
                );
            }
            _ => {
                let message = format!("{key}: {count} of {members} members are in {zone}, and {needed} are needed");
                let change = "a topologySpreadConstraint over zones, maxSkew 1, DoNotSchedule";
                context.say(&QUORUM_ZONE, object, &workload.path(""), message, change, None);
            }
        }
    }
}

/// The place with most of them, and how many.
fn most_per(places: impl Iterator<Item = usize>) -> Option<(usize, usize)> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    places.for_each(|place| *counts.entry(place).or_default() += 1);
    counts.into_iter().max_by_key(|(place, count)| (*count, usize::MAX - place))
}

fn needs(context: &mut Context<'_>) {
    let model = context.model;
    let singles = [FailureKind::Pod, FailureKind::Node];
    let falls = |at: usize| {
        let mut hits = context.rows.iter().filter(|row| singles.contains(&row.failure.kind()));
        hits.find(|row| row.cells[at].outcome == Outcome::Down && !row.cells[at].is_felt())
    };
    let mut found = Vec::new();
    for service in model.services.iter().filter(|service| service.pods.len() > 1) {
        for (other, need) in service.needs.iter().filter(|(_, need)| *need != Need::Soft) {
            let Some(row) = falls(*other) else { continue };
            let cell = &row.cells[*other];
            let workload = service.workloads.iter().find_map(|at| {
                let all = model.dependencies[*at].iter();
                all.filter(|d| d.service == model.services[*other].key()).map(|d| (*at, d.clone())).next()
            });
            let Some((workload, dependency)) = workload else { continue };
            let how = if *need == Need::Liveness { "asks in its liveness probe" } else { "needs" };
            let message = format!(
                "{} {how} {}, which is {} when {} is lost",
                service.key(),
                dependency.service,
                cell.shown(),
                cell.failure
            );
            found.push((workload, dependency, message));
        }
    }
    for (workload, dependency, message) in found {
        let object = model.object_of(&model.workloads[workload]);
        let change = format!(
            "make {} survive it, or do without it for a while and say so: annotation check.mainstay.dev/depends-on: \"{}?\"",
            dependency.service, dependency.service
        );
        context.say(&NEEDS, object, &dependency.path, message, &change, None);
    }
    circles(context, model);
}

fn circles(context: &mut Context<'_>, model: &Model) {
    for (at, service) in model.services.iter().enumerate() {
        let hard = |at: usize| {
            model.services[at].needs.iter().filter(|(_, need)| *need != Need::Soft).map(|(other, _)| *other)
        };
        let (mut seen, mut open) = (BTreeSet::new(), hard(at).collect::<Vec<_>>());
        while let Some(next) = open.pop() {
            if seen.insert(next) {
                open.extend(hard(next));
            }
        }
        // Told once, at the first of the circle.
        let others: Vec<usize> = seen.iter().copied().filter(|other| *other != at).collect();
        let is_first = others.iter().filter(|other| hard(**other).any(|next| next == at)).all(|other| *other > at);
        if seen.contains(&at) && is_first && !others.is_empty() {
            let names: Vec<String> = others.iter().map(|other| model.services[*other].key()).collect();
            let message = format!("{} needs {}, and is needed by it", service.key(), names.join(", "));
            let object = &model.objects[service.object];
            context.say(&CYCLE, object, "metadata.name", message, "let one of them start without the other", None);
        }
    }
}

fn slow(context: &mut Context<'_>) {
    let model = context.model;
    for (at, service) in model.services.iter().enumerate() {
        let nodes = context.rows.iter().filter(|row| row.failure.kind() == FailureKind::Node);
        let slowest = nodes.filter_map(|row| Some((row, row.cells[at].healed_seconds?)));
        let Some((row, seconds)) = slowest.max_by(|(_, a), (_, b)| a.total_cmp(b)).filter(|(_, s)| *s > SLOW_S) else {
            continue;
        };
        let ready = service.workloads.iter().map(|at| model.workloads[*at].ready_s).fold(0.0, f64::max);
        let message = format!(
            "{} is whole again {} after the loss of {}; its pods need {} from start to Ready",
            service.key(),
            seconds_shown(seconds),
            row.failure.target(model),
            seconds_shown(ready)
        );
        let change =
            "a tolerationSeconds of some seconds for node.kubernetes.io/unreachable, probes with shorter periods";
        context.say(&SLOW, &model.objects[service.object], "metadata.name", message, change, None);
    }
}

fn crowds(context: &mut Context<'_>) {
    let model = context.model;
    let nodes = model.topology.nodes.len();
    let all: Vec<_> = context.serving().collect();
    for (_, workload, object) in all {
        let placed = workload.pods.iter().filter_map(|pod| model.pods[*pod].node);
        let total = placed.clone().count();
        if total < 2 || nodes < 2 || matches!(workload.kind, Kind::DaemonSet | Kind::Pod) {
            continue;
        }
        if let Some((node, count)) = most_per(placed).filter(|(_, count)| *count > total.div_ceil(2) || *count == total)
        {
            let message =
                format!("{count} of {total} pods of {} are on {}", workload.key(), model.topology.nodes[node].name);
            context.say(
                &CROWD,
                object,
                &workload.path(""),
                message,
                "a spread constraint over kubernetes.io/hostname; fewer selectors and affinities",
                None,
            );
        }
    }
}

fn control(context: &mut Context<'_>) {
    let model = context.model;
    let servers = model.topology.servers.len();
    if servers == 0 || servers >= 3 {
        return;
    }
    let Some(service) = model.services.first() else { return };
    let message = format!(
        "the control plane has {servers} server{}; while a majority is not there, nothing is replaced",
        if servers == 1 { "" } else { "s" }
    );
    let change = "three servers on three nodes in three zones, with the state in etcd";
    context.say(&CONTROL, &model.objects[service.object], "", message, change, None);
}
