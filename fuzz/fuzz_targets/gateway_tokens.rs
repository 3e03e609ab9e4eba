//! Fuzz target `gateway_tokens`: see the function it calls.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mainstay_gateway::fuzzing::token(bytes));
