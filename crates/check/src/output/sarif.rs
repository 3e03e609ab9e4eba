//! SARIF 2.1.0, as code review and editors read it.
//!
//! Source: <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>.

use serde_json::{Value, json};

use crate::Report;
use crate::finding::Finding;
use crate::rules;

/// The findings as a SARIF log with one run; `version` is the program's.
pub fn sarif(report: &Report, version: &str) -> Value {
    let all: Vec<&crate::finding::Rule> = rules::rules().collect();
    let described = all.iter().map(|rule| {
        json!({"id": rule.id, "shortDescription": {"text": rule.title},
            "helpUri": "https://mainstay.dev/docs/guide/find-what-would-take-it-down",
            "defaultConfiguration": {"level": rule.severity.name()},
            "properties": {"tags": ["availability", format!("{:?}", rule.element)], "alsoKnownAs": rule.peers}})
    });
    let results =
        report.findings.iter().map(|finding| result(finding, all.iter().position(|rule| rule.id == finding.rule.id)));
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "mainstay check", "version": version, "informationUri": "https://mainstay.dev",
                "rules": described.collect::<Vec<_>>()}},
            "columnKind": "unicodeCodePoints",
            "results": results.collect::<Vec<_>>(),
        }],
    })
}

fn result(finding: &Finding, index: Option<usize>) -> Value {
    let mut physical = json!({"artifactLocation": {"uri": uri(&finding.place.file)}});
    if finding.place.line > 0 {
        physical["region"] = json!({"startLine": finding.place.line, "startColumn": finding.place.column.max(1)});
    }
    let logical = json!([{"fullyQualifiedName": finding.object, "kind": "resource"}]);
    json!({
        "ruleId": finding.rule.id,
        "ruleIndex": index,
        "level": finding.rule.severity.name(),
        "message": {"text": format!("{}. To mend it: {}.", finding.message, finding.change)},
        "locations": [{"physicalLocation": physical, "logicalLocations": logical}],
        "partialFingerprints": {"object/v1": format!("{} {}", finding.rule.id, finding.object)},
    })
}

/// A file name as a relative reference: what is not allowed in one is escaped.
fn uri(file: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let escaped = file.strip_prefix("./").unwrap_or(file).bytes();
    escaped.map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn file_names_become_references() {
        assert_eq!(super::uri("./a b/c#.yaml"), "a%20b/c%23.yaml");
    }
}
