//! Fuzz target `patches`: see the function it calls.
#![no_main]
#![allow(dead_code)]

#[path = "../../crates/model/tests/fuzz/bodies.rs"]
mod bodies;
#[path = "../../crates/model/tests/fuzz/source.rs"]
mod source;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::patches(bytes));
