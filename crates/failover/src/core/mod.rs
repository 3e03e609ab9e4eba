//! Deciding who is primary: pure, without clock, network or disk.
//!
//! # Words
//! A *member* is one server and its steward. A *position* says how much of the log of writes a member has. An *epoch* is one
//! primary's time in office; it begins when that member takes the Lease. A member's *promise* not to receive from the primary
//! of an epoch any more is what makes an election safe.
//!
//! # Flow
//! A [`View`] (own server, the Lease, what peers said, the time) → [`decide`] → one [`Row`] of the [`TABLE`] and a [`Plan`].
//! Nothing is remembered from one decision to the next; what must survive is in the view: the Lease's [`Record`], and the
//! member's own [`Lineage`] and [`Promise`], which are on its disk.
//!
//! # Guarantees
//! **No acknowledged write is lost** when replication is synchronous, whatever clocks, pauses and messages do. With `V` voters
//! and a quorum of `q`, the record promises that every acknowledged write is on at least `V - q + 1` voters ([`quorum`] changes
//! the voters so that this always holds, for the record that is known and for each whose writing is in doubt). A candidate takes
//! the Lease only after `q` voters promised, for exactly the Lease it replaces, to receive nothing more from the old primary; it
//! has the furthest position of them. Each acknowledged write is on one of the `q` (there are only `q - 1` voters without it),
//! and from now on the old primary can reach at most `V - q` replicas and itself, one short of what an acknowledgement needs. A
//! promise is told only with a position that can be compared. Positions are compared by epoch first, as Raft
//! (section 5.4.1) compares logs by term. A promise falls when the Lease is seen renewed after it; but then the
//! candidate's compare-and-swap fails.
//!
//! **Never two writable servers**, as long as clocks drift less than [`timing::Timing::drift_per_mille`] and a steward runs in
//! time: see [`timing`] for the proof. A steward that lost time finds its Lease run out before it does anything else, and
//! kills its server first. In the gap between waking and killing, a server that was stopped and continued may commit, but
//! acknowledges nothing that replicas received only then: at most what they had sent their answer for before they promised, and
//! that the new primary has (see above).
//!
//! **A majority brings a primary back**: any `q` voters that reach each other and the API elect one.
//!
//! # Deliberately absent
//! No consensus of our own: the API server's compare-and-swap is the only arbiter. Asynchronous replication rests on clocks
//! alone, and loses what the replica elected had not received.

mod decide;
mod election;
pub mod quorum;
mod record;
mod table;
pub mod timing;
mod types;
mod view;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use decide::{Plan, confirms, decide, standing};
pub use election::Refusal;
pub use record::{Chapter, Lineage, Record};
pub use table::{Action, Reason, Row, Stage, TABLE, Tenure, diagram};
pub use types::{MemberId, Position, Promise, Role};
pub use view::{Handover, LeaseView, Local, Peer, Policy, Server, Standing, View, Written};
