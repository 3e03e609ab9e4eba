//! `kind: Database`: what people write, and the controller that makes it so.
//!
//! Flow: the definition is one of those that every cluster is given (`definitions/` of the binary); [`run`] watches Databases and
//! their pods; a Database becomes the objects of [`objects`], applied with server-side apply; its [status](mod@status) is what pods
//! and Lease say, and what changes in it is told as [`events`].
//!
//! Guarantees: what others set beside the controller's fields stays; passwords are made once and never changed; everything
//! is owned by its Database and goes with it, but for the claims of its members (a database is not lost by deleting it).
//!
//! Deliberately absent: anything about who is primary. That the members decide among themselves, without this controller:
//! it may be away for hours.

mod controller;
mod events;
mod kind;
mod objects;
mod status;
#[cfg(test)]
mod tests;

pub use controller::{DatabaseError, run};
pub use kind::{
    Backup, BackupSource, Database, DatabaseSpec, EngineName, Spread, Storage, SynchronousSpec, UserSpec, names,
};
