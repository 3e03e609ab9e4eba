//! Values encrypted at rest: a layer over any [`Store`].
//!
//! # Flow
//!
//! A write under a prefix that the [`Keyring`] covers is encrypted with the first key of that prefix; a read is decrypted with
//! whichever key the value names. So rotating is: put a new key first, keep the old ones, [`Encrypted::rewrite`], drop the
//! old ones. Where a value is not encrypted, it is read as it is only if the configuration says so.
//!
//! # Guarantees
//!
//! - Below this layer (files, snapshots, etcd, its backups) there is no plain text of what is covered.
//! - A value is bound to its key path: copied to another path it cannot be decrypted.
//! - A value that cannot be decrypted is an error that names the key that is missing, never nonsense.
//!
//! # Assumptions
//!
//! Whoever can read this process's memory or its configuration file can read everything. Keys, sizes, and times of
//! changes are not hidden.
//!
//! # Deliberately absent
//!
//! Key management services; and the older providers of Kubernetes (`aescbc`, `secretbox`).
//!
//! Source of the configuration's semantics: <https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/>.

mod cipher;
mod configuration;
mod layer;

pub use configuration::{EncryptionConfiguration, EncryptionError, Keyring, NamedKey};
pub use layer::{Encrypted, Survey};

/// The name of the key that a value is encrypted with.
pub(crate) fn key_of(value: &[u8]) -> Option<&str> {
    cipher::parts(value).map(|(name, _)| name)
}
