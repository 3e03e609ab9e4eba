//! What people are told of a Database as Events: what has changed between two of its statuses. Pure.

use kube::runtime::events::{Event, EventType};
use serde_json::Value;

/// The Events of a change.
pub(super) fn events(before: &Value, after: &Value) -> Vec<Event> {
    let mut all = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (old, new) = (text(&before["primary"]), text(&after["primary"]));
    if before["epoch"] != after["epoch"] && !new.is_empty() && after["state"] != "FailingOver" {
        let was = if old.is_empty() { String::new() } else { format!(", in place of {old}") };
        let note = format!("{new} is the primary of epoch {}{was}", after["epoch"]);
        all.push(event(EventType::Normal, "PrimaryElected", &note));
    }
    if before["state"] != after["state"] {
        let kind = match after["state"].as_str() {
            Some("Degraded" | "FailingOver" | "Down") => EventType::Warning,
            _ => EventType::Normal,
        };
        let available = after["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == "Available");
        let note = available.map(|it| text(&it["message"])).unwrap_or_default();
        all.push(event(kind, &text(&after["state"]), &note));
    }
    for member in after["members"].as_array().into_iter().flatten() {
        let refusal = text(&member["refusal"]);
        let former = before["members"].as_array().into_iter().flatten().find(|it| it["name"] == member["name"]);
        if !refusal.is_empty() && former.is_none_or(|it| it["refusal"] != member["refusal"]) {
            let note = format!("{} does not stand for primary: {refusal}", text(&member["name"]));
            all.push(event(EventType::Warning, "NotElected", &note));
        }
    }
    all
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    // The API's limit for a note is 1024 bytes.
    let note: String = note.chars().take(250).collect();
    Event { type_, reason: reason.to_owned(), note: Some(note), action: "Observed".to_owned(), secondary: None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(before: &Value, after: &Value) -> Vec<String> {
        let line = |it: Event| format!("{:?} {}: {}", it.type_, it.reason, it.note.unwrap_or_default());
        events(before, after).into_iter().map(line).collect()
    }

    #[test]
    fn what_changed_is_told_once() {
        let conditions = json!([{"type": "Available", "message": "no primary accepts writes"}]);
        let well = json!({"primary": "db-0", "epoch": 1, "state": "Healthy"});
        let ill = json!({"primary": "db-0", "epoch": 1, "state": "FailingOver", "conditions": conditions,
            "members": [{"name": "db-2", "refusal": "its priority is 0"}]});
        let again = json!({"primary": "db-1", "epoch": 2, "state": "Healthy"});
        assert_eq!(told(&well, &well), [""; 0]);
        assert_eq!(
            told(&well, &ill),
            [
                "Warning FailingOver: no primary accepts writes",
                "Warning NotElected: db-2 does not stand for primary: its priority is 0"
            ]
        );
        assert_eq!(told(&ill, &ill), [""; 0]);
        assert_eq!(
            told(&ill, &again),
            ["Normal PrimaryElected: db-1 is the primary of epoch 2, in place of db-0", "Normal Healthy: "]
        );
    }
}
