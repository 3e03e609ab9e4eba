//! What becomes of every service when something is gone.
//!
//! # Flow
//! what is lost → which pods are away, from when, until when they are noticed, and when they are back (the scheduler finds
//! them nodes among those that live) → each service's own timeline → what it needs → its fate.
//!
//! # Guarantees
//! A pure function of the model and what is lost. Nothing lost: every service is as it was placed. Times are seconds since
//! the failure; whatever nobody repairs by itself never ends.

use std::collections::{BTreeMap, BTreeSet};

use super::failure::Lost;
use super::timeline::{State, Timeline};
use crate::engine;
use crate::model::dependency::Need;
use crate::model::quorum::Rule;
use crate::model::{DISRUPTIONS_MAX, Kind, Landscape, Model, Service, Workload};

/// How long Kubernetes waits before it takes an exclusive volume off a node that does not answer, seconds. Source:
/// <https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/#storage-force-detach-on-timeout>.
const DETACH_S: f64 = 360.0;

/// What became of one service.
#[derive(Debug, Clone)]
pub struct Fate {
    /// How it is over time.
    pub timeline: Timeline,
    /// What those who call it feel of that: answers, whatever the number of pods.
    pub answers: Timeline,
    /// When all of its pods are back and it is fine; `None` when that needs a person.
    pub healed_s: Option<f64>,
    /// Whether data that was acknowledged is gone.
    pub is_data_lost: bool,
    /// Why it is not fine; empty when it is.
    pub why: String,
}

/// What became of all.
#[derive(Debug, Clone)]
pub struct Aftermath {
    /// Of each service of the model.
    pub fates: Vec<Fate>,
    /// Pods that do not come back by themselves, and why.
    pub stuck: Vec<(usize, String)>,
    /// Pods that had to make room for others.
    pub displaced: Vec<usize>,
}

/// When a pod is away.
#[derive(Debug, Clone, Copy)]
struct Gap {
    /// Since when.
    from_s: f64,
    /// Until when requests are still sent to it.
    noticed_s: f64,
    /// When it is Ready again; infinite for never.
    back_s: f64,
    /// Whether it is not missed: a DaemonSet's pod of a node that is gone.
    is_excused: bool,
}

/// What becomes of the model's services without what is lost.
pub fn aftermath(model: &Model, lost: &Lost) -> Aftermath {
    let mut away = Away::of(model, lost);
    away.replace(model, lost);
    let mut fates: Vec<Fate> = model.services.iter().map(|service| away.own_fate(model, service, lost)).collect();
    follow_needs(model, &mut fates);
    Aftermath { fates, stuck: away.stuck, displaced: away.displaced }
}

#[derive(Default)]
struct Away {
    gaps: BTreeMap<usize, Gap>,
    /// Pods that get a new node, by when they may.
    waiting: Vec<(f64, usize)>,
    stuck: Vec<(usize, String)>,
    displaced: Vec<usize>,
}

impl Away {
    /// Every pod that is away, and when it may be replaced.
    fn of(model: &Model, lost: &Lost) -> Self {
        let mut away = Self::default();
        let rules = Rules { model, lost, has_control: has_control(model, lost), delays: delays(model, lost) };
        for (at, pod) in model.pods.iter().enumerate() {
            let Some(node) = pod.node else {
                let is_excused = model.workloads[pod.workload].kind == Kind::DaemonSet;
                away.gaps.insert(at, Gap { from_s: 0.0, noticed_s: 0.0, back_s: f64::INFINITY, is_excused });
                continue;
            };
            if lost.nodes.contains(&node) {
                away.of_dead_node(&rules, at, node);
            } else if pod.volumes.iter().any(|volume| lost.volumes.contains(volume)) {
                away.leave(
                    at,
                    model.engine.notice_s,
                    Err("its volume is gone, and its claim stays bound to it".to_owned()),
                );
            } else if lost.pods.contains(&at) {
                away.killed(model, at);
            }
        }
        away
    }

    /// Notes a pod as away since the failure; it may be replaced at a time, or not for a reason.
    fn leave(&mut self, pod: usize, noticed_s: f64, replaced: Result<f64, String>) {
        self.gaps.insert(pod, Gap { from_s: 0.0, noticed_s, back_s: f64::INFINITY, is_excused: false });
        match replaced {
            Ok(when) => self.waiting.push((when, pod)),
            Err(why) => self.stuck.push((pod, why)),
        }
    }

    fn killed(&mut self, model: &Model, at: usize) {
        let workload = &model.workloads[model.pods[at].workload];
        let notice = model.engine.notice_s;
        if workload.restarts {
            // In place: its containers start again at once; only a second death within minutes waits.
            let back_s = notice + workload.ready_s;
            self.gaps.insert(at, Gap { from_s: 0.0, noticed_s: notice, back_s, is_excused: false });
        } else if workload.is_replaced {
            self.leave(at, notice, Ok(notice));
        } else {
            self.leave(at, notice, Err("nobody starts it again: restartPolicy Never, and no controller".to_owned()));
        }
    }

    fn of_dead_node(&mut self, rules: &Rules<'_>, at: usize, node: usize) {
        let (model, workload) = (rules.model, &rules.model.workloads[rules.model.pods[at].workload]);
        let noticed_s = if rules.has_control { model.engine.suspect_s } else { f64::INFINITY };
        if workload.kind == Kind::DaemonSet {
            self.gaps.insert(at, Gap { from_s: 0.0, noticed_s, back_s: f64::INFINITY, is_excused: true });
            return;
        }
        self.leave(at, noticed_s, rules.evicted_s(workload, at, node));
    }

    /// Gives the pods new nodes, in the order in which they may have them.
    fn replace(&mut self, model: &Model, lost: &Lost) {
        if self.waiting.is_empty() {
            return;
        }
        let leaving = self.waiting.iter().map(|(_, pod)| *pod).chain(self.stuck.iter().map(|(pod, _)| *pod));
        let leaving: BTreeSet<usize> = leaving.collect();
        let gaps = &self.gaps;
        let stays = |pod: usize| !leaving.contains(&pod) && gaps.get(&pod).is_none_or(|gap| !gap.is_excused);
        let mut landscape = Landscape::new(model, &|node| lost.nodes.contains(&node), &stays);
        while let Some(next) = self.next(model) {
            let (when, pod) = self.waiting.swap_remove(next);
            match landscape.place(pod) {
                Ok((_, victims)) => {
                    let grace = victims.iter().map(|victim| grace_s(model, *victim)).fold(0.0, f64::max);
                    let workload = &model.workloads[model.pods[pod].workload];
                    if let Some(gap) = self.gaps.get_mut(&pod) {
                        gap.back_s = when + grace + model.engine.start_s + workload.ready_s;
                    }
                    self.displace(model, when, &victims);
                }
                Err(why) => self.stuck.push((pod, why)),
            }
        }
    }

    /// The pod whose turn it is: the earliest, then the most important, then the first.
    fn next(&self, model: &Model) -> Option<usize> {
        let rank = |(when, pod): &(f64, usize)| (*when, -i64::from(model.pods[*pod].facts.priority), *pod);
        let all = self.waiting.iter().enumerate().map(|(at, one)| (at, rank(one)));
        let least = all.min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        least.map(|(at, _)| at)
    }

    fn displace(&mut self, model: &Model, when: f64, victims: &[usize]) {
        for victim in victims {
            let again = self.displaced.contains(victim) || self.displaced.len() >= DISRUPTIONS_MAX;
            self.displaced.push(*victim);
            let gap = Gap { from_s: when, noticed_s: when, back_s: f64::INFINITY, is_excused: false };
            self.gaps.insert(*victim, gap);
            if again || !model.workloads[model.pods[*victim].workload].is_replaced {
                self.stuck.push((*victim, "it had to make room for more important pods".to_owned()));
            } else {
                self.waiting.push((when + grace_s(model, *victim), *victim));
            }
        }
    }

    /// What becomes of a service by its own pods.
    fn own_fate(&self, model: &Model, service: &Service, lost: &Lost) -> Fate {
        let gaps: Vec<(usize, Gap)> =
            service.pods.iter().filter_map(|pod| Some((*pod, *self.gaps.get(pod)?))).collect();
        if let Some(why) = service.workloads.iter().find_map(|at| data_lost(model, &model.workloads[*at], lost)) {
            let timeline = Timeline::always(State::Down);
            return Fate { answers: timeline.clone(), timeline, healed_s: None, is_data_lost: true, why };
        }
        if gaps.is_empty() {
            return Fate {
                timeline: Timeline::always(State::Fine),
                answers: Timeline::always(State::Fine),
                healed_s: Some(0.0),
                is_data_lost: false,
                why: String::new(),
            };
        }
        let excused = gaps.iter().filter(|(_, gap)| gap.is_excused).count();
        let minimum = service.minimum.min(service.pods.len() - excused).max(1);
        let failovers = service.workloads.iter().filter_map(|at| match model.workloads[*at].quorum.as_ref()?.rule {
            Rule::Primary(Some(seconds)) => Some(seconds),
            _ => None,
        });
        let times = gaps.iter().flat_map(|(_, gap)| [gap.from_s, gap.noticed_s, gap.back_s]).chain(failovers);
        let state_at = |now: f64, minimum: usize| {
            let ready = self.ready(model, service, now);
            let is_sent_astray = gaps.iter().any(|(_, gap)| gap.from_s <= now && now < gap.noticed_s);
            match ready {
                0 => State::Down,
                _ if ready < minimum || is_sent_astray && !service.is_retried => State::Degraded,
                _ => State::Fine,
            }
        };
        let times: Vec<f64> = times.collect();
        let answers = Timeline::sampled(times.clone(), |now| state_at(now, 1));
        let timeline = Timeline::sampled(times, |now| state_at(now, minimum));
        let back = gaps.iter().filter(|(_, gap)| !gap.is_excused).map(|(_, gap)| gap.back_s).fold(0.0, f64::max);
        let healed_s = timeline.end_of(State::Degraded).map(|end| end.max(back)).filter(|end| end.is_finite());
        let why = self.explain(model, service, minimum, &timeline);
        Fate { timeline, answers, healed_s, is_data_lost: false, why }
    }

    fn is_ready(&self, pod: usize, now: f64) -> bool {
        self.gaps.get(&pod).is_none_or(|gap| now < gap.from_s || now >= gap.back_s)
    }

    /// Ready pods of a service that serve: those of sets without a quorum do not.
    fn ready(&self, model: &Model, service: &Service, now: f64) -> usize {
        let serves = |at: &&usize| self.has_quorum(&model.workloads[**at], now);
        let able: Vec<usize> = service.workloads.iter().filter(serves).copied().collect();
        let count = |pod: &&usize| able.contains(&model.pods[**pod].workload) && self.is_ready(**pod, now);
        service.pods.iter().filter(count).count()
    }

    fn has_quorum(&self, workload: &Workload, now: f64) -> bool {
        let Some(quorum) = &workload.quorum else { return true };
        let live = workload.pods.iter().filter(|pod| self.is_ready(**pod, now)).count();
        match (quorum.rule, workload.pods.first()) {
            (Rule::Primary(failover), Some(primary)) => {
                let since = self.gaps.get(primary).map_or(0.0, |gap| gap.from_s);
                let taken_over = failover.is_some_and(|seconds| now >= since + seconds) && live > 0;
                self.is_ready(*primary, now) || taken_over
            }
            (rule, _) => live >= rule.needed(workload.pods.len()),
        }
    }

    /// Why a service is not fine, by its worst moment.
    fn explain(&self, model: &Model, service: &Service, minimum: usize, timeline: &Timeline) -> String {
        let worst = timeline.worst();
        let away: Vec<usize> = service.pods.iter().copied().filter(|pod| self.gaps.contains_key(pod)).collect();
        let (total, left) = (service.pods.len(), service.pods.len() - away.len());
        let stuck = self.stuck.iter().find(|(pod, _)| away.contains(pod));
        let quorum = service.workloads.iter().map(|at| &model.workloads[*at]).find_map(|workload| {
            let quorum = workload.quorum.as_ref().filter(|_| !self.has_quorum(workload, 0.0))?;
            let members = workload.pods.len();
            let live = workload.pods.iter().filter(|pod| !self.gaps.contains_key(pod)).count();
            Some(format!("{live} of {members} members live, and it takes {}", quorum.rule.shown(members)))
        });
        let mut text = match (worst, quorum) {
            (State::Fine, _) => return String::new(),
            (_, Some(quorum)) => quorum,
            (State::Down, None) if total == 1 => "its only pod".to_owned(),
            (State::Down, None) => format!("all {total} of its pods"),
            (State::Degraded, None) if left < minimum => {
                format!("{left} of {total} pods left, {minimum} are needed ({})", service.minimum_why)
            }
            (State::Degraded, None) => {
                format!("{left} of {total} pods left; until the others are noticed requests go to them")
            }
        };
        let unplaced = away.iter().find_map(|pod| Some((*pod, model.pods[*pod].refusal.clone()?)));
        if let Some((pod, why)) = stuck.cloned().or(unplaced) {
            text = format!("{text}; {} does not come back: {why}", model.pods[pod].key);
        }
        text
    }
}

/// What decides when the pods of a dead node are replaced.
struct Rules<'a> {
    model: &'a Model,
    lost: &'a Lost,
    has_control: bool,
    /// Per dead node: how much later its pods are evicted.
    delays: BTreeMap<usize, Option<f64>>,
}

impl Rules<'_> {
    fn evicted_s(&self, workload: &Workload, pod: usize, node: usize) -> Result<f64, String> {
        let engine = &self.model.engine;
        if !self.has_control {
            return Err("no majority of the control plane is left to replace it".to_owned());
        }
        if !workload.is_replaced {
            return Err("no controller replaces a bare Pod".to_owned());
        }
        let volumes = &self.model.pods[pod].volumes;
        if volumes.iter().any(|volume| self.lost.volumes.contains(volume)) {
            return Err("its volume is gone".to_owned());
        }
        let Some(stay) = workload.stay_s else {
            return Err("it tolerates node.kubernetes.io/unreachable for ever".to_owned());
        };
        let Some(delay) = self.delays.get(&node).copied().flatten() else {
            return Err("most nodes of its zone are silent: evictions are stopped".to_owned());
        };
        let mut when = engine.dead_s + stay + delay;
        if workload.runs_once {
            when = match engine.once_s {
                Some(once) => when.max(once),
                None if workload.kind == Kind::StatefulSet => {
                    return Err("Kubernetes replaces a StatefulSet's pod only after its node object is gone".to_owned());
                }
                None if volumes.iter().any(|volume| self.model.volumes[*volume].is_exclusive) => when + DETACH_S,
                None => when,
            };
        }
        Ok(when)
    }
}

/// Per dead node: how much later than the first its pods are evicted; `None` when they are not.
fn delays(model: &Model, lost: &Lost) -> BTreeMap<usize, Option<f64>> {
    let nodes = &model.topology.nodes;
    let mut all = BTreeMap::new();
    for zone in 0..model.topology.zones.len() {
        let dead: Vec<usize> = model.nodes_of(zone).filter(|node| lost.nodes.contains(node)).collect();
        let others_live = (0..nodes.len()).any(|node| nodes[node].zone != zone && !lost.nodes.contains(&node));
        let step = model.engine.eviction_delay_s(model.nodes_of(zone).count(), dead.len(), others_live);
        all.extend(dead.iter().enumerate().map(|(place, node)| (*node, step.map(|step| step * place as f64))));
    }
    all
}

/// Whether a majority of the control plane's servers lives.
fn has_control(model: &Model, lost: &Lost) -> bool {
    let servers = &model.topology.servers;
    let lives = |(at, server): (usize, &crate::topology::Server)| {
        !lost.servers.contains(&at) && server.on.is_none_or(|node| !lost.nodes.contains(&node))
    };
    let live = servers.iter().enumerate().filter(|(at, server)| lives((*at, server))).count();
    servers.is_empty() || live >= Rule::Majority.needed(servers.len())
}

fn grace_s(model: &Model, pod: usize) -> f64 {
    model.workloads[model.pods[pod].workload].spec()["terminationGracePeriodSeconds"].as_f64().unwrap_or(30.0)
}

/// Why a workload has lost acknowledged data, if it has. A copy is gone with its volume; one without a volume, with its
/// node. A volume that is on a dead node is out of reach, not gone.
fn data_lost(model: &Model, workload: &Workload, lost: &Lost) -> Option<String> {
    if !workload.keeps_data {
        return None;
    }
    let is_gone = |pod: &&usize| {
        let pod = &model.pods[**pod];
        let on_dead = pod.node.is_some_and(|node| lost.nodes.contains(&node));
        if pod.volumes.is_empty() { on_dead } else { pod.volumes.iter().any(|volume| lost.volumes.contains(volume)) }
    };
    let gone = workload.pods.iter().filter(is_gone).count();
    let rule = workload.quorum.as_ref().map_or(Rule::AtLeast(1), |quorum| quorum.rule);
    let members = workload.pods.len();
    (gone > 0 && !rule.keeps_data(members, gone)).then(|| {
        format!("{gone} of {members} copies of the data of {} are gone; restore from a backup", workload.key())
    })
}

/// Lets every service suffer with what it needs, until nothing changes.
fn follow_needs(model: &Model, fates: &mut [Fate]) {
    for _ in 0..model.services.len() {
        let mut changed = false;
        for at in 0..model.services.len() {
            for (other, need) in &model.services[at].needs {
                let theirs = &fates[*other].answers;
                if theirs.worst() == State::Fine {
                    continue;
                }
                let felt = felt(model, &model.services[at], *need, theirs);
                let both = fates[at].timeline.worse(&felt);
                let answers = fates[at].answers.worse(&felt);
                if both == fates[at].timeline && answers == fates[at].answers {
                    continue;
                }
                if felt.severity() > fates[at].timeline.severity() || fates[at].why.is_empty() {
                    let how = if *need == Need::Liveness { "its liveness probe asks" } else { "it needs" };
                    fates[at].why = format!("{how} {}: {}", model.services[*other].key(), fates[*other].why);
                }
                let healed = both.end_of(State::Degraded).zip(fates[at].healed_s).map(|(end, healed)| end.max(healed));
                fates[at].healed_s = healed;
                fates[at].timeline = both;
                fates[at].answers = answers;
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

/// What a service feels of the state of one it needs.
fn felt(model: &Model, service: &Service, need: Need, theirs: &Timeline) -> Timeline {
    match need {
        Need::Hard => theirs.clone(),
        Need::Soft => theirs.map(|state| state.min(State::Degraded)),
        Need::Liveness => {
            let workloads = service.workloads.iter().map(|at| &model.workloads[*at]);
            let containers = workloads.clone().flat_map(|w| mainstay_model::meta::list_at(w.spec(), "containers"));
            let life = containers.filter_map(engine::killed_after_s).fold(f64::INFINITY, f64::min);
            let ready = workloads.map(|workload| workload.ready_s).fold(0.0, f64::max);
            let Some(end) = theirs.end_of(State::Down) else { return theirs.clone() };
            if end <= life {
                return theirs.clone();
            }
            let back = engine::back_after_s(end, life) + ready;
            theirs.worse(&Timeline::sampled(vec![back], |now| if now < back { State::Down } else { State::Fine }))
        }
    }
}
