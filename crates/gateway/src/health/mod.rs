//! What the traffic itself and the checks say about endpoints. Pure; time is an argument.

mod active;
mod latency;
mod passive;
mod pending;

pub(crate) use active::{Active, CheckOutcome};
pub(crate) use latency::{MeanLatency, is_outlier};
pub(crate) use passive::{Ejections, Outcome, Passive};
pub(crate) use pending::{Pending, Signal, Ticket};
