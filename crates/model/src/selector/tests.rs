//! Selectors: texts, objects, and what they match.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn text_forms() {
    for (text, shown) in [
        ("", ""),
        ("a=b", "a=b"),
        ("a==b", "a=b"),
        (" a = b , c != d ", "a=b,c!=d"),
        ("e in (y,x)", "e in (x,y)"),
        ("h notin (z)", "h!=z"),
        ("!f,g", "!f,g"),
        ("a=b,c!=d,e in (x,y),!f,g,h notin (z,w)", "a=b,c!=d,e in (x,y),!f,g,h notin (w,z)"),
        ("x in (,a)", "x in (,a)"),
        ("a=", "a="),
        ("n>5,m<7", "m<7,n>5"),
        ("example.com/tier in (web)", "example.com/tier=web"),
    ] {
        assert_eq!(LabelSelector::parse(text).unwrap().to_string(), shown, "{text}");
    }
}

#[test]
fn refused() {
    for text in [
        "=", ",", "a,", "a=b,,c", "a in", "a in (", "a in (b", "a in b", "a with b", "a b", "!", "-a=b", "a=b c",
        "a>x", "(a)", "a=-b", "!a=b",
    ] {
        assert!(LabelSelector::parse(text).is_err(), "{text}");
    }
    assert_eq!(LabelSelector::parse(&"a".repeat(TEXT_MAX + 1)), Err(SelectorError::TooLong));
}

#[test]
fn matching() {
    let labels = json!({"app": "shop", "tier": "web", "n": "5"});
    let labels = labels.as_object();
    for (text, expected) in [
        ("", true),
        ("app=shop", true),
        ("app=other", false),
        ("missing=x", false),
        ("missing!=x", true),
        ("tier!=web", false),
        ("tier in (db,web)", true),
        ("tier notin (db,web)", false),
        ("missing notin (db)", true),
        ("app", true),
        ("!app", false),
        ("!missing", true),
        ("n>4,n<6", true),
        ("n>5", false),
        ("app>1", false),
        ("app=shop,tier=db", false),
    ] {
        assert_eq!(LabelSelector::parse(text).unwrap().matches(labels), expected, "{text}");
    }
    assert!(LabelSelector::everything().matches(None));
    assert!(!LabelSelector::nothing().matches(labels));
}

#[test]
fn objects() {
    let selector = LabelSelector::from_object(&json!({
        "matchLabels": {"app": "shop"},
        "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["web", "db"]},
            {"key": "old", "operator": "DoesNotExist"},
        ],
    }))
    .unwrap();
    assert_eq!(selector.to_string(), "app=shop,!old,tier in (db,web)");
    assert!(selector.matches_object(&json!({"metadata": {"labels": {"app": "shop", "tier": "db"}}})));
    assert!(!selector.matches_object(&json!({"metadata": {}})));
    assert!(LabelSelector::from_object(&json!(null)).unwrap().is_nothing());
    assert!(LabelSelector::from_object(&json!({})).unwrap().is_everything());
    let bad = |expression: Value| LabelSelector::from_object(&json!({"matchExpressions": [expression]}));
    assert!(matches!(bad(json!({"key": "a", "operator": "Gt", "values": ["1"]})), Err(SelectorError::Operator(_))));
    assert_eq!(bad(json!({"key": "a", "operator": "In"})), Err(SelectorError::Values));
    assert_eq!(bad(json!({"key": "a", "operator": "Exists", "values": ["1"]})), Err(SelectorError::Values));
    assert!(bad(json!({})).is_err());
}

#[test]
fn fields() {
    let pod = json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
    for (text, expected) in [
        ("", true),
        ("metadata.name=a", true),
        ("metadata.name==a,metadata.namespace=shop", true),
        ("metadata.name!=a", false),
        ("spec.nodeName=n1,status.phase!=Failed", true),
        ("spec.nodeName=", false),
        ("status.podIP=", true),
        ("spec.hostNetwork=false", true),
    ] {
        assert_eq!(FieldSelector::parse("Pod", text).unwrap().matches(&pod), expected, "{text}");
    }
    let selector = FieldSelector::parse("Pod", "spec.nodeName=n1").unwrap();
    assert_eq!((selector.required("spec.nodeName"), selector.required("metadata.name")), (Some("n1"), None));
    let error = FieldSelector::parse("Pod", "spec.image=x").unwrap_err();
    assert_eq!(error.to_string(), "field label not supported: spec.image");
    let error = FieldSelector::parse("ConfigMap", "spec.nodeName=x").unwrap_err();
    let only = r#"is not a known field selector: only "metadata.name", "metadata.namespace""#;
    assert_eq!(error.to_string(), format!("\"spec.nodeName\" {only}"));
    for text in ["metadata.name", "metadata.name=a=b", r"metadata.name=a\"] {
        assert!(matches!(FieldSelector::parse("Pod", text), Err(SelectorError::FieldParse { .. })), "{text}");
    }
}

#[test]
fn fields_of_events_and_escapes() {
    let event = json!({"involvedObject": {"name": "a,b=c", "kind": "Pod"}, "source": {"component": "kubelet"}, "type": "Warning"});
    let selector = FieldSelector::parse("Event", r"involvedObject.name=a\,b\=c,source=kubelet,type=Warning").unwrap();
    assert!(selector.matches(&event));
    assert_eq!(FieldSelector::parse("Event", &selector.to_string()).unwrap(), selector);
}

proptest! {
    #[test]
    fn display_parses_back(text in "(a|b|c|!|=|,| in | notin |\\(|\\)|x|y|<|>|1){0,12}") {
        if let Ok(selector) = LabelSelector::parse(&text) {
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }
    }

    #[test]
    fn never_panics(text in "\\PC{0,60}") {
        let _ = LabelSelector::parse(&text);
        let _ = FieldSelector::parse("Pod", &text);
    }
}
