//! The life of pods: deciding ([`machine`] and its neighbours, pure) and doing.

pub mod advance;
pub mod backoff;
pub mod clock;
pub mod container;
pub mod dir;
pub(crate) mod doing;
pub mod ending;
pub mod files;
mod grpc;
pub mod io;
pub mod machine;
pub mod prepare;
pub mod probe;
pub mod prober;
pub mod qos;
pub mod record;
pub mod resize;
pub mod start;
pub mod status;
pub mod worker;

#[cfg(test)]
mod life_tests;
