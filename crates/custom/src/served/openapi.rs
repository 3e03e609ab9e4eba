//! The published schema of a custom kind: what `kubectl explain` and clients' validation read.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#publish-validation-schema-in-openapi>.

use serde_json::{Map, Value, json};

use super::Version;

/// Name of the schema of `metadata` among the components of an OpenAPI document.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Name of the schema of a list's `metadata`.
pub const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

impl Version {
    /// The names of the schemas of the kind and of lists of it: `com.example.v1.Widget`, `com.example.v1.WidgetList`.
    pub fn schema_names(&self) -> (String, String) {
        let group: Vec<&str> = self.row.group.split('.').rev().collect();
        let package = format!("{}.{}", group.join("."), self.row.version);
        (format!("{package}.{}", self.row.kind), format!("{package}.{}", self.row.list_kind))
    }

    /// The schemas of the kind and of lists of it, by name, referring to [`OBJECT_META`] and [`LIST_META`]; with
    /// `second` as OpenAPI 2 can say them.
    pub fn openapi(&self, second: bool) -> Vec<(String, Value)> {
        let row = &self.row;
        let (name, list_name) = self.schema_names();
        let gvk = |kind: &str| json!([{"group": row.group, "version": row.version, "kind": kind}]);
        let mut own = self.source.clone();
        if !own.is_object() {
            own = json!({"type": "object"});
        }
        if second {
            simplify(&mut own);
        }
        // The root is an object of a kind, as embedded ones are.
        own["x-kubernetes-embedded-resource"] = json!(true);
        embed(&mut own, second);
        if let Some(own) = own.as_object_mut() {
            own.remove("x-kubernetes-embedded-resource");
        }
        own["x-kubernetes-group-version-kind"] = gvk(&row.kind);
        let list = json!({
            "description": format!("{} is a list of {}", row.list_kind, row.kind), "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": API_VERSION},
                "kind": {"type": "string", "description": KIND},
                "metadata": reference(LIST_META, METADATA, second),
                "items": {
                    "type": "array", "description": format!("List of {}.", row.plural),
                    "items": {"$ref": path_of(&name, second)},
                },
            },
            "x-kubernetes-group-version-kind": gvk(&row.list_kind),
        });
        vec![(name, own), (list_name, list)]
    }
}

fn path_of(name: &str, second: bool) -> String {
    if second { format!("#/definitions/{name}") } else { format!("#/components/schemas/{name}") }
}

fn reference(name: &str, description: &str, second: bool) -> Value {
    let reference = json!({"$ref": path_of(name, second)});
    if second {
        return json!({"$ref": reference["$ref"], "description": description});
    }
    json!({"description": description, "allOf": [reference], "default": {}})
}

/// What OpenAPI 2 has no words for is left out, and with it what would then say too much.
fn simplify(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for word in ["allOf", "anyOf", "not", "oneOf", "x-kubernetes-validations"] {
        map.remove(word);
    }
    let set = |map: &Map<String, Value>, word: &str| map.get(word) == Some(&json!(true));
    let free = set(map, "x-kubernetes-preserve-unknown-fields") || map.remove("nullable") == Some(json!(true));
    if free {
        for word in ["additionalProperties", "items", "properties", "type"] {
            map.remove(word);
        }
    }
    for (word, value) in map.iter_mut() {
        match (word.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(simplify),
            ("items" | "additionalProperties", value) => simplify(value),
            _ => {}
        }
    }
}

/// Embedded objects have `apiVersion`, `kind` and `metadata` too.
fn embed(schema: &mut Value, second: bool) {
    let Some(map) = schema.as_object_mut() else { return };
    for (word, value) in map.iter_mut() {
        match (word.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(|it| embed(it, second)),
            ("items" | "additionalProperties", value) => embed(value, second),
            _ => {}
        }
    }
    if map.get("x-kubernetes-embedded-resource") == Some(&json!(true)) {
        schema["properties"]["apiVersion"] = json!({"type": "string", "description": API_VERSION});
        schema["properties"]["kind"] = json!({"type": "string", "description": KIND});
        schema["properties"]["metadata"] = reference(OBJECT_META, METADATA, second);
    }
}
