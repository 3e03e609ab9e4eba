//! CustomResourceDefinitions: everything about them that needs no I/O, and CEL, which admission policies use too.
//!
//! Role: from the definition a user writes to what the API server needs to serve its kind.
//!
//! - [`definition`]: defaults and validation of a definition, and its status over the set of all definitions;
//! - [`schema`]: structural schemas, compiled: defaulting, pruning, validation;
//! - [`cel`]: the expression language of rules and policies;
//! - [`served`]: rows, columns, scale paths, OpenAPI of the served versions;
//! - [`conversion`]: objects between versions;
//! - [`policy`]: ValidatingAdmissionPolicy, decided over values.
//!
//! Guarantees: pure, no clock; every input gives an answer, none a panic; everything has a limit.

pub mod cel;
pub mod conversion;
pub mod definition;
pub mod jsonpath;
pub mod path;
pub mod pattern;
pub mod policy;
pub mod schema;
pub mod served;

/// The first bytes of a text, up to `max` and never within a character.
fn head(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// The faults of a schema in a definition, for tests of its parts.
#[cfg(test)]
pub(crate) fn definition_faults(schema: &serde_json::Value) -> Vec<String> {
    let definition = serde_json::json!({
        "metadata": {"name": "as.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "as", "kind": "A", "listKind": "AList"},
            "conversion": {"strategy": "None"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
    });
    definition::validate(&definition, None).iter().map(ToString::to_string).collect()
}
