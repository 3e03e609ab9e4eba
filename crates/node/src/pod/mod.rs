//! The life of pods: deciding ([`machine`] and its neighbours, pure) and doing.

pub mod advance;
pub mod backoff;
pub mod clock;
pub mod container;
pub mod ending;
pub mod io;
pub mod machine;
pub mod probe;
pub mod qos;
pub mod record;
pub mod status;

#[cfg(test)]
mod life_tests;
