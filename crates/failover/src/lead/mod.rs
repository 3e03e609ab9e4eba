//! `mainstay lead`: any program, on exactly one of its holders.
//!
//! Role: several copies of `mainstay lead -- CMD` share one Lease (`coordination.k8s.io/v1`); the one that holds it runs
//! CMD, the others stand by.
//!
//! Flow: a watch shows the Lease → [`Holder`] decides: take, renew, start, stop, kill, release → [`drive`] carries it out. The
//! program runs below a [`guard`]: a process of its own that knows until when the lease is good.
//!
//! Guarantees:
//! - *Never two.* A holder counts its claim from when it **sent** the last acknowledged write and kills the program a fifth of
//!   the ttl before it ends; the others count the whole ttl from when they last **saw** the Lease change, and take it by
//!   compare-and-swap on what they saw. Both use their own clock, which goes on while a machine sleeps.
//! - *A process that lost time has lost the lease.* If the holder hangs, the guard kills; if the guard hangs too, a kernel
//!   timer kills the guard, and the kernel kills the program with it (`PR_SET_PDEATHSIG`). All three may be stopped: SIGKILL
//!   ends stopped processes.
//! - *No stragglers.* The guard is the reaper of what the program leaves behind; the lease is released only when the
//!   last of its processes is gone.
//!
//! Assumptions: clocks of two machines run within a tenth of each other's speed; nobody deletes the Lease (then a newcomer
//! waits one ttl, the holder writes it again). A machine that freezes whole cannot kill anything until it wakes, and a
//! program may get one instruction in before that: where that matters, hand `MAINSTAY_LEAD_EPOCH`, which grows with each
//! new holder, to the storage as a fencing token.
//!
//! Deliberately absent: a quorum of peers (while the API is away for longer than the ttl, nobody runs), priorities.

mod decide;
mod drive;
mod event;
pub mod guard;
mod lease;
mod program;
#[cfg(test)]
mod simulation;

pub use decide::{Holder, Timing, TimingError};
pub use drive::{LeadError, Settings, run};
pub use event::{Event, Format};
