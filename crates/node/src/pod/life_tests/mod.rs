//! Golden tests of pod life: a script of inputs in, a transcript of actions and statuses out.
//!
//! A transcript line is `+MS action` or `+MS = status`.
#![allow(clippy::unwrap_used)]

mod diagram;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use self::world::{World, at, pod};
use crate::pod::io::{Action, Exit, Hook, Input, Instance, StartFailure};
use crate::pod::machine::Machine;
use crate::pod::probe::ProbeKind;
use crate::pod::record::Observed;

fn one() -> Value {
    json!({"containers": [{"name": "app", "image": "x"}]})
}

#[test]
fn the_usual_life() {
    let mut world = World::new(one());
    world.input(Input::Tick);
    world.now_ms = 50;
    world.delete(30);
    world.expect(
        "+0 create sandbox
         +0 start app#0
         +0 = Running ready app:running(0)
         +50 ! deleted
         +50 event Killing: Stopping container app
         +50 Stop(None) app#0
         +50 stop sandbox
         +50 delete pod
         +50 = Succeeded app:Completed/0(0)",
    );
    assert!(world.machine.is_over());
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let mut world = World::new(json!({
        "initContainers": [
            {"name": "first", "image": "x"},
            {"name": "proxy", "image": "x", "restartPolicy": "Always", "startupProbe": {"periodSeconds": 1, "tcpSocket": {"port": 1}}},
            {"name": "second", "image": "x"},
        ],
        "containers": [{"name": "app", "image": "x"}],
    }));
    world.sick.insert(("proxy".to_owned(), ProbeKind::Startup));
    world.input(Input::Tick);
    world.exited("first", 0);
    world.until(100);
    world.sick.clear();
    world.until(200);
    world.exited("second", 0);
    world.delete(10);
    world.expect(
        "+0 create sandbox
         +0 start first#0
         +0 = Pending first:running(0) proxy:PodInitializing(0) second:PodInitializing(0) app:PodInitializing(0)
         +0 ! first#0 exits 0
         +0 start proxy#0
         +0 = Pending first:Completed/0(0) proxy:running(0) second:PodInitializing(0) app:PodInitializing(0)
         +150 start second#0
         +150 = Pending first:Completed/0(0) proxy:running(0) second:running(0) app:PodInitializing(0)
         +200 ! second#0 exits 0
         +200 start app#0
         +200 = Running ready first:Completed/0(0) proxy:running(0) second:Completed/0(0) app:running(0)
         +200 ! deleted
         +200 event Killing: Stopping container app
         +200 Stop(None) app#0
         +200 event Killing: Stopping container proxy
         +200 Stop(None) proxy#0
         +200 stop sandbox
         +200 delete pod
         +200 = Succeeded first:Completed/0(0) proxy:Completed/0(0) second:Completed/0(0) app:Completed/0(0)",
    );
}

#[test]
fn a_crash_loop_backs_off() {
    let mut world = World::new(one());
    world.input(Input::Tick);
    world.exited("app", 1);
    world.now_ms = 1_000;
    world.exited("app", 1);
    world.until(11_000);
    world.exited("app", 3);
    world.until(31_000);
    world.expect(
        "+0 create sandbox
         +0 start app#0
         +0 = Running ready app:running(0)
         +0 ! app#0 exits 1
         +0 start app#1
         +0 = Running ready app:running(1)
         +1000 ! app#1 exits 1
         +1000 event BackOff: Back-off restarting failed container app in pod web_shop(u1)
         +1000 = Running app:CrashLoopBackOff(1)
         +11000 start app#2
         +11000 = Running ready app:running(2)
         +11000 ! app#2 exits 3
         +11000 event BackOff: Back-off restarting failed container app in pod web_shop(u1)
         +11000 = Running app:CrashLoopBackOff(2)
         +31000 start app#3
         +31000 = Running ready app:running(3)",
    );
    let status = world.last_status.unwrap().container_statuses.unwrap().remove(0);
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 3);
}

#[test]
fn never_and_on_failure_end_the_pod() {
    let mut world = World::new(json!({
        "restartPolicy": "OnFailure", "initContainers": [{"name": "proxy", "image": "x", "restartPolicy": "Always"}],
        "containers": [{"name": "app", "image": "x"}]}));
    world.input(Input::Tick);
    world.exited("app", 2);
    world.exited("app", 0);
    world.delete(30);
    world.expect(
        "+0 create sandbox
         +0 start proxy#0
         +0 start app#0
         +0 = Running ready proxy:running(0) app:running(0)
         +0 ! app#0 exits 2
         +0 start app#1
         +0 = Running ready proxy:running(0) app:running(1)
         +0 ! app#1 exits 0
         +0 event Killing: Stopping container proxy
         +0 Stop(None) proxy#0
         +0 stop sandbox
         +0 = Succeeded proxy:Completed/0(0) app:Completed/0(1)
         +0 ! deleted
         +0 delete pod",
    );
    let mut world = World::new(json!({"restartPolicy": "Never", "initContainers": [{"name": "first", "image": "x"}],
        "containers": [{"name": "app", "image": "x"}]}));
    world.input(Input::Tick);
    world.exited("first", 1);
    world.expect(
        "+0 create sandbox
         +0 start first#0
         +0 = Pending first:running(0) app:PodInitializing(0)
         +0 ! first#0 exits 1
         +0 stop sandbox
         +0 = Failed first:Error/1(0) app:PodInitializing(0)",
    );
}

#[test]
fn a_hung_container_is_restarted_by_its_liveness_probe() {
    let mut world = World::new(json!({"terminationGracePeriodSeconds": 5, "containers": [{"name": "app", "image": "x",
        "livenessProbe": {"periodSeconds": 2, "failureThreshold": 2, "tcpSocket": {"port": 1}},
        "readinessProbe": {"periodSeconds": 1, "failureThreshold": 1, "tcpSocket": {"port": 1}}}]}));
    world.input(Input::Tick);
    world.until(3_500);
    world.sick.insert(("app".to_owned(), ProbeKind::Liveness));
    world.sick.insert(("app".to_owned(), ProbeKind::Readiness));
    world.obedient = false;
    world.until(10_000);
    world.sick.clear();
    world.until(11_500);
    let lines: Vec<_> = world.transcript.lines().filter(|line| !line.contains("Readiness probe failed")).collect();
    let expected = [
        "+0 create sandbox",
        "+0 start app#0",
        "+0 = Running app:running(0)",
        "+10 = Running ready app:running(0)",
        "+4000 event Unhealthy: Liveness probe failed: no",
        "+4000 = Running app:running(0)",
        "+6000 event Unhealthy: Liveness probe failed: no",
        "+6000 event Killing: Container app failed liveness probe, will be restarted",
        "+6000 Stop(None) app#0",
        "+11000 Kill app#0",
        "+11000 start app#1",
        "+11000 = Running app:running(1)",
        "+11010 = Running ready app:running(1)",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_startup_probe_holds_the_others_back() {
    let mut world = World::new(json!({"containers": [{"name": "app", "image": "x",
        "startupProbe": {"periodSeconds": 1, "failureThreshold": 3, "tcpSocket": {"port": 1}},
        "livenessProbe": {"periodSeconds": 1, "failureThreshold": 1, "tcpSocket": {"port": 1}}}]}));
    world.quiet_probes = false;
    for kind in [ProbeKind::Startup, ProbeKind::Liveness] {
        world.sick.insert(("app".to_owned(), kind));
    }
    world.input(Input::Tick);
    world.until(100);
    world.sick.clear();
    world.until(2_000);
    world.expect(
        "+0 create sandbox
         +0 start app#0
         +0 = Running app:running(0)
         +10 Startup app#0
         +30 Startup app#0
         +70 Startup app#0
         +150 Startup app#0
         +150 = Running ready app:running(0)
         +1150 Liveness app#0",
    );
}

#[test]
fn pre_stop_then_signal_then_kill_within_the_grace_period() {
    let spec = json!({"containers": [{"name": "app", "image": "x", "lifecycle":
        {"preStop": {"sleep": {"seconds": 100}}, "postStart": {"exec": {"command": ["x"]}}}}]});
    let mut world = World::new(spec.clone());
    world.input(Input::Tick);
    (world.hooks_hang, world.obedient) = (true, false);
    world.delete(4);
    world.until(60_000);
    world.expect(
        "+0 create sandbox
         +0 start app#0
         +0 PostStart app#0 within 600s
         +0 = Running ready app:running(0)
         +0 ! deleted
         +0 event Killing: Stopping container app
         +0 PreStop app#0 within 4s
         +4000 Stop(None) app#0
         +6000 Kill app#0
         +6000 stop sandbox
         +6000 delete pod
         +6000 = Failed app:Error/137(0)",
    );
    let mut world = World::new(spec);
    world.hooks_hang = true;
    world.input(Input::Tick);
    world.input(Input::HookDone(
        Instance { container: "app".to_owned(), attempt: 0 },
        Hook::PostStart,
        Some("exit 1".to_owned()),
    ));
    assert!(world.transcript.contains("event FailedPostStartHook: exit 1"));
    assert!(world.transcript.contains("PreStop app#0 within 30s"));
}

/// Deletion at every moment of a start ends in the same place: nothing runs, the pod is deleted, nothing starts again.
#[test]
fn deletion_during_each_phase() {
    let spec =
        json!({"initContainers": [{"name": "first", "image": "x"}], "containers": [{"name": "app", "image": "x"}]});
    let instance = |name: &str| Instance { container: name.to_owned(), attempt: 0 };
    let started = |name: &str| Input::Started {
        instance: instance(name),
        id: name.to_owned(),
        image_id: String::new(),
        at: at(0),
    };
    let exit = |code| Exit { code, signal: None, oom_killed: false, finished_at: at(0), message: None };
    let script = [
        Input::Tick,
        Input::SandboxReady { ip: None },
        started("first"),
        Input::Exited(instance("first"), exit(0)),
        started("app"),
        Input::Exited(instance("app"), exit(1)),
    ];
    for cut in 0..=script.len() {
        for gone in [false, true] {
            let mut machine = Machine::new(Arc::new(pod(spec.clone())), at(0));
            let mut open = Vec::new();
            for input in &script[..cut] {
                open = machine.step(input.clone(), at(0));
            }
            open.extend(if gone {
                machine.step(Input::Gone, at(0))
            } else {
                let mut pod = core::Pod::clone(machine.pod());
                pod.metadata.deletion_timestamp = Some(crate::pod::status::time(at(0)));
                machine.step(Input::Pod(Arc::new(pod)), at(0))
            });
            let (mut last, mut starts, mut rounds) = (None, 0, 0);
            while !open.is_empty() {
                rounds += 1;
                assert!(rounds < 100, "cut {cut}: does not come to an end");
                let action = open.remove(0);
                let answer = match action.clone() {
                    Action::CreateSandbox => Some(Input::SandboxReady { ip: None }),
                    Action::StopSandbox => Some(Input::SandboxStopped),
                    Action::Start(instance) => {
                        starts += 1;
                        Some(Input::Started { instance, id: String::new(), image_id: String::new(), at: at(0) })
                    }
                    Action::Signal(instance, _) => Some(Input::Exited(instance, exit(143))),
                    Action::DeletePod | Action::Forget => {
                        last = Some(action);
                        None
                    }
                    _ => None,
                };
                open.extend(answer.into_iter().flat_map(|input| machine.step(input, at(0))));
            }
            assert_eq!(last, Some(if gone { Action::Forget } else { Action::DeletePod }), "cut {cut}");
            // One start may have been under way already.
            assert!(starts <= 1, "cut {cut}: {starts} starts");
            assert!(machine.is_over() && machine.next_wake().is_none(), "cut {cut}");
        }
    }
}

#[test]
fn failed_starts_are_tried_again() {
    let mut world = World::new(
        json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}, {"name": "c", "image": "z"}]}),
    );
    world.failing_starts.insert("a".to_owned(), StartFailure::Config("configmap \"m\" not found".to_owned()));
    world.failing_starts.insert("b".to_owned(), StartFailure::Image("not found".to_owned()));
    world.failing_starts.insert("c".to_owned(), StartFailure::Run("no such file".to_owned()));
    world.input(Input::Tick);
    world.until(500);
    world.failing_starts.remove("a");
    world.until(10_000);
    world.expect(
        "+0 create sandbox
         +0 start a#0
         +0 start b#0
         +0 start c#0
         +0 event Failed: Error: configmap \"m\" not found
         +0 event Failed: Failed to pull image \"y\": not found
         +0 event Failed: Error: no such file
         +0 start c#1
         +0 event Failed: Error: no such file
         +0 event BackOff: Back-off restarting failed container c in pod web_shop(u1)
         +0 = Pending a:CreateContainerConfigError(0) b:ErrImagePull(0) c:CrashLoopBackOff(1)
         +500 start a#0
         +500 event Failed: Error: configmap \"m\" not found
         +1500 start a#0
         +1500 = Pending a:running(0) b:ErrImagePull(0) c:CrashLoopBackOff(1)
         +10000 start b#0
         +10000 start c#2
         +10000 event Failed: Failed to pull image \"y\": not found
         +10000 event Failed: Error: no such file
         +10000 event BackOff: Back-off restarting failed container c in pod web_shop(u1)
         +10000 = Pending a:running(0) b:ImagePullBackOff(0) c:CrashLoopBackOff(2)",
    );
}

#[test]
fn a_lost_sandbox_is_made_again_with_its_init_containers() {
    let mut world = World::new(
        json!({"initContainers": [{"name": "first", "image": "x"}], "containers": [{"name": "app", "image": "x"}]}),
    );
    world.input(Input::Tick);
    world.exited("first", 0);
    world.transcript.clear();
    world.input(Input::SandboxLost);
    world.exited("first", 0);
    world.expect(
        "+0 event SandboxChanged: Pod sandbox changed, it will be killed and re-created.
         +0 create sandbox
         +0 start first#1
         +0 = Running first:running(1) app:ContainerStatusUnknown/137(0)
         +0 ! first#1 exits 0
         +0 start app#1
         +0 = Running ready first:Completed/0(1) app:running(1)",
    );
}

#[test]
fn the_active_deadline_fails_the_pod() {
    let mut world = World::new(json!({"activeDeadlineSeconds": 5, "containers": [{"name": "app", "image": "x"}]}));
    world.input(Input::Tick);
    world.until(6_000);
    let status = world.last_status.as_ref().unwrap();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
    assert!(world.transcript.contains("+5000 Stop(None) app#0"));
}

#[test]
fn a_restarted_agent_goes_on_where_the_last_one_was() {
    let mut world = World::new(json!({"containers": [{"name": "app", "image": "x",
        "readinessProbe": {"tcpSocket": {"port": 1}}}, {"name": "b", "image": "x"}]}));
    world.input(Input::Tick);
    world.until(100);
    world.exited("b", 1);
    let text = serde_json::to_string(&world.machine.record()).unwrap();
    let record = serde_json::from_str(&text).unwrap();
    let seen = |name: &str, id: &str| {
        (name.to_owned(), Observed { id: id.to_owned(), image_id: "i".to_owned(), started_at: at(0) })
    };
    let observed = BTreeMap::from([seen("app", "app#0"), seen("b", "b#1")]);
    let pod = world.machine.pod().clone();
    world.machine = Machine::restore(pod.clone(), &record, &observed, true, at(500));
    world.now_ms = 500;
    world.transcript.clear();
    world.input(Input::Tick);
    world.expect("");
    assert!(crate::pod::status::is_ready(world.last_status.as_ref().unwrap()));
    // Now the sandbox is gone as well.
    world.machine = Machine::restore(pod, &record, &BTreeMap::new(), false, at(600));
    world.now_ms = 600;
    world.input(Input::SandboxLost);
    assert!(
        world.transcript.contains("start app#1") && world.transcript.contains("create sandbox"),
        "{}",
        world.transcript
    );
}

#[test]
fn conditions_say_what_is_missing() {
    let mut world =
        World::new(json!({"readinessGates": [{"conditionType": "lb"}], "containers": [{"name": "app", "image": "x"}]}));
    let mut first = core::Pod::clone(world.machine.pod());
    first.status =
        Some(serde_json::from_value(json!({"conditions": [{"type": "PodScheduled", "status": "True"}]})).unwrap());
    world.input(Input::Pod(Arc::new(first)));
    let shown: Vec<_> = world
        .last_status
        .unwrap()
        .conditions
        .unwrap()
        .into_iter()
        .map(|c| format!("{}={} {}", c.type_, c.status, c.reason.unwrap_or_default()))
        .collect();
    assert_eq!(
        shown,
        [
            "PodReadyToStartContainers=True ",
            "Initialized=True ",
            "ContainersReady=True ",
            "Ready=False ReadinessGatesNotReady",
            "PodScheduled=True "
        ]
    );
}

#[test]
fn ephemeral_containers_come_to_a_running_pod_and_count_for_nothing() {
    let mut world = World::new(one());
    world.input(Input::Tick);
    let mut pod = (*world.machine.pod()).as_ref().clone();
    let debug = json!([{"name": "debug", "image": "x", "targetContainerName": "app"}]);
    pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(debug).unwrap();
    world.now_ms = 100;
    world.input(Input::Pod(Arc::new(pod)));
    world.exited("debug", 3);
    world.delete(5);
    world.expect(
        "+0 create sandbox
         +0 start app#0
         +0 = Running ready app:running(0)
         +100 start debug#0
         +100 = Running ready app:running(0) debug:running(0)
         +100 ! debug#0 exits 3
         +100 = Running ready app:running(0) debug:Error/3(0)
         +100 ! deleted
         +100 event Killing: Stopping container app
         +100 Stop(None) app#0
         +100 stop sandbox
         +100 delete pod
         +100 = Succeeded app:Completed/0(0) debug:Error/3(0)",
    );
}

#[test]
fn resources_change_in_place_or_with_a_restart_as_the_policy_says() {
    let sized = |cpu: &str, memory: &str| {
        json!({"containers": [{"name": "app", "image": "x",
            "resources": {"requests": {"cpu": cpu, "memory": memory}},
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]})
    };
    let mut world = World::new(sized("100m", "10Mi"));
    world.input(Input::Tick);
    let renew = |world: &mut World, spec| world.input(Input::Pod(Arc::new(pod(spec))));
    world.resize = Err(crate::pod::resize::Refused::Deferred("no room".to_owned()));
    renew(&mut world, sized("200m", "10Mi"));
    let conditions = world.last_status.clone().unwrap().conditions.unwrap();
    let pending = conditions.iter().find(|c| c.type_ == "PodResizePending").unwrap();
    assert_eq!((pending.reason.as_deref(), pending.message.as_deref()), (Some("Deferred"), Some("no room")));
    world.resize = Ok(());
    world.until(6000);
    renew(&mut world, sized("200m", "20Mi"));
    world.expect(
        "+0 create sandbox
         +0 start app#0
         +0 = Running ready app:running(0)
         +0 resize app#0
         +5000 resize app#0
         +5000 event ResizeCompleted: Container app resized
         +6000 event Killing: Container app resize requires restart
         +6000 Stop(None) app#0
         +6000 start app#1
         +6000 = Running ready app:running(1)",
    );
    let status = world.last_status.clone().unwrap();
    let resources = status.container_statuses.unwrap()[0].resources.clone().unwrap();
    assert_eq!(resources.requests.unwrap()["memory"].0, "20Mi");
    assert!(status.conditions.unwrap().iter().all(|c| !c.type_.starts_with("PodResize")));
}

#[test]
fn an_eviction_ends_the_pod_for_good() {
    use crate::pod::io::{StopReason, Stopped};
    let mut world = World::new(one());
    world.obedient = false;
    world.input(Input::Tick);
    world.now_ms = 50;
    world.input(Input::Stop(Stopped::evicted("low".to_owned(), jiff::SignedDuration::from_secs(1))));
    // A second reason changes nothing, and what ends by its own will is not evicted.
    world.input(Input::Stop(Stopped::refused(StopReason::Refused, "later".to_owned())));
    world.until(5_000);
    world.expect(
        "+0 create sandbox
         +0 start app#0
         +0 = Running ready app:running(0)
         +50 event Evicted: low
         +50 event Killing: Stopping container app
         +50 Stop(None) app#0
         +1050 Kill app#0
         +1050 stop sandbox
         +1050 = Failed app:Error/137(0)",
    );
    let status = world.last_status.clone().unwrap();
    assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Evicted"), Some("low")));
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "DisruptionTarget" && c.status == "True"));
    // The next agent knows it too.
    let record = world.machine.record();
    let pod = world.machine.pod().clone();
    let mut again = Machine::restore(pod, &record, &BTreeMap::new(), false, at(6_000));
    assert!(again.step(Input::Tick, at(6_000)).is_empty());
}

#[test]
fn a_pod_that_is_refused_never_runs() {
    use crate::pod::io::{StopReason, Stopped};
    let mut world = World::new(one());
    world.input(Input::Stop(Stopped::refused(StopReason::Refused, "no room".to_owned())));
    world.until(1_000);
    world.expect(
        "+0 event Evicted: no room
         +0 = Failed app:ContainerCreating(0)",
    );
}
