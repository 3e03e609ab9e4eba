//! DefaultTolerationSeconds: how long a pod stays on a node that does not answer, when it does not say itself.
//!
//! Kubernetes says five minutes; here a dead node's pods move at once unless [`crate::Settings::toleration_seconds`] is set.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions>.

use serde_json::{Value, json};

const KEYS: &[&str] = &["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub(super) fn mutate(seconds: i64, pod: &mut Value) {
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in KEYS {
        let covers = |toleration: &Value| {
            let text = |field: &str| toleration[field].as_str().unwrap_or_default();
            matches!(text("key"), "") && text("operator") == "Exists" || text("key") == *key
        };
        let lasts = |toleration: &Value| matches!(toleration["effect"].as_str(), None | Some("" | "NoExecute"));
        if !tolerations.iter().any(|toleration| covers(toleration) && lasts(toleration)) {
            let toleration =
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
            tolerations.push(toleration);
        }
    }
    pod["spec"]["tolerations"] = json!(tolerations);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tolerated_already_stays() {
        let mut pod = json!({"spec": {"tolerations": [{"key": KEYS[0], "operator": "Exists", "effect": "NoExecute"}]}});
        mutate(300, &mut pod);
        let all = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        assert_eq!(all.len(), 2);
        assert_eq!((&all[1]["key"], &all[1]["tolerationSeconds"]), (&json!(KEYS[1]), &json!(300)));
        let mut everything = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        mutate(300, &mut everything);
        assert_eq!(everything["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
    }
}
