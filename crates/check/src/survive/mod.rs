//! Which failures every service survives: each single one, and every pair of nodes, taken away in turn.

mod aftermath;
mod failure;
mod timeline;

use std::num::NonZero;

use serde::{Deserialize, Serialize};

pub use aftermath::{Aftermath, Fate, aftermath};
pub use failure::{Failure, FailureKind, Lost, PAIRS_MAX, all};
pub use timeline::{State, Timeline};

use crate::model::Model;

/// What is predicted for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nobody notices.
    Fine,
    /// Some requests fail, or fewer pods are ready than have to be.
    Degraded,
    /// No request is answered.
    Down,
}

/// What is predicted for one service after one failure: what a drill can be held against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// What dies: `node/node-2`, `pod/shop/cart-1`, `zone/zone-a`, `volume/shop/data`, `server/server-1`,
    /// `node/node-1+node/node-2`.
    pub failure: String,
    /// Which kind that is.
    pub kind: FailureKind,
    /// `namespace/name`.
    pub service: String,
    /// The worst it comes to.
    pub outcome: Outcome,
    /// Until when it is so bad, in seconds since the failure; `None` with an outcome that is not fine: until a person acts.
    pub seconds: Option<f64>,
    /// When all is as before; `None`: when a person has acted.
    pub healed_seconds: Option<f64>,
    /// Whether acknowledged data is gone.
    #[serde(default)]
    pub data_lost: bool,
    /// Why; empty when fine.
    pub why: String,
}

impl Prediction {
    /// The cell of the table: `fine`, `degraded ~1 s`, `down until a person acts`.
    pub fn shown(&self) -> String {
        let how = match self.outcome {
            Outcome::Fine => return "fine".to_owned(),
            Outcome::Degraded => "degraded",
            Outcome::Down => "down",
        };
        match (self.seconds, self.data_lost) {
            (_, true) => "down, data lost".to_owned(),
            (Some(seconds), _) => format!("{how} ~{}", seconds_shown(seconds)),
            (None, _) => format!("{how} until a person acts"),
        }
    }

    /// Whether the service only suffers with another that it needs.
    pub fn is_felt(&self) -> bool {
        self.why.starts_with("it needs ") || self.why.starts_with("its liveness probe asks ")
    }

    /// How bad it is: more is worse.
    pub fn rank(&self) -> (Outcome, bool, u64) {
        let lasts = self.outcome != Outcome::Fine && self.seconds.is_none();
        (self.outcome, lasts || self.data_lost, self.seconds.map_or(0, |seconds| (seconds * 10.0) as u64))
    }
}

/// Seconds as people read them: `0.5 s`, `6 s`, `7 min`, `1.5 h`.
pub fn seconds_shown(seconds: f64) -> String {
    match seconds {
        s if s < 0.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{:.0} s", s.ceil()),
        s if s < 5_400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3_600.0),
    }
}

/// One failure with what becomes of every service.
#[derive(Debug, Clone)]
pub struct Row {
    /// The failure.
    pub failure: Failure,
    /// Per service of the model.
    pub cells: Vec<Prediction>,
    /// Pods that do not come back by themselves, and why.
    pub stuck: Vec<(usize, String)>,
    /// Pods that had to make room.
    pub displaced: Vec<usize>,
}

impl Row {
    /// The worst cell's rank, and how many services are that bad.
    pub fn weakness(&self) -> ((Outcome, bool, u64), usize) {
        let worst = self.cells.iter().map(Prediction::rank).max().unwrap_or((Outcome::Fine, false, 0));
        (worst, self.cells.iter().filter(|cell| cell.rank() == worst).count())
    }
}

/// Takes everything away in turn; and says whether there were too many pairs of nodes to try.
pub fn survive(model: &Model) -> (Vec<Row>, bool) {
    let (failures, pairs_left_out) = all(model);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(8);
    let share = failures.len().div_ceil(threads).max(1);
    // Each failure stands for itself, so the order of work changes nothing.
    let rows = std::thread::scope(|scope| {
        let parts: Vec<_> = failures
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(|failure| row(model, *failure)).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
    });
    (rows, pairs_left_out)
}

/// What one failure comes to.
pub fn row(model: &Model, failure: Failure) -> Row {
    let after = aftermath(model, &failure.lost(model));
    let (target, kind) = (failure.target(model), failure.kind());
    let cells = model.services.iter().zip(after.fates);
    let cells = cells.map(|(service, fate)| prediction(&target, kind, service.key(), fate)).collect();
    Row { failure, cells, stuck: after.stuck, displaced: after.displaced }
}

fn prediction(target: &str, kind: FailureKind, service: String, fate: Fate) -> Prediction {
    let worst = fate.timeline.worst();
    let outcome = match worst {
        State::Fine => Outcome::Fine,
        State::Degraded => Outcome::Degraded,
        State::Down => Outcome::Down,
    };
    let seconds = if outcome == Outcome::Fine { Some(0.0) } else { fate.timeline.end_of(worst) };
    // Finer than this nothing is known, and whole milliseconds are the same when they are read back.
    let whole_ms = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
    Prediction {
        failure: target.to_owned(),
        kind,
        service,
        outcome,
        seconds: seconds.map(whole_ms),
        healed_seconds: fate.healed_s.map(whole_ms),
        data_lost: fate.is_data_lost,
        why: fate.why,
    }
}
