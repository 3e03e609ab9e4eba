//! Reading, with places.
#![allow(clippy::unwrap_used)]

use super::*;

const TEXT: &str = "# a comment\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  ports:\n    - port: 80\n    - name: b\n      port: 81\n---\n---\napiVersion: v1\nkind: List\nitems:\n  - apiVersion: apps/v1\n    kind: Deployment\n    metadata: {name: c, namespace: n}\n    spec:\n      replicas: 2\n";

#[test]
fn every_field_has_its_line() {
    let objects = parse("x.yaml", TEXT).unwrap();
    assert_eq!(objects.iter().map(Object::shown).collect::<Vec<_>>(), ["Service default/a", "Deployment n/c"]);
    let at = |object: usize, path: &str| objects[object].place(path).to_string();
    assert_eq!(at(0, ""), "x.yaml:2");
    assert_eq!(at(0, "spec.ports[1].port"), "x.yaml:10");
    assert_eq!(at(0, "spec.ports[1].targetPort"), "x.yaml:9", "not written: the nearest above");
    assert_eq!(at(1, "spec.replicas"), "x.yaml:20");
    assert_eq!(at(1, "spec.template.spec"), "x.yaml:19");
    assert_eq!(objects[1].place("spec.replicas").column, 7);
}

#[test]
fn defaults_are_beside_what_was_written() {
    let objects = parse("x.yaml", TEXT).unwrap();
    assert_eq!(objects[0].written["spec"].get("type"), None);
    assert_eq!(objects[0].value["spec"]["type"], "ClusterIP");
}

#[test]
fn what_is_no_object_is_refused_with_its_line() {
    for (text, expected) in [
        ("a: 1\n---\nb: [\n", "x.yaml:"),
        ("a: 1\n", "x.yaml:1: an object without apiVersion or kind"),
        ("\n\nkind: Pod\napiVersion: v1\n", "x.yaml:3: an object without metadata.name"),
        ("- 1\n", "x.yaml:1: not an object"),
    ] {
        let error = parse("x.yaml", text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn json_is_read_too() {
    let objects =
        parse("x.json", "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"p\"}\n}")
            .unwrap();
    assert_eq!(objects[0].shown(), "Pod default/p");
}
