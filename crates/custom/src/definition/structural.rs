//! Whether a schema is one a definition may have: valid OpenAPI v3, and structural.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>.

use serde_json::{Value, json};

use super::rules;
use crate::path::{Faults, Path};
use crate::schema::{DEPTH_MAX, Kind, Schema};

/// Where in a schema a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// What may stand beside `properties` at the root of a schema whose version has a `status` subresource.
const FORBIDDEN_AT_ROOT: &[&str] =
    &["$ref", "additionalProperties", "allOf", "anyOf", "default", "enum", "nullable", "not", "oneOf"];

/// What is the structure's and may not stand under `allOf`, `anyOf`, `oneOf` and `not`.
const STRUCTURE_ONLY: &[(&str, &str)] = &[
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];

const COMBINATIONS: &[&str] = &["allOf", "anyOf", "oneOf"];

/// Checks the schema of a version.
pub(super) fn check(schema: &Value, has_status: bool, path: &Path<'_>, faults: &mut Faults) {
    if !schema.is_object() {
        faults.required(path, "schemas are required");
        return;
    }
    if has_status && let Some(word) = FORBIDDEN_AT_ROOT.iter().find(|word| is_set(&schema[**word])) {
        let detail = format!(
            "{word} is not allowed at the root of the schema if the status subresource is enabled; only description, properties, required, type, x-kubernetes-preserve-unknown-fields, x-kubernetes-validations and value rules are"
        );
        faults.forbidden(path.field(word), detail);
    }
    let before = faults.list.len();
    node(schema, Level::Root, path, 0, faults);
    completeness(schema, schema, path, path, 0, faults);
    // Defaults and rules count on a sound structure.
    if faults.list.len() == before
        && let Some(outline) = Schema::outline(schema)
    {
        defaults(schema, &outline, path, 0, faults);
        rules::check(schema, path, faults);
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

fn node(schema: &Value, level: Level, path: &Path<'_>, depth: usize, faults: &mut Faults) {
    if depth > DEPTH_MAX {
        faults.invalid(path, &json!(""), format!("the schema is nested deeper than {DEPTH_MAX} levels"));
        return;
    }
    if !schema.is_object() {
        faults.invalid(path, schema, "must be a schema object");
        return;
    }
    openapi(schema, path, faults);
    let flag = |word: &str| schema[word] == true;
    let kind = schema["type"].as_str().unwrap_or_default();
    let (embedded, preserve, either) = (
        flag("x-kubernetes-embedded-resource"),
        flag("x-kubernetes-preserve-unknown-fields"),
        flag("x-kubernetes-int-or-string"),
    );
    let type_path = path.field("type");
    match (kind, level) {
        ("", _) if embedded => faults.required(type_path, "must be object if x-kubernetes-embedded-resource is true"),
        (kind, _) if embedded && kind != "object" => {
            faults.invalid(type_path, &json!(kind), "must be object if x-kubernetes-embedded-resource is true");
        }
        ("", Level::Root) if !preserve => faults.required(type_path, "must not be empty at the root"),
        ("", Level::Item) if !either && !preserve => {
            faults.required(type_path, "must not be empty for specified array items");
        }
        ("", Level::Field) if !either && !preserve => {
            faults.required(type_path, "must not be empty for specified object fields");
        }
        (kind, Level::Root) if !kind.is_empty() && kind != "object" => {
            faults.invalid(type_path, &json!(kind), "must be object at the root");
        }
        (kind, _) if either && !kind.is_empty() => {
            faults.invalid(type_path, &json!(kind), "must be empty if x-kubernetes-int-or-string is true");
        }
        _ => {}
    }
    for (other, set) in
        [("x-kubernetes-preserve-unknown-fields", preserve), ("x-kubernetes-embedded-resource", embedded)]
    {
        if either && set {
            faults.invalid(path.field(other), &json!(true), "must be false if x-kubernetes-int-or-string is true");
        }
    }
    if embedded && is_set(&schema["additionalProperties"]) {
        let rule = "must not be used if x-kubernetes-embedded-resource is set";
        faults.forbidden(path.field("additionalProperties"), rule);
    }
    if embedded && !preserve && schema["properties"].as_object().is_none_or(serde_json::Map::is_empty) {
        let rule =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        faults.required(path.field("properties"), rule);
    }
    if level == Level::Root && is_set(&schema["additionalProperties"]) {
        faults.forbidden(path.field("additionalProperties"), "must not be used at the root");
    }
    if level == Level::Root || embedded {
        resource_fields(schema, level == Level::Root, path, faults);
    }
    children(schema, path, depth, faults);
}

fn children(schema: &Value, path: &Path<'_>, depth: usize, faults: &mut Faults) {
    let properties = path.field("properties");
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        node(property, Level::Field, &properties.key(name), depth + 1, faults);
    }
    if schema["items"].is_object() {
        node(&schema["items"], Level::Item, &path.field("items"), depth + 1, faults);
    }
    if schema["additionalProperties"].is_object() {
        node(&schema["additionalProperties"], Level::Field, &path.field("additionalProperties"), depth + 1, faults);
    }
    // The two patterns in which int-or-string may name its types again.
    let either = schema["x-kubernetes-int-or-string"] == true;
    for word in COMBINATIONS {
        let list = path.field(word);
        for (i, one) in schema[*word].as_array().into_iter().flatten().enumerate() {
            let types = |list: &Value| *list == json!([{"type": "integer"}, {"type": "string"}]);
            let pattern = either
                && ((*word == "anyOf" && types(&schema["anyOf"]))
                    || (*word == "allOf" && i == 0 && types(&one["anyOf"])));
            if !pattern {
                nested(one, &list.index(i), depth + 1, faults);
            }
        }
    }
    if schema["not"].is_object() {
        nested(&schema["not"], &path.field("not"), depth + 1, faults);
    }
}

/// A schema under `allOf` and its like: value rules only.
fn nested(schema: &Value, path: &Path<'_>, depth: usize, faults: &mut Faults) {
    if depth > DEPTH_MAX || !schema.is_object() {
        faults.invalid(path, &json!(""), "must be a schema object, nested no deeper than the limit");
        return;
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        check_pattern(pattern, path, faults);
    }
    for (word, rule) in STRUCTURE_ONLY {
        if is_set(&schema[*word]) {
            faults.forbidden(path.field(word), *rule);
        }
    }
    let properties = path.field("properties");
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if name == "metadata" {
            faults.forbidden(properties.key(name), "must not be specified in a nested context");
        }
        nested(property, &properties.key(name), depth + 1, faults);
    }
    if schema["items"].is_object() {
        nested(&schema["items"], &path.field("items"), depth + 1, faults);
    }
    for word in COMBINATIONS {
        let list = path.field(word);
        for (i, one) in schema[*word].as_array().into_iter().flatten().enumerate() {
            nested(one, &list.index(i), depth + 1, faults);
        }
    }
    if schema["not"].is_object() {
        nested(&schema["not"], &path.field("not"), depth + 1, faults);
    }
}

/// Whatever a value rule speaks of must also be in the structure.
fn completeness(
    schema: &Value,
    structure: &Value,
    path: &Path<'_>,
    place: &Path<'_>,
    depth: usize,
    faults: &mut Faults,
) {
    if depth > DEPTH_MAX {
        return;
    }
    let mut alternatives: Vec<(&str, Option<usize>, &Value)> = Vec::new();
    for word in COMBINATIONS {
        let list = schema[*word].as_array().into_iter().flatten().enumerate();
        alternatives.extend(list.map(|(i, one)| (*word, Some(i), one)));
    }
    alternatives.extend(schema.get("not").filter(|not| not.is_object()).map(|not| ("not", None, not)));
    for (word, index, one) in alternatives {
        let list = place.field(word);
        let here = index.map_or(list, |index| list.index(index));
        specified(one, structure, path, &here, depth + 1, faults);
    }
    let (own, structures) = (path.field("properties"), place.field("properties"));
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        completeness(
            property,
            &structure["properties"][name],
            &own.key(name),
            &structures.key(name),
            depth + 1,
            faults,
        );
    }
    for word in ["items", "additionalProperties"] {
        if schema[word].is_object() {
            completeness(&schema[word], &structure[word], &path.field(word), &place.field(word), depth + 1, faults);
        }
    }
}

fn specified(rule: &Value, structure: &Value, path: &Path<'_>, place: &Path<'_>, depth: usize, faults: &mut Faults) {
    let (own, rules) = (path.field("properties"), place.field("properties"));
    for (name, property) in rule["properties"].as_object().into_iter().flatten() {
        let found = &structure["properties"][name];
        let found = if found.is_object() { found } else { &structure["additionalProperties"] };
        if found.is_object() {
            specified(property, found, &own.key(name), &rules.key(name), depth + 1, faults);
        } else if found != &json!(true) {
            faults.required(own.key(name), format!("because it is defined in {}", rules.key(name)));
        }
    }
    if rule["items"].is_object() {
        if structure["items"].is_object() {
            specified(
                &rule["items"],
                &structure["items"],
                &path.field("items"),
                &place.field("items"),
                depth + 1,
                faults,
            );
        } else {
            faults.required(path.field("items"), format!("because it is defined in {}", place.field("items")));
        }
    }
    if depth <= DEPTH_MAX {
        completeness_of_rule(rule, structure, path, place, depth, faults);
    }
}

fn completeness_of_rule(
    rule: &Value,
    structure: &Value,
    path: &Path<'_>,
    place: &Path<'_>,
    depth: usize,
    faults: &mut Faults,
) {
    for word in COMBINATIONS {
        let list = place.field(word);
        for (i, one) in rule[*word].as_array().into_iter().flatten().enumerate() {
            specified(one, structure, path, &list.index(i), depth + 1, faults);
        }
    }
    if rule["not"].is_object() {
        specified(&rule["not"], structure, path, &place.field("not"), depth + 1, faults);
    }
}

/// `apiVersion`, `kind` and `metadata` of objects are Kubernetes' own.
fn resource_fields(schema: &Value, root: bool, path: &Path<'_>, faults: &mut Faults) {
    let properties = path.field("properties");
    for name in ["apiVersion", "kind"] {
        let property = &schema["properties"][name];
        if property.is_object() && property["type"] != "string" {
            faults.invalid(properties.key(name).field("type"), &property["type"], "must be string");
        }
    }
    let metadata = &schema["properties"]["metadata"];
    if !metadata.is_object() {
        return;
    }
    let here = properties.key("metadata");
    if metadata["type"] != "object" {
        faults.invalid(here.field("type"), &metadata["type"], "must be object");
    }
    let only_names = |name: &String| matches!(name.as_str(), "name" | "generateName");
    let plain = metadata.as_object().into_iter().flatten().all(|(word, value)| match word.as_str() {
        "type" | "description" | "title" => true,
        "properties" => value.as_object().is_some_and(|fields| fields.keys().all(only_names)),
        _ => !is_set(value),
    });
    if root && !plain {
        let rule = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        faults.forbidden(here, rule);
    }
}

fn check_pattern(pattern: &str, path: &Path<'_>, faults: &mut Faults) {
    if let Err(reason) = crate::pattern::check(pattern) {
        let detail = format!("must be a valid regular expression, but isn't: {reason}");
        faults.invalid(path.field("pattern"), &json!(pattern), detail);
    }
}

/// What is valid in a schema of a definition at all.
fn openapi(schema: &Value, path: &Path<'_>, faults: &mut Faults) {
    for word in ["$ref", "$schema", "additionalItems", "definitions", "dependencies", "id", "patternProperties"] {
        if is_set(&schema[word]) {
            faults.forbidden(path.field(word), format!("{word} is not supported"));
        }
    }
    if schema["uniqueItems"] == true {
        let rule = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        faults.forbidden(path.field("uniqueItems"), rule);
    }
    if schema["additionalProperties"] == false {
        faults.forbidden(path.field("additionalProperties"), "additionalProperties cannot be set to false");
    }
    if is_set(&schema["additionalProperties"]) && schema["properties"].as_object().is_some_and(|it| !it.is_empty()) {
        faults
            .forbidden(path.field("additionalProperties"), "additionalProperties and properties are mutual exclusive");
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        check_pattern(pattern, path, faults);
    }
    let kind = schema["type"].as_str().unwrap_or_default();
    match kind {
        "null" => faults.forbidden(path.field("type"), "type cannot be set to null, use nullable as an alternative"),
        "" => {}
        word if Kind::parse(word).is_none() => {
            let allowed = ["array", "boolean", "integer", "number", "object", "string"];
            faults.not_supported(path.field("type"), &schema["type"], &allowed);
        }
        _ => {}
    }
    match &schema["items"] {
        Value::Null if kind == "array" => faults.required(path.field("items"), "must be specified"),
        Value::Array(_) => faults.forbidden(path.field("items"), "items must be a schema object and not an array"),
        _ => {}
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        faults.invalid(path.field("x-kubernetes-preserve-unknown-fields"), &json!(false), "must be true or undefined");
    }
    list_type(schema, kind, path, faults);
    let map_type = &schema["x-kubernetes-map-type"];
    if let Some(word) = map_type.as_str() {
        if kind != "object" {
            let rule = "must be object if x-kubernetes-map-type is specified";
            faults.invalid(path.field("type"), &json!(kind), rule);
        }
        if !matches!(word, "atomic" | "granular") {
            faults.not_supported(path.field("x-kubernetes-map-type"), map_type, &["atomic", "granular"]);
        }
    }
}

fn list_type(schema: &Value, kind: &str, path: &Path<'_>, faults: &mut Faults) {
    let given = schema["x-kubernetes-list-type"].as_str();
    let keys = schema["x-kubernetes-list-map-keys"].as_array().map_or(&[][..], Vec::as_slice);
    let list_type = path.field("x-kubernetes-list-type");
    if let Some(word) = given {
        let rule = "must be array if x-kubernetes-list-type is specified";
        match kind {
            "array" => {}
            "" => faults.required(path.field("type"), rule),
            kind => faults.invalid(path.field("type"), &json!(kind), rule),
        }
        if !matches!(word, "atomic" | "map" | "set") {
            faults.not_supported(list_type, &json!(word), &["atomic", "map", "set"]);
        }
    }
    let rule = "must be map if x-kubernetes-list-map-keys is non-empty";
    match given {
        None if !keys.is_empty() => faults.required(list_type, rule),
        Some(word) if !keys.is_empty() && word != "map" => faults.invalid(list_type, &json!(word), rule),
        Some("map") if keys.is_empty() => {
            let rule = "must not be empty if x-kubernetes-list-type is map";
            faults.required(path.field("x-kubernetes-list-map-keys"), rule);
        }
        Some("map") => map_keys(schema, keys, path, faults),
        Some("set") => set_items(&schema["items"], &path.field("items"), faults),
        _ => {}
    }
}

fn map_keys(schema: &Value, keys: &[Value], path: &Path<'_>, faults: &mut Faults) {
    let items = &schema["items"];
    let here = path.field("items");
    if !items.is_object() {
        faults.required(here, "must have a schema if x-kubernetes-list-type is map");
        return;
    }
    if items["type"] != "object" {
        faults.invalid(
            here.field("type"),
            &items["type"],
            "must be object if parent array's x-kubernetes-list-type is map",
        );
    }
    if items["nullable"] == true {
        faults.forbidden(here.field("nullable"), "cannot be nullable when x-kubernetes-list-type is map");
    }
    let (properties, list) = (here.field("properties"), path.field("x-kubernetes-list-map-keys"));
    let mut seen: Vec<&str> = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        let property = &items["properties"][name];
        let at = properties.key(name);
        if seen.contains(&name) {
            faults.duplicate(list.index(i), key);
        }
        seen.push(name);
        if !property.is_object() {
            faults.invalid(list.index(i), key, "entries must all be names of item properties");
            continue;
        }
        if matches!(property["type"].as_str(), Some("array" | "object")) {
            let rule = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            faults.invalid(at.field("type"), &property["type"], rule);
        }
        let required = items["required"].as_array().is_some_and(|names| names.contains(key));
        if !required && property.get("default").is_none() {
            let rule =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            faults.required(at.field("default"), rule);
        }
        if property["nullable"] == true {
            let rule = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            faults.forbidden(at.field("nullable"), rule);
        }
    }
}

fn set_items(items: &Value, path: &Path<'_>, faults: &mut Faults) {
    let rule = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let (word, kind) = match items["type"].as_str() {
        Some("object") => ("x-kubernetes-map-type", items["x-kubernetes-map-type"].as_str()),
        Some("array") => ("x-kubernetes-list-type", items["x-kubernetes-list-type"].as_str().or(Some("atomic"))),
        _ => return,
    };
    match kind {
        Some("atomic") => {}
        None => faults.required(path.field(word), rule),
        Some(other) => faults.invalid(path.field(word), &json!(other), rule),
    }
    if items["nullable"] == true {
        faults.forbidden(path.field("nullable"), "cannot be nullable when x-kubernetes-list-type is set");
    }
}

/// Defaults must be values of their schema, without fields it does not know.
fn defaults(schema: &Value, outline: &Schema, path: &Path<'_>, depth: usize, faults: &mut Faults) {
    if let Some(default) = schema.get("default") {
        let here = path.field("default");
        if depth == 0 {
            faults.forbidden(here, "must not be set at the root");
        }
        let mut pruned = default.clone();
        if !outline.prune(&mut pruned).is_empty() {
            faults.invalid(here, default, "must not have unknown fields");
        }
        let mut filled = default.clone();
        outline.default(&mut filled);
        outline.validate_part(&filled, &here.to_string()).into_iter().for_each(|fault| faults.push(fault));
    }
    let properties = path.field("properties");
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(outline) = outline.properties.get(name) {
            defaults(property, outline, &properties.key(name), depth + 1, faults);
        }
    }
    if let Some(items) = outline.items.as_deref() {
        defaults(&schema["items"], items, &path.field("items"), depth + 1, faults);
    }
    if let Some(values) = outline.additional_schema() {
        defaults(&schema["additionalProperties"], values, &path.field("additionalProperties"), depth + 1, faults);
    }
}
