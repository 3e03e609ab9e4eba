//! The rows.

use super::Reason as R;
use super::Stage::{Empty, Following, Primary, Starting, Still, Stopped};
use super::Tenure::{Absent, Closed, Lapsed, Mine, Open, Unknown, Vacant};
use super::{Row, Stage, Tenure, Verb};
use crate::core::decide::{
    api_answers, begins_again, can_hand_over, counted, diverged, failed, first_turn, follows_epoch, follows_holder,
    fresh, full, handover_ready, hung, just_left, new_database, not_open, promised, rebuilding, rising, starved,
};
use crate::core::view::View;

fn always(_: &View<'_>) -> bool {
    true
}

const fn row(
    from: &'static [Stage],
    tenure: &'static [Tenure],
    when: fn(&View<'_>) -> bool,
    why: R,
    verb: Verb,
    to: Stage,
) -> Row {
    Row { from, tenure, when, why, verb, to }
}

const ANY: &[Tenure] = &[];

/// All rows, in the order in which they are tried. The last one of each stage matches always.
pub const TABLE: &[Row] = &[
    // A server that accepts writes without a valid Lease is killed before anything else.
    row(&[Primary], &[Unknown, Absent, Lapsed, Vacant, Closed, Open], always, R::LeaseLost, Verb::Fence, Stopped),
    row(
        &[Still, Starting],
        &[Unknown, Absent, Lapsed, Vacant, Closed, Open],
        rising,
        R::LeaseLost,
        Verb::Fence,
        Stopped,
    ),
    row(&[Primary, Still, Following, Starting], ANY, hung, R::ServerHung, Verb::Fence, Stopped),
    // In office.
    row(&[Primary], &[Mine], not_open, R::NotPromoted, Verb::Open, Primary),
    row(&[Primary], &[Mine], handover_ready, R::HandoverAsked, Verb::Stop, Stopped),
    row(&[Primary], &[Mine], full, R::DiskFull, Verb::Stop, Stopped),
    row(&[Primary], &[Mine], always, R::InOffice, Verb::Keep, Primary),
    row(&[Stopped, Starting, Still], &[Mine], failed, R::PromotionFailed, Verb::Release, Still),
    // A server on its way.
    row(&[Starting], &[Mine], can_hand_over, R::HandoverReady, Verb::Fence, Stopped),
    row(&[Starting], &[Lapsed], api_answers, R::Restarted, Verb::Release, Starting),
    row(&[Starting], ANY, always, R::ServerBusy, Verb::Wait, Starting),
    // Without data.
    row(&[Empty], &[Unknown], always, R::LeaseUnknown, Verb::Wait, Empty),
    row(&[Empty, Stopped], &[Absent], first_turn, R::FirstMember, Verb::Found, Stopped),
    row(&[Empty], &[Absent], always, R::AnotherBegins, Verb::Wait, Empty),
    row(&[Empty], &[Mine], new_database, R::NewDatabase, Verb::Initialise, Stopped),
    row(&[Empty], &[Mine, Lapsed], always, R::SystemLost, Verb::Release, Empty),
    row(&[Empty], &[Open], always, R::NoData, Verb::Rebuild, Stopped),
    row(&[Empty], &[Vacant], begins_again, R::FirstMember, Verb::Found, Stopped),
    row(&[Empty], &[Vacant, Closed], always, R::NoSource, Verb::Wait, Empty),
    // With data and without a process.
    row(&[Stopped], &[Mine], can_hand_over, R::ServerDied, Verb::Release, Stopped),
    row(&[Stopped], &[Mine], new_database, R::NewDatabase, Verb::StartPrimary, Primary),
    row(&[Stopped], &[Mine], not_open, R::NotPromoted, Verb::StartReplica, Still),
    row(&[Stopped], &[Mine], always, R::ServerDiedAlone, Verb::StartPrimary, Primary),
    row(&[Stopped], &[Lapsed], api_answers, R::Restarted, Verb::Release, Stopped),
    row(&[Stopped], &[Vacant, Closed], just_left, R::LeftToOthers, Verb::Wait, Stopped),
    row(&[Stopped], &[Open], rebuilding, R::WentAnotherWay, Verb::Rebuild, Stopped),
    row(&[Stopped], &[Absent], fresh, R::AnotherBegins, Verb::Wait, Stopped),
    row(&[Stopped], ANY, always, R::NotRunning, Verb::StartReplica, Still),
    // Running, receiving nothing.
    row(&[Still], &[Mine], not_open, R::Elected, Verb::Promote, Primary),
    row(&[Still, Following], &[Mine, Lapsed], always, R::Restarted, Verb::Release, Still),
    row(&[Still], &[Vacant], promised, R::Standing, Verb::Take, Still),
    row(&[Still, Following], &[Vacant], always, R::OldPrimarySilent, Verb::StandStill, Still),
    row(&[Still], &[Open], promised, R::Promised, Verb::Wait, Still),
    row(&[Still, Following], &[Open], |view| diverged(view) && counted(view), R::StillCounted, Verb::Wait, Still),
    row(&[Still, Following], &[Open], diverged, R::WentAnotherWay, Verb::StopToRebuild, Stopped),
    row(&[Still], &[Open], always, R::PrimaryKnown, Verb::Follow, Following),
    row(&[Still], &[Closed], always, R::PrimaryNotReady, Verb::Wait, Still),
    row(&[Still], &[Absent], always, R::LeaseGone, Verb::Wait, Still),
    row(&[Still], &[Unknown], always, R::LeaseUnknown, Verb::Wait, Still),
    // Receiving.
    row(&[Following], &[Open], follows_holder, R::FollowsPrimary, Verb::Wait, Following),
    row(&[Following], &[Open], |view| starved(view) && !counted(view), R::CannotReceive, Verb::StopToRebuild, Stopped),
    row(&[Following], &[Open], |view| !follows_epoch(view), R::PrimaryChanged, Verb::Follow, Following),
    row(&[Following], &[Closed], always, R::PrimaryChanged, Verb::StandStill, Still),
    row(&[Following], ANY, always, R::FollowsPrimary, Verb::Wait, Following),
];
