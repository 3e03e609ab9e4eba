//! The published schema of a custom kind: what `kubectl explain` and clients' validation read.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#publish-validation-schema-in-openapi>.

use serde_json::{Value, json};

use super::Version;

/// Name of the schema of `metadata` among the components of an OpenAPI document.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Name of the schema of a list's `metadata`.
pub const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

impl Version {
    /// The name of its schema among components: `com.example.v1.Widget`.
    pub fn schema_name(&self) -> String {
        let group: Vec<&str> = self.row.group.split('.').rev().collect();
        format!("{}.{}.{}", group.join("."), self.row.version, self.row.kind)
    }

    /// The schemas of the kind and of lists of it, by name, referring to [`OBJECT_META`] and [`LIST_META`].
    pub fn openapi(&self) -> Vec<(String, Value)> {
        let row = &self.row;
        let name = self.schema_name();
        let gvk = |kind: &str| json!([{"group": row.group, "version": row.version, "kind": kind}]);
        let mut own = self.source.clone();
        if !own.is_object() {
            own = json!({"type": "object"});
        }
        own["x-kubernetes-group-version-kind"] = gvk(&row.kind);
        own["properties"]["apiVersion"] = json!({"type": "string", "description": API_VERSION});
        own["properties"]["kind"] = json!({"type": "string", "description": KIND});
        own["properties"]["metadata"] = reference(OBJECT_META, METADATA);
        embed(&mut own);
        let description = format!("{} is a list of {}", row.list_kind, row.kind);
        let list = json!({
            "description": description, "type": "object", "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": API_VERSION},
                "kind": {"type": "string", "description": KIND},
                "metadata": reference(LIST_META, METADATA),
                "items": {
                    "type": "array",
                    "description": format!("List of {}.", row.plural),
                    "items": {"$ref": format!("#/components/schemas/{name}")},
                },
            },
            "x-kubernetes-group-version-kind": gvk(&row.list_kind),
        });
        let list_name = format!("{}{}", name.strip_suffix(&row.kind).unwrap_or(&name), row.list_kind);
        vec![(name, own), (list_name, list)]
    }
}

fn reference(name: &str, description: &str) -> Value {
    json!({"description": description, "allOf": [{"$ref": format!("#/components/schemas/{name}")}], "default": {}})
}

/// Embedded objects have `apiVersion`, `kind` and `metadata` too.
fn embed(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for (word, value) in map.iter_mut() {
        match (word.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(embed),
            ("items" | "additionalProperties", value) => embed(value),
            _ => {}
        }
    }
    if map.get("x-kubernetes-embedded-resource") == Some(&json!(true)) {
        schema["properties"]["apiVersion"] = json!({"type": "string", "description": API_VERSION});
        schema["properties"]["kind"] = json!({"type": "string", "description": KIND});
        schema["properties"]["metadata"] = reference(OBJECT_META, METADATA);
    }
}
