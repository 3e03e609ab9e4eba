//! Watches: a stream of changes from a revision on, as JSON lines.
//!
//! Flow: the state at the start (as ADDED events, where asked for), then the store's events translated by the filter:
//! an object that starts to match is ADDED, one that stops to match is DELETED. Bookmarks tell an idle client the
//! current revision.
//!
//! Guarantees: no gap and no duplicate between the list at revision N and the watch from N. A client that reads too
//! slowly is cut off by the store's bounded buffer with a 410 event and lists again.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::Seat;
use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use mainstay_model::protobuf;
use mainstay_model::status::ApiError;
use mainstay_store::{Change, Entry, Event, WatchError, Watcher};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::api::Api;
use crate::reply::Body;
use crate::request::{Accepted, Call, Encoding, Form};
use crate::rest::text::Shape;
use crate::rest::{self, Filter, ListOptions, Walk, store_error, table_of, to_form};
use crate::seen;

/// How often an idle watch says where it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// The longest a watch lives; the client opens the next one.
const LONGEST: Duration = Duration::from_secs(3600);

struct Stream {
    api: Arc<Api>,
    call: Call,
    filter: Filter,
    accepted: Accepted,
    watcher: Watcher,
    /// What is left of the state at the start.
    state: Option<State>,
    /// Lines that are ready to go.
    ready: VecDeque<Bytes>,
    revision: u64,
    /// Whether the client wants to be told where the state ends and the changes begin.
    initial_events: bool,
    bookmarks: bool,
    ends: Instant,
    next_bookmark: Instant,
    over: bool,
    _permit: Seat,
}

/// The walk through the objects there are when a watch begins.
struct State {
    walk: Walk,
    options: ListOptions,
}

/// Opens a watch and answers its stream.
pub(crate) async fn start(
    api: &Arc<Api>,
    call: Call,
    accepted: Accepted,
    permit: Seat,
) -> Result<Response<Body>, ApiError> {
    let mut filter_call = call.clone();
    if let Some(name) = call.name.as_deref() {
        filter_call.query = crate::request::Query::parse(Some(&format!("fieldSelector=metadata.name={name}")));
    }
    let filter = Filter::of(&filter_call)?;
    let options = ListOptions::read(&call)?;
    let initial_events = options.initial_events == Some(true);
    let mut ready = VecDeque::new();
    let (mut from, mut state) = (options.revision, None);
    let with_state = from == 0 && options.initial_events != Some(false);
    if with_state || initial_events {
        let mut walk = Walk::begin(&call, &ListOptions::default())?;
        let list = ListOptions::default();
        let first = walk.next(api, &call, &list, usize::MAX).await?;
        options.check_fresh(first.revision)?;
        from = first.revision;
        ready = added(api, &call, &filter, accepted, &first.entries).await?;
        if first.remaining > 0 {
            state = Some(State { walk, options: list });
        } else if initial_events {
            ready.push_back(bookmark(&call, accepted.encoding, from, true));
        }
    }
    let prefix = call.resource.key(call.namespace.as_deref(), call.name.as_deref().unwrap_or_default());
    let watcher = api.store.watch(&prefix, from).await.map_err(|error| store_error(&call, error))?;
    let timeout =
        call.query.number("timeoutSeconds")?.map_or(LONGEST, |seconds| Duration::from_secs(seconds).min(LONGEST));
    let stream = Stream {
        api: api.clone(),
        bookmarks: call.query.flag("allowWatchBookmarks"),
        call,
        filter,
        accepted,
        watcher,
        state,
        initial_events,
        ready,
        revision: from,
        ends: Instant::now() + timeout,
        next_bookmark: Instant::now() + BOOKMARK_EVERY,
        over: false,
        _permit: permit,
    };
    let frames = stream::unfold(stream, |mut stream| async move {
        let line = stream.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), stream))
    });
    let body: Body = StreamBody::new(frames).map_err(|never| match never {}).boxed_unsync();
    let media_type = match accepted.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    Ok(response)
}

impl Stream {
    /// The next line, or `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            if let Some(state) = self.state.take() {
                self.go_on(state).await;
                continue;
            }
            tokio::select! {
                event = self.watcher.next() => match event? {
                    Ok(event) => self.translate(&event).await,
                    Err(error) => self.fail(&error),
                },
                () = sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    self.ready.push_back(bookmark(&self.call, self.accepted.encoding, self.revision, false));
                }
                () = sleep_until(self.ends) => return None,
            }
        }
    }

    async fn translate(&mut self, event: &Event) {
        self.revision = event.revision;
        // A watch of one name has that name as its prefix; longer names are not meant.
        if self.call.name.is_some() && **event.key() != *self.call.key() {
            return;
        }
        if let Some(shape) = Shape::of(&self.call.resource, self.accepted) {
            let line = self.shared(event, shape);
            self.ready.extend(line);
            return;
        }
        match self.seen(event).await {
            Ok(Some((kind, object))) => {
                self.ready.push_back(line(&self.api, &self.call, self.accepted, kind, object));
            }
            Ok(None) => {}
            Err(error) => self.end(&error),
        }
    }

    /// More of the state at the start.
    async fn go_on(&mut self, mut state: State) {
        let range = state.walk.next(&self.api, &self.call, &state.options, usize::MAX).await;
        let added = match &range {
            Ok(range) => added(&self.api, &self.call, &self.filter, self.accepted, &range.entries).await,
            Err(error) => Err(error.clone()),
        };
        match (range, added) {
            (Ok(range), Ok(lines)) => {
                self.ready = lines;
                if range.remaining > 0 {
                    self.state = Some(state);
                } else if self.initial_events {
                    self.ready.push_back(bookmark(&self.call, self.accepted.encoding, self.revision, true));
                }
            }
            (_, Err(error)) | (Err(error), _) => self.end(&error),
        }
    }

    /// The line of an event, which all watchers of the kind share.
    fn shared(&self, event: &Event, shape: Shape) -> Option<Bytes> {
        let resource = &self.call.resource;
        let entry = match &event.change {
            Change::Put { entry, .. } => entry,
            Change::Delete { previous } => previous,
        };
        let view = self.api.seen.view(resource, event.revision, entry.value.len());
        let (open, filter) = (self.filter.is_open(), &self.filter);
        let kind = match &event.change {
            Change::Put { entry, previous } => {
                let was =
                    previous.as_ref().is_some_and(|old| open || filter.matches(view.before(resource, &old.value)));
                let is = open || filter.matches(view.after(resource, &entry.value));
                kind(was, is)?
            }
            Change::Delete { previous } => {
                let was = open || filter.matches(view.before(resource, &previous.value));
                was.then_some("DELETED")?
            }
        };
        Some(view.line(kind, resource, &entry.value, shape))
    }

    /// What the client sees of an event, if anything.
    async fn seen(&mut self, event: &Event) -> Result<Option<(&'static str, Value)>, ApiError> {
        let resource = &self.call.resource;
        let chosen = |object: &Value| self.filter.matches(object);
        Ok(match &event.change {
            Change::Put { entry, previous } => {
                // What was there before matters only where it can have been filtered out.
                let read = previous.as_ref().filter(|_| !self.filter.is_open());
                let both: Vec<&Entry> = std::iter::once(entry).chain(read).collect();
                let mut objects = rest::from_entries(&self.api, resource, &both).await?.into_iter();
                let Some(object) = objects.next() else { return Ok(None) };
                let before = objects.next().map_or(previous.is_some(), |before| chosen(&before));
                kind(before && previous.is_some(), chosen(&object)).map(|kind| (kind, object))
            }
            Change::Delete { previous } => {
                let mut object = rest::from_entry(&self.api, resource, previous).await?;
                object["metadata"]["resourceVersion"] = json!(event.revision.to_string());
                chosen(&object).then_some(("DELETED", object))
            }
        })
    }

    fn fail(&mut self, error: &WatchError) {
        self.end(&ApiError::expired(format!("the watch cannot go on: {error}; list again")));
    }

    fn end(&mut self, error: &ApiError) {
        self.ready.push_back(encode(self.accepted.encoding, "ERROR", &error.to_status()));
        self.over = true;
    }
}

/// What a change is to a client that saw the object before, or not, and shall see it now, or not.
fn kind(was: bool, is: bool) -> Option<&'static str> {
    match (was, is) {
        (false, true) => Some("ADDED"),
        (true, true) => Some("MODIFIED"),
        (true, false) => Some("DELETED"),
        (false, false) => None,
    }
}

/// The lines of objects that are there when a watch begins.
async fn added(
    api: &Api,
    call: &Call,
    filter: &Filter,
    accepted: Accepted,
    entries: &[Entry],
) -> Result<VecDeque<Bytes>, ApiError> {
    let resource = &call.resource;
    if let Some(shape) = Shape::of(resource, accepted) {
        let chosen = entries.iter().filter(|entry| {
            filter.is_open() || filter.matches(&rest::decode(resource, &entry.value, entry.mod_revision))
        });
        return Ok(chosen
            .map(|entry| seen::line("ADDED", resource, &entry.value, entry.mod_revision, shape))
            .collect());
    }
    let given: Vec<_> = entries.iter().collect();
    let objects = rest::from_entries(api, resource, &given).await?.into_iter();
    Ok(objects
        .filter(|object| filter.matches(object))
        .map(|object| line(api, call, accepted, "ADDED", object))
        .collect())
}

fn line(api: &Api, call: &Call, Accepted { form, encoding }: Accepted, kind: &str, object: Value) -> Bytes {
    let include = call.query.get("includeObject").unwrap_or("Metadata");
    let object = match form {
        Form::Object => object,
        Form::Table => to_form(&call.resource, table_of(object), form, include, api.now()),
        Form::Metadata => rest::shape_one(call, object, form, api.now()),
    };
    encode(encoding, kind, &object)
}

fn bookmark(call: &Call, encoding: Encoding, revision: u64, initial_end: bool) -> Bytes {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let resource = &call.resource;
    encode(
        encoding,
        "BOOKMARK",
        &json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata}),
    )
}

fn encode(encoding: Encoding, kind: &str, object: &Value) -> Bytes {
    if encoding == Encoding::Protobuf
        && let Some(frame) = protobuf::watch_event(kind, object)
    {
        return Bytes::from(frame);
    }
    // Values always serialise: their keys are strings.
    let mut line = serde_json::to_vec(&json!({"type": kind, "object": object})).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}
