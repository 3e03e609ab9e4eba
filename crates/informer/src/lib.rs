//! Caches of Kubernetes objects, kept fresh by list and watch.
//!
//! Role: every worker — controllers, scheduler, node agent — reads the world from a [`Cache`] and is woken by a
//! [`Subscription`]; nobody polls the API.
//!
//! Flow: [`Cache::run`] lists and watches one kind through `kube::Client`; each object lands in the cache unless a newer
//! one is there; every subscription notes the key as dirty and wakes its reader.
//!
//! Guarantees:
//! - *Newer wins.* Revisions of one API server are ordered numbers, so an event older than what the cache holds is dropped.
//! - *Read your writes.* Whoever writes an object passes the server's answer to [`Cache::observe`] (or
//!   [`Cache::observe_deleted`]); the next read sees it even if the watch is late. This replaces the "expectations" that
//!   controllers otherwise keep against a slow cache.
//! - *Bounded.* A subscription holds at most one entry per object, however many events went by.
//!
//! Assumptions: resource versions compare as numbers (Kubernetes API concepts, "resource versions", since 1.35).
//!
//! Beside the caches: [`leader`] election, for workers of which one at a time may act.
//!
//! Indices: by namespace, and by controller, because those are asked for with every change of a pod.
//!
//! Deliberately absent: other indices (callers filter; the caches are small), edge-triggered events (a reader only learns
//! *that* an object changed, with the object before and after).

mod cache;
mod compiled;
mod kind;
pub mod leader;
mod subscription;

pub use cache::{Cache, Kind, ObjectKey, Scope, ShortBackoff};
#[doc(hidden)]
pub use compiled::compiled;
pub use subscription::{Change, Subscription};
