//! Limits: rates ([`Limiter`]) and how much runs at once ([`Gate`]).

mod gate;
mod gradient;
mod limiter;
mod rate;

pub(crate) use gate::{Gate, Overload, Pass};
pub(crate) use limiter::Limiter;
