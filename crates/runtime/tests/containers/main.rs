//! Real containers through a real shim. The test program is its own shim: `shim` and `shim-exec` as first argument.
//!
//! It runs in a mount namespace of its own, so that no mount of it can stay, and runs itself again for the arrangements of
//! cgroups that this machine does not have by itself: `arrangement v1` and `arrangement v2`.
#![allow(clippy::unwrap_used, missing_docs)]

mod commands;
mod ends;
mod isolation;
mod life;
mod streams;
mod world;

use std::process::Command;
use std::time::Instant;

use mainstay_runtime::{exec, shim};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use world::World;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("shim") => {
            if let Err(error) = shim::run(&args[1..]) {
                eprintln!("{error}");
                std::process::exit(1);
            }
        }
        Some("shim-exec") => std::process::exit(exec::run(&args[1..])),
        // What test runners ask to list the tests.
        Some("--list") => println!("containers: test"),
        _ if !nix::unistd::Uid::effective().is_root() => println!("skipped: containers need root"),
        Some("arrangement") => arrangement(&args[1]),
        _ => everything(),
    }
}

fn everything() {
    let started = Instant::now();
    own_mounts();
    in_world("t", |world| async move {
        ends::codes_signals_and_logs(&world).await;
        ends::what_does_not_start(&world).await;
        isolation::what_is_seen(&world).await;
        isolation::what_may_be_done(&world).await;
        isolation::memory_runs_out(&world).await;
        isolation::without_an_upper_layer(&world).await;
        commands::codes_streams_and_terminals(&world).await;
        commands::all_of_it_is_killed(&world).await;
        commands::what_it_leaves_stays(&world).await;
        streams::attached_by_pipes(&world).await;
        streams::attached_to_a_terminal(&world).await;
        streams::process_namespaces(&world).await;
        life::a_first_process(&world).await;
        life::nobody_connected(&world).await;
        life::a_lost_shim(&world).await;
        life::frozen_and_killed(&world).await;
        life::one_sandbox_for_long(&world).await;
        life::no_leaks(&world).await;
        world
    });
    if std::path::Path::new("/sys/fs/cgroup/unified").exists() {
        for version in ["v1", "v2"] {
            let status =
                Command::new(std::env::current_exe().unwrap()).args(["arrangement", version]).status().unwrap();
            assert!(status.success(), "cgroup arrangement {version}");
        }
    }
    println!("test containers ... ok ({} ms)", started.elapsed().as_millis());
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

/// With version 1 alone, or with version 2 alone (but without its controllers, which version 1 has here).
fn arrangement(version: &str) {
    own_mounts();
    match version {
        "v1" => umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH).unwrap(),
        _ => {
            mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
        }
    }
    let version = version.to_owned();
    in_world(&format!("{version}-t"), |world| async move {
        if version == "v1" {
            isolation::memory_runs_out(&world).await;
        }
        ends::what_does_not_start(&world).await;
        commands::all_of_it_is_killed(&world).await;
        commands::what_it_leaves_stays(&world).await;
        life::a_lost_shim(&world).await;
        life::frozen_and_killed(&world).await;
        world
    });
}

fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

fn in_world<F: Future<Output = World>>(name: &str, tests: impl FnOnce(World) -> F) {
    let world = World::new(&format!("{name}{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tests(world)).end();
}
