//! Whether a body has the shape of its kind: known fields, each once, of the right JSON types.
//!
//! What to do about a field that is not known or is given twice is the caller's choice (`fieldValidation`): ignore it,
//! warn about it, which is the default, or refuse the object.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#field-validation>.

mod reading;

use mainstay_model::conform::conform;
use mainstay_model::protobuf::schema_type;
use mainstay_model::resource::Subresource;
use mainstay_model::status::ApiError;
use serde_json::Value;

pub(crate) use reading::{read_json, read_yaml};

use crate::custom;
use crate::request::Call;

/// What to do about a field that the kind does not have (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Drop it silently.
    Ignore,
    /// Drop it and warn.
    Warn,
    /// Refuse the object.
    Refuse,
}

impl Unknown {
    /// Reads the query parameter.
    ///
    /// # Errors
    /// 422 for a word that is none of the three.
    pub(crate) fn of(call: &Call) -> Result<Self, ApiError> {
        match call.query.get("fieldValidation") {
            None | Some("Warn") => Ok(Self::Warn),
            Some("Ignore") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Refuse),
            Some(other) => Err(ApiError::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }

    /// Does it, for faults that are sentences such as `unknown field "spec.x"`.
    ///
    /// # Errors
    /// 400 with all of them, when they are to be refused.
    pub(crate) fn tell(self, call: &Call, faults: &[String]) -> Result<(), ApiError> {
        match self {
            _ if faults.is_empty() => {}
            Self::Ignore => {}
            Self::Warn => faults.iter().for_each(|fault| call.warnings.add(fault)),
            Self::Refuse => return Err(refusal(call, &format!("strict decoding error: {}", faults.join(", ")))),
        }
        Ok(())
    }
}

/// Several faults of YAML in one sentence, as a Go reader puts them.
pub(crate) fn yaml_faults(lines: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))
}

/// Repeated fields of a JSON patch, as sentences.
pub(crate) fn repeated_fields(paths: &[String]) -> Vec<String> {
    paths.iter().map(|path| format!("duplicate field {path:?}")).collect()
}

/// In which language a body was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Json,
    Yaml,
    Protobuf,
}

/// As [`check`] for an object that has just been read, whose repeated fields are told as well, all in the order in which
/// a Go reader finds them.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_body(
    call: &Call,
    object: &mut Value,
    language: Language,
    body: &[u8],
    repeated: &[String],
) -> Result<(), ApiError> {
    let wish = Unknown::of(call)?;
    // A body that says it is of another kind is refused for that, later.
    let same = object["kind"].as_str().is_none_or(|kind| kind.is_empty() || kind == call.resource.kind);
    let unknown = if same { shape(call, object)? } else { Vec::new() };
    let faults = match language {
        Language::Json if !repeated.is_empty() || unknown.len() > 1 => reading::in_order(body, &unknown, repeated),
        Language::Yaml if wish == Unknown::Refuse && !repeated.is_empty() => {
            std::iter::once(yaml_faults(repeated)).chain(sentences(&unknown)).collect()
        }
        Language::Yaml => repeated.iter().cloned().chain(sentences(&unknown)).collect(),
        Language::Json | Language::Protobuf => sentences(&unknown).collect(),
    };
    wish.tell(call, &faults)
}

/// Checks `object` against its kind and removes what is null or unknown.
///
/// # Errors
/// 400 for a JSON type that does not fit and, with [`Unknown::Refuse`], for unknown fields, all of them named.
pub(crate) fn check(call: &Call, object: &mut Value, unknown: Unknown) -> Result<(), ApiError> {
    let fields = shape(call, object)?;
    unknown.tell(call, &sentences(&fields).collect::<Vec<_>>())
}

/// Brings the object into the shape of its kind; answers the fields that the kind does not have.
fn shape(call: &Call, object: &mut Value) -> Result<Vec<String>, ApiError> {
    let resource = &call.resource;
    if let Some(custom) = resource.custom() {
        return custom::conform(custom, object).map_err(|why| refusal(call, &why));
    }
    let type_name = schema_type(&resource.api_version(), &resource.kind);
    conform(type_name, object).map_err(|mismatch| refusal(call, &mismatch.to_string()))
}

/// Brings a body that is no object of its resource, options or what a subresource takes, into the shape of its own kind.
///
/// # Errors
/// 400 for another kind, and for a JSON type that does not fit.
pub(crate) fn check_as(api_version: &str, kind: &str, body: &mut Value) -> Result<(), ApiError> {
    if let Some(given) = body["kind"].as_str().filter(|given| !given.is_empty() && *given != kind) {
        let why = format!("the kind in the data ({given}) does not match the expected kind ({kind})");
        return Err(ApiError::bad_request(why));
    }
    let conformed = conform(schema_type(api_version, kind), body);
    conformed.map(drop).map_err(|why| ApiError::bad_request(format!("the body cannot be handled as a {kind}: {why}")))
}

/// As [`check_as`] for the body of the call's subresource.
///
/// # Errors
/// As [`check_as`].
pub(crate) fn check_subresource(call: &Call, body: &mut Value) -> Result<(), ApiError> {
    let shape = Subresource::of(call.subresource.as_deref().unwrap_or_default(), &call.resource);
    check_as(&shape.group_version, &shape.kind, body)
}

fn sentences(unknown: &[String]) -> impl Iterator<Item = String> {
    unknown.iter().map(|field| format!("unknown field {field:?}"))
}

fn refusal(call: &Call, why: &str) -> ApiError {
    let (kind, version) = (&call.resource.kind, &call.resource.version);
    ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::request::{Query, Verb};
    use crate::rest::parse_object;

    const JSON: &str = r#"{"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "twice", "name": "a", "extra": "x"},
        "spec": {"one": 1, "two": 1, "two": 2, "paused": true, "paused": false, "template": {"spec": {"containers": [
            {"name": "a", "imagee": "b", "image": "c", "image": "d"}]}}}}"#;

    const YAML: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: twice\n  name: a\n  extra: x\n\
        spec:\n  two: 1\n  two: 2\n  template:\n    spec:\n      containers:\n      - {name: a, imagee: b}\n";

    fn read(body: &str, media_type: &str, wish: &str) -> (Result<Value, String>, Vec<String>) {
        let catalogue = crate::registry::Catalogue::built_in();
        let resource = catalogue.find("apps", "v1", "deployments").unwrap().clone();
        let mut call = Call::internal(Verb::Create, resource, Some("default"));
        call.query = Query::parse(Some(&format!("fieldValidation={wish}")));
        let read = parse_object(&call, media_type, body.as_bytes()).map_err(|error| error.message);
        (read, call.warnings.take())
    }

    #[test]
    fn faults_of_json_in_the_words_and_order_of_kubernetes() {
        let faults = [
            r#"duplicate field "metadata.name""#,
            r#"unknown field "metadata.extra""#,
            r#"unknown field "spec.one""#,
            r#"unknown field "spec.two""#,
            r#"duplicate field "spec.paused""#,
            r#"unknown field "spec.template.spec.containers[0].imagee""#,
            r#"duplicate field "spec.template.spec.containers[0].image""#,
        ];
        let (refused, _) = read(JSON, "application/json", "Strict");
        let before = r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: "#;
        assert_eq!(refused.unwrap_err(), format!("{before}{}", faults.join(", ")));
        let (object, warnings) = read(JSON, "application/json", "Warn");
        assert_eq!(warnings, faults);
        assert_eq!(object.unwrap()["metadata"], serde_json::json!({"name": "a"}));
        assert_eq!(read(JSON, "application/json", "Ignore").1.len(), 0);
    }

    #[test]
    fn faults_of_yaml_in_the_words_of_kubernetes() {
        let (refused, _) = read(YAML, "application/yaml", "Strict");
        let after = "strict decoding error: yaml: unmarshal errors:\n  line 5: key \"name\" already set in map\n  \
            line 9: key \"two\" already set in map, unknown field \"metadata.extra\", \
            unknown field \"spec.template.spec.containers[0].imagee\", unknown field \"spec.two\"";
        assert!(refused.unwrap_err().ends_with(after));
        let (object, warnings) = read(YAML, "application/yaml", "");
        assert_eq!(object.unwrap()["metadata"]["name"], "a");
        assert_eq!(
            warnings[..2],
            ["line 5: key \"name\" already set in map", "line 9: key \"two\" already set in map"]
        );
        assert_eq!(warnings.len(), 5);
    }

    #[test]
    fn a_wrong_type_is_told_before_all_else() {
        let body = r#"{"spec": {"odd": 1, "replicas": "3"}}"#;
        let (refused, warnings) = read(body, "application/json", "Warn");
        assert!(refused.unwrap_err().ends_with("Go struct field DeploymentSpec.spec.replicas of type int32"));
        assert!(warnings.is_empty());
    }
}
