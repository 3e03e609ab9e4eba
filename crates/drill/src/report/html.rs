//! The report as one HTML file: verdict, time line, faults, ledgers, events. No script, nothing fetched.

use std::fmt::Write as _;

use super::junit::escaped;
use super::text::{COLUMNS, cost, tries};
use super::{Report, ReportError, ms, picture, span};
use crate::observe::Tone;

/// Events listed at most; the picture has them all, and so has the JSON file.
const EVENTS_MAX: usize = 400;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1240px;margin:2em auto;padding:0 1em}\
    h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.1em;margin-top:1.8em}svg{max-width:100%;height:auto}\
    table{border-collapse:collapse}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}\
    td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}.passed{color:#1b6e20}.failed{color:#b71c1c}\
    .figures{display:flex;flex-wrap:wrap;gap:2em;margin:1em 0}.figures b{display:block;font-size:1.5em}.wide{overflow-x:auto}\
    details{margin-top:1em}.worse{color:#b71c1c}.better{color:#1b6e20}";

/// The page.
///
/// # Errors
/// When the picture cannot be drawn.
pub fn render(report: &Report) -> Result<String, ReportError> {
    let verdict = &report.verdict;
    let (class, word) = if verdict.passed() { ("passed", "passed") } else { ("failed", "failed") };
    let name = escaped(&report.name);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Drill {name}: {word}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n\
         <h1>Drill {name}: <span class=\"{class}\">{word}</span></h1>\n<p>{}, from {}; {} requests per second{}; seed {}</p>\n",
        escaped(&report.target),
        report.started.strftime("%F %T UTC"),
        report.rate,
        escaped(&tries(report)),
        report.seed
    );
    list(&mut page, "failed", &verdict.objections);
    figures(&mut page, report);
    let _ = writeln!(page, "{}", picture::draw(report)?);
    page.push_str(
        "<p>Shaded: a fault in force; lighter: undone, and healing. Latency counts from the moment each request was due, \
         so a stalled service cannot hide it.</p>\n",
    );
    faults(&mut page, report);
    list(&mut page, "", &report.left_out);
    ledgers(&mut page, report);
    events(&mut page, report);
    page.push_str("</body></html>\n");
    Ok(page)
}

fn list(page: &mut String, class: &str, lines: &[String]) {
    if !lines.is_empty() {
        let items = cells("li", lines.iter().cloned());
        let _ = writeln!(page, "<ul class=\"{class}\">{items}</ul>");
    }
}

/// Each text within an element of its own.
fn cells(element: &str, texts: impl Iterator<Item = String>) -> String {
    texts.fold(String::new(), |mut all, text| {
        let _ = write!(all, "<{element}>{}</{element}>", escaped(&text));
        all
    })
}

fn figures(page: &mut String, report: &Report) {
    let verdict = &report.verdict;
    let lost = report.ledgers.iter().map(|ledger| ledger.lost_count).sum::<usize>();
    let figures = [
        (format!("{:.3} %", verdict.availability_percent()), format!("of {} requests answered", verdict.asked)),
        ((verdict.asked - verdict.answered).to_string(), "requests failed".to_owned()),
        (format!("{:.2} %", verdict.good_seconds_percent()), "of seconds without a failure".to_owned()),
        (span(Some(verdict.longest_gap_ms)), "longest gap".to_owned()),
        (format!("{} ms", ms(verdict.latency.p99_us)), "p99 latency".to_owned()),
        if report.ledgers.is_empty() {
            ("–".to_owned(), "no ledger of writes was kept".to_owned())
        } else {
            (lost.to_string(), "acknowledged writes lost".to_owned())
        },
    ];
    let cells = figures.map(|(figure, what)| format!("<div><b>{figure}</b>{what}</div>"));
    let _ = writeln!(page, "<div class=\"figures\">{}</div>\n<p>Cost: {}.</p>", cells.concat(), cost(report));
}

fn faults(page: &mut String, report: &Report) {
    let heading = cells("th", COLUMNS.iter().map(|(name, _)| (*name).to_owned()));
    let _ = writeln!(page, "<h2>Faults</h2>\n<div class=\"wide\"><table><tr>{heading}<th>shown by</th></tr>");
    for step in &report.verdict.steps {
        let figures = cells("td", COLUMNS.iter().map(|(_, value)| value(step)));
        let kinds: Vec<String> = step.failures.iter().map(|(what, count)| format!("{count} × {what}")).collect();
        let (Ok(shown) | Err(shown)) = &step.step.evidence;
        let shown = if kinds.is_empty() { shown.clone() } else { format!("{shown}; failed: {}", kinds.join(", ")) };
        let _ = writeln!(page, "<tr>{figures}<td>{}</td></tr>", escaped(&shown));
    }
    page.push_str("</table></div>\n");
}

fn ledgers(page: &mut String, report: &Report) {
    if report.ledgers.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Ledgers</h2>\n<table><tr><th>ledger</th><th>verdict</th><th>operations</th><th>acknowledged</th>\
         <th>unknown</th><th>lost</th><th>stale</th><th>out of order</th><th>unreadable</th></tr>\n",
    );
    for it in &report.ledgers {
        let word = if it.is_clean() { "kept its word" } else { "broke it" };
        let (name, disorder, unreadable) = (escaped(&it.name), it.disorder.len(), it.unreadable.len());
        let _ = writeln!(
            page,
            "<tr><td>{name}</td><td>{word}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{disorder}</td><td>{unreadable}</td></tr>",
            it.operations, it.acknowledged, it.unknown, it.lost_count, it.stale_count
        );
    }
    page.push_str("</table>\n");
}

fn events(page: &mut String, report: &Report) {
    let shown = report.marks.len().min(EVENTS_MAX);
    let _ = writeln!(page, "<details><summary>Events ({shown} of {})</summary><table>", report.marks.len());
    for mark in report.marks.iter().take(EVENTS_MAX) {
        let class = if mark.tone == Tone::Worse { "worse" } else { "better" };
        let at = mark.at_us as f64 / 1e6;
        let _ = writeln!(page, "<tr><td>{at:.2} s</td><td class=\"{class}\">{}</td></tr>", escaped(&mark.what));
    }
    page.push_str("</table></details>\n");
}
