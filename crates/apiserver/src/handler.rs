//! One request from its head to its answer.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use mainstay_model::apply::manager_of_user_agent;
use mainstay_model::status::ApiError;
use serde_json::Value;

use crate::admission::{self, Operation, Review};
use crate::api::Api;
use crate::audit::{Arrival, Level, Trail};
use crate::authn::{self, User};
use crate::authz::{self, Attributes};
use crate::exchange::{Exchange, Peer};
use crate::guard::guarded;
use crate::registry::Catalogue;
use crate::reply::{self, Body, BodyError};
use crate::request::{self, Call, Form, Target, Verb};
use crate::{computed, custom, decode, discovery, health, maintenance, metrics, openapi, proxy, rest, usage, watch};

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
        let mut exchange = Exchange::begin(self.now(), request::status_encoding(request.headers()));
        let answer = guarded(self.try_handle(request, user, &mut exchange)).await.unwrap_or_else(|panicked| {
            tracing::error!(%panicked, "a request could not be answered");
            Err(ApiError::internal(panicked))
        });
        exchange.finish(self, answer)
    }

    async fn try_handle<B>(
        self: &Arc<Self>,
        request: Request<B>,
        connection: Option<User>,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        let (head, body) = request.into_parts();
        let user = self.admit_user(&head, peer, connection, exchange).await?;
        let catalogue = match self.registry.now().await {
            Ok(catalogue) => catalogue,
            Err(_) if HEALTH.contains(&head.uri.path()) => Arc::new(Catalogue::built_in()),
            Err(error) => return Err(error),
        };
        let mut call = match request::parse(&head.method, &head.uri, &catalogue)? {
            Target::Resource(call) => *call,
            Target::Path(path) if maintenance::is_path(&path) => {
                return maintenance::answer(self, &head.method, &path).await;
            }
            Target::Path(path) => return self.path(&path, &head.uri, &head.headers).await,
        };
        call.user = Arc::new(user);
        let agent = head.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        call.agent = manager_of_user_agent(agent.unwrap_or_default());
        if let Some(text) = call.resource.custom().and_then(|custom| custom.version.warning.as_deref()) {
            call.warnings.add(text);
        }
        let call = exchange.call.insert(call).clone();
        if proxy::answers(call.subresource.as_deref()) {
            if call.subresource.as_deref() != Some("log") {
                admission::connect(self, &call, call.query.to_options(&call)).await?;
            }
            return proxy::forward(self, &call, Request::from_parts(head, reply::boxed(body))).await;
        }
        let accepted = request::accept(&head.headers, &call)?;
        let body = self.limits.read_body(body, &call.user).await?;
        let seat = self.limits.enter(call.verb, &call.user).await?;
        if call.verb == Verb::Watch {
            return watch::start(self, call, accepted, seat).await;
        }
        let media_type = media_type(&head.headers);
        if let Some(trail) = exchange.trail.as_mut().filter(|trail| trail.level() >= Level::Request) {
            // A body that cannot be read is refused in a moment; then there is nothing to write down.
            trail.request_object =
                serde_json::from_slice(&body).ok().or_else(|| rest::parse_body(media_type, &body).ok());
        }
        let is_recorded = exchange.trail.as_ref().is_some_and(|trail| trail.level() >= Level::RequestResponse);
        let shape = rest::text::Shape::of(&call.resource, accepted);
        if let Some(shape) = shape.filter(|_| call.verb == Verb::List && is_stored(&call) && !is_recorded) {
            return rest::text::list(self, &call, shape, seat).await;
        }
        let answer = self.resource(&call, media_type, body, accepted.form).await;
        if call.resource.rules() == custom::DEFINITION && matches!(call.verb, Verb::Delete | Verb::DeleteCollection) {
            custom::clean_up(self).await?;
        }
        let (code, value) = answer?;
        if let Some(trail) = exchange.trail.as_mut().filter(|trail| trail.level() >= Level::RequestResponse) {
            trail.response_object = Some(value.clone());
        }
        Ok(reply::object(code, &value, accepted.encoding))
    }

    /// Who calls, or as whom, if he may do what the request asks for; begins the trail of the audit log.
    async fn admit_user(
        &self,
        head: &Parts,
        address: Option<IpAddr>,
        connection: Option<User>,
        exchange: &mut Exchange,
    ) -> Result<User, ApiError> {
        let (method, uri, headers) = (&head.method, &head.uri, &head.headers);
        let asked = Attributes::of(method, uri);
        exchange.verb.clone_from(&asked.verb);
        let arrival = Arrival { uri, headers, address, received: exchange.received };
        let begin = |user: &User, by: Option<&User>| {
            self.settings.audit.as_ref().and_then(|audit| Trail::begin(audit, &arrival, user, by, &asked))
        };
        let caller = authn::authenticate(self, connection, headers).await.inspect_err(|_| {
            exchange.trail = begin(&User::default(), None);
        })?;
        let other = authn::impersonate(self, &caller, headers).await.inspect_err(|_| {
            exchange.trail = begin(&caller, None);
        })?;
        let (user, by) = match other {
            Some(other) => (other, Some(caller)),
            None => (caller, None),
        };
        exchange.trail = begin(&user, by.as_ref());
        // Whether the server lives must be told even when its roles cannot be read.
        if HEALTH.contains(&uri.path()) {
            return Ok(user);
        }
        let reason = authz::authorise(self, &user, &asked).await?;
        // Opening a stream by GET, as WebSocket clients must, takes the permission of POST, too.
        if asked.verb == "get" && STREAMS.contains(&asked.full_resource().as_str()) {
            authz::authorise(self, &user, &Attributes { verb: "create".to_owned(), ..asked.clone() }).await?;
        }
        if let Some(trail) = &mut exchange.trail {
            trail.allowed(reason);
        }
        Ok(user)
    }

    /// Verbs on resources whose answer is one JSON document.
    async fn resource(
        self: &Arc<Self>,
        call: &Call,
        media_type: &str,
        body: Bytes,
        form: Form,
    ) -> Result<(StatusCode, Value), ApiError> {
        let (code, value) = match (call.verb, call.subresource.as_deref()) {
            _ if call.resource.group == usage::GROUP => (StatusCode::OK, usage::answer(self, call, form).await?),
            _ if computed::answers(&call.resource) => (StatusCode::OK, computed::answer(self, call, form).await?),
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
                let mut request = rest::parse_body(media_type, &body)?;
                decode::check_subresource(call, &mut request)?;
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
        Ok((code, value))
    }

    /// Questions about identity and permission, which are answered and not stored.
    async fn review(&self, call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
        let mut review = rest::parse_body(media_type, body)?;
        decode::check_as(&call.resource.api_version(), &call.resource.kind, &mut review)?;
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
    async fn path(&self, path: &str, uri: &Uri, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
        if let Some(health) = health::answer(self, uri).await? {
            return Ok(health);
        }
        // Some clients end every path with a slash.
        let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
        if path == "/metrics" {
            let mut response = reply::text(StatusCode::OK, metrics::text(self).await);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::MEDIA_TYPE));
            return Ok(response);
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
            return openapi::answer(&*self.registry.now().await?, path, uri.query(), headers);
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
}

/// Whether objects of this kind lie in the store; others are computed when somebody asks.
fn is_stored(call: &Call) -> bool {
    call.resource.group != usage::GROUP && !computed::answers(&call.resource)
}

/// The media type of the body, without parameters; JSON when the client does not say.
fn media_type(headers: &HeaderMap) -> &str {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    text.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body::Frame;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::testing::{World, admin};

    /// A body that nobody can read.
    struct Broken;

    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            panic!("a mistake in a handler")
        }
    }

    #[tokio::test]
    async fn a_panic_is_the_answer_of_its_request_only() {
        let world = World::new().await;
        let request = Request::post("/api/v1/namespaces/default/configmaps").body(Broken).unwrap();
        let response = world.api.handle(request, admin()).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let status: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!(status["reason"], "InternalError");
        assert_eq!(status["message"], "Internal error occurred: a panic: a mistake in a handler");
        world.post("/api/v1/namespaces/default/configmaps", serde_json::json!({"metadata": {"name": "after"}})).await;
    }
}
