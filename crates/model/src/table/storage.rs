//! The rows of volumes, claims and storage classes.

use serde_json::{Value, json};

use super::cells::{Row, UNSET};
use crate::meta;

fn access_modes(row: &Row, path: &str) -> String {
    let short = |mode: &Value| match mode.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    row.list(path).iter().map(short).filter(|mode| !mode.is_empty()).collect::<Vec<_>>().join(",")
}

fn phase<'a>(row: &Row<'a>) -> &'a str {
    if meta::is_being_deleted(row.object) { "Terminating" } else { row.text("status.phase", "") }
}

pub(super) fn volume(row: &Row) -> Vec<Value> {
    let claim = match row.text("spec.claimRef.name", "") {
        "" => String::new(),
        name => format!("{}/{name}", row.text("spec.claimRef.namespace", "")),
    };
    vec![
        row.name(),
        json!(row.text("spec.capacity.storage", "")),
        json!(access_modes(row, "spec.accessModes")),
        json!(row.text("spec.persistentVolumeReclaimPolicy", "")),
        json!(phase(row)),
        json!(claim),
        json!(row.text("spec.storageClassName", "")),
        json!(row.text("spec.volumeAttributesClassName", UNSET)),
        json!(row.text("status.reason", "")),
        row.age(),
        json!(row.text("spec.volumeMode", UNSET)),
    ]
}

pub(super) fn claim(row: &Row) -> Vec<Value> {
    let volume = row.text("spec.volumeName", "");
    // Only a bound claim has a size of its own.
    let (capacity, modes) = if volume.is_empty() {
        ("", String::new())
    } else {
        (row.text("status.capacity.storage", ""), access_modes(row, "status.accessModes"))
    };
    vec![
        row.name(),
        json!(phase(row)),
        json!(volume),
        json!(capacity),
        json!(modes),
        json!(row.text("spec.storageClassName", "")),
        json!(row.text("spec.volumeAttributesClassName", UNSET)),
        row.age(),
        json!(row.text("spec.volumeMode", UNSET)),
    ]
}

pub(super) fn class(row: &Row) -> Vec<Value> {
    let default = meta::annotation(row.object, "storageclass.kubernetes.io/is-default-class") == Some("true");
    let name =
        if default { format!("{} (default)", meta::name(row.object)) } else { meta::name(row.object).to_owned() };
    vec![
        json!(name),
        json!(row.text("provisioner", "")),
        json!(row.text("reclaimPolicy", "Delete")),
        json!(row.text("volumeBindingMode", UNSET)),
        json!(meta::bool_at(row.object, "allowVolumeExpansion")),
        row.age(),
    ]
}
