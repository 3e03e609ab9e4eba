//! Whether the `x-kubernetes-validations` of a schema can be used: they compile, make sense where they stand, and cannot
//! cost too much.
//!
//! The estimate of costs counts loops over what can be in an object and leaves the lengths of texts out; what an object
//! really costs is limited when it is written.

use serde_json::{Value, json};

use crate::path::{Faults, Path};
use crate::schema::{Rule, RuleError, Schema};

/// The most a rule may be estimated to cost, over all the places it applies to.
const COST_ESTIMATE_MAX: u64 = 10_000_000;
/// The most all rules of a schema may be estimated to cost together.
const COST_ESTIMATE_TOTAL_MAX: u64 = 100_000_000;
const REASONS: &[&str] = &["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// Longest `message`, in bytes.
const MESSAGE_BYTES_MAX: usize = 2048;

/// What is known on the way down.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// How many values there can be here in one object.
    count: u64,
    /// The list or map above whose parts cannot be found again in an older object.
    uncorrelated: Option<&'a str>,
}

/// Checks all rules of a schema.
pub(super) fn check(schema: &Value, path: &Path<'_>, faults: &mut Faults) {
    let Some(outline) = Schema::outline(schema) else { return };
    let mut total = 0;
    node(schema, &outline, path, Place { count: 1, uncorrelated: None }, 0, &mut total, faults);
    if total > COST_ESTIMATE_TOTAL_MAX {
        let detail = format!(
            "x-kubernetes-validations estimated cost total for entire OpenAPIv3 schema exceeds budget by factor of {}",
            factor(total, COST_ESTIMATE_TOTAL_MAX)
        );
        faults.forbidden(path, detail);
    }
}

fn factor(cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    if factor > 100.0 { "more than 100x".to_owned() } else { format!("{factor:.1}x") }
}

fn node(
    schema: &Value,
    outline: &Schema,
    path: &Path<'_>,
    place: Place<'_>,
    depth: usize,
    total: &mut u64,
    faults: &mut Faults,
) {
    let rules = schema["x-kubernetes-validations"].as_array().map_or(&[][..], Vec::as_slice);
    if !rules.is_empty() {
        let list = path.field("x-kubernetes-validations");
        let self_type = outline.rule_type(depth == 0);
        for (i, rule) in rules.iter().enumerate() {
            let here = list.index(i);
            form(rule, outline, &here, faults);
            match Rule::compile(rule, &self_type) {
                Ok(compiled) => {
                    correlation(rule, &compiled, place, &here, faults);
                    cost(&compiled, outline, place, &here, total, faults);
                }
                Err(error) => refuse(rule, &error, &here, faults),
            }
        }
    }
    let own_path = path.to_string();
    let uncorrelated =
        if outline.parts_correlate() { place.uncorrelated } else { place.uncorrelated.or(Some(&own_path)) };
    let below = Place { count: place.count, uncorrelated };
    let many = Place { count: place.count.saturating_mul(outline.items_max().max(1)), uncorrelated };
    let properties = path.field("properties");
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(outline) = outline.properties.get(name) {
            node(property, outline, &properties.key(name), below, depth + 1, total, faults);
        }
    }
    if let Some(items) = outline.items.as_deref() {
        node(&schema["items"], items, &path.field("items"), many, depth + 1, total, faults);
    }
    if let Some(values) = outline.additional_schema() {
        let here = path.field("additionalProperties");
        node(&schema["additionalProperties"], values, &here, many, depth + 1, total, faults);
    }
}

/// The fields of a rule, apart from its programs.
fn form(rule: &Value, outline: &Schema, path: &Path<'_>, faults: &mut Faults) {
    let text = |field: &str| rule[field].as_str().unwrap_or_default();
    if text("rule").trim().is_empty() {
        faults.required(path.field("rule"), "rule is not specified");
    }
    let message = text("message");
    if rule["message"].is_string() && message.trim().is_empty() && !message.is_empty() {
        faults.invalid(path.field("message"), &rule["message"], "message must be non-empty if specified");
    } else if message.contains('\n') {
        faults.invalid(path.field("message"), &rule["message"], "message must not contain line breaks");
    } else if message.len() > MESSAGE_BYTES_MAX {
        let detail = format!("message must have a maximum length of {MESSAGE_BYTES_MAX} characters");
        faults.invalid(path.field("message"), &json!(crate::head(message, 64)), detail);
    } else if text("rule").trim().contains('\n') && message.is_empty() && text("messageExpression").is_empty() {
        let rule = "message or messageExpression must be specified if rule contains line breaks";
        faults.required(path.field("message"), rule);
    }
    if rule["messageExpression"].is_string()
        && text("messageExpression").trim().is_empty()
        && !text("messageExpression").is_empty()
    {
        faults.required(path.field("messageExpression"), "messageExpression must be non-empty if specified");
    }
    if rule["reason"].is_string() && !REASONS.contains(&text("reason")) {
        faults.not_supported(path.field("reason"), &rule["reason"], REASONS);
    }
    if !text("fieldPath").is_empty()
        && let Err(error) = outline.check_field_path(text("fieldPath"))
    {
        faults.invalid(path.field("fieldPath"), &rule["fieldPath"], error.to_string());
    }
}

fn refuse(rule: &Value, error: &RuleError, path: &Path<'_>, faults: &mut Faults) {
    match error {
        RuleError::Rule(_) | RuleError::RuleType => {
            if !rule["rule"].as_str().unwrap_or_default().trim().is_empty() {
                faults.invalid(path.field("rule"), &rule["rule"], error.to_string());
            }
        }
        RuleError::Message(_) | RuleError::MessageType => {
            faults.invalid(path.field("messageExpression"), &rule["messageExpression"], error.to_string());
        }
        // Said already, with the schema at hand.
        RuleError::FieldPath(_) => {}
    }
}

fn correlation(rule: &Value, compiled: &Rule, place: Place<'_>, path: &Path<'_>, faults: &mut Faults) {
    if compiled.uses_old() {
        if let Some(above) = place.uncorrelated {
            let detail = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {above}");
            faults.invalid(path.field("rule"), &rule["rule"], detail);
        }
    } else if rule["optionalOldSelf"].is_boolean() {
        let detail = "may not be set if oldSelf is not used in rule";
        faults.invalid(path.field("optionalOldSelf"), &rule["optionalOldSelf"], detail);
    }
}

fn cost(compiled: &Rule, outline: &Schema, place: Place<'_>, path: &Path<'_>, total: &mut u64, faults: &mut Faults) {
    let cost = compiled.cost_max(outline).saturating_mul(place.count);
    *total = total.saturating_add(cost);
    if cost > COST_ESTIMATE_MAX {
        let detail = format!(
            "estimated rule cost exceeds budget by factor of {} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
            factor(cost, COST_ESTIMATE_MAX)
        );
        faults.forbidden(path.field("rule"), detail);
    }
}
