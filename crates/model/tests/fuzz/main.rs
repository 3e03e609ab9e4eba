//! The bodies of the fuzz targets, driven by seeded random input: what can be had of fuzzing with a stable compiler.
//!
//! `FUZZ_ROUNDS` sets how many inputs each gets; a failure names the seed, and `FUZZ_SEED` runs that one alone.

mod bodies;
mod source;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const ROUNDS: u64 = 4_000;

/// Bytes for a seed: some short, some long, some of few different bytes.
fn input(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let length = 1 << random.u32(..11);
    let alphabet = b"0123456789.-+eEmkKMGTPin =!,()/abc";
    let text = random.u8(..4) == 0;
    let byte = |_| if text { alphabet[random.usize(..alphabet.len())] } else { random.u8(..) };
    (0..length).map(byte).collect()
}

fn drive(body: fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("FUZZ_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FUZZ_ROUNDS").unwrap_or(ROUNDS),
    };
    for seed in seeds {
        let input = input(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(&input))) {
            eprintln!("seed {seed}: FUZZ_SEED={seed} runs it alone");
            resume_unwind(panic);
        }
    }
}

#[test]
fn patches() {
    drive(bodies::patches);
}

#[test]
fn selectors() {
    drive(bodies::selectors);
}

#[test]
fn quantities() {
    drive(bodies::quantities);
}

#[test]
fn applies() {
    drive(bodies::applies);
}

#[test]
fn field_sets() {
    drive(bodies::field_sets);
}
