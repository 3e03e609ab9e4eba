//! Persistent storage: claims find volumes, volumes that nobody has are taken back.
//!
//! | file | whose life |
//! |---|---|
//! | [`claim`] | a claim: its class, the volume it gets, made if need be ([`provision`]) |
//! | [`volume`] | a volume: free, bound, released, taken back |
//! | [`protection`] | neither goes while it is in use |
//! | [`class`] | the classes of the built-in provisioner |
//!
//! A claim and a volume name each other: the volume's `claimRef` with the claim's uid is written first and decides, the
//! claim's `volumeName` follows. So two claims can never have one volume, whatever crashes in between.
//!
//! Deliberately absent: attaching (every volume is a directory or is mounted by the node), snapshots, the Recycle policy.
//!
//! Source: <https://kubernetes.io/docs/concepts/storage/persistent-volumes/>.

pub(crate) mod claim;
pub(crate) mod class;
mod fit;
pub(crate) mod protection;
mod provision;
pub(crate) mod volume;

/// The node the scheduler has chosen for a claim's first pod.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Who made a volume.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The claim and its volume know each other.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The controller, not a person, brought them together.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Makes volumes in a directory of one node.
const LOCAL: &str = "mainstay.dev/local";
/// Makes volumes in a directory that every node has: that of a machine's nodes, or of a shared file system.
const SHARED: &str = "mainstay.dev/shared";
/// Held by the node until the volume's directory is gone.
const DATA_FINALIZER: &str = "mainstay.dev/volume-data";
