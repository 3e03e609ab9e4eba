//! The report for continuous integration: JUnit XML, one case for each fault and each ledger, and one for the whole.

use std::fmt::Write as _;

use super::Report;

/// The file's text.
pub fn render(report: &Report) -> String {
    let verdict = &report.verdict;
    let mut cases: Vec<(String, f64, Option<String>)> = Vec::new();
    for step in &verdict.steps {
        let seconds = (step.step.until_us - step.step.from_us) as f64 / 1e6;
        let failure = match (&step.step.evidence, step.step.healed_us) {
            (Err(reason), _) => Some(reason.clone()),
            (_, None) => Some("not everything was Ready again in time".to_owned()),
            _ => None,
        };
        cases.push((step.step.name.clone(), seconds, failure));
    }
    for ledger in &report.ledgers {
        let (lost, stale) = (ledger.lost_count, ledger.stale_count);
        let broken = format!(
            "{lost} acknowledged writes lost, {stale} stale reads, {} keys out of order",
            ledger.disorder.len()
        );
        cases.push((format!("ledger {}", ledger.name), 0.0, (!ledger.is_clean()).then_some(broken)));
    }
    let whole = (!verdict.passed()).then(|| verdict.objections.join("; "));
    cases.push(("what is required".to_owned(), verdict.seconds as f64, whole));

    let failures = cases.iter().filter(|(.., failure)| failure.is_some()).count();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"drill {}\" tests=\"{}\" failures=\"{failures}\" timestamp=\"{}\">\n",
        escaped(&report.name),
        cases.len(),
        report.started
    );
    for (name, seconds, failure) in cases {
        let _ = write!(
            text,
            "  <testcase classname=\"{}\" name=\"{}\" time=\"{seconds:.3}\"",
            escaped(&report.name),
            escaped(&name)
        );
        match failure {
            Some(reason) => {
                let _ = writeln!(text, "><failure message=\"{}\"/></testcase>", escaped(&reason));
            }
            None => text.push_str("/>\n"),
        }
    }
    text.push_str("</testsuite>\n");
    text
}

/// Text within XML and HTML, in attributes, too.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
