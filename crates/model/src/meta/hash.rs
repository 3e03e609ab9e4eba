//! Short stable hashes for names and labels: `pod-template-hash`.
//!
//! FNV-1a of canonical JSON, written in an alphabet without vowels so that no word can appear. Source: the FNV
//! parameters of RFC 9923; the alphabet is that of Kubernetes' generated names.

use serde_json::Value;

/// The characters of generated names: no vowels, no digits that look like letters.
pub(crate) const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// 32-bit FNV-1a.
pub fn fnv1a_32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    bytes.into_iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Writes every byte of `text` as a character of the safe alphabet; the length stays.
pub fn encode_safe(text: &str) -> String {
    text.bytes().map(|byte| char::from(SAFE[usize::from(byte) % SAFE.len()])).collect()
}

/// JSON with object keys in order, no white space and no null members: equal objects give equal text.
pub fn canonical_json(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().filter(|(_, value)| !value.is_null()).collect();
            members.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (i, (key, value)) in members.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

/// The `pod-template-hash` of a pod template: up to 10 characters.
///
/// `collision_count` (from `status.collisionCount`) changes the hash when another object has taken the name. The value
/// differs from upstream's for the same template, which hashes Go's own printing; nothing may depend on it.
pub fn pod_template_hash(template: &Value, collision_count: Option<u32>) -> String {
    let count = collision_count.map(u32::to_le_bytes);
    let hash = fnv1a_32(canonical_json(template).bytes().chain(count.into_iter().flatten()));
    encode_safe(&hash.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn known_hashes() {
        assert_eq!(fnv1a_32(*b""), 0x811c_9dc5);
        assert_eq!(fnv1a_32(*b"a"), 0xe40c_292c);
        assert_eq!(fnv1a_32(*b"foobar"), 0xbf9c_f968);
    }

    #[test]
    fn order_and_nulls_do_not_count() {
        let a = json!({"spec": {"a": 1, "b": [1, {"x": "\"y\"", "z": null}]}});
        let b = json!({"spec": {"b": [1, {"x": "\"y\""}], "a": 1}});
        assert_eq!(canonical_json(&a), r#"{"spec":{"a":1,"b":[1,{"x":"\"y\""}]}}"#);
        let hash = pod_template_hash(&a, None);
        assert_eq!(hash, pod_template_hash(&b, None));
        assert_ne!(hash, pod_template_hash(&a, Some(1)));
        assert!(hash.len() <= 10 && hash.bytes().all(|b| SAFE.contains(&b)));
    }
}
