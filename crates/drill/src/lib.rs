//! Drills: real faults under real load, and one verdict on what the users saw.
//!
//! # Flow
//! [`resource::Drill`] (a file, or the standard set) → [`run::run`]: an open-loop [`load`] and [`ledger`]s ask all the time,
//! [`observe`] listens to the API, and [`fault`]s are made, seen, undone → [`verdict`] → [`report`].
//!
//! # Guarantees
//! - Latency counts from when a request was due; a request is never left out because the service was slow.
//! - A fault that did not take effect fails the drill; a verdict never stands on a fault that was not there.
//! - What is broken is on disk before it is broken, and undone at the end whatever happens.
//! - A ledger accuses a store only of what its history proves.
//!
//! # Deliberately absent
//! Anything about how the cluster works inside: the crate speaks the Kubernetes API and, where the binary gives it the hands of
//! the machine ([`fault::Machine`]), uses those. Load from several machines; HTTP/2 in the load.

pub mod fault;
pub mod ledger;
pub mod load;
pub mod observe;
pub mod report;
pub mod resource;
pub mod run;
pub mod target;
pub mod verdict;
