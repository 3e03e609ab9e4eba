//! Limits: rates ([`Limiter`], and [`SharedLimits`] among several gateways) and how much runs at once ([`Gate`]).

mod gate;
mod gradient;
mod limiter;
mod rate;
mod shared;

pub(crate) use gate::{Gate, Overload, Pass};
pub(crate) use limiter::Limiter;
pub(crate) use shared::SharedLimits;
