//! What the fuzz targets do with their input: whatever it is, nothing panics, and what the code promises holds.
//!
//! `fuzz/fuzz_targets` feeds these functions from libFuzzer, `main.rs` beside this file from a seeded generator.

use jiff::Timestamp;
use mainstay_model::apply::{FieldSet, Reach, View, Write, apply, settle, update, validate};
use mainstay_model::patch::{DEPTH_MAX, PatchType, depth, json, merge, merge_diff, strategic};
use mainstay_model::quantity::Quantity;
use mainstay_model::selector::{FieldSelector, LabelSelector};
use serde_json::{Value, json as value};

use crate::source::Source;

const KINDS: &[&str] = &["Pod", "Deployment", "Service", "CustomResourceDefinition", "Unknown"];

fn kind(source: &mut Source<'_>) -> &'static str {
    KINDS[usize::from(source.byte()) % KINDS.len()]
}

/// RFC 7396, section 2, word for word.
fn merge_by_definition(target: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut target = target.as_object().cloned().unwrap_or_default();
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            let merged = merge_by_definition(target.get(name).unwrap_or(&Value::Null), value);
            target.insert(name.clone(), merged);
        }
    }
    Value::Object(target)
}

fn holds_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.iter().any(holds_null),
        Value::Object(map) => map.values().any(holds_null),
        _ => false,
    }
}

/// JSON, merge and strategic merge patches.
pub(crate) fn patches(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let kind = kind(&mut source);
    let (original, other) = (source.object(kind), source.object(kind));
    let patch = source.value();

    if let Ok(merged) = merge(&original, &patch) {
        assert_eq!(merged, merge_by_definition(&original, &patch));
    }
    if !holds_null(&other) {
        assert_eq!(merge(&original, &merge_diff(&original, &other)).ok().as_ref(), Some(&other));
    }
    if let Ok(patched) = strategic(kind, &original, &patch) {
        assert!(patched.is_object());
    }
    let operations: Vec<Value> = (0..source.byte() % 8)
        .map(|_| value!({"op": source.word(), "path": source.word(), "from": source.word(), "value": source.value()}))
        .collect();
    if let Ok(patched) = json(&original, &Value::Array(operations)) {
        assert!(depth(&patched) <= DEPTH_MAX.max(depth(&original)));
    }
    let _ = json(&original, &patch);
    let _ = PatchType::from_content_type(&source.rest());
}

/// Label and field selectors, as text and as objects.
pub(crate) fn selectors(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let (object, selector) = (source.object("Pod"), source.value());
    if let Ok(selector) = LabelSelector::from_object(&selector) {
        let _ = selector.matches_object(&object);
    }
    let _ = LabelSelector::from_map(&selector);
    let text = source.rest();
    if let Ok(selector) = LabelSelector::parse(&text) {
        let again = LabelSelector::parse(&selector.to_string());
        assert_eq!(again.map_err(|error| error.to_string()), Ok(selector.clone()), "{text:?}");
        let _ = selector.matches_object(&object);
    }
    if let Ok(selector) = FieldSelector::parse("Pod", &text) {
        let _ = selector.matches(&object);
    }
}

/// Quantities.
pub(crate) fn quantities(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let _ = Quantity::from_value(&source.value());
    let text = source.rest();
    if let Ok(quantity) = text.parse::<Quantity>() {
        let shown = quantity.to_string();
        let again = shown.parse::<Quantity>();
        assert_eq!(
            again.as_ref().map(|again| (again.value(), again.milli_value())),
            Ok((quantity.value(), quantity.milli_value())),
            "{text:?} {shown:?}"
        );
        assert_eq!(again.map(|again| again.to_string()), Ok(shown), "{text:?}");
        let _ = (quantity.as_f64(), quantity.times(source_factor(bytes)));
    }
}

fn source_factor(bytes: &[u8]) -> i64 {
    bytes.iter().fold(1, |factor: i64, byte| factor.wrapping_mul(i64::from(*byte)).wrapping_add(1))
}

/// Server-side apply and the owners of fields.
pub(crate) fn applies(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let kind = kind(&mut source);
    let (live, config, schema) = (source.object(kind), source.object(kind), source.value());
    let views = [View::built_in(kind), View::custom(&schema), View::deduced()];
    let view = views[usize::from(source.byte()) % views.len()];
    let now = Timestamp::UNIX_EPOCH;
    let manager = if source.byte() < 128 { "m" } else { "kubectl" };
    let reach = [Reach::Whole, Reach::Without("status"), Reach::Only(&["status"])][usize::from(source.byte()) % 3];
    let write = Write { view, manager, api_version: "apps/v1", subresource: "", reach, now };
    if let Ok(once) = apply(&write, Some(&live), &config, true) {
        let twice = apply(&write, Some(&once), &config, false);
        assert_eq!(twice.map_err(|error| error.to_string()), Ok(once), "{live} {config} {view:?}");
    }
    let _ = apply(&write, None, &config, false);
    let given = &live["metadata"]["managedFields"];
    let _ = validate(given);
    let mut updated = config.clone();
    updated["metadata"]["managedFields"] = update(&write, Some(&live), &config, Some(given.clone()));
    settle(&live, &mut updated);
    let _ = update(&write, None, &config, None);
}

/// `fieldsV1`.
pub(crate) fn field_sets(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let (Ok(a), Ok(b)) = (FieldSet::parse(&source.value()), FieldSet::parse(&source.value())) else { return };
    let _ = a.paths();
    assert_eq!(FieldSet::parse(&a.clone().into_json()).as_ref(), Ok(&a));
    let both = a.intersection(&b);
    assert_eq!(a.difference(&b).union(&both), a);
    assert_eq!(a.clone().union(&b), b.clone().union(&a));
    assert!(a.difference(&b).intersection(&b).is_empty());
}
