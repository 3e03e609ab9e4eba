//! Fuzz target `gateway_connections`: see the function it calls.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mainstay_gateway::fuzzing::connection(bytes));
