//! One object in two groups: events of `events.k8s.io` are those of the core group in other words.
//!
//! The core form is what is stored. Every other kind is served in the form it is stored in; versions of custom resources
//! differ in their schema only, or are converted by a webhook.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>.

use serde_json::{Value, json};

use crate::resource::Resource;

/// Field names in `events.k8s.io/v1` and in `v1`.
const EVENT: &[(&str, &str)] = &[
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
];

/// Whether objects of `resource` are stored in another form than they are served in.
pub fn is_stored_otherwise(resource: &Resource) -> bool {
    resource.group == "events.k8s.io"
}

/// From the form of `resource` to the stored one.
pub fn to_stored(resource: &Resource, object: &mut Value) {
    if is_stored_otherwise(resource) {
        for (own, stored) in EVENT {
            rename(object, own, stored);
        }
        object["apiVersion"] = json!("v1");
    }
}

/// From the stored form to the one of `resource`, which names its own `apiVersion`.
pub fn from_stored(resource: &Resource, object: &mut Value) {
    if is_stored_otherwise(resource) {
        for (own, stored) in EVENT {
            rename(object, stored, own);
        }
    }
    if object["apiVersion"].as_str() != Some(&resource.api_version()) {
        object["apiVersion"] = json!(resource.api_version());
    }
}

fn rename(object: &mut Value, from: &str, to: &str) {
    let Some(map) = object.as_object_mut() else { return };
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find_kind;

    #[test]
    fn events_go_and_come_back() {
        let row = find_kind("events.k8s.io/v1", "Event").expect("served");
        let own = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"kind": "Pod"},
            "reportingController": "c", "eventTime": "2026-01-01T00:00:00.000000Z"});
        let mut object = own.clone();
        to_stored(row, &mut object);
        assert_eq!((&object["message"], &object["involvedObject"]["kind"]), (&json!("n"), &json!("Pod")));
        from_stored(row, &mut object);
        assert_eq!(object, own);
    }
}
