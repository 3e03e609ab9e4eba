//! Fuzz target `gateway_descriptors`: see the function it calls.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mainstay_gateway::fuzzing::descriptors(bytes));
