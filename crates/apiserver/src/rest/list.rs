//! GET of a collection: selectors, pages, and the list's form.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mainstay_model::selector::{FieldSelector, LabelSelector};
use mainstay_model::status::{ApiError, ContinueToken};
use mainstay_store::{Error as StoreError, Range};
use serde_json::{Value, json};

use super::options::{ListOptions, too_new};
use super::shape::{list_of, to_form};
use super::{from_entries, store_error};
use crate::api::Api;
use crate::request::{Call, Form};

/// How many entries are read from the store at a time.
const CHUNK: usize = 500;

/// The objects a list or watch is about.
pub(crate) struct Filter {
    labels: Option<LabelSelector>,
    fields: Option<FieldSelector>,
}

impl Filter {
    /// Reads `labelSelector` and `fieldSelector`; a call on one name watches just that object.
    ///
    /// # Errors
    /// 400 for a selector that cannot be read or a field that cannot be selected by.
    pub(crate) fn of(call: &Call) -> Result<Self, ApiError> {
        let labels = call.query.get("labelSelector").map(LabelSelector::parse).transpose();
        let fields = call.query.get("fieldSelector").map(|text| match call.resource.custom() {
            None => FieldSelector::parse(call.resource.rules(), text),
            Some(custom) => {
                let selectable = &custom.version.selectable;
                FieldSelector::parse_with(text, |field| selectable.iter().any(|known| known == field))
            }
        });
        let fields = fields.transpose();
        Ok(Self {
            labels: labels.map_err(|error| ApiError::bad_request(error.to_string()))?,
            fields: fields.map_err(|error| ApiError::bad_request(error.to_string()))?,
        })
    }

    /// Whether it lets everything through.
    pub(crate) fn is_open(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }

    /// Whether the object is chosen.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels.matches_object(object))
            && self.fields.as_ref().is_none_or(|fields| fields.matches(object))
    }
}

/// Where the next page starts: the list's revision and the last key given.
struct Continue {
    /// None when the rest shall be given as it is then: the list's own state is no longer kept.
    revision: Option<u64>,
    last_key: String,
}

impl Continue {
    fn token(&self) -> String {
        let revision = self.revision.map_or("-1".to_owned(), |revision| revision.to_string());
        URL_SAFE_NO_PAD.encode(format!("{revision} {}", self.last_key))
    }

    fn read(token: &str) -> Result<Self, ApiError> {
        let broken = || ApiError::bad_request("continue key is not valid: it must be what the previous page answered");
        let text =
            URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(broken)?;
        let (revision, key) = text.split_once(' ').ok_or_else(broken)?;
        let revision = match revision {
            "-1" => None,
            number => Some(number.parse().map_err(|_| broken())?),
        };
        Ok(Self { revision, last_key: key.to_owned() })
    }
}

/// A list or one page of it.
pub(crate) async fn list(api: &Api, call: &Call, form: Form) -> Result<Value, ApiError> {
    let filter = Filter::of(call)?;
    let options = ListOptions::read(call)?;
    let page = page(api, call, &filter, &options).await?;
    options.check_fresh(page.revision)?;
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(last_key) = page.last_key {
        metadata["continue"] = json!(Continue { revision: Some(page.revision), last_key }.token());
        if filter.is_open() {
            metadata["remainingItemCount"] = json!(page.remaining);
        }
    }
    let include = call.query.get("includeObject").unwrap_or("Metadata");
    let items = page.objects.into_iter().map(|mut object| {
        // Items of a list do not repeat their kind; Table rows and PartialObjectMetadata do.
        if form == Form::Object
            && let Some(map) = object.as_object_mut()
        {
            map.remove("kind");
            map.remove("apiVersion");
        }
        object
    });
    Ok(match form {
        Form::Object => json!({
            "kind": call.resource.list_kind, "apiVersion": call.resource.api_version(),
            "metadata": metadata, "items": items.collect::<Vec<_>>(),
        }),
        form => to_form(&call.resource, list_of(items.collect(), metadata), form, include, api.now()),
    })
}

struct Page {
    objects: Vec<Value>,
    revision: u64,
    /// Set when there is more.
    last_key: Option<String>,
    remaining: u64,
}

async fn page(api: &Api, call: &Call, filter: &Filter, options: &ListOptions) -> Result<Page, ApiError> {
    let prefix = call.resource.key(call.namespace.as_deref(), "");
    let start = options.continue_token.as_deref().map(Continue::read).transpose()?;
    let limit = options.limit;
    let mut at = match &start {
        Some(start) => start.revision,
        None => options.exact.then_some(options.revision),
    };
    let mut after = start.map(|start| start.last_key);
    if after.as_ref().is_some_and(|key| !key.starts_with(&prefix)) {
        return Err(ApiError::bad_request("continue key is not valid: it belongs to another list"));
    }
    let mut objects = Vec::new();
    loop {
        let chunk = if limit > 0 && filter.is_open() { (limit - objects.len()).min(CHUNK) } else { CHUNK };
        let range = api.store.range(&prefix, after.as_deref(), Some(chunk), at).await;
        let Range { entries, revision, remaining } =
            range.map_err(|error| list_error(call, options, after.as_deref(), error))?;
        let more = remaining > 0;
        at = Some(revision);
        let count = entries.len();
        let given: Vec<_> = entries.iter().collect();
        let decoded = from_entries(api, &call.resource, &given).await?;
        for (i, (entry, object)) in entries.iter().zip(decoded).enumerate() {
            after = Some(entry.key.to_string());
            if filter.matches(&object) {
                objects.push(object);
            }
            let full = limit > 0 && objects.len() == limit;
            if full && (more || i + 1 < count) {
                return Ok(Page { objects, revision, last_key: after, remaining: remaining + (count - i - 1) as u64 });
            }
        }
        if !more {
            return Ok(Page { objects, revision, last_key: None, remaining: 0 });
        }
    }
}

/// A page of a list that is too old to go on says what to do about it, and offers the rest as it is now.
fn list_error(call: &Call, options: &ListOptions, after: Option<&str>, error: StoreError) -> ApiError {
    match (error, after) {
        (StoreError::Compacted { .. }, Some(last_key)) => {
            let mut error = ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list - \
                 objects that were created, modified, or deleted between the time the first chunk was returned and now \
                 may show up in the list.",
            );
            let rest = Continue { revision: None, last_key: last_key.to_owned() };
            error.continue_token = Some(Box::new(ContinueToken(rest.token())));
            error
        }
        (StoreError::Compacted { .. }, None) => {
            ApiError::expired("The resourceVersion for the provided list is too old.")
        }
        (StoreError::Future { current }, _) => too_new(options.revision, current),
        (error, _) => store_error(call, error),
    }
}

/// Every chosen object, with the revision of the reading.
pub(crate) async fn select(api: &Api, call: &Call, filter: &Filter) -> Result<(Vec<Value>, u64), ApiError> {
    let page = page(api, call, filter, &ListOptions::default()).await?;
    Ok((page.objects, page.revision))
}
