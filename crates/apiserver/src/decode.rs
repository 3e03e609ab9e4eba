//! Whether a body has the shape of its kind: known fields, right JSON types.
//!
//! A body is read into the typed object of `k8s-openapi` and written out again: a type that does not fit fails the first
//! step, a field that nobody knows is missing after the second. So the generated types are the schema.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#field-validation>.

use k8s_openapi::api;
use mainstay_model::status::ApiError;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::registry::Served;

/// What to do about a field that the kind does not have (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Drop it silently.
    Ignore,
    /// Refuse the object.
    Refuse,
}

impl Unknown {
    /// Reads the query parameter; `Warn` is the server's default and drops the field.
    pub(crate) fn of(parameter: Option<&str>) -> Result<Self, ApiError> {
        match parameter {
            None | Some("Ignore" | "Warn") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Refuse),
            Some(other) => Err(ApiError::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// Checks `object` against its kind and removes what is null or unknown.
///
/// # Errors
/// 400 for a JSON type that does not fit and, with [`Unknown::Refuse`], for unknown fields, all of them named.
pub(crate) fn check(resource: &Served, object: &mut Value, unknown: Unknown) -> Result<(), ApiError> {
    let (kind, version) = (&resource.kind, resource.api_version());
    let Some(read) = reader(resource.rules()) else { return Ok(()) };
    quantities_to_text(object);
    let known = read(object).map_err(|error| {
        let what = format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}");
        ApiError::bad_request(what)
    })?;
    let mut extra = Vec::new();
    prune(object, &known, "", &mut extra);
    if unknown == Unknown::Refuse && !extra.is_empty() {
        let list: Vec<String> = extra.iter().map(|field| format!("unknown field {field:?}")).collect();
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
            list.join(", ")
        )));
    }
    Ok(())
}

type Reader = fn(&Value) -> Result<Value, serde_json::Error>;

fn through<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(T::deserialize(value)?)
}

fn reader(kind: &str) -> Option<Reader> {
    Some(match kind {
        "ConfigMap" => through::<api::core::v1::ConfigMap>,
        "Event" => through::<api::core::v1::Event>,
        "Namespace" => through::<api::core::v1::Namespace>,
        "Node" => through::<api::core::v1::Node>,
        "Pod" => through::<api::core::v1::Pod>,
        "Secret" => through::<api::core::v1::Secret>,
        "Service" => through::<api::core::v1::Service>,
        "ServiceAccount" => through::<api::core::v1::ServiceAccount>,
        "Deployment" => through::<api::apps::v1::Deployment>,
        "ReplicaSet" => through::<api::apps::v1::ReplicaSet>,
        "Lease" => through::<api::coordination::v1::Lease>,
        "EndpointSlice" => through::<api::discovery::v1::EndpointSlice>,
        "PodDisruptionBudget" => through::<api::policy::v1::PodDisruptionBudget>,
        _ => return None,
    })
}

/// Fields that hold a quantity or a map of quantities. YAML writers give `cpu: 1` as a number, which the API allows.
const QUANTITIES: &[&str] =
    &["limits", "requests", "capacity", "allocatable", "hard", "sizeLimit", "divisor", "overhead"];

fn quantities_to_text(value: &mut Value) {
    let to_text = |value: &mut Value| {
        if value.is_number() {
            *value = Value::String(value.to_string());
        }
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    value if !QUANTITIES.contains(&key.as_str()) => quantities_to_text(value),
                    Value::Object(quantities) => quantities.values_mut().for_each(to_text),
                    value => to_text(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(quantities_to_text),
        _ => {}
    }
}

/// Removes from `given` what did not survive in `known`, and nulls; unknown fields are listed with their paths.
fn prune(given: &mut Value, known: &Value, path: &str, extra: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            given.retain(|key, value| {
                let keep = known.contains_key(key);
                // An empty optional value may be left out by the writer; only content that vanished was unknown.
                if !keep && !value.is_null() && key != "managedFields" {
                    extra.push(if path.is_empty() { key.clone() } else { format!("{path}.{key}") });
                }
                keep
            });
            for (key, value) in given.iter_mut() {
                if let Some(known) = known.get(key) {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    prune(value, known, &path, extra);
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (i, (value, known)) in given.iter_mut().zip(known).enumerate() {
                prune(value, known, &format!("{path}[{i}]"), extra);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn of(kind: &str) -> Served {
        mainstay_model::resource::known(kind).into()
    }

    #[test]
    fn unknown_fields_are_named_with_their_path() {
        let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c", "imagee": "x", "env": [{"name": "A", "value": null}]}]}});
        let error = check(&of("Pod"), &mut pod.clone(), Unknown::Refuse).unwrap_err();
        assert!(error.message.contains("unknown field \"spec.containers[0].imagee\""), "{}", error.message);
        check(&of("Pod"), &mut pod, Unknown::Ignore).unwrap();
        assert_eq!(pod["spec"]["containers"][0], json!({"name": "c", "env": [{"name": "A"}]}));
    }

    #[test]
    fn wrong_types_are_refused() {
        let mut bad = json!({"kind": "Deployment", "apiVersion": "apps/v1", "spec": {"replicas": "three"}});
        let error = check(&of("Deployment"), &mut bad, Unknown::Ignore).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.contains("three"), "{}", error.message);
    }

    #[test]
    fn quantities_numbers_and_int_or_string_pass_unchanged() {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081}]}});
        let mut checked = object.clone();
        check(&of("Service"), &mut checked, Unknown::Refuse).unwrap();
        assert_eq!(checked, object);
    }
}
