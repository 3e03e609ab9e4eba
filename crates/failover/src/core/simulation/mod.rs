//! Whole lives of a database, from one seed: members, their servers, the API and the network between them, with everything that
//! can go wrong. Time passes in steps of ten milliseconds; nothing else moves.
//!
//! What is checked: see [`ledger::Ledger`]. A failure prints its seed; run that one with `MAINSTAY_SEED=n`. A few hundred seeds
//! run with every test; `MAINSTAY_SEEDS=10000 cargo test --release -p mainstay-failover simulation` runs as many as asked for.

mod ledger;
mod member;
mod network;
mod world;

use world::{Options, World};

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("MAINSTAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MAINSTAY_SEEDS").unwrap_or(usual),
    }
}

/// Runs the seeds on all processors; panics with the first that fails.
fn run(usual: u64, options: fn(u64) -> Options) {
    let seeds = seeds(usual);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let share = |thread: u64| seeds.clone().filter(move |seed| seed % threads == thread);
    let totals: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let work = (0..threads).map(|thread| {
            let share = share(thread);
            scope.spawn(move || {
                share.fold((0, 0), |sum, seed| {
                    let done = std::panic::catch_unwind(|| World::new(seed, options(seed)).run());
                    let (epochs, writes) = done.unwrap_or_else(|_| panic!("MAINSTAY_SEED={seed} failed"));
                    (sum.0 + epochs, sum.1 + writes)
                })
            })
        });
        let work: Vec<_> = work.collect();
        work.into_iter().map(|it| it.join().expect("a seed failed; see above")).collect()
    });
    let (epochs, writes) = totals.iter().fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
    println!("{} seeds: {epochs} epochs, {writes} acknowledged writes", seeds.end - seeds.start);
    assert!(epochs >= seeds.end - seeds.start, "the faults must make epochs end");
}

#[test]
fn three_members_lose_no_acknowledged_write() {
    run(120, |_| Options { members: 3, synchronous: 1, strict: true });
}

#[test]
fn five_members_lose_no_acknowledged_write() {
    run(40, |seed| Options { members: 5, synchronous: 1 + (seed % 2) as usize, strict: true });
}

#[test]
fn nor_do_those_that_may_go_on_alone() {
    run(60, |_| Options { members: 3, synchronous: 1, strict: false });
}

#[test]
fn asynchronous_ones_are_never_two() {
    run(40, |_| Options { members: 3, synchronous: 0, strict: false });
}
