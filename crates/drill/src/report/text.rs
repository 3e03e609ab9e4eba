//! The report for the terminal: one table of faults, and the verdict.

use std::fmt::Write as _;

use super::{Report, ms, span};
use crate::load::sample::Latency;
use crate::verdict::StepVerdict;

/// A figure of each fault: its heading, and what it is.
pub(super) type Column = (&'static str, fn(&StepVerdict) -> String);

/// The columns of the table of faults, where there is room.
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

/// The same for a terminal: less than a hundred characters in all. What was hit stands below the table.
const NARROW: [Column; 7] = [
    ("fault", |it| it.step.name.clone()),
    ("failed", |it| format!("{} of {}", it.failed, it.asked)),
    ("gap", |it| span(Some(it.longest_gap_ms))),
    ("p99 before, during, after", |it| {
        let [before, during, after] =
            [&it.before, &it.during, &it.after].map(|it| p99(it).trim_end_matches(" ms").to_owned());
        format!("{before}, {during}, {after} ms")
    }),
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
    text.push_str("  (gap: the longest time without an answer; the last three: after the fault's beginning)\n\n");
    for step in &verdict.steps {
        let failures = step.failures.iter().map(|(what, count)| format!("; {count} × {what}"));
        let _ = writeln!(text, "  {}: {}{}", step.step.name, step.step.target, failures.collect::<String>());
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
    text.push_str(advice(report).unwrap_or_default());
    text
}

/// What would have helped, where that is plain.
fn advice(report: &Report) -> Option<&'static str> {
    let verdict = &report.verdict;
    // What took too long says more of the service, or of a busy machine, than of what died.
    let broken = verdict.failures.iter().filter(|(what, _)| what.contains("connection"));
    let lost: u64 = broken.map(|(_, count)| count).sum();
    let failed = verdict.asked - verdict.answered;
    (!verdict.passed() && report.tries == 1 && failed > 0 && lost * 2 > failed).then_some(
        "  most of them were under way to what died; clients that try again (--tries 3) or a gateway before the service\n  \
         (docs/guide/run-a-gateway.md) hide that from users\n",
    )
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
    let mut rows: Vec<Vec<String>> = vec![NARROW.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
    rows.extend(steps.iter().map(|step| NARROW.iter().map(|(_, value)| value(step)).collect()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..NARROW.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}
