//! The revisioned key-value store under the API server.
//!
//! # Role
//!
//! Everything the control plane knows is a key with a value here. The semantics are those of etcd v3
//! (<https://etcd.io/docs/v3.5/learning/api/>): one global [`Revision`] that every write advances by one, compare-and-swap
//! on the revision that last changed a key, reads at a past revision, watches that start from a past revision, and
//! compaction, which ends how far back both may reach.
//!
//! # Flow
//!
//! [`Store`] is the whole interface; the API server holds an `Arc<dyn Store>`. [`EmbeddedStore`] keeps everything in one
//! file of this machine; [`EtcdStore`] in etcd, where several servers share one state. [`Encrypted`] goes over either, and
//! [`snapshot`] carries the content of one to another.
//!
//! # Guarantees
//!
//! - An acknowledged write is durable (unless the caller asked for [`Durability::Relaxed`]) and seen by every later read.
//! - When a write is acknowledged, its event is already in the buffer of every watcher of that key.
//! - Revisions never go back, neither over restarts nor crashes, and none is given to two different contents.
//! - A watch delivers each change once, in order and without a gap, or ends with an error that says why.
//! - Everything has a limit: queued writes, sizes, watchers' buffers. At the limit there is an error, not memory growth.
//!
//! # Deliberately absent
//!
//! Transactions over several keys, leases and users: Kubernetes needs none of them from its store.

pub mod bench;
mod embedded;
mod encryption;
mod error;
mod etcd;
mod hub;
mod retention;
pub mod snapshot;
mod store;
mod tail;
mod types;
mod watch;

pub use embedded::{EmbeddedStore, Settings};
pub use encryption::{Encrypted, EncryptionConfiguration, EncryptionError, Keyring, NamedKey, Survey};
pub use error::{Error, Result, WatchError};
pub use etcd::{EtcdSettings, EtcdStore, TlsFiles};
pub use store::{KEY_BYTES_MAX, Store};
pub use types::{Change, Defragmented, Deleted, Durability, Entry, Event, Expect, Range, Revision};
pub use watch::{WatchSource, Watcher};
