//! What is noted of a request while it is answered: for metrics, for the audit log and for the caller.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use mainstay_model::status::ApiError;

use crate::api::Api;
use crate::audit::{Stage, Trail};
use crate::metrics::Observed;
use crate::reply::{self, Body, BodyError};
use crate::request::{Call, Encoding, Verb};

/// Where a request came from; an extension of requests that came over the network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// One request and its answer.
pub(crate) struct Exchange {
    pub(crate) began: Instant,
    pub(crate) received: Timestamp,
    /// How the caller wants to hear of a failure.
    pub(crate) encoding: Encoding,
    /// The verb in the words of authorisation.
    pub(crate) verb: String,
    /// Set when the request is about a resource.
    pub(crate) call: Option<Call>,
    pub(crate) trail: Option<Trail>,
}

impl Exchange {
    /// At the moment when the head of the request was read.
    pub(crate) fn begin(received: Timestamp, encoding: Encoding) -> Self {
        Self { began: Instant::now(), received, encoding, verb: String::new(), call: None, trail: None }
    }

    /// Whether the answer may flow for long: a watch, or something that somebody else answers.
    fn is_long(&self) -> bool {
        self.call
            .as_ref()
            .is_some_and(|call| call.verb == Verb::Watch || crate::proxy::answers(call.subresource.as_deref()))
    }

    /// The answer with everything that goes with it; counts and writes down.
    pub(crate) fn finish(mut self, api: &Arc<Api>, answer: Result<Response<Body>, ApiError>) -> Response<Body> {
        let mut response = answer.unwrap_or_else(|error| {
            let response = reply::error(&error, self.encoding);
            if let Some(trail) = &mut self.trail {
                trail.refusal = Some(error);
            }
            response
        });
        let code = response.status().as_u16();
        let is_long = self.is_long() && code < 400;
        api.metrics.request(&Observed {
            call: self.call.as_ref(),
            verb: &self.verb,
            code,
            duration: self.began.elapsed(),
            is_long,
        });
        for text in self.call.iter().flat_map(|call| call.warnings.take()) {
            reply::warn(&mut response, &text);
        }
        let Some(mut trail) = self.trail else { return response };
        trail.annotations.extend(self.call.iter().flat_map(|call| call.notes.take()));
        if let Ok(id) = trail.id().parse() {
            response.headers_mut().insert("audit-id", id);
        }
        if !is_long {
            trail.write(Stage::ResponseComplete, Some(code), api.now());
            return response;
        }
        trail.write(Stage::ResponseStarted, Some(code), api.now());
        let end = End { trail, code, api: api.clone() };
        response.map(|body| Ended { body, _end: end }.boxed_unsync())
    }
}

/// Writes the last event of a long answer when it is dropped.
struct End {
    trail: Trail,
    code: u16,
    api: Arc<Api>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.trail.write(Stage::ResponseComplete, Some(self.code), self.api.now());
    }
}

/// A body whose end is written down.
struct Ended {
    body: Body,
    _end: End,
}

impl http_body::Body for Ended {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
