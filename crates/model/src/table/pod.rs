//! The row of a pod: its state in one word, from phases and container states.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{NONE, Row};
use crate::{meta, workload};

/// What the container statuses come to.
struct Summary {
    word: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

pub(super) fn cells(row: &Row) -> Vec<Value> {
    let pod = row.object;
    let sidecars = row.list("spec.initContainers").iter().filter(|container| workload::is_sidecar(container)).count();
    let total = row.list("spec.containers").len() + sidecars;
    let summary = summarise(row);
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, meta::age(time, row.now)),
        _ => summary.restarts.to_string(),
    };
    let gates = row.list("spec.readinessGates");
    let open = gates
        .iter()
        .filter(|gate| gate["conditionType"].as_str().is_some_and(|name| meta::is_condition_true(pod, name)));
    let gates = if gates.is_empty() { NONE.to_owned() } else { format!("{}/{}", open.count(), gates.len()) };
    let ip = row.text("status.podIPs.0.ip", row.text("status.podIP", NONE));
    vec![
        row.name(),
        json!(format!("{}/{total}", summary.ready)),
        json!(summary.word),
        json!(restarts),
        row.age(),
        json!(ip),
        json!(row.text("spec.nodeName", NONE)),
        json!(row.text("status.nominatedNodeName", NONE)),
        json!(gates),
    ]
}

/// The pod's state in one word, as `kubectl get pods` shows it.
fn summarise(row: &Row) -> Summary {
    let pod = row.object;
    let mut summary = Summary {
        word: row.text("status.reason", workload::phase(pod)).to_owned(),
        ready: 0,
        restarts: 0,
        last_restart: None,
    };
    if meta::condition(pod, "PodScheduled").is_some_and(|condition| condition["reason"] == "SchedulingGated") {
        "SchedulingGated".clone_into(&mut summary.word);
    }
    let of_sidecars = starting(row, &mut summary);
    if of_sidecars.initialised || meta::is_condition_true(pod, "Initialized") {
        (summary.restarts, summary.last_restart) = (of_sidecars.restarts, of_sidecars.last_restart);
        running(row, &mut summary);
    }
    if meta::is_being_deleted(pod) {
        if meta::str_at(pod, "status.reason") == Some("NodeLost") {
            "Unknown".clone_into(&mut summary.word);
        } else if !workload::is_pod_finished(pod) {
            "Terminating".clone_into(&mut summary.word);
        }
    }
    summary
}

struct Sidecars {
    initialised: bool,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

fn restarted(status: &Value) -> Option<Timestamp> {
    meta::time_at(status, "lastState.terminated.finishedAt")
}

/// Goes through the init containers up to the one that is not done.
fn starting(row: &Row, summary: &mut Summary) -> Sidecars {
    let specs = row.list("spec.initContainers");
    let mut sidecars = Sidecars { initialised: true, restarts: 0, last_restart: None };
    for (i, status) in row.list("status.initContainerStatuses").iter().enumerate() {
        let sidecar = specs.iter().any(|spec| spec["name"] == status["name"] && workload::is_sidecar(spec));
        let count = status["restartCount"].as_i64().unwrap_or(0);
        summary.restarts += count;
        summary.last_restart = summary.last_restart.max(restarted(status));
        if sidecar {
            sidecars.restarts += count;
            sidecars.last_restart = sidecars.last_restart.max(restarted(status));
        }
        let ended = meta::at(status, "state.terminated");
        if ended.is_some_and(|ended| ended["exitCode"] == 0) {
            continue;
        }
        if sidecar && status["started"] == true {
            summary.ready += usize::from(status["ready"] == true);
            continue;
        }
        let waits_for =
            meta::str_at(status, "state.waiting.reason").filter(|reason| !matches!(*reason, "" | "PodInitializing"));
        summary.word = match (ended, waits_for) {
            (Some(ended), _) => format!("Init:{}", ending(ended)),
            (None, Some(reason)) => format!("Init:{reason}"),
            (None, None) => format!("Init:{i}/{}", specs.len()),
        };
        sidecars.initialised = false;
        break;
    }
    sidecars
}

/// Goes through the main containers; the first one with something to say decides the word.
fn running(row: &Row, summary: &mut Summary) {
    let mut any_running = false;
    for status in row.list("status.containerStatuses").iter().rev() {
        summary.restarts += status["restartCount"].as_i64().unwrap_or(0);
        summary.last_restart = summary.last_restart.max(restarted(status));
        let waits_for = meta::str_at(status, "state.waiting.reason").filter(|reason| !reason.is_empty());
        if let Some(reason) = waits_for {
            reason.clone_into(&mut summary.word);
        } else if let Some(ended) = meta::at(status, "state.terminated") {
            summary.word = ending(ended);
        } else if status["ready"] == true && meta::at(status, "state.running").is_some() {
            any_running = true;
            summary.ready += 1;
        }
    }
    if summary.word == "Completed" && any_running {
        let word = if workload::is_pod_ready(row.object) { "Running" } else { "NotReady" };
        word.clone_into(&mut summary.word);
    }
}

fn ending(terminated: &Value) -> String {
    match (terminated["reason"].as_str().unwrap_or_default(), terminated["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
