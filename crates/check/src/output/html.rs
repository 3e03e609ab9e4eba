//! One HTML page that needs nothing else.

use std::fmt::Write as _;

use super::svg::{escaped, picture};
use super::table::{columns, lines};
use crate::Report;
use crate::availability::percent_shown;
use crate::survive::{Outcome, Prediction};

const STYLE: &str = "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#1f2933}\
table{border-collapse:collapse;margin:1em 0;width:100%}th,td{border:1px solid #cbd2d9;padding:.3em .6em;text-align:left;vertical-align:top}\
th{background:#f4f6f8}.fine{background:#e3f6e8}.degraded{background:#fff3c4}.down{background:#ffd0cc}.forever{background:#f29b93}\
code{background:#f4f6f8;padding:0 .2em}.scroll{overflow-x:auto}.error{color:#ab091e;font-weight:bold}.warning{color:#8d2b0b}.note{color:#52606d}\
footer{color:#52606d;margin-top:3em}";

/// The page.
pub fn html(report: &Report) -> String {
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n<title>What would take it down</title>\n",
    );
    let _ = writeln!(out, "<style>{STYLE}</style></head><body>\n<h1>What would take it down</h1>");
    let model = &report.model;
    let _ = writeln!(
        out,
        "<p>{} pods on {} nodes in {} zones; {} failures tried, each by itself, on {} services. Platform: {}.</p>",
        model.pods.len(),
        model.topology.nodes.len(),
        model.topology.zone_count(),
        report.rows.len(),
        model.services.len(),
        model.engine.name
    );
    let _ = writeln!(out, "<h2>Where everything runs</h2>\n<div class=\"scroll\">{}</div>", picture(report));
    survival(&mut out, report);
    findings(&mut out, report);
    estimates(&mut out, report);
    out.push_str("<footer>Made by <code>mainstay check</code>. Predictions; <code>mainstay drill</code> measures.</footer></body></html>\n");
    out
}

fn class(cell: &Prediction) -> &'static str {
    match (cell.outcome, cell.seconds) {
        (Outcome::Fine, _) => "fine",
        (Outcome::Degraded, _) => "degraded",
        (Outcome::Down, Some(_)) => "down",
        (Outcome::Down, None) => "forever",
    }
}

fn survival(out: &mut String, report: &Report) {
    out.push_str("<h2>What dies, and what becomes of it</h2>\n<div class=\"scroll\"><table><tr><th>what dies</th>");
    for name in columns(report) {
        let _ = write!(out, "<th>{}</th>", escaped(&name));
    }
    out.push_str("</tr>\n");
    for line in lines(report) {
        let _ = write!(out, "<tr><th>{}</th>", escaped(&line.label));
        for cell in &line.row.cells {
            let _ = write!(
                out,
                "<td class=\"{}\" title=\"{}\">{}</td>",
                class(cell),
                escaped(&cell.why),
                escaped(&cell.shown())
            );
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n<p>Point at a cell to see why.</p>\n");
}

fn findings(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>Findings</h2>\n<table><tr><th></th><th>rule</th><th>where</th><th>what, and what mends it</th></tr>\n",
    );
    for finding in &report.findings {
        let severity = finding.rule.severity.name();
        let _ = writeln!(
            out,
            "<tr><td class=\"{severity}\">{severity}</td><td title=\"{}\">{}<br>{:?}, {}</td><td><code>{}</code></td><td>{}<br><em>{}</em></td></tr>",
            escaped(finding.rule.title),
            finding.rule.id,
            finding.rule.element,
            finding.rule.element.title(),
            escaped(&finding.place.to_string()),
            escaped(&finding.message),
            escaped(&finding.change)
        );
    }
    out.push_str("</table>\n");
}

fn estimates(out: &mut String, report: &Report) {
    out.push_str("<h2>Availability</h2>\n<p>An upper bound, under the assumptions below.</p>\n<table><tr><th>service</th><th>availability</th><th>95 % interval</th><th>minutes per year</th><th>most from</th></tr>\n");
    for estimate in &report.estimates {
        let interval = if (estimate.high - estimate.low).abs() < 1e-12 {
            "exact".to_owned()
        } else {
            format!("{} to {}", percent_shown(estimate.low), percent_shown(estimate.high))
        };
        let most = estimate.from.first().map_or("", |(name, _)| name.as_str());
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{interval}</td><td>{:.2}</td><td>{}</td></tr>",
            escaped(&estimate.service),
            percent_shown(estimate.availability),
            estimate.down_minutes_per_year,
            escaped(most)
        );
    }
    out.push_str("</table>\n<ul>\n");
    for rate in report.rates.parts() {
        let _ = writeln!(
            out,
            "<li>One {}: {} failures per year, {} h to repair ({})</li>",
            rate.part,
            rate.failures_per_year,
            rate.repair_hours,
            escaped(rate.source)
        );
    }
    let _ = writeln!(out, "<li>A person has acted after {} h</li>", report.rates.person_hours);
    for assumption in &report.model.assumptions {
        let _ = writeln!(out, "<li>{}</li>", escaped(assumption));
    }
    if let Some(first) = report.estimates.first() {
        let _ = writeln!(out, "<li>Computed: {}</li>", escaped(&first.method));
    }
    out.push_str("<li>Not counted: bad releases, mistakes, overload, attacks, networks outside</li>\n</ul>\n");
}
