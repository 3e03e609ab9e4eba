//! Rules of a pod's volumes.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::faults::{Faults, get, items, text};
use crate::meta::names;
use crate::quantity::Quantity;

/// Checks `volumes` and returns their names.
pub(super) fn check_all<'a>(faults: &mut Faults, spec: &'a Value, path: &str) -> HashSet<&'a str> {
    let all = items(spec, "volumes");
    faults.unique(all, &format!("{path}.volumes"), "name");
    for (i, volume) in all.iter().enumerate() {
        check(faults, volume, &format!("{path}.volumes[{i}]"));
    }
    all.iter().filter_map(|volume| text(volume, "name")).collect()
}

fn check(faults: &mut Faults, volume: &Value, path: &str) {
    match text(volume, "name") {
        Some(name) => faults.named(&format!("{path}.name"), name, names::check_label(name)),
        None => faults.required(format!("{path}.name"), ""),
    }
    let members = volume.as_object().into_iter().flatten();
    let sources: Vec<_> = members.filter(|(key, value)| *key != "name" && !value.is_null()).collect();
    let Some((source, settings)) = sources.first() else {
        return faults.required(path, "must specify a volume type");
    };
    for (extra, _) in &sources[1..] {
        faults.forbidden(format!("{path}.{extra}"), "may not specify more than 1 volume type");
    }
    let at = format!("{path}.{source}");
    let needed: &[&str] = match source.as_str() {
        "hostPath" => &["path"],
        "configMap" => &["name"],
        "secret" => &["secretName"],
        "persistentVolumeClaim" => &["claimName"],
        "nfs" => &["server", "path"],
        "csi" => &["driver"],
        _ => &[],
    };
    for field in needed.iter().filter(|field| text(settings, field).is_none()) {
        faults.required(format!("{at}.{field}"), "");
    }
    if *source == "hostPath" {
        let types =
            ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        faults.one_of(settings, &at, "type", &types);
        if text(settings, "path").is_some_and(|path| path.split('/').any(|step| step == "..")) {
            faults.invalid(format!("{at}.path"), &settings["path"], "must not contain '..'");
        }
    }
    if *source == "emptyDir"
        && let Some(limit) = get(settings, "sizeLimit")
        && Quantity::from_value(limit).is_ok_and(Quantity::is_negative)
    {
        faults.invalid(format!("{at}.sizeLimit"), limit, "must be greater than or equal to 0");
    }
    faults.between(settings, &at, "defaultMode", (0, 0o777));
    for (i, item) in items(settings, "items").iter().enumerate() {
        let at = format!("{at}.items[{i}]");
        if *source != "downwardAPI" && text(item, "key").is_none() {
            faults.required(format!("{at}.key"), "");
        }
        faults.between(item, &at, "mode", (0, 0o777));
        match text(item, "path") {
            Some(inner) => check_relative(faults, inner, &format!("{at}.path")),
            None => faults.required(format!("{at}.path"), ""),
        }
    }
}

/// A path inside a volume: relative and without `..`.
pub(super) fn check_relative(faults: &mut Faults, inner: &str, path: &str) {
    if inner.starts_with('/') {
        faults.invalid(path, &json!(inner), "must be a relative path");
    }
    if inner.split('/').any(|step| step == "..") {
        faults.invalid(path, &json!(inner), "must not contain '..'");
    }
}
