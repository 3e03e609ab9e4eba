//! For people, in a terminal.

use std::fmt::Write as _;

use super::table::{columns, lines};
use crate::Report;
use crate::availability::percent_shown;
use crate::finding::Severity;

/// Width of a terminal that tables keep to, unless one column alone is wider.
const WIDTH: usize = 118;
/// Reasons, and notes, written out.
const REASONS_MAX: usize = 12;

/// The report as text. `all_notes` writes every note out.
pub fn text(report: &Report, all_notes: bool) -> String {
    let mut out = String::new();
    let model = &report.model;
    let (placed, zones) = (model.pods.iter().filter(|pod| pod.node.is_some()).count(), model.topology.zone_count());
    let _ = writeln!(
        out,
        "{placed} of {} pods placed on {} nodes in {zones} zones; {} failures tried on {} ({})\n",
        model.pods.len(),
        model.topology.nodes.len(),
        report.rows.len(),
        counted(model.services.len(), "service"),
        model.engine.name
    );
    survival(&mut out, report);
    reasons(&mut out, report);
    findings(&mut out, report, all_notes);
    estimates(&mut out, report);
    out
}

fn counted(number: usize, name: &str) -> String {
    let plural = if name.ends_with("ch") { "es" } else { "s" };
    if number == 1 { format!("1 {name}") } else { format!("{number} {name}{plural}") }
}

fn survival(out: &mut String, report: &Report) {
    let (lines, names) = (lines(report), columns(report));
    let first = lines.iter().map(|line| line.label.chars().count()).max().unwrap_or(0).max("what dies".len());
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line.row.cells[column].shown().chars().count());
        cells.max().unwrap_or(0).max(names[column].chars().count())
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let mut start = 0;
    while start < names.len() {
        let (mut end, mut used) = (start, first);
        while end < names.len() && (end == start || used + 2 + widths[end] <= WIDTH) {
            used += 2 + widths[end];
            end += 1;
        }
        let mut row = |label: &str, cells: Vec<String>| {
            let mut line = format!("{label:first$}");
            for (cell, column) in cells.iter().zip(start..) {
                let _ = write!(line, "  {cell:width$}", width = widths[column]);
            }
            let _ = writeln!(out, "{}", line.trim_end());
        };
        row("what dies", names[start..end].to_vec());
        for line in &lines {
            row(&line.label, line.row.cells[start..end].iter().map(crate::Prediction::shown).collect());
        }
        out.push('\n');
        start = end;
    }
    if report.pairs_left_out {
        let _ = writeln!(out, "pairs of nodes were left out: there are more than {}\n", crate::survive::PAIRS_MAX);
    }
}

fn reasons(out: &mut String, report: &Report) {
    let lines = lines(report);
    let all: Vec<_> = lines.iter().filter_map(|line| Some((&line.label, line.worst()?))).collect();
    if all.is_empty() {
        return;
    }
    out.push_str("why\n");
    for (label, cell) in all.iter().take(REASONS_MAX) {
        let _ = writeln!(out, "  {label}: {} {}: {}", cell.service, cell.shown(), cell.why);
    }
    if all.len() > REASONS_MAX {
        let _ = writeln!(out, "  and {} more; -o json has all", all.len() - REASONS_MAX);
    }
    out.push('\n');
}

fn findings(out: &mut String, report: &Report, all_notes: bool) {
    let count = |severity| report.findings.iter().filter(|finding| finding.rule.severity == severity).count();
    let (errors, warnings, notes) = (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
    let _ = writeln!(
        out,
        "findings: {}, {}, {}",
        counted(errors, "error"),
        counted(warnings, "warning"),
        counted(notes, "note")
    );
    for finding in report.findings.iter().filter(|finding| all_notes || finding.rule.severity != Severity::Note) {
        let rule = finding.rule;
        let _ = writeln!(out, "  {}  {} [{:?}]  {}", finding.place, rule.severity.name(), rule.element, rule.id);
        let _ = writeln!(out, "      {}", finding.message);
        let _ = writeln!(out, "      mend: {}", finding.change);
    }
    if notes > 0 && !all_notes {
        let _ = writeln!(out, "  {} not shown; --notes shows them", counted(notes, "note"));
    }
    let fixes = crate::fix::files(&report.findings).len();
    if fixes > 0 {
        let _ =
            writeln!(out, "  --fix DIRECTORY writes {} with what can be mended by machine", counted(fixes, "patch"));
    }
    out.push('\n');
}

fn estimates(out: &mut String, report: &Report) {
    if report.estimates.is_empty() {
        return;
    }
    out.push_str("availability: an upper bound, under the assumptions below\n");
    let width = report.estimates.iter().map(|estimate| estimate.service.len()).max().unwrap_or(0);
    for estimate in &report.estimates {
        let interval = if (estimate.high - estimate.low).abs() < 1e-12 {
            String::new()
        } else {
            format!(", 95 % interval {} to {}", percent_shown(estimate.low), percent_shown(estimate.high))
        };
        let minutes = estimate.down_minutes_per_year;
        let down = if minutes < 1.0 { format!("{:.0} s", minutes * 60.0) } else { format!("{minutes:.0} min") };
        let most = estimate.from.first().map_or(String::new(), |(name, _)| format!("; most from {name}"));
        let _ = writeln!(
            out,
            "  {:width$}  {}  about {down} per year{interval}{most}",
            estimate.service,
            percent_shown(estimate.availability)
        );
    }
    if let Some(first) = report.estimates.first() {
        let _ = writeln!(out, "  computed: {}", first.method);
    }
    out.push_str("assumptions (settable: --assume, --engine, annotations)\n");
    for rate in report.rates.parts() {
        let _ = writeln!(
            out,
            "  one {}: {} failures per year, {} h to repair ({})",
            rate.part, rate.failures_per_year, rate.repair_hours, rate.source
        );
    }
    let _ = writeln!(out, "  a person has acted after {} h", report.rates.person_hours);
    for assumption in &report.model.assumptions {
        let _ = writeln!(out, "  {assumption}");
    }
    out.push_str(
        "  not counted: bad releases, mistakes, overload, attacks, networks outside; `mainstay drill` measures\n",
    );
}
