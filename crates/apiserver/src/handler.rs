//! One request from its head to its answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use mainstay_model::apply::manager_of_user_agent;
use mainstay_model::status::ApiError;
use serde_json::Value;

use crate::admission::{self, Operation, Review};
use crate::api::Api;
use crate::authn::{self, User};
use crate::authz::{self, Attributes};
use crate::limits::BODY_BYTES_MAX;
use crate::registry::Catalogue;
use crate::reply::{self, Body, BodyError};
use crate::request::{self, Accepted, Call, Form, Target, Verb};
use crate::{custom, discovery, maintenance, openapi, proxy, rest, usage, watch};

/// Paths that answer everybody.
const HEALTH: &[&str] = &["/healthz", "/livez", "/readyz"];
/// Subresources that open a stream.
const STREAMS: &[&str] = &["pods/attach", "pods/exec", "pods/portforward"];
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

impl Api {
    /// Answers one request; every failure is a `Status`.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>, user: Option<User>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let answer = self.try_handle(request, user).await;
        answer.unwrap_or_else(|error| reply::error(&error))
    }

    async fn try_handle<B>(
        self: &Arc<Self>,
        request: Request<B>,
        connection: Option<User>,
    ) -> Result<Response<Body>, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let user = self.admit_user(request.method(), request.uri(), request.headers(), connection).await?;
        let catalogue = match self.registry.now().await {
            Ok(catalogue) => catalogue,
            Err(_) if HEALTH.contains(&request.uri().path()) => Arc::new(Catalogue::built_in()),
            Err(error) => return Err(error),
        };
        let mut call = match request::parse(request.method(), request.uri(), &catalogue)? {
            Target::Resource(call) => *call,
            Target::Path(path) if maintenance::is_path(&path) => {
                return maintenance::answer(self, request.method(), &path).await;
            }
            Target::Path(path) => return self.path(&path, request.uri().query(), request.headers()).await,
        };
        call.user = Arc::new(user);
        let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        call.agent = manager_of_user_agent(agent.unwrap_or_default());
        if let Some(text) = call.resource.custom().and_then(|custom| custom.version.warning.as_deref()) {
            call.warnings.add(text);
        }
        if proxy::answers(call.subresource.as_deref()) {
            if call.subresource.as_deref() != Some("log") {
                admission::connect(self, &call, call.query.to_options(&call)).await?;
            }
            return proxy::forward(self, &call, request.map(reply::boxed)).await;
        }
        let permit = self.limits.enter(call.verb)?;
        let accepted = request::accept(request.headers(), &call)?;
        if call.verb == Verb::Watch {
            return watch::start(self, call, accepted, permit).await;
        }
        let (head, body) = request.into_parts();
        let body = read_body(body).await?;
        let answer = self.resource(&call, &head.headers, body, accepted).await;
        if call.resource.rules() == custom::DEFINITION && matches!(call.verb, Verb::Delete | Verb::DeleteCollection) {
            custom::clean_up(self).await?;
        }
        let mut response = answer.unwrap_or_else(|error| reply::error(&error));
        for text in call.warnings.take() {
            reply::warn(&mut response, &text);
        }
        Ok(response)
    }

    /// Who calls, or as whom, if he may do what the request asks for.
    async fn admit_user(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        connection: Option<User>,
    ) -> Result<User, ApiError> {
        let mut user = authn::authenticate(self, connection, headers).await?;
        if let Some(other) = authn::impersonate(self, &user, headers).await? {
            tracing::debug!(by = user.name, user = other.name, "impersonated");
            user = other;
        }
        // Whether the server lives must be told even when its roles cannot be read.
        if HEALTH.contains(&uri.path()) {
            return Ok(user);
        }
        let asked = Attributes::of(method, uri);
        authz::authorise(self, &user, &asked).await?;
        // Opening a stream by GET, as WebSocket clients must, takes the permission of POST, too.
        if asked.verb == "get" && STREAMS.contains(&asked.full_resource().as_str()) {
            authz::authorise(self, &user, &Attributes { verb: "create".to_owned(), ..asked }).await?;
        }
        Ok(user)
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
            _ if call.resource.group == usage::GROUP => (StatusCode::OK, usage::answer(self, call, form).await?),
            (Verb::List, _) => (StatusCode::OK, rest::list(self, call, form).await?),
            (Verb::DeleteCollection, _) => {
                (StatusCode::OK, rest::delete_collection(self, call, media_type, &body).await?)
            }
            (Verb::Delete, _) => rest::delete(self, call, media_type, &body).await?,
            (Verb::Create, None) if call.resource.rules() == "Binding" => {
                (StatusCode::CREATED, rest::bind_named(self, call, media_type, &body).await?)
            }
            (Verb::Create, None) if matches!(call.resource.group.as_str(), AUTHENTICATION | AUTHORIZATION) => {
                (StatusCode::CREATED, self.review(call, media_type, &body).await?)
            }
            (_, Some("token")) => {
                let request = rest::parse_body(media_type, &body)?;
                let review = Review { call, operation: Operation::Create, old: None, dry_run: false };
                admission::validate(self, review, &request).await?;
                (StatusCode::CREATED, authn::token_request(self, call, request).await?)
            }
            (Verb::Create, None) => rest::create(self, call, media_type, &body).await?,
            (_, Some("binding")) => (StatusCode::CREATED, rest::bind(self, call, media_type, &body).await?),
            (_, Some("eviction")) => rest::evict(self, call, media_type, &body).await?,
            (_, Some("scale")) => (StatusCode::OK, rest::scale(self, call, media_type, &body).await?),
            (Verb::Get, _) => (StatusCode::OK, rest::get(self, call).await?),
            (Verb::Update, _) => (StatusCode::OK, rest::update(self, call, media_type, &body).await?),
            (Verb::Patch, _) => rest::patch(self, call, media_type, &body).await?,
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

    /// Questions about identity and permission, which are answered and not stored.
    async fn review(&self, call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
        let mut review = rest::parse_body(media_type, body)?;
        review["kind"] = call.resource.kind.clone().into();
        review["apiVersion"] = call.resource.api_version().into();
        match call.resource.kind.as_str() {
            "TokenReview" => authn::token_review(self, review).await,
            "SelfSubjectReview" => Ok(authn::self_subject_review(self, call)),
            "SelfSubjectRulesReview" => authz::rules_review(self, call, review).await,
            _ => authz::access_review(self, call, review).await,
        }
    }

    /// Everything that is not a resource: discovery, OpenAPI, health, version.
    async fn path(&self, path: &str, query: Option<&str>, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
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
        if path.starts_with("/.well-known/") || path.starts_with("/openid/") {
            let (media_type, document) = authn::discovery_document(self, path)?;
            let mut response = reply::json(StatusCode::OK, &document);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
            return Ok(response);
        }
        if path.starts_with("/openapi/") {
            return openapi::answer(&*self.registry.now().await?, path, headers);
        }
        let value = discovery::answer(path, headers, &*self.registry.now().await?, &self.settings)?;
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
