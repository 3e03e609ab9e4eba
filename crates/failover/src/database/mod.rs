//! `kind: Database`: what people write, and the controller that makes it so.
//!
//! Flow: [`install`] gives the cluster the [definition]; [`run`] watches Databases and their pods; a Database becomes the
//! objects of [`objects`], applied with server-side apply, and its [status](mod@status) is what pods and Lease say.
//!
//! Guarantees: what others set beside the controller's fields stays; passwords are made once and never changed; everything
//! is owned by its Database and goes with it, but for the claims of its members (a database is not lost by deleting it).
//!
//! Deliberately absent: anything about who is primary. That the members decide among themselves, without this controller:
//! it may be away for hours.

mod controller;
mod kind;
mod objects;
mod status;
#[cfg(test)]
mod tests;

pub use controller::{DatabaseError, install, run};
pub use kind::{Backup, Database, DatabaseSpec, EngineName, Spread, Storage, SynchronousSpec, definition, names};
