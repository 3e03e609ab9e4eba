//! `/maintenance/*`: what only this server can do to its store, for administrators and the command line.
//!
//! | | |
//! |---|---|
//! | `GET /maintenance/snapshot` | the whole store as one file ([`mainstay_store::snapshot`]), below the encryption |
//! | `POST /maintenance/defragment` | gives freed disk space back |
//! | `GET /maintenance/encryption` | how the values are encrypted that the configuration is about |
//! | `POST /maintenance/encryption` | reads the configuration again and writes anew what it would write otherwise |
//!
//! Whoever may `get` or `post` the path by RBAC (`nonResourceURLs`) may: by default cluster administrators only. Whoever has a
//! snapshot has everything that is not encrypted, as with a copy of etcd.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::TryStreamExt as _;
use http::{Method, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use mainstay_model::status::ApiError;
use mainstay_store::{Encrypted, Keyring, Store, snapshot};
use serde_json::{Value, json};

use crate::api::Api;
use crate::reply::{self, Body, BodyError};

const PREFIX: &str = "/maintenance/";

/// What maintenance works on.
pub struct Maintenance {
    /// The store, below the encryption.
    pub store: Arc<dyn Store>,
    /// The encryption over it.
    pub encrypted: Arc<Encrypted>,
    /// Reads the configuration of the encryption, or says what is wrong with it.
    pub keyring: Box<dyn Fn() -> Result<Keyring, String> + Send + Sync>,
}

/// Whether a path is answered here.
pub(crate) fn is_path(path: &str) -> bool {
    path.starts_with(PREFIX)
}

/// Answers a call of maintenance.
///
/// # Errors
/// 404, 405; 500 when the store fails or the configuration is wrong.
pub(crate) async fn answer(api: &Api, method: &Method, path: &str) -> Result<Response<Body>, ApiError> {
    let maintenance = api.maintenance.get().ok_or_else(|| ApiError::unavailable("this server has no maintenance"))?;
    match (method, &path[PREFIX.len()..]) {
        (&Method::GET, "snapshot") => take_snapshot(maintenance).await,
        (&Method::POST, "defragment") => {
            let sizes = maintenance.store.defragment().await.map_err(failed)?;
            Ok(done(&json!({"beforeBytes": sizes.before_bytes, "afterBytes": sizes.after_bytes})))
        }
        (&Method::GET, "encryption") => survey(maintenance, None).await,
        (&Method::POST, "encryption") => {
            let keyring = (maintenance.keyring)().map_err(ApiError::internal)?;
            maintenance.encrypted.use_keyring(keyring);
            let rewritten = maintenance.encrypted.rewrite().await.map_err(failed)?;
            tracing::info!(rewritten, "values encrypted anew");
            survey(maintenance, Some(rewritten)).await
        }
        (_, "snapshot" | "defragment" | "encryption") => Err(ApiError::method_not_allowed()),
        _ => Err(ApiError::new(404, "NotFound", "the server could not find the requested resource")),
    }
}

#[allow(clippy::needless_pass_by_value)] // so that it can be named to `map_err`
fn failed(error: mainstay_store::Error) -> ApiError {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        text = format!("{text}: {source}");
    }
    ApiError::internal(text)
}

fn done(value: &Value) -> Response<Body> {
    reply::json(StatusCode::OK, value)
}

async fn take_snapshot(maintenance: &Maintenance) -> Result<Response<Body>, ApiError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let pieces = snapshot::save(Arc::clone(&maintenance.store), now).await.map_err(failed)?;
    // An error ends the answer early: what was received fails its own checksum.
    let frames = pieces.map_ok(Frame::data).map_err(|error| -> BodyError {
        tracing::error!(%error, "a snapshot could not be read to its end");
        Box::new(error)
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let media_type = header::HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

async fn survey(maintenance: &Maintenance, rewritten: Option<u64>) -> Result<Response<Body>, ApiError> {
    let survey = maintenance.encrypted.survey().await.map_err(failed)?;
    let mut answer = json!({"byKey": survey.by_key, "notEncrypted": survey.plain, "outdated": survey.outdated});
    if let Some(rewritten) = rewritten {
        answer["rewritten"] = json!(rewritten);
    }
    Ok(done(&answer))
}
