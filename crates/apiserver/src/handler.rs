//! One request from its head to its answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use mainstay_model::status::ApiError;

use crate::api::Api;
use crate::auth::{self, User};
use crate::limits::BODY_BYTES_MAX;
use crate::reply::{self, Body, BodyError};
use crate::request::{self, Accepted, Call, Form, Target, Verb};
use crate::{discovery, http_proxy, openapi, proxy, rest, watch};

impl Api {
    /// Answers one request; every failure is a `Status`.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>, user: Option<User>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let answer = self.try_handle(request, user.as_ref()).await;
        answer.unwrap_or_else(|error| reply::error(&error))
    }

    async fn try_handle<B>(
        self: &Arc<Self>,
        mut request: Request<B>,
        user: Option<&User>,
    ) -> Result<Response<Body>, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let catalogue = self.registry.now();
        let mut call = match request::parse(request.method(), request.uri(), &catalogue)? {
            Target::Resource(call) => *call,
            Target::Path(path) => return self.path(&path, request.uri().query(), user, request.headers()).await,
        };
        auth::authorise(user, &call)?;
        call.user = Arc::new(user.cloned().unwrap_or_else(User::anonymous));
        if let Some("log" | "exec") = call.subresource.as_deref() {
            return proxy::forward(self, &call, &mut request).await;
        }
        if call.subresource.as_deref() == Some("proxy") {
            return http_proxy::forward(self, &call, request).await;
        }
        let permit = self.limits.enter(call.verb)?;
        let accepted = request::accept(request.headers(), &call)?;
        if call.verb == Verb::Watch {
            return watch::start(self, call, accepted, permit).await;
        }
        let (head, body) = request.into_parts();
        let body = read_body(body).await?;
        let mut response = self.resource(&call, &head.headers, body, accepted).await?;
        for text in call.warnings.take() {
            reply::warn(&mut response, &text);
        }
        Ok(response)
    }

    /// Verbs on resources whose answer is one JSON document.
    async fn resource(
        self: &Arc<Self>,
        call: &Call,
        headers: &HeaderMap,
        body: Bytes,
        Accepted { form, encoding }: Accepted,
    ) -> Result<Response<Body>, ApiError> {
        let media_type = media_type(headers);
        let (code, value) = match (call.verb, call.subresource.as_deref()) {
            (Verb::List, _) => (StatusCode::OK, rest::list(self, call, form).await?),
            (Verb::DeleteCollection, _) => {
                (StatusCode::OK, rest::delete_collection(self, call, media_type, &body).await?)
            }
            (Verb::Delete, _) => rest::delete(self, call, media_type, &body).await?,
            (Verb::Create, None) if call.resource.rules() == "Binding" => {
                (StatusCode::CREATED, rest::bind_named(self, call, media_type, &body).await?)
            }
            (Verb::Create, None) => rest::create(self, call, media_type, &body).await?,
            (_, Some("binding")) => (StatusCode::CREATED, rest::bind(self, call, media_type, &body).await?),
            (_, Some("eviction")) => rest::evict(self, call, media_type, &body).await?,
            (_, Some("scale")) => (StatusCode::OK, rest::scale(self, call, media_type, &body).await?),
            (Verb::Get, _) => (StatusCode::OK, rest::get(self, call).await?),
            (Verb::Update, _) => (StatusCode::OK, rest::update(self, call, media_type, &body).await?),
            (Verb::Patch, _) => (StatusCode::OK, rest::patch(self, call, media_type, &body).await?),
            _ => return Err(ApiError::method_not_allowed()),
        };
        let value = match form {
            // A list has its form already; a `Status` has only one.
            Form::Table | Form::Metadata if call.verb != Verb::List && value["kind"] != "Status" => {
                rest::shape_one(call, value, form, self.now())
            }
            _ => value,
        };
        Ok(reply::object(code, &value, encoding))
    }

    /// Everything that is not a resource: discovery, OpenAPI, health, version.
    async fn path(
        &self,
        path: &str,
        query: Option<&str>,
        user: Option<&User>,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        // Some clients end every path with a slash.
        let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
        if matches!(path, "/healthz" | "/livez" | "/readyz") {
            return self
                .health(path, request::Query::parse(query).get("verbose").is_some() || query == Some("verbose"))
                .await;
        }
        if path == "/version" {
            return Ok(reply::json(StatusCode::OK, &discovery::version()));
        }
        user.ok_or_else(ApiError::unauthorized)?;
        let value = match path {
            "/openapi/v3" => openapi::index(&self.registry.now()),
            path if path.starts_with("/openapi/v3/") => {
                openapi::group(&self.registry.now(), &path["/openapi/v3/".len()..])?
            }
            path => discovery::answer(path, headers, &self.registry.now(), &self.settings)?,
        };
        let mut response = reply::json(StatusCode::OK, &value);
        // Clients tell aggregated discovery from the plain one by the media type of the answer.
        if value["kind"] == "APIGroupDiscoveryList" {
            let media_type = HeaderValue::from_static(discovery::AGGREGATED);
            response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        }
        Ok(response)
    }

    /// Health is the store's health: a server that cannot read its state is not ready.
    async fn health(&self, path: &str, verbose: bool) -> Result<Response<Body>, ApiError> {
        let store = self.store.revision().await;
        if let Err(error) = store {
            return Err(ApiError::new(500, "InternalError", format!("{} check failed: store: {error}", &path[1..])));
        }
        let body =
            if verbose { format!("[+]ping ok\n[+]store ok\n{} check passed\n", &path[1..]) } else { "ok".to_owned() };
        Ok(reply::text(StatusCode::OK, body))
    }
}

/// The media type of the body, without parameters; JSON when the client does not say.
fn media_type(headers: &HeaderMap) -> &str {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    text.split(';').next().unwrap_or_default().trim()
}

async fn read_body<B>(body: B) -> Result<Bytes, ApiError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(BODY_BYTES_MAX)),
        Err(error) => Err(ApiError::bad_request(format!("reading the request body: {error}"))),
    }
}
