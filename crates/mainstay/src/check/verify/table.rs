//! What was predicted beside what was seen: for people, and for programs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use mainstay_check::Outcome;
use serde_json::{Value, json};

use super::verdict::{Agreement, Comparison, SLACK_S, hint};

/// For people: every failure that somebody notices, and every prediction that does not hold.
pub(super) fn text(all: &[Comparison]) -> String {
    let mut out = String::new();
    let failures: BTreeSet<&str> = all.iter().map(|one| one.predicted.failure.as_str()).collect();
    let shown: Vec<&Comparison> = all.iter().filter(|one| is_shown(one)).collect();
    let mut rows = vec![["what died", "service", "predicted", "seen", ""].map(str::to_owned)];
    rows.extend(shown.iter().map(|one| {
        let (said, was) = (&one.predicted, &one.measured);
        let mark = match one.agreement {
            Agreement::Holds => "holds",
            Agreement::Differs => "DIFFERS",
            Agreement::Unseen => "not to be seen from outside",
        };
        [said.failure.clone(), said.service.clone(), said.shown(), was.shown(), mark.to_owned()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let differ: Vec<&&Comparison> = shown.iter().filter(|one| one.agreement == Agreement::Differs).collect();
    if !differ.is_empty() {
        let _ = writeln!(out, "\nwhere they differ");
    }
    for one in differ {
        let _ = writeln!(out, "  {} {}: {}", one.predicted.failure, one.predicted.service, hint(one));
    }
    let count = |agreement: Agreement| all.iter().filter(|one| one.agreement == agreement).count();
    let _ = writeln!(
        out,
        "\n{} failures made, {} predictions: {} hold, {} differ, {} cannot be seen from outside\n\
         (the others: predicted fine, and were fine; times count as the same within {SLACK_S} s or half of the prediction)",
        failures.len(),
        all.len(),
        count(Agreement::Holds),
        count(Agreement::Differs),
        count(Agreement::Unseen)
    );
    out
}

fn is_shown(one: &Comparison) -> bool {
    one.agreement == Agreement::Differs
        || one.predicted.outcome != Outcome::Fine
        || one.measured.outcome != Outcome::Fine
}

/// For programs.
pub(super) fn json(all: &[Comparison]) -> Value {
    let differ = all.iter().filter(|one| one.agreement == Agreement::Differs).count();
    json!({ "predictions": all.len(), "differ": differ, "comparisons": all })
}
