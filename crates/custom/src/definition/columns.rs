//! Printer columns, subresources and selectable fields of a version.

use mainstay_model::status::FieldErrorKind;
use serde_json::{Value, json};

use crate::jsonpath::JsonPath;
use crate::path::{Faults, Path};
use crate::schema::{Kind, Schema};

const TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const FORMATS: &[&str] = &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// Most selectable fields of a version.
const SELECTABLE_MAX: usize = 8;

/// `additionalPrinterColumns`.
pub(super) fn check_columns(columns: &Value, path: &Path<'_>, faults: &mut Faults) {
    for (i, column) in columns.as_array().into_iter().flatten().enumerate() {
        let here = path.index(i);
        let text = |field: &str| column[field].as_str().unwrap_or_default();
        if text("name").is_empty() {
            faults.required(here.field("name"), "");
        }
        let types = format!("must be one of {}", TYPES.join(","));
        match text("type") {
            "" => faults.required(here.field("type"), types),
            word if !TYPES.contains(&word) => faults.invalid(here.field("type"), &json!(word), types),
            _ => {}
        }
        let format = text("format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            let detail = format!("must be one of {}", FORMATS.join(","));
            faults.invalid(here.field("format"), &json!(format), detail);
        }
        match text("jsonPath") {
            "" => faults.required(here.field("jsonPath"), ""),
            text => check_path(text, &here.field("jsonPath"), faults),
        }
    }
}

/// A path that begins with a dot and can be read.
fn check_path(text: &str, path: &Path<'_>, faults: &mut Faults) {
    if !text.starts_with('.') {
        faults.invalid(path, &json!(text), "must be a simple json path starting with .");
    } else if let Err(error) = JsonPath::parse(text) {
        faults.invalid(path, &json!(text), format!("must be a valid json path: {error}"));
    }
}

/// `subresources`.
pub(super) fn check_subresources(subresources: &Value, path: &Path<'_>, faults: &mut Faults) {
    let Some(scale) = subresources.get("scale").filter(|scale| !scale.is_null()) else { return };
    let here = path.field("scale");
    let parts: [(&str, &[&str], &str); 3] = [
        ("specReplicasPath", &[".spec."], "should be a json path under .spec"),
        ("statusReplicasPath", &[".status."], "should be a json path under .status"),
        ("labelSelectorPath", &[".spec.", ".status."], "should be a json path under either .spec or .status"),
    ];
    for (field, prefixes, rule) in parts {
        let text = scale[field].as_str().unwrap_or_default();
        if text.is_empty() {
            if field != "labelSelectorPath" {
                faults.required(here.field(field), "");
            }
            continue;
        }
        if !text.starts_with('.') || JsonPath::parse(text).map_or(true, |path| path.simple().is_none()) {
            faults.invalid(here.field(field), &json!(text), "must be a simple json path starting with .");
        } else if !prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            faults.invalid(here.field(field), &json!(text), rule);
        }
    }
}

/// `selectableFields`.
pub(super) fn check_selectable(fields: &Value, schema: Option<&Schema>, path: &Path<'_>, faults: &mut Faults) {
    let fields = fields.as_array().map_or(&[][..], Vec::as_slice);
    if fields.len() > SELECTABLE_MAX {
        faults.too_many(path, fields.len(), SELECTABLE_MAX as u64);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let item = path.index(i);
        let here = item.field("jsonPath");
        let text = field["jsonPath"].as_str().unwrap_or_default();
        if text.is_empty() {
            faults.required(here, "");
            continue;
        }
        let names = JsonPath::parse(text).ok().filter(|_| text.starts_with('.'));
        let Some(names) = names.as_ref().and_then(JsonPath::simple) else {
            faults.invalid(here, &json!(text), "is an invalid path: expected field names with dots before them");
            continue;
        };
        if names.first() == Some(&"metadata") {
            faults.invalid(here, &json!(text), "must not point to fields in metadata");
            continue;
        }
        if seen.contains(&text) {
            faults.push(mainstay_model::status::FieldError::with_value(
                here.to_string(),
                FieldErrorKind::Duplicate,
                json!(text),
                "",
            ));
        }
        seen.push(text);
        let Some(schema) = schema else { continue };
        let declared = names.iter().try_fold(schema, |schema, name| schema.properties.get(*name));
        match declared {
            None => faults.invalid(here, &json!(text), "is an invalid path: does not refer to a valid field"),
            Some(leaf) if matches!(leaf.kind, Some(Kind::Boolean | Kind::Integer | Kind::String)) => {}
            Some(_) => faults.invalid(here, &json!(text), "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."),
        }
    }
}
