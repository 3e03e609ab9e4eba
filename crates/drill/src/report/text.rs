//! The report for the terminal: one table of faults, and the verdict.

use std::fmt::Write as _;

use super::{Report, ms, span};
use crate::load::sample::Latency;
use crate::verdict::StepVerdict;

/// A figure of each fault: its heading, and what it is.
pub(super) type Column = (&'static str, fn(&StepVerdict) -> String);

/// The columns of the table of faults.
pub(super) const COLUMNS: [Column; 11] = [
    ("fault", |it| it.step.name.clone()),
    ("on", |it| it.step.target.clone()),
    ("asked", |it| it.asked.to_string()),
    ("failed", |it| it.failed.to_string()),
    ("longest gap", |it| span(Some(it.longest_gap_ms))),
    ("p99 before", |it| p99(&it.before)),
    ("during", |it| p99(&it.during)),
    ("after", |it| p99(&it.after)),
    ("detected", |it| span(it.detected_ms)),
    ("routed around", |it| span(Some(it.routed_around_ms))),
    ("healed", |it| span(it.healed_ms)),
];

/// A dash where nothing was answered.
fn p99(latency: &Latency) -> String {
    if latency.count == 0 { span(None) } else { format!("{} ms", ms(latency.p99_us)) }
}

/// Everything that fits a terminal.
pub fn render(report: &Report) -> String {
    let verdict = &report.verdict;
    let mut text =
        format!("drill {}: {}, {} requests per second{}\n\n", report.name, report.target, report.rate, tries(report));
    text.push_str(&table(&verdict.steps));
    for step in &verdict.steps {
        for (what, count) in &step.failures {
            let _ = writeln!(text, "  {}: {count} × {what}", step.step.name);
        }
    }
    for reason in &report.left_out {
        let _ = writeln!(text, "  left out: {reason}");
    }
    let (failed, lost) =
        (verdict.asked - verdict.answered, report.ledgers.iter().map(|it| it.lost_count).sum::<usize>());
    let _ = writeln!(
        text,
        "\n  availability   {:.3} % of {} requests ({failed} failed), {:.2} % of {} seconds without a failure",
        verdict.availability_percent(),
        verdict.asked,
        verdict.good_seconds_percent(),
        verdict.seconds
    );
    let latency = &verdict.latency;
    let _ = writeln!(text, "  longest gap    {}", span(Some(verdict.longest_gap_ms)));
    let _ = writeln!(
        text,
        "  latency        p50 {} ms, p99 {} ms, p99.9 {} ms, max {} ms (counted from when each request was due)",
        ms(latency.p50_us),
        ms(latency.p99_us),
        ms(latency.p999_us),
        ms(latency.max_us)
    );
    for ledger in &report.ledgers {
        let _ = writeln!(
            text,
            "  ledger         {}: {} acknowledged writes, {} lost, {} stale reads, {} keys out of order",
            ledger.name,
            ledger.acknowledged,
            ledger.lost_count,
            ledger.stale_count,
            ledger.disorder.len()
        );
    }
    if report.ledgers.is_empty() {
        let _ = writeln!(text, "  writes         no ledger was kept, so nothing is said about lost writes");
    } else {
        let _ = writeln!(text, "  writes lost    {lost}");
    }
    let _ = writeln!(text, "  cost           {}", cost(report));
    let _ = writeln!(text, "\n{}", if verdict.passed() { "passed" } else { "FAILED" });
    for objection in &verdict.objections {
        let _ = writeln!(text, "  {objection}");
    }
    text
}

/// What of the promise's allowance the drill's failures would use up.
pub(super) fn cost(report: &Report) -> String {
    let budget = &report.verdict.budget;
    let objective = &budget.objective;
    format!(
        "{:.2} of the {:.1} minutes that {} % over {} days allow, if this happens {} times in them",
        budget.cost_minutes, budget.allowed_minutes, objective.availability_percent, objective.days, objective.times
    )
}

/// That clients tried again is part of what was measured.
pub(super) fn tries(report: &Report) -> String {
    if report.tries > 1 {
        format!(
            ", each tried up to {} times ({} were answered at a further try)",
            report.tries, report.verdict.tried_again
        )
    } else {
        ", each tried once".to_owned()
    }
}

fn table(steps: &[StepVerdict]) -> String {
    let mut rows: Vec<Vec<String>> = vec![COLUMNS.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
    rows.extend(steps.iter().map(|step| COLUMNS.iter().map(|(_, value)| value(step)).collect()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}
