//! Whether a definition may be stored, in the words and with the paths of kube-apiserver.

use mainstay_model::meta::names::check_label_1035;
use mainstay_model::meta::{list_at, str_at};
use mainstay_model::status::FieldError;
use serde_json::{Value, json};

use super::{columns, is_established, names, schema_path, shared_path, structural, versions};
use crate::path::{Faults, Path};
use crate::schema::Schema;

/// Most characters of a deprecation warning.
const WARNING_MAX: usize = 256;
const IMMUTABLE: &str = "field is immutable";

/// The faults of a definition; `old` is the stored one of an update. Metadata are checked elsewhere.
pub fn validate(definition: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut faults = Faults::default();
    let spec = &definition["spec"];
    names::check_group(definition, &mut faults);
    if old.is_none_or(|old| old["spec"]["group"] != spec["group"] || annotation(old) != annotation(definition)) {
        names::check_approval(definition, &mut faults);
    }
    match spec["scope"].as_str().unwrap_or_default() {
        "" => faults.required("spec.scope", ""),
        "Cluster" | "Namespaced" => {}
        _ => faults.not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]),
    }
    names::check(&spec["names"], &Path::root("spec.names"), &mut faults);
    if spec["preserveUnknownFields"] == true {
        let rule =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        faults.invalid("spec.preserveUnknownFields", &json!(true), rule);
    }
    check_versions(definition, old, &mut faults);
    check_conversion(&spec["conversion"], &mut faults);
    if let Some(old) = old {
        check_update(definition, old, &mut faults);
    }
    faults.list
}

fn annotation(definition: &Value) -> &Value {
    &definition["metadata"]["annotations"]["api-approved.kubernetes.io"]
}

fn check_versions(definition: &Value, old: Option<&Value>, faults: &mut Faults) {
    let all = versions(definition);
    if all.is_empty() {
        faults.required("spec.versions", "must have at least one version");
        return;
    }
    let spec_versions = &definition["spec"]["versions"];
    let names: Vec<&str> = all.iter().map(|version| version["name"].as_str().unwrap_or_default()).collect();
    if all.iter().filter(|version| version["storage"] == true).count() != 1 {
        faults.invalid("spec.versions", spec_versions, "must have exactly one version marked as storage version");
    }
    if names.iter().enumerate().any(|(i, name)| names[..i].contains(name)) {
        faults.invalid("spec.versions", spec_versions, "must contain unique version names");
    }
    for (i, version) in all.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let path = Path::root(&path);
        for rule in check_label_1035(names[i]) {
            faults.invalid(path.field("name"), &json!(names[i]), rule);
        }
        for flag in ["served", "storage"] {
            if !version[flag].is_boolean() {
                faults.required(path.field(flag), "");
            }
        }
        check_deprecation(version, &path, faults);
        // What all versions share is checked once.
        let again = |field: &str| i > 0 && all.iter().all(|one| one[field] == all[0][field]);
        let schema = &version["schema"]["openAPIV3Schema"];
        let unchanged = old.is_some_and(|old| {
            versions(old).iter().any(|before| {
                before["schema"] == version["schema"] && before["subresources"] == version["subresources"]
            })
        });
        if !again("schema") && !unchanged {
            let place = schema_path(definition, i);
            let has_status = version["subresources"]["status"].is_object();
            structural::check(schema, has_status, &Path::root(&place), faults);
        }
        if !again("subresources") {
            let place = shared_path(definition, i, "subresources", "subresources");
            columns::check_subresources(&version["subresources"], &Path::root(&place), faults);
        }
        if !again("additionalPrinterColumns") {
            let place = shared_path(definition, i, "additionalPrinterColumns", "additionalPrinterColumns");
            columns::check_columns(&version["additionalPrinterColumns"], &Path::root(&place), faults);
        }
        if !again("selectableFields") {
            let place = shared_path(definition, i, "selectableFields", "selectableFields");
            let outline = Schema::outline(schema);
            columns::check_selectable(&version["selectableFields"], outline.as_ref(), &Path::root(&place), faults);
        }
    }
}

fn check_deprecation(version: &Value, path: &Path<'_>, faults: &mut Faults) {
    let Some(warning) = version["deprecationWarning"].as_str() else { return };
    let here = path.field("deprecationWarning");
    if version["deprecated"] != true {
        faults.invalid(here, &json!(warning), "can only be set for deprecated versions");
    }
    if warning.is_empty() {
        faults.invalid(here, &json!(warning), "must not be empty, use null to clear");
    }
    if warning.chars().count() > WARNING_MAX {
        faults.invalid(here, &json!(warning), format!("must be <= {WARNING_MAX} characters long"));
    }
    if let Some(i) = warning.char_indices().find(|(_, c)| c.is_control()).map(|(i, _)| i) {
        let detail =
            format!("must only contain printable UTF-8 characters; non-printable character found at index {i}");
        faults.invalid(here, &json!(warning), detail);
    }
}

fn check_conversion(conversion: &Value, faults: &mut Faults) {
    let path = Path::root("spec.conversion");
    let webhook = &conversion["webhook"];
    let here = path.field("webhook");
    match conversion["strategy"].as_str().unwrap_or_default() {
        "" => faults.required(path.field("strategy"), ""),
        "None" => {
            if !webhook.is_null() {
                faults.forbidden(here, "should not be set when strategy is not set to Webhook");
            }
        }
        "Webhook" => {
            let client = &webhook["clientConfig"];
            let client_path = here.field("clientConfig");
            if client.is_null() {
                faults.required(client_path, "required when strategy is set to Webhook");
            } else if client["url"].is_null() == client["service"].is_null() {
                faults.required(client_path, "exactly one of url or service is required");
            }
            if let Some(url) = client["url"].as_str().filter(|url| !url.starts_with("https://")) {
                let detail =
                    format!("'https' is the only allowed URL scheme; desired format: https://host[/path], got {url:?}");
                faults.invalid(client_path.field("url"), &json!(url), detail);
            }
            let versions = webhook["conversionReviewVersions"].as_array().map_or(&[][..], Vec::as_slice);
            if versions.is_empty() {
                faults.required(here.field("conversionReviewVersions"), "");
            } else if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
                let detail = "must include at least one of v1, v1beta1";
                faults.invalid(here.field("conversionReviewVersions"), &webhook["conversionReviewVersions"], detail);
            }
        }
        _ => faults.not_supported(path.field("strategy"), &conversion["strategy"], &["None", "Webhook"]),
    }
}

fn check_update(definition: &Value, old: &Value, faults: &mut Faults) {
    let mut fixed = vec!["spec.group", "spec.names.plural"];
    if is_established(old) {
        fixed.extend(["spec.scope", "spec.names.kind"]);
    }
    for path in fixed {
        let (before, now) = (str_at(old, path), str_at(definition, path));
        if before != now {
            faults.invalid(path, &json!(now.unwrap_or_default()), IMMUTABLE);
        }
    }
    let names: Vec<&str> = versions(definition).iter().filter_map(|version| version["name"].as_str()).collect();
    for (i, stored) in list_at(definition, "status.storedVersions").iter().enumerate() {
        if !stored.as_str().is_some_and(|stored| names.contains(&stored)) {
            faults.invalid(format!("status.storedVersions[{i}]"), stored, "must appear in spec.versions");
        }
    }
}
