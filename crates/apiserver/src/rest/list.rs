//! GET of a collection: selectors, pages, and the list's form.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mainstay_model::selector::{FieldSelector, LabelSelector};
use mainstay_model::status::{ApiError, ContinueToken};
use mainstay_store::{Entry, Error as StoreError, Range};
use serde_json::{Value, json};

use super::options::{ListOptions, too_new};
use super::shape::{list_of, to_form};
use super::text::{self, Shape};
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

/// A list or one page of it, in a form that is computed.
pub(crate) async fn list(api: &Api, call: &Call, form: Form) -> Result<Value, ApiError> {
    let filter = Filter::of(call)?;
    let options = ListOptions::read(call)?;
    let page = page(api, call, &filter, &options, Read::Values).await?;
    options.check_fresh(page.revision)?;
    let metadata = page.metadata(&filter);
    let include = call.query.get("includeObject").unwrap_or("Metadata");
    let items = page.items.into_iter().filter_map(Item::value).map(|mut object| {
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

/// What is made of an entry.
#[derive(Clone, Copy)]
pub(super) enum Read {
    /// The object.
    Values,
    /// Its text.
    Texts(Shape),
}

/// An object that was chosen.
pub(super) enum Item {
    Value(Value),
    Text(Vec<u8>),
}

impl Item {
    fn value(self) -> Option<Value> {
        match self {
            Self::Value(value) => Some(value),
            Self::Text(_) => None,
        }
    }

    /// The text, where that was read.
    pub(super) fn text(self) -> Option<Vec<u8>> {
        match self {
            Self::Value(_) => None,
            Self::Text(text) => Some(text),
        }
    }
}

/// A place in the walk through a collection: all of it is read at one revision, chunk by chunk.
pub(crate) struct Walk {
    prefix: String,
    /// The revision to read at; the newest while it is not known.
    at: Option<u64>,
    after: Option<String>,
}

impl Walk {
    /// The beginning, or where the token of the page before says.
    pub(crate) fn begin(call: &Call, options: &ListOptions) -> Result<Self, ApiError> {
        let prefix = call.resource.key(call.namespace.as_deref(), "");
        let start = options.continue_token.as_deref().map(Continue::read).transpose()?;
        let at = match &start {
            Some(start) => start.revision,
            None => options.exact.then_some(options.revision),
        };
        let after = start.map(|start| start.last_key);
        if after.as_ref().is_some_and(|key| !key.starts_with(&prefix)) {
            return Err(ApiError::bad_request("continue key is not valid: it belongs to another list"));
        }
        Ok(Self { prefix, at, after })
    }

    /// The next entries, at most `most` and at most [`CHUNK`] of them.
    pub(crate) async fn next(
        &mut self,
        api: &Api,
        call: &Call,
        options: &ListOptions,
        most: usize,
    ) -> Result<Range, ApiError> {
        let range = api.store.range(&self.prefix, self.after.as_deref(), Some(most.min(CHUNK)), self.at).await;
        let range = range.map_err(|error| list_error(call, options, self.after.as_deref(), error))?;
        self.at = Some(range.revision);
        if let Some(last) = range.entries.last() {
            self.after = Some(last.key.to_string());
        }
        Ok(range)
    }
}

pub(super) struct Page {
    pub(super) items: Vec<Item>,
    pub(super) revision: u64,
    /// Set when there is more.
    last_key: Option<String>,
    remaining: u64,
}

impl Page {
    /// The metadata of the list.
    pub(super) fn metadata(&self, filter: &Filter) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(last_key) = &self.last_key {
            let next = Continue { revision: Some(self.revision), last_key: last_key.clone() };
            metadata["continue"] = json!(next.token());
            if filter.is_open() {
                metadata["remainingItemCount"] = json!(self.remaining);
            }
        }
        metadata
    }
}

pub(super) async fn page(
    api: &Api,
    call: &Call,
    filter: &Filter,
    options: &ListOptions,
    read: Read,
) -> Result<Page, ApiError> {
    let limit = options.limit;
    let mut walk = Walk::begin(call, options)?;
    let mut items = Vec::new();
    loop {
        let most = if limit > 0 && filter.is_open() { limit - items.len() } else { CHUNK };
        let Range { entries, revision, remaining } = walk.next(api, call, options, most).await?;
        let (more, count) = (remaining > 0, entries.len());
        let chosen = chosen(api, call, filter, &entries, read).await?;
        for (i, (entry, item)) in entries.iter().zip(chosen).enumerate() {
            items.extend(item);
            let full = limit > 0 && items.len() == limit;
            if full && (more || i + 1 < count) {
                let remaining = remaining + (count - i - 1) as u64;
                return Ok(Page { items, revision, last_key: Some(entry.key.to_string()), remaining });
            }
        }
        if !more {
            return Ok(Page { items, revision, last_key: None, remaining: 0 });
        }
    }
}

/// For each entry its object, if the filter chooses it.
pub(super) async fn chosen(
    api: &Api,
    call: &Call,
    filter: &Filter,
    entries: &[Entry],
    read: Read,
) -> Result<Vec<Option<Item>>, ApiError> {
    if let Read::Texts(shape) = read {
        let text = |entry| text::item(&call.resource, filter, entry, shape).map(Item::Text);
        return Ok(entries.iter().map(text).collect());
    }
    let given: Vec<_> = entries.iter().collect();
    let decoded = from_entries(api, &call.resource, &given).await?;
    Ok(decoded.into_iter().map(|object| filter.matches(&object).then_some(Item::Value(object))).collect())
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
    let page = page(api, call, filter, &ListOptions::default(), Read::Values).await?;
    Ok((page.items.into_iter().filter_map(Item::value).collect(), page.revision))
}
