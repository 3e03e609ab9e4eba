//! The table of the decision: from which stage, seeing what, why, by what action, to which stage.
//!
//! The first row that matches is carried out. The diagram in the guide is drawn from it ([`diagram`]).

use std::fmt::Write as _;

use super::record::{Lineage, Record};
use super::types::{MemberId, Promise};
use super::view::View;
use crate::engine::{Rebuild, Synchronous};

/// What the member's own server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// There is no data.
    Empty,
    /// There is data, and no process.
    Stopped,
    /// A process that has not answered yet.
    Starting,
    /// Runs, receives nothing, accepts nothing.
    Still,
    /// Receives from the primary.
    Following,
    /// Accepts writes.
    Primary,
}

/// What the Lease says, from this member's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tenure {
    /// Not read yet.
    Unknown,
    /// There is no Lease.
    Absent,
    /// Held by this member, certainly.
    Mine,
    /// In this member's name, but its time has run out, or is from before a restart.
    Lapsed,
    /// Given up by its holder or run out.
    Vacant,
    /// Held by another who is not promoted yet.
    Closed,
    /// Held by another, the primary.
    Open,
}

/// What is done, by its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Wait,
    Fence,
    Initialise,
    StartReplica,
    StartPrimary,
    Promote,
    StandStill,
    Follow,
    StopToRebuild,
    Rebuild,
    Stop,
    Found,
    Take,
    Open,
    Keep,
    Release,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Kill the server and everything it started, at once; done when none of its processes is left.
    Fence,
    /// The same, and then make the files anew.
    StopToRebuild(Rebuild),
    /// Make a new database.
    Initialise,
    /// Start the server, receiving from nobody.
    StartReplica,
    /// Start the server as primary of the epoch it held already.
    StartPrimary(Synchronous, Lineage),
    /// Make the running replica the primary; keep this lineage on disk first.
    Promote(Synchronous, Lineage),
    /// Receive from nobody any more; then keep this promise on disk, and give it to those who ask.
    StandStill(Promise),
    /// Receive from this member; keep this lineage on disk first.
    Follow(MemberId, Lineage),
    /// Make the files those of this member; then keep this lineage.
    Rebuild(MemberId, Lineage, Rebuild),
    /// End the server in an orderly way, so that its replicas have everything.
    Stop,
    /// Change what commits wait for.
    Synchronise(Synchronous),
    /// Write this to the Lease, by compare-and-swap on the record of the view.
    Write(Record),
}

/// Why. What people read in status and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each says it in words, in `text`
pub enum Reason {
    LeaseUnknown,
    LeaseLost,
    LeaseGone,
    ServerHung,
    ServerBusy,
    NotPromoted,
    HandoverAsked,
    DiskFull,
    HandoverReady,
    InOffice,
    FirstMember,
    AnotherBegins,
    NoData,
    NoSource,
    NewDatabase,
    SystemLost,
    Restarted,
    ServerDied,
    ServerDiedAlone,
    PromotionFailed,
    LeftToOthers,
    Elected,
    Standing,
    OldPrimarySilent,
    PrimaryChanged,
    PrimaryNotReady,
    Promised,
    StillCounted,
    WentAnotherWay,
    CannotReceive,
    FollowsPrimary,
    PrimaryKnown,
    NotRunning,
}

impl Reason {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::LeaseUnknown => "the Lease could not be read yet",
            Self::LeaseLost => "its Lease is lost, or about to run out",
            Self::LeaseGone => "there is data but no Lease; it may have been deleted",
            Self::ServerHung => "the server does not answer",
            Self::ServerBusy => "the server is starting",
            Self::NotPromoted => "the epoch is not open yet",
            Self::HandoverAsked => "a switchover was asked for",
            Self::DiskFull => "its disk is full, and another can take over",
            Self::HandoverReady => "other members can take over at once",
            Self::InOffice => "it is the primary",
            Self::FirstMember => "there is no database yet, and it goes first",
            Self::AnotherBegins => "there is no database yet, and another goes first",
            Self::NoData => "it has no data, and the primary has",
            Self::NoSource => "it has no data, and there is no primary to copy",
            Self::NewDatabase => "the database is new",
            Self::SystemLost => "it holds the Lease but has no data",
            Self::Restarted => "its steward was restarted, or lost time",
            Self::ServerDied => "its server died",
            Self::ServerDiedAlone => "its server died, and nobody else can take over",
            Self::PromotionFailed => "it could not be promoted, and leaves it to others",
            Self::LeftToOthers => "it gave up the Lease, and leaves others a moment to take over",
            Self::Elected => "it has all acknowledged writes and holds the Lease",
            Self::Standing => "the Lease is vacant",
            Self::OldPrimarySilent => "the primary is gone",
            Self::PrimaryChanged => "there is another primary",
            Self::PrimaryNotReady => "the new primary is not ready",
            Self::Promised => "it promised to stand still until the Lease is renewed",
            Self::StillCounted => "its files must be made anew, but its voice still counts",
            Self::WentAnotherWay => "it has writes that the primary does not have, acknowledged to nobody",
            Self::CannotReceive => "it cannot receive from where it is",
            Self::FollowsPrimary => "it receives from the primary",
            Self::PrimaryKnown => "there is a primary",
            Self::NotRunning => "the server does not run",
        }
    }
}

/// One row.
pub struct Row {
    /// In these stages,
    pub from: &'static [Stage],
    /// with the Lease so (all when empty),
    pub tenure: &'static [Tenure],
    /// and if this holds,
    pub(crate) when: fn(&View<'_>) -> bool,
    /// for this reason,
    pub why: Reason,
    /// this is done,
    pub(crate) verb: Verb,
    /// which leads here.
    pub to: Stage,
}

mod rows;
pub use rows::TABLE;

/// The table as a Mermaid state diagram.
pub fn diagram() -> String {
    let mut lines: Vec<String> = Vec::new();
    for row in TABLE {
        for from in row.from.iter().filter(|from| **from != row.to) {
            let line = format!("    {from:?} --> {:?}: {}", row.to, row.why.text());
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    let mut text = String::from("stateDiagram-v2\n");
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// `MAINSTAY_BLESS=1` writes the diagram anew.
    #[test]
    fn the_guide_shows_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/run-a-database.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once("```mermaid\n").unwrap();
        let (_, after) = rest.split_once("```\n").unwrap();
        let wanted = format!("{before}```mermaid\n{}```\n{after}", diagram());
        if std::env::var_os("MAINSTAY_BLESS").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        assert!(text == wanted || std::env::var_os("MAINSTAY_BLESS").is_some(), "MAINSTAY_BLESS=1 draws it anew");
    }

    #[test]
    fn every_stage_has_a_row_for_every_tenure() {
        use Stage::{Empty, Following, Primary, Starting, Still, Stopped};
        use Tenure::{Absent, Closed, Lapsed, Mine, Open, Unknown, Vacant};
        for stage in [Empty, Stopped, Starting, Still, Following, Primary] {
            for tenure in [Unknown, Absent, Mine, Lapsed, Vacant, Closed, Open] {
                let row =
                    |row: &&Row| row.from.contains(&stage) && (row.tenure.is_empty() || row.tenure.contains(&tenure));
                assert!(TABLE.iter().any(|it| row(&it)), "{stage:?} {tenure:?}");
            }
        }
    }
}
