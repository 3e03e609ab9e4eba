//! What Kubernetes' documents say beside plain schemas: of which kind a schema is, and how its lists merge.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy>.

use mainstay_model::schema::{self, Merge, Shape, Topology};
use serde_json::{Map, Value, json};

use super::library::definition_name;
use crate::registry::Served;

/// Adds the extensions to schemas by name.
pub(super) fn annotate(schemas: &mut Map<String, Value>, resources: &[&Served]) {
    for resource in resources {
        for (kind, name) in definition_name(resource) {
            let own = json!({"group": resource.group, "version": resource.version, "kind": kind});
            if let Some(schema) = schemas.get_mut(&name) {
                match schema["x-kubernetes-group-version-kind"].as_array_mut() {
                    Some(list) if list.contains(&own) => {}
                    Some(list) => list.push(own),
                    None => schema["x-kubernetes-group-version-kind"] = json!([own]),
                }
            }
        }
    }
    for (name, schema) in schemas.iter_mut() {
        let type_name = type_name(name);
        if schema::named(&type_name).is_some_and(|known| known.atomic) {
            schema["x-kubernetes-map-type"] = json!("atomic");
        }
        for (field, property) in schema["properties"].as_object_mut().into_iter().flatten() {
            if let Some(field) = schema::field(&type_name, field) {
                merge(property, field);
            }
        }
    }
}

/// The type of Mainstay's table that a definition stands for: its last word, unless another group has that word.
fn type_name(definition: &str) -> String {
    let words: Vec<&str> = definition.split('.').collect();
    let [.., group, _, own] = words.as_slice() else { return definition.to_owned() };
    let mut letters = group.chars();
    let prefix: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
    let prefixed = format!("{prefix}{own}");
    if schema::fields(&prefixed).is_some() { prefixed } else { (*own).to_owned() }
}

fn merge(property: &mut Value, field: &schema::Field) {
    let strategy = match (field.merge, field.retain_keys) {
        (Merge::Default, false) => None,
        (Merge::Default, true) => Some("retainKeys"),
        (_, false) => Some("merge"),
        (_, true) => Some("merge,retainKeys"),
    };
    if let Some(strategy) = strategy {
        property["x-kubernetes-patch-strategy"] = json!(strategy);
    }
    if let Merge::ByKey(key) = field.merge {
        property["x-kubernetes-patch-merge-key"] = json!(key);
    }
    let is_list = matches!(field.shape, Shape::List(_));
    match (&field.topology, field.merge) {
        (Topology::Keys(keys), _) => keyed(property, keys),
        (Topology::Default, Merge::ByKey(key)) => keyed(property, &[key]),
        (Topology::Set, _) | (Topology::Default, Merge::Set) => property["x-kubernetes-list-type"] = json!("set"),
        (Topology::Atomic | Topology::Default, _) if is_list => property["x-kubernetes-list-type"] = json!("atomic"),
        (Topology::Atomic, _) => property["x-kubernetes-map-type"] = json!("atomic"),
        (Topology::Granular, _) => property["x-kubernetes-map-type"] = json!("granular"),
        (Topology::Default, _) => {}
    }
}

fn keyed(property: &mut Value, keys: &[&str]) {
    property["x-kubernetes-list-type"] = json!("map");
    property["x-kubernetes-list-map-keys"] = json!(keys);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_the_same_name_are_told_apart() {
        assert_eq!(type_name("io.k8s.api.core.v1.PodSpec"), "PodSpec");
        assert_eq!(type_name("io.k8s.api.discovery.v1.EndpointPort"), "DiscoveryEndpointPort");
        assert_eq!(type_name("io.k8s.api.events.v1.Event"), "EventsEvent");
    }
}
