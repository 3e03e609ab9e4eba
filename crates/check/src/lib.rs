//! `mainstay check`: which failures a system survives, computed before any happens.
//!
//! # Flow
//! [`manifest`] reads objects with their places → [`model`] makes pods of them and has the real scheduler place them on a
//! [`topology`] → [`survive`] takes away every pod, node, zone, volume, server and pair of nodes → [`rules`] say what is
//! wrong and what mends it → [`availability`] adds it up → [`output`] shows it.
//!
//! # Guarantees
//! Everything but reading and writing files is a pure function: the same input and seed give the same report.
//!
//! # Deliberately absent
//! Proof: that is what a drill is for. A [`Prediction`] is what it can be held against.

pub mod availability;
pub mod engine;
pub mod finding;
pub mod fix;
pub mod manifest;
pub mod model;
pub mod output;
pub mod rules;
pub mod survive;
pub mod topology;

use availability::{Estimate, Method, Rates};
use engine::Engine;
use finding::Finding;
use manifest::Object;
use model::{Model, ModelError};
use survive::Row;
pub use survive::{FailureKind, Outcome, Prediction};
use topology::Topology;

/// What is assumed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How fast the platform is.
    pub engine: Engine,
    /// Seconds a program needs to start, where nothing says so.
    pub program_s: f64,
    /// How often parts fail.
    pub rates: Rates,
    /// How the estimate is made.
    pub method: Method,
}

impl Default for Settings {
    fn default() -> Self {
        let (rates, method) = (Rates::default(), Method::default());
        Self { engine: Engine::mainstay(), program_s: engine::PROGRAM_START_S, rates, method }
    }
}

/// Everything that was found out.
#[derive(Debug)]
pub struct Report {
    /// What runs where.
    pub model: Model,
    /// What each failure comes to.
    pub rows: Vec<Row>,
    /// Whether there were too many pairs of nodes to try.
    pub pairs_left_out: bool,
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// How available each service will be.
    pub estimates: Vec<Estimate>,
    /// The rates that the estimates rest on.
    pub rates: Rates,
}

/// Places what the objects describe on the topology, takes everything away in turn, and reports.
///
/// # Errors
/// When nothing makes pods, or there are too many.
pub fn check(objects: Vec<Object>, topology: Topology, settings: &Settings) -> Result<Report, ModelError> {
    let model = Model::build(objects, topology, settings.engine.clone(), settings.program_s)?;
    let (rows, pairs_left_out) = survive::survive(&model);
    let findings = rules::findings(&model, &rows);
    let estimates = availability::estimate(&model, &rows, &settings.rates, settings.method);
    Ok(Report { model, rows, pairs_left_out, findings, estimates, rates: settings.rates.clone() })
}

impl Report {
    /// Every prediction, of each failure for each service.
    pub fn predictions(&self) -> impl Iterator<Item = &Prediction> {
        self.rows.iter().flat_map(|row| &row.cells)
    }

    /// Failures of a kind that take a service down for longer than so many seconds.
    pub fn not_survived(&self, kind: FailureKind, down_max_s: f64) -> Vec<&Prediction> {
        let of_kind = self.predictions().filter(|cell| cell.kind == kind && cell.outcome == Outcome::Down);
        of_kind.filter(|cell| cell.data_lost || cell.seconds.is_none_or(|seconds| seconds > down_max_s)).collect()
    }
}
