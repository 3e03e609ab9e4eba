//! The report: everything a drill has found, as data; and its forms for people, programs and continuous integration.
//!
//! [`Report`] is what the JSON file holds. Text, HTML, JUnit and comparisons are all made from it and from nothing else, so that
//! a report can be shown again, and two of them compared, long after the drill.

pub mod diff;
pub mod html;
pub mod junit;
pub mod live;
mod picture;
pub mod text;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ledger::Judgement;
use crate::load::sample::{Latency, Sample};
use crate::observe::{Endpoints, Mark};
use crate::resource::Drill;
use crate::verdict::{Evidence, Verdict};

/// One second of the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Second {
    /// Requests due in it.
    pub asked: u64,
    /// Of these, not answered.
    pub failed: u64,
    /// Latency of those answered.
    pub latency: Latency,
}

/// All of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The drill's name.
    pub name: String,
    /// When it began.
    pub started: jiff::Timestamp,
    /// Whom it asked.
    pub target: String,
    /// Requests per second.
    pub rate: f64,
    /// How often its clients tried.
    pub tries: u8,
    /// Of all that was drawn.
    pub seed: u64,
    /// The verdict.
    pub verdict: Verdict,
    /// Faults that could not be made here, and why.
    pub left_out: Vec<String>,
    /// What the ledgers found.
    pub ledgers: Vec<Judgement>,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// What the API told.
    pub marks: Vec<Mark>,
    /// How the endpoints changed.
    pub endpoints: Vec<Endpoints>,
}

/// Why a report could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file.
    #[error("cannot {doing} {path}: {source}")]
    File {
        /// The step.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a report.
    #[error("{path} is not a drill's report: {source}; name the .json file beside the .html")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The picture.
    #[error("cannot draw the time line: {0}")]
    Picture(String),
}

impl Report {
    /// Puts together what was found.
    pub fn new(
        drill: &Drill,
        target: &str,
        started: jiff::Timestamp,
        verdict: Verdict,
        evidence: &Evidence<'_>,
        left_out: Vec<String>,
    ) -> Self {
        Self {
            name: drill.metadata.name.clone(),
            started,
            target: target.to_owned(),
            rate: drill.spec.load.rate,
            tries: drill.spec.load.tries,
            seed: drill.spec.seed,
            seconds: seconds(evidence.samples, verdict.seconds),
            verdict,
            left_out,
            ledgers: evidence.ledgers.to_vec(),
            marks: evidence.marks.to_vec(),
            endpoints: evidence.endpoints.to_vec(),
        }
    }

    /// Reads a report's JSON file.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let failed = |source| ReportError::File { doing: "read", path: path.to_owned(), source };
        let text = fs::read(path).map_err(failed)?;
        serde_json::from_slice(&text).map_err(|source| ReportError::Form { path: path.to_owned(), source })
    }

    /// Writes `NAME.html`, `NAME.json` and `NAME.junit.xml` into a directory; answers with the first.
    ///
    /// # Errors
    /// When a file cannot be written or the picture not be drawn.
    pub fn write(&self, directory: &Path) -> Result<PathBuf, ReportError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ReportError::File { doing: "write", path, source }
        };
        fs::create_dir_all(directory).map_err(failed(directory))?;
        let path = |extension: &str| directory.join(format!("{}.{extension}", self.name));
        let (page, data, junit) = (path("html"), path("json"), path("junit.xml"));
        fs::write(&page, html::render(self)?).map_err(failed(&page))?;
        let json =
            serde_json::to_vec_pretty(self).map_err(|source| ReportError::Form { path: data.clone(), source })?;
        fs::write(&data, json).map_err(failed(&data))?;
        fs::write(&junit, junit::render(self)).map_err(failed(&junit))?;
        Ok(page)
    }
}

fn seconds(samples: &[Sample], count: u64) -> Vec<Second> {
    let mut of: Vec<Vec<Sample>> = vec![Vec::new(); count as usize];
    for sample in samples {
        if let Some(second) = of.get_mut((sample.due_us / 1_000_000) as usize) {
            second.push(*sample);
        }
    }
    let one = |samples: &Vec<Sample>| Second {
        asked: samples.len() as u64,
        failed: samples.iter().filter(|sample| sample.failure.is_some()).count() as u64,
        latency: Latency::of(samples),
    };
    of.iter().map(one).collect()
}

/// Microseconds as milliseconds with one place.
pub(crate) fn ms(us: u32) -> String {
    format!("{:.1}", f64::from(us) / 1000.0)
}

/// Milliseconds as seconds, short; a dash where there is no figure.
pub(crate) fn span(ms: Option<u64>) -> String {
    match ms {
        None => "–".to_owned(),
        Some(0) => "0".to_owned(),
        Some(ms) if ms < 1000 => format!("{ms} ms"),
        Some(ms) => format!("{:.1} s", ms as f64 / 1000.0),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
