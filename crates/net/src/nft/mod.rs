//! A minimal, typed encoder for nf_tables (`linux/netfilter/nf_tables.h`): what the service rules need and no more.
//!
//! - [`attribute`](self): netlink attributes, the building block.
//! - [`Expression`]: one step of a rule: load, compare, look up, translate.
//! - [`Message`]: one change: a table, chain, map, rule or a bunch of elements; and [`commit`], which sends a list of
//!   them as one transaction.
//!
//! The kernel's virtual machine works on registers: expressions load fields of the packet into them, lookups take their
//! key from adjacent ones and store what they find into others. A verdict is stored into the verdict register.
//!
//! Guarantees: a transaction takes effect whole or not at all, without a moment in between (`nfnetlink` batch).
//!
//! Deliberately absent: reading rules back, changing single elements, families other than `ip`.

mod attribute;
mod expression;
mod message;

pub use expression::{Comparison, Expression, Register, Reject, Verdict};
pub use message::{ChainHook, ChainKind, Element, Hook, Message, Value, commit, table_names};
