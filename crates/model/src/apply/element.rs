//! One step of a path into an object, in the spelling of `fieldsV1`.
//!
//! `f:NAME` is a field of an object or a key of a map, `k:{...}` the item of a list with these keys, `v:VALUE` the item of
//! a set, `i:N` an item by its index. Steps are compared by their text, so each has exactly one spelling: keys in
//! alphabetical order, JSON without spaces.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/object-meta/> (`managedFields`).

use serde_json::{Map, Value};

/// The field `name`.
pub(super) fn field(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push_str("f:");
    text.push_str(name);
    text
}

/// The item with these keys, which must be in alphabetical order.
pub(super) fn keyed<'a>(keys: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let mut text = String::from("k:{");
    for (i, (name, value)) in keys.enumerate() {
        if i > 0 {
            text.push(',');
        }
        quote(&mut text, name);
        text.push(':');
        match value {
            Value::String(value) => quote(&mut text, value),
            value => text.push_str(&value.to_string()),
        }
    }
    text.push('}');
    text
}

/// The item of a set.
pub(super) fn value(value: &Value) -> String {
    format!("v:{value}")
}

/// Appends a JSON string.
fn quote(text: &mut String, value: &str) {
    let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\';
    if value.bytes().all(plain) {
        text.push('"');
        text.push_str(value);
        text.push('"');
    } else {
        text.push_str(&Value::from(value).to_string());
    }
}

/// The one spelling of a step that somebody else wrote; nothing when it is not one.
pub(super) fn canonical(text: &str) -> Option<String> {
    let (kind, rest) = text.split_once(':')?;
    match kind {
        "f" => Some(text.to_owned()),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).ok()?;
            let mut keys: Vec<(&str, &Value)> = keys.iter().map(|(name, value)| (name.as_str(), value)).collect();
            keys.sort_unstable_by_key(|(name, _)| *name);
            Some(keyed(keys.into_iter()))
        }
        "v" => serde_json::from_str(rest).ok().map(|parsed| value(&parsed)),
        "i" => rest.parse::<i64>().ok().map(|index| format!("i:{index}")),
        _ => None,
    }
}

/// The step as error messages show it: `.name`, `[name="a"]`, `[="a"]`, `[0]`.
pub(super) fn shown(text: &str) -> String {
    let (kind, rest) = text.split_once(':').unwrap_or(("", text));
    match kind {
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={rest}]"),
        "i" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spelling() {
        let (port, protocol) = (json!(80), json!("TCP"));
        let step = keyed([("containerPort", &port), ("protocol", &protocol)].into_iter());
        assert_eq!(step, r#"k:{"containerPort":80,"protocol":"TCP"}"#);
        assert_eq!(canonical(r#"k:{ "protocol": "TCP", "containerPort": 80 }"#).as_ref(), Some(&step));
        assert_eq!(shown(&step), r#"[containerPort=80,protocol="TCP"]"#);
        assert_eq!(
            (shown("f:spec"), shown(r#"v:"a""#), shown("i:3")),
            (".spec".into(), r#"[="a"]"#.into(), "[3]".into())
        );
        let odd = json!("a\"\u{7f}\n");
        let step = keyed([("name", &odd)].into_iter());
        assert_eq!(canonical(&step), Some(step));
        for bad in ["", "spec", "k:", "k:[]", "v:{", "i:x", "x:y"] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
    }
}
