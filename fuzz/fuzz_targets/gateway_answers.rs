//! Fuzz target `gateway_answers`: see the function it calls.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mainstay_gateway::fuzzing::answer(bytes));
