//! The report for people, programs, code review and the browser.

mod html;
mod sarif;
mod svg;
mod table;
mod text;

use serde_json::{Value, json};

use crate::Report;
use crate::survive::Outcome;

pub use html::html;
pub use sarif::sarif;
pub use svg::picture;
pub use table::{Line, lines};
pub use text::text;

/// The report as JSON. Cells that are fine are left out; `failures` lists what was taken away.
pub fn json(report: &Report) -> Value {
    let model = &report.model;
    let worse = report.rows.iter().flat_map(|row| row.cells.iter().filter(|cell| cell.outcome != Outcome::Fine));
    let placed = model.pods.iter().map(|pod| {
        json!({"pod": pod.key, "node": pod.node.map(|node| model.topology.nodes[node].name.clone()), "refusal": pod.refusal})
    });
    let services = model.services.iter().map(|service| {
        let needs = service.needs.iter().map(|(other, need)| {
            json!({"service": model.services[*other].key(), "need": format!("{need:?}").to_lowercase()})
        });
        json!({"service": service.key(), "pods": service.pods.len(), "minimum": service.minimum,
            "minimumFrom": service.minimum_why, "retried": service.is_retried, "needs": needs.collect::<Vec<_>>()})
    });
    json!({
        "engine": model.engine,
        "placement": placed.collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
        "failures": report.rows.iter().map(|row| row.failure.target(model)).collect::<Vec<_>>(),
        "pairsLeftOut": report.pairs_left_out,
        "notFine": worse.collect::<Vec<_>>(),
        "findings": report.findings.iter().map(crate::finding::Finding::to_json).collect::<Vec<_>>(),
        "availability": report.estimates,
        "rates": report.rates,
        "assumptions": model.assumptions,
    })
}
