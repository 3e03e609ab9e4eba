//! Server-side apply: who owns which field of an object, and what an applied configuration changes.
//!
//! Role: `(live object, applied configuration, manager) -> new object` with its `metadata.managedFields`, or the
//! conflicts; and for every other write, `(old object, new object, manager) -> managedFields`. Reading and storing
//! objects, defaults, admission and validation are the API server's business.
//!
//! # Flow
//! A [`View`] says how an object divides into fields that can be owned: from the schema of the built-in kinds, from the
//! OpenAPI schema of a custom resource, or deduced from the object where there is none. [`walk`] turns an object into
//! the set of its fields, [`compare`] two objects into the fields added, modified and removed, [`merge`] and [`remove`]
//! build the new object, [`managers`] reads and writes `managedFields`, and [`operation`] puts them together.
//!
//! # Guarantees
//! Nothing here panics whatever the objects hold. Applying the same configuration twice changes nothing the second time.
//! There is a conflict if and only if another manager owns a field whose value would change. A field goes away when the
//! manager that applied it no longer does and nobody else owns it.
//!
//! # Deliberately absent
//! Conversion between versions: all versions of a kind that are served here have the same fields, so an owner's set holds
//! in all of them. Unions, which no built-in kind uses for apply.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/> and the merge rules it describes.

mod compare;
mod conflict;
mod element;
mod fields;
mod last_applied;
mod managers;
mod merge;
mod operation;
mod overlay;
mod reconcile;
mod remove;
mod view;
mod walk;

pub use conflict::{Conflict, Conflicts};
pub use fields::{FieldSet, FieldsError};
pub use managers::{MANAGER_BYTES_MAX, UPDATE_MANAGERS_MAX, check_manager, manager_of_user_agent, validate};
pub use operation::{ApplyError, Reach, Write, apply, settle, update};
pub use overlay::{OverlayError, overlay};
pub use view::View;
pub use walk::TypeErrors;

#[cfg(test)]
mod tests;
