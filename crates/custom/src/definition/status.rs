//! The status of a definition: which names it was given, whether its kind is served, what is stored.
//!
//! Kubernetes lets controllers find this out step by step; here it is one function of a definition and of the names that
//! other definitions of the group hold, so that a definition is established in the same write that creates it.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/extend-resources/custom-resource-definition-v1/#CustomResourceDefinitionStatus>.

use jiff::Timestamp;
use mainstay_model::meta::{condition, format_time, is_condition_true, list_at};
use serde_json::{Value, json};

use super::{names, storage_version};

/// The finalizer that keeps a definition until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The names in use in one group, apart from those of the definition that is looked at.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Plural, singular and short names.
    pub resources: Vec<String>,
    /// Kinds and list kinds.
    pub kinds: Vec<String>,
}

impl Names {
    /// Adds what a definition was given.
    pub fn add(&mut self, definition: &Value) {
        let accepted = &definition["status"]["acceptedNames"];
        for field in ["plural", "singular"] {
            self.resources.extend(accepted[field].as_str().filter(|name| !name.is_empty()).map(str::to_owned));
        }
        self.resources.extend(list_at(accepted, "shortNames").iter().filter_map(Value::as_str).map(str::to_owned));
        for field in ["kind", "listKind"] {
            self.kinds.extend(accepted[field].as_str().filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
}

/// Whether the kind of a definition is served.
pub fn is_established(definition: &Value) -> bool {
    is_condition_true(definition, "Established")
}

/// Brings `status` up to date: accepted names, conditions, stored versions. `others` are the names of the group's other
/// definitions.
pub fn set_status(definition: &mut Value, others: &Names, now: Timestamp) {
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    if let Some(storage) = storage_version(definition).map(str::to_owned) {
        let stored = &mut definition["status"]["storedVersions"];
        match stored.as_array_mut() {
            Some(list) if list.iter().any(|version| *version == *storage) => {}
            Some(list) => list.push(json!(storage)),
            None => *stored = json!([storage]),
        }
    }
    let conflict = accept_names(definition, others);
    let (accepted, reason, message) = match &conflict {
        None => (true, "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, message)) => (false, *reason, message.clone()),
    };
    set_condition(definition, "NamesAccepted", accepted, reason, &message, now);
    if accepted {
        set_condition(
            definition,
            "Established",
            true,
            "InitialNamesAccepted",
            "the initial names have been accepted",
            now,
        );
    } else if !is_established(definition) {
        // Once established, always established: names it had are still its own.
        set_condition(definition, "Established", false, "NotAccepted", "not all names are accepted", now);
    }
    if let Some((approved, reason, message)) = names::approval_condition(definition) {
        set_condition(definition, "KubernetesAPIApprovalPolicyConformant", approved, reason, &message, now);
    }
}

/// Gives the definition the names that are free, and says which was not.
fn accept_names(definition: &mut Value, others: &Names) -> Option<(&'static str, String)> {
    let wanted = definition["spec"]["names"].clone();
    let mut accepted = definition["status"]["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({"plural": "", "kind": ""});
    }
    let mut conflict = None;
    let fields = [
        ("plural", "PluralConflict", &others.resources),
        ("singular", "SingularConflict", &others.resources),
        ("kind", "KindConflict", &others.kinds),
        ("listKind", "ListKindConflict", &others.kinds),
    ];
    for (field, reason, taken) in fields {
        let name = wanted[field].as_str().unwrap_or_default();
        if taken.iter().any(|other| other == name) {
            conflict = Some((reason, format!("{name:?} is already in use")));
        } else if !name.is_empty() {
            accepted[field] = json!(name);
        }
    }
    let short = list_at(&wanted, "shortNames");
    let taken: Vec<String> = short
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| others.resources.iter().any(|other| other == name))
        .map(|name| format!("{name:?} is already in use"))
        .collect();
    if taken.is_empty() {
        for field in ["shortNames", "categories"] {
            match &wanted[field] {
                Value::Array(list) if !list.is_empty() => accepted[field] = wanted[field].clone(),
                _ => drop(accepted.as_object_mut().and_then(|map| map.remove(field))),
            }
        }
    } else {
        conflict = conflict.or_else(|| Some(("ShortNamesConflict", taken.join(", "))));
    }
    definition["status"]["acceptedNames"] = accepted;
    conflict
}

/// Sets a condition; the time changes only when the status does.
pub fn set_condition(definition: &mut Value, kind: &str, status: bool, reason: &str, message: &str, now: Timestamp) {
    let word = if status { "True" } else { "False" };
    let time = match condition(definition, kind) {
        Some(before) if before["status"] == word => before["lastTransitionTime"].clone(),
        _ => json!(format_time(now)),
    };
    let new = json!({"type": kind, "status": word, "lastTransitionTime": time, "reason": reason, "message": message});
    if !definition["status"]["conditions"].is_array() {
        definition["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = definition["status"]["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(place) => *place = new,
        None => conditions.push(new),
    }
}
