//! A Database of three real PostgreSQL servers on three nodes, a client that keeps a ledger of what was acknowledged, and a witness that
//! asks every member whether it accepts writes. Then something is killed, stopped or asked to move.
//!
//! Each trial prints `failover: NAME gap_ms=N lost=N two_primaries_ms=N`: the longest time between two acknowledged writes, how
//! many of them are gone, and for how long two members accepted writes; `cargo xtask bench failover` reads it.

mod disk;
mod ledger;
mod members;
mod mysql;
mod redis;
mod simple;
mod witness;

use std::time::Duration;

use ledger::Ledger;
use members::{Members, USERS, installed};
use witness::Witness;

/// Longest gap any fault may cause before the test calls it a hang; the figures themselves are judged by the bench.
const GAP_MAX: Duration = Duration::from_secs(30);
/// For a machine that does much else at the same time; what the defaults reach is measured by the bench.
const PATIENT: &str = "  ttl: 4s\n  renewal: 600ms\n";
/// How long a flapping link is down, and up.
const FLAP: Duration = Duration::from_millis(300);
/// How long the API is away: where time is short, and in the bench.
const API_AWAY: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];

/// Breaks something with writes going on, heals it, and looks at what client and witness saw.
fn trial(name: &str, members: &mut Members, fault: impl FnOnce(&mut Members), heal: impl FnOnce(&mut Members)) {
    members.until_whole(name);
    let (ledger, witness) = (Ledger::start(members), Witness::start(members));
    ledger.until_writes(50);
    fault(members);
    ledger.until_writes(200);
    heal(members);
    ledger.until_writes(50);
    let (seen, overlap) = (ledger.stop(), witness.stop());
    let kept = members.rows();
    let lost = seen.acknowledged.iter().filter(|id| !kept.contains(id)).count();
    let (gap_ms, two_ms) = (seen.longest_gap.as_millis(), overlap.as_millis());
    println!("failover: {name} gap_ms={gap_ms} lost={lost} two_primaries_ms={two_ms}");
    assert_eq!(lost, 0, "{name}: acknowledged writes are gone\n{}", members.logs());
    assert_eq!(two_ms, 0, "{name}: two primaries\n{}", members.logs());
    assert!(seen.longest_gap < GAP_MAX, "{name}: no writes for {gap_ms} ms\n{}", members.logs());
}

fn server_killed(members: &mut Members) {
    trial("server-killed", members, |it| it.kill_server(&it.primary()), |_| {});
}

fn steward_killed(members: &mut Members) {
    trial("steward-killed", members, |it| it.kill_steward(&it.primary()), |_| {});
}

fn both_killed(members: &mut Members) {
    trial("server-and-steward-killed", members, |it| it.kill_both(&it.primary()), |_| {});
}

fn server_stopped(members: &mut Members) {
    trial("server-stopped", members, |it| it.freeze(&it.primary(), false), Members::thaw);
}

fn switchover(members: &mut Members) {
    let verb = |it: &mut Members| {
        it.db(&["switchover", &it.name]);
    };
    trial("switchover", members, verb, |_| {});
}

/// Without Mainstay's own commands.
fn switchover_by_kubectl(members: &mut Members) {
    let annotate = |it: &mut Members| {
        let old = it.primary();
        it.cluster.k(&["annotate", "database", &it.name, "mainstay.dev/switchover="]);
        it.until("another is primary", |it| it.primary() != old);
    };
    trial("switchover-by-kubectl", members, annotate, |_| {});
}

fn api_down_for(members: &mut Members, time: Duration) {
    let away = |it: &mut Members| {
        it.cluster.ok(&["fault", "kill", "control-plane"]);
        std::thread::sleep(time);
    };
    trial("api-down", members, away, |it| {
        it.cluster.ok(&["fault", "heal", "control-plane"]);
    });
}

fn api_down(members: &mut Members) {
    api_down_for(members, API_AWAY[0]);
}

fn api_down_long(members: &mut Members) {
    api_down_for(members, API_AWAY[1]);
}

fn node_killed(members: &mut Members) {
    let node = members.node_of(&members.primary());
    let target = format!("node/{node}");
    let kill = |it: &mut Members| {
        it.cluster.ok(&["fault", "kill", &target]);
    };
    trial("node-killed", members, kill, |it| {
        it.cluster.ok(&["fault", "heal", &target]);
    });
}

fn all_killed(members: &mut Members) {
    trial("all-killed", members, |it| it.kill_all(), |_| {});
}

fn everything_stopped(members: &mut Members) {
    trial("everything-stopped", members, |it| it.freeze(&it.primary(), true), Members::thaw);
}

fn replica_killed(members: &mut Members) {
    trial("replica-killed", members, |it| it.kill_steward(&it.replica()), |_| {});
}

fn node_isolated(members: &mut Members) {
    let target = format!("node/{}", members.node_of(&members.primary()));
    let isolate = |it: &mut Members| {
        it.cluster.ok(&["fault", "isolate", &target]);
    };
    trial("node-isolated", members, isolate, |it| {
        it.cluster.ok(&["fault", "heal", &target]);
    });
}

fn link_flaps(members: &mut Members) {
    let target = format!("node/{}", members.node_of(&members.primary()));
    let flap = |it: &mut Members| {
        for _ in 0..5 {
            it.cluster.ok(&["fault", "isolate", &target]);
            std::thread::sleep(FLAP);
            it.cluster.ok(&["fault", "heal", &target]);
            std::thread::sleep(FLAP);
        }
    };
    trial("link-flapping", members, flap, |_| {});
}

fn rolling_restart(members: &mut Members) {
    let restart = |it: &mut Members| {
        it.db(&["restart", &it.name]);
    };
    trial("rolling-restart", members, restart, |_| {});
}

/// A parameter that takes a restart, by the Database: members one after the other, the primary hands over first.
fn rolling_parameter(members: &mut Members) {
    let change = |it: &mut Members| {
        let generation = |it: &Members| it.cluster.get(&["statefulset", &it.name])["status"]["updateRevision"].clone();
        let before = generation(it);
        let patch = r#"{"spec": {"parameters": {"max_connections": "31"}}}"#;
        it.cluster.k(&["patch", "database", &it.name, "--type", "merge", "-p", patch]);
        it.until("every member has the new parameter", |it| {
            let status = it.cluster.get(&["statefulset", &it.name])["status"].clone();
            status["updateRevision"] != before && status["updatedReplicas"] == 3 && status["readyReplicas"] == 3
        });
    };
    trial("rolling-parameter", members, change, |_| {});
}

/// The disk of the primary, and of nobody else, is filled.
fn disk_full(members: &mut Members) {
    let first = format!("{}-0", members.name);
    if members.primary() != first {
        members.db(&["switchover", &members.name, "--to", &first]);
    }
    let fill = |it: &mut Members| it.disk.as_ref().unwrap().fill();
    trial("disk-full", members, fill, |it| it.disk.as_ref().unwrap().clear());
    assert_ne!(members.primary(), first, "it cannot write");
}

fn replica_made_anew(members: &mut Members) {
    let reinit = |it: &mut Members| {
        it.db(&["reinit", &it.name, &it.replica()]);
    };
    trial("replica-made-anew", members, reinit, |_| {});
}

/// What people see and do.
fn verbs(members: &mut Members) {
    members.until_healthy("the verbs");
    let (name, primary) = (members.name.clone(), members.primary());
    let table = members.cluster.k(&["get", "databases"]);
    for word in [primary.as_str(), "3/3", "Healthy"] {
        assert!(table.contains(word), "{word} is missing:\n{table}");
    }
    assert!(members.db(&["ls"]).contains("Healthy"));
    assert!(members.db(&["status", &name]).contains("it receives from the primary"));
    assert!(members.db(&["history", &name]).contains(&primary));
    assert_eq!(members.db(&["connect", &name, "--", "-Atc", "SELECT 41 + 1"]).trim(), "42");
    let user = members.conninfo_of_user("shop");
    members.until("the user has a database of its own", |_| {
        Members::query_as(
            &user,
            "CREATE TABLE IF NOT EXISTS own (id int); SELECT current_user || ' in ' || current_database()",
        )
        .is_some_and(|rows| rows == [["shop in shop"]])
    });
    members.db(&["pause", &name]);
    members.until("the database is paused", |it| it.db(&["ls"]).contains("Paused"));
    members.db(&["resume", &name]);
    members.until_healthy("a pause");
}

#[test]
#[ignore = "takes minutes: `cargo xtask bench failover` runs it"]
fn the_whole_matrix() {
    let mut members = Members::start("");
    let well = [server_killed, switchover, switchover_by_kubectl, server_stopped, everything_stopped, api_down_long];
    let hard = [
        node_killed,
        node_isolated,
        link_flaps,
        rolling_restart,
        rolling_parameter,
        replica_made_anew,
        replica_killed,
        steward_killed,
        both_killed,
        all_killed,
    ];
    for trial in well.into_iter().chain(hard) {
        trial(&mut members);
    }
    drop(members);
    disk_full(&mut Members::with_disk());
}

#[test]
fn postgres_outlives_its_primary() {
    assert!(installed(), "Debian's package postgresql is not installed; `cargo xtask test` installs it");
    let mut members = Members::start(&format!("{USERS}{PATIENT}"));
    verbs(&mut members);
    for trial in [server_killed, switchover, server_stopped, api_down, steward_killed, node_killed, all_killed] {
        trial(&mut members);
    }
}
