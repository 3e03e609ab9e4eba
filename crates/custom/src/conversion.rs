//! Objects between the versions of a kind.
//!
//! With strategy `None` only `apiVersion` changes. With `Webhook` the caller sends [`request`] and reads the answer with
//! [`converted`]; this module does no I/O.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/#webhook-conversion>.

use serde_json::{Value, json};

/// How a definition converts.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversion {
    /// Objects are the same in all versions.
    None,
    /// A webhook converts.
    Webhook {
        /// `clientConfig`: where it is.
        client: Value,
        /// The version of `ConversionReview` to speak.
        review: &'static str,
    },
}

impl Conversion {
    /// The strategy of a definition.
    pub fn of(definition: &Value) -> Self {
        let conversion = &definition["spec"]["conversion"];
        if conversion["strategy"] != "Webhook" {
            return Self::None;
        }
        // The first of the definition's list that is known here.
        let versions = conversion["webhook"]["conversionReviewVersions"].as_array().into_iter().flatten();
        let known = versions.filter_map(|version| match version.as_str() {
            Some("v1") => Some("apiextensions.k8s.io/v1"),
            Some("v1beta1") => Some("apiextensions.k8s.io/v1beta1"),
            _ => None,
        });
        let review = known.into_iter().next().unwrap_or("apiextensions.k8s.io/v1");
        Self::Webhook { client: conversion["webhook"]["clientConfig"].clone(), review }
    }
}

/// Why a webhook's answer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConversionError {
    /// It is no answer to the request.
    #[error("conversion webhook: the response is no answer to the request: {0}")]
    Answer(&'static str),
    /// It says that it failed.
    #[error("conversion webhook failed: {0}")]
    Failed(String),
    /// It changed what it must not.
    #[error("conversion webhook: converted object {index}: {what}")]
    Object {
        /// Which object.
        index: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// The `ConversionReview` that asks for `objects` in another version.
pub fn request(review: &str, uid: &str, desired: &str, objects: &[Value]) -> Value {
    json!({
        "kind": "ConversionReview", "apiVersion": review,
        "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects},
    })
}

/// The converted objects of an answer, in the order of the request.
///
/// # Errors
/// When the webhook failed, answers something else, or changed what identifies an object.
pub fn converted(answer: &Value, uid: &str, desired: &str, objects: &[Value]) -> Result<Vec<Value>, ConversionError> {
    let response = &answer["response"];
    if answer["kind"] != "ConversionReview" || !response.is_object() {
        return Err(ConversionError::Answer("no ConversionReview with a response"));
    }
    if response["uid"] != uid {
        return Err(ConversionError::Answer("another uid"));
    }
    if response["result"]["status"] != "Success" {
        let message = response["result"]["message"].as_str().unwrap_or("no message");
        return Err(ConversionError::Failed(message.to_owned()));
    }
    let list = response["convertedObjects"].as_array().filter(|list| list.len() == objects.len());
    let list = list.ok_or(ConversionError::Answer("another number of objects"))?;
    let pairs = list.iter().zip(objects).enumerate();
    pairs.map(|(index, (new, old))| check(new, old, desired, index)).collect()
}

fn check(new: &Value, old: &Value, desired: &str, index: usize) -> Result<Value, ConversionError> {
    let bad = |what: String| ConversionError::Object { index, what };
    if new["apiVersion"] != desired {
        return Err(bad(format!("apiVersion is {}, wanted {desired}", new["apiVersion"])));
    }
    if new["kind"] != old["kind"] {
        return Err(bad("its kind changed".to_owned()));
    }
    for field in ["name", "namespace", "uid"] {
        if new["metadata"][field] != old["metadata"][field] {
            return Err(bad(format!("metadata.{field} changed")));
        }
    }
    // Of metadata a webhook may change labels and annotations only.
    let mut result = new.clone();
    let mut metadata = old["metadata"].clone();
    for field in ["labels", "annotations"] {
        match &new["metadata"][field] {
            Value::Null => drop(metadata.as_object_mut().and_then(|map| map.remove(field))),
            value => metadata[field] = value.clone(),
        }
    }
    result["metadata"] = metadata;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let old =
            vec![json!({"apiVersion": "e.com/v1", "kind": "W", "metadata": {"name": "a", "uid": "u"}, "spec": 1})];
        let asked = request("apiextensions.k8s.io/v1", "id", "e.com/v2", &old);
        assert_eq!(asked["request"]["desiredAPIVersion"], "e.com/v2");
        let good = json!({"kind": "ConversionReview", "response": {"uid": "id", "result": {"status": "Success"},
            "convertedObjects": [{"apiVersion": "e.com/v2", "kind": "W", "spec": 2,
                "metadata": {"name": "a", "uid": "u", "labels": {"x": "y"}, "finalizers": ["f"]}}]}});
        let new = converted(&good, "id", "e.com/v2", &old);
        let expected = json!({"apiVersion": "e.com/v2", "kind": "W", "spec": 2,
            "metadata": {"name": "a", "uid": "u", "labels": {"x": "y"}}});
        assert_eq!(new, Ok(vec![expected]));
        assert!(converted(&good, "other", "e.com/v2", &old).is_err());
        let mut renamed = good.clone();
        renamed["response"]["convertedObjects"][0]["metadata"]["name"] = json!("b");
        assert!(converted(&renamed, "id", "e.com/v2", &old).is_err());
        let failed = json!({"kind": "ConversionReview", "response": {"uid": "id",
            "result": {"status": "Failed", "message": "no"}}});
        assert_eq!(converted(&failed, "id", "e.com/v2", &old), Err(ConversionError::Failed("no".to_owned())));
    }
}
