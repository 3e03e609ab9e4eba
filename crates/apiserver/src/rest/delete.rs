//! DELETE of one object and of a collection.
//!
//! Flow: preconditions → how long to wait (pods only) and who else must agree (finalizers) → either the object goes at
//! once, or it is marked with `deletionTimestamp` and goes when the last of them has let go ([`strategy::is_finished`]).
//!
//! Source: <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>,
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination>.

use bytes::Bytes;
use http::StatusCode;
use jiff::SignedDuration;
use mainstay_model::meta::{finalizers, format_time, is_being_deleted};
use mainstay_model::status::ApiError;
use mainstay_store::{Error as StoreError, Expect};
use serde_json::{Value, json};

use super::convert::{self, from_entry};
use super::list::{Filter, select};
use super::object::{meta, meta_mut, parse_body};
use super::options::ListOptions;
use super::{store_error, strategy};
use crate::admission::{self, Operation, Review};
use crate::api::Api;
use crate::custom;
use crate::decode;
use crate::request::{Call, Verb};

const TRIES: usize = 32;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// `DeleteOptions`, from the body or the query.
struct Options {
    grace_seconds: Option<i64>,
    propagation: Option<String>,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

impl Options {
    fn read(call: &Call, media_type: &str, body: &Bytes) -> Result<Self, ApiError> {
        let mut given = if body.is_empty() { json!({}) } else { parse_body(media_type, body)? };
        decode::check_as("v1", "DeleteOptions", &mut given)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let propagation =
            text(&given["propagationPolicy"]).or_else(|| call.query.get("propagationPolicy").map(str::to_owned));
        if let Some(other) = propagation.as_deref().filter(|p| !matches!(*p, "Background" | "Foreground" | "Orphan")) {
            return Err(ApiError::bad_request(format!(
                "propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
            )));
        }
        let grace_seconds = match given["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => call.query.number("gracePeriodSeconds")?,
        };
        let tries = given["dryRun"].as_array().map_or(&[][..], Vec::as_slice);
        if let Some(other) = tries.iter().find(|word| **word != "All") {
            let why = format!("dryRun: Unsupported value: {other}: supported values: \"All\"");
            return Err(ApiError::bad_request(why));
        }
        let dry_run = call.query.dry_run()? || !tries.is_empty();
        let (uid, revision) = (text(&given["preconditions"]["uid"]), text(&given["preconditions"]["resourceVersion"]));
        Ok(Self { grace_seconds, propagation, uid, revision, dry_run })
    }

    fn check(&self, call: &Call, object: &Value) -> Result<(), ApiError> {
        for (what, wanted, field) in [("UID", &self.uid, "uid"), ("ResourceVersion", &self.revision, "resourceVersion")]
        {
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != meta(object, field)) {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {}",
                    meta(object, field)
                );
                return Err(ApiError::conflict(&call.resource.group, &call.resource.plural, call.name(), &why));
            }
        }
        Ok(())
    }
}

/// Deletes one object. Answers a `Status` when it is gone and the object when it still has to finish.
pub(crate) async fn delete(
    api: &Api,
    call: &Call,
    media_type: &str,
    body: &Bytes,
) -> Result<(StatusCode, Value), ApiError> {
    let options = Options::read(call, media_type, body)?;
    let (object, gone) = delete_with(api, call, &options).await?;
    if !gone {
        return Ok((StatusCode::OK, object));
    }
    let details = json!({
        "name": call.name(), "group": call.resource.group, "kind": call.resource.plural, "uid": meta(&object, "uid"),
    });
    let mut status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    if call.resource.group.is_empty() {
        status["details"].as_object_mut().map(|details| details.remove("group"));
    }
    Ok((StatusCode::OK, status))
}

/// Deletes every object that the selectors choose and answers the list of them.
pub(crate) async fn delete_collection(
    api: &Api,
    call: &Call,
    media_type: &str,
    body: &Bytes,
) -> Result<Value, ApiError> {
    let options = Options::read(call, media_type, body)?;
    let filter = Filter::of(call)?;
    // Whoever means a part of the collection must not lose all of it to a slip of the pen.
    ListOptions::read(call)?;
    let (objects, revision) = select(api, call, &filter).await?;
    let mut items = Vec::new();
    for object in objects {
        let one = Call {
            verb: Verb::Delete,
            namespace: Some(meta(&object, "namespace").to_owned()).filter(|ns| !ns.is_empty()),
            name: Some(strategy::name_of(&object).to_owned()),
            ..call.clone()
        };
        match delete_with(api, &one, &options).await {
            Ok((object, _)) => items.push(object),
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(json!({
        "kind": call.resource.list_kind, "apiVersion": call.resource.api_version(),
        "metadata": {"resourceVersion": revision.to_string()}, "items": items,
    }))
}

/// One deletion; the flag says whether the object is gone now.
async fn delete_with(api: &Api, call: &Call, options: &Options) -> Result<(Value, bool), ApiError> {
    for _ in 0..TRIES {
        let (entry, _) = api.store.get(&call.key(), None).await.map_err(|error| store_error(call, error))?;
        let entry = entry.ok_or_else(|| call.not_found())?;
        let old = from_entry(api, &call.resource, &entry).await?;
        options.check(call, &old)?;
        let review = Review { call, operation: Operation::Delete, old: Some(&old), dry_run: options.dry_run };
        admission::validate(api, review, &Value::Null).await?;
        let new = mark(api, call, options, &old);
        let gone = strategy::is_finished(&call.resource, &new);
        if options.dry_run || (!gone && new == old) {
            return Ok((new, gone));
        }
        let expect = Expect::Revision(entry.mod_revision);
        let written = if gone {
            // The answer carries the deletion's revision, so that the caller's cache can order it.
            strategy::remove(api, &call.key(), expect).await.map(|deleted| {
                let mut object = old;
                meta_mut(&mut object).insert("resourceVersion".to_owned(), json!(deleted.revision.to_string()));
                object
            })
        } else {
            convert::put(api, &call.resource, &call.key(), new, expect).await?
        };
        match written {
            Ok(object) => return Ok((object, gone)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(store_error(call, error)),
        }
    }
    Err(ApiError::modified(&call.resource.group, &call.resource.plural, call.name()))
}

/// The object as it is while its deletion is under way.
fn mark(api: &Api, call: &Call, options: &Options, old: &Value) -> Value {
    let mut new = old.clone();
    let grace = grace_seconds(call, options, old);
    if !is_being_deleted(old) {
        let when = api.now() + SignedDuration::from_secs(grace);
        meta_mut(&mut new).insert("deletionTimestamp".to_owned(), json!(format_time(when)));
        meta_mut(&mut new).insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
        bump_generation(&mut new);
    } else if old["metadata"]["deletionGracePeriodSeconds"].as_i64().is_some_and(|before| grace < before) {
        // Asking again may only shorten the wait.
        let when = api.now() + SignedDuration::from_secs(grace);
        meta_mut(&mut new).insert("deletionTimestamp".to_owned(), json!(format_time(when)));
        meta_mut(&mut new).insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    }
    match call.resource.rules() {
        "Namespace" => new["status"]["phase"] = json!("Terminating"),
        custom::DEFINITION => custom::mark_for_deletion(&mut new, api.now()),
        _ => {}
    }
    if let Some(finalizer) = match options.propagation.as_deref() {
        Some("Foreground") => Some(FOREGROUND),
        Some("Orphan") => Some(ORPHAN),
        _ => None,
    } && !finalizers(&new).contains(&finalizer)
    {
        let mut all: Vec<String> = finalizers(&new).into_iter().map(str::to_owned).collect();
        all.push(finalizer.to_owned());
        meta_mut(&mut new).insert("finalizers".to_owned(), json!(all));
    }
    new
}

/// How long a pod may take to stop; everything else goes at once.
fn grace_seconds(call: &Call, options: &Options, old: &Value) -> i64 {
    let unbound = old["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let ended = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if call.resource.rules() != "Pod" || unbound || (ended && options.grace_seconds.is_none()) {
        return 0;
    }
    let own = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace_seconds.unwrap_or(own).max(0)
}

fn bump_generation(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        meta_mut(object).insert("generation".to_owned(), json!(generation + 1));
    }
}
