//! Two reports side by side: what changed between them.

use std::fmt::Write as _;

use super::text::Column;
use super::{Report, ms, span};

/// The figures that are compared, and what they are before and after.
pub fn render(before: &Report, after: &Report) -> String {
    let mut rows = vec![[String::new(), name(before), name(after)]];
    let mut row =
        |what: &str, figure: &dyn Fn(&Report) -> String| rows.push([what.to_owned(), figure(before), figure(after)]);
    row("verdict", &|it| if it.verdict.passed() { "passed".to_owned() } else { "failed".to_owned() });
    row("requests per second", &|it| it.rate.to_string());
    row("tries", &|it| it.tries.to_string());
    row("asked", &|it| it.verdict.asked.to_string());
    row("failed", &|it| (it.verdict.asked - it.verdict.answered).to_string());
    row("availability", &|it| format!("{:.3} %", it.verdict.availability_percent()));
    row("seconds with a failure", &|it| it.verdict.bad_seconds.to_string());
    row("longest gap", &|it| span(Some(it.verdict.longest_gap_ms)));
    row("p50", &|it| format!("{} ms", ms(it.verdict.latency.p50_us)));
    row("p99", &|it| format!("{} ms", ms(it.verdict.latency.p99_us)));
    row("writes lost", &|it| it.ledgers.iter().map(|ledger| ledger.lost_count).sum::<usize>().to_string());
    let mut names: Vec<&String> = Vec::new();
    for step in before.verdict.steps.iter().chain(&after.verdict.steps) {
        if !names.contains(&&step.step.name) {
            names.push(&step.step.name);
        }
    }
    let figures: [Column; 4] = [
        ("failed", |it| it.failed.to_string()),
        ("longest gap", |it| span(Some(it.longest_gap_ms))),
        ("routed around", |it| span(Some(it.routed_around_ms))),
        ("healed", |it| span(it.healed_ms)),
    ];
    for step in names {
        for (what, figure) in figures {
            row(&format!("{step}: {what}"), &|it| {
                let found = it.verdict.steps.iter().find(|verdict| verdict.step.name == *step);
                found.map_or_else(|| "not made".to_owned(), figure)
            });
        }
    }
    table(&rows)
}

fn name(report: &Report) -> String {
    format!("{} {}", report.name, report.started.strftime("%F %H:%M"))
}

/// Rows that differ are marked.
fn table(rows: &[[String; 3]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second, third) = (width(0), width(1), width(2));
    let mut text = String::new();
    for (number, [what, before, after]) in rows.iter().enumerate() {
        let mark = if number > 0 && before != after { "  *" } else { "" };
        let line = format!("  {what:<first$}  {before:>second$}  {after:>third$}{mark}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
