//! Whether a body has the shape of its kind: known fields, each once, of the right JSON types.
//!
//! What to do about a field that is not known or is given twice is the caller's choice (`fieldValidation`): ignore it,
//! warn about it, which is the default, or refuse the object.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#field-validation>.

mod duplicates;

use mainstay_model::conform::conform;
use mainstay_model::protobuf::schema_type;
use mainstay_model::status::ApiError;
use serde_json::Value;

pub(crate) use duplicates::read_json;

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

/// Checks `object` against its kind and removes what is null or unknown.
///
/// # Errors
/// 400 for a JSON type that does not fit and, with [`Unknown::Refuse`], for unknown fields, all of them named.
pub(crate) fn check(call: &Call, object: &mut Value, unknown: Unknown) -> Result<(), ApiError> {
    let resource = &call.resource;
    if let Some(custom) = resource.custom() {
        let fields = custom::conform(custom, object).map_err(|why| refusal(call, &why))?;
        let faults: Vec<String> = fields.iter().map(|field| format!("unknown field {field:?}")).collect();
        return unknown.tell(call, &faults);
    }
    let type_name = schema_type(&resource.api_version(), &resource.kind).to_owned();
    let fields = conform(&type_name, object).map_err(|mismatch| refusal(call, &mismatch.to_string()))?;
    let faults: Vec<String> = fields.iter().map(|field| format!("unknown field {field:?}")).collect();
    unknown.tell(call, &faults)
}

fn refusal(call: &Call, why: &str) -> ApiError {
    let (kind, version) = (&call.resource.kind, &call.resource.version);
    ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}
