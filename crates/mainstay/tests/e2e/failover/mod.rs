//! A Database of three real PostgreSQL servers on three nodes, a client that keeps a ledger of what was acknowledged, and a witness that
//! asks every member whether it accepts writes. Then something is killed, stopped or asked to move.
//!
//! Each trial prints `failover: NAME gap_ms=N lost=N two_primaries_ms=N`: the longest time between two acknowledged writes, how
//! many of them are gone, and for how long two members accepted writes; `cargo xtask bench failover` reads it.

mod ledger;
mod members;
mod redis;
mod witness;

use std::time::Duration;

use ledger::Ledger;
use members::{Members, installed};
use witness::Witness;

/// Longest gap any fault may cause before the test calls it a hang; the figures themselves are judged by the bench.
const GAP_MAX: Duration = Duration::from_secs(30);
/// For a machine that does much else at the same time; what the defaults reach is measured by the bench.
const PATIENT: &str = "  ttl: 4s\n  renewal: 600ms\n";
/// How long a flapping link is down, and up.
const FLAP: Duration = Duration::from_millis(300);
/// How long the API is away.
const API_AWAY: Duration = Duration::from_secs(5);

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

fn server_stopped(members: &mut Members) {
    trial("server-stopped", members, |it| it.freeze(&it.primary(), false), Members::thaw);
}

fn switchover(members: &mut Members) {
    let verb = |it: &mut Members| {
        it.db(&["switchover", &it.name]);
    };
    trial("switchover", members, verb, |_| {});
}

fn api_down(members: &mut Members) {
    let away = |it: &mut Members| {
        it.cluster.ok(&["fault", "kill", "control-plane"]);
        std::thread::sleep(API_AWAY);
    };
    trial("api-down", members, away, |it| {
        it.cluster.ok(&["fault", "heal", "control-plane"]);
    });
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
    members.db(&["pause", &name]);
    members.until("the database is paused", |it| it.db(&["ls"]).contains("Paused"));
    members.db(&["resume", &name]);
    members.until_healthy("a pause");
}

#[test]
#[ignore = "takes minutes: `cargo xtask bench failover` runs it"]
fn the_whole_matrix() {
    let mut members = Members::start("");
    let well = [server_killed, switchover, server_stopped, everything_stopped, api_down];
    let hard = [
        node_killed,
        node_isolated,
        link_flaps,
        rolling_restart,
        replica_made_anew,
        replica_killed,
        steward_killed,
        all_killed,
    ];
    for trial in well.into_iter().chain(hard) {
        trial(&mut members);
    }
}

#[test]
fn postgres_outlives_its_primary() {
    assert!(installed(), "Debian's package postgresql is not installed; `cargo xtask test` installs it");
    let mut members = Members::start(PATIENT);
    verbs(&mut members);
    for trial in [server_killed, switchover, server_stopped, api_down, steward_killed, node_killed, all_killed] {
        trial(&mut members);
    }
}
