//! Members ask each other directly: JSON over HTTP, signed both ways with the database's shared secret.
//!
//! A request carries a nonce and an HMAC-SHA256 over nonce and body; the answer carries one over the same nonce and its own body,
//! so it answers this request and no other, and comes from one who knows the secret. Nothing in it is secret; it is not encrypted.
//! `GET /readyz` needs no signature: 200 when the server can be used in its role.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::core::{MemberId, Record, Standing};

/// Longest body, in bytes.
const BODY_BYTES_MAX: usize = 16 << 10;
/// The headers.
const NONCE: &str = "x-mainstay-nonce";
const SIGNATURE: &str = "x-mainstay-signature";

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// How do you stand?
    Standing,
    /// Something has changed: look now instead of at the next turn. Nothing depends on it but time.
    Look,
    /// The same, with what the API has just acknowledged to the asker: nobody needs to read it before going on.
    Written(Box<Record>),
    /// Is this member, in this epoch, still the primary to you?
    #[serde(rename_all = "camelCase")]
    Confirm {
        /// Who asks.
        holder: MemberId,
        /// Its epoch.
        epoch: u64,
    },
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// So.
    Standing(Box<Standing>),
    /// Whether.
    Confirmed(bool),
    /// To [`Question::Look`] and [`Question::Written`].
    Looking,
}

/// A question that came in, and where its answer goes.
pub(crate) type Asked = (Question, oneshot::Sender<Answer>);

/// The shared secret.
#[derive(Clone)]
pub struct Secret(Rc<hmac::Key>);

impl Secret {
    /// From its bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Rc::new(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    fn sign(&self, kind: &str, nonce: &str, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{kind}\n{nonce}\n").as_bytes());
        context.update(body);
        base64::engine::general_purpose::STANDARD.encode(context.sign())
    }

    /// Compares in constant time: both sides are hashed once more.
    fn verify(&self, kind: &str, nonce: &str, body: &[u8], signature: &str) -> bool {
        let again = |text: &str| hmac::sign(&self.0, text.as_bytes());
        again(&self.sign(kind, nonce, body)).as_ref() == again(signature).as_ref()
    }
}

/// Asks a member. `None` when it does not answer in time, or not properly.
pub(crate) async fn ask(address: &str, secret: &Secret, question: &Question, limit: Duration) -> Option<Answer> {
    tokio::time::timeout(limit, ask_now(address, secret, question)).await.ok()?
}

async fn ask_now(address: &str, secret: &Secret, question: &Question) -> Option<Answer> {
    let stream = TcpStream::connect(address).await.ok()?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let work = tokio::spawn(connection);
    let body = serde_json::to_vec(question).ok()?;
    let mut random = [0; 16];
    SystemRandom::new().fill(&mut random).ok()?;
    let nonce = format!("{:032x}", u128::from_ne_bytes(random));
    let request = Request::post("/ask")
        .header("host", "steward")
        .header(NONCE, &nonce)
        .header(SIGNATURE, secret.sign("ask", &nonce, &body))
        .body(Full::new(Bytes::from(body)));
    let response = sender.send_request(request.ok()?).await.ok()?;
    let signature = response.headers().get(SIGNATURE)?.to_str().ok()?.to_owned();
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.ok()?.to_bytes();
    work.abort();
    secret.verify("answer", &nonce, &body, &signature).then(|| serde_json::from_slice(&body).ok()).flatten()
}

/// What `GET /readyz` says.
pub(crate) type Ready = Rc<std::cell::Cell<bool>>;

/// Answers members and probes, until dropped. Runs on the steward's thread.
pub(crate) async fn serve(listener: TcpListener, secret: Secret, ready: Ready, questions: mpsc::Sender<Asked>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: others may become free.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (secret, ready, questions) = (secret.clone(), ready.clone(), questions.clone());
        tokio::task::spawn_local(async move {
            let service = hyper::service::service_fn(|request| respond(request, &secret, &ready, &questions));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(Duration::from_secs(10), connection).await;
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    secret: &Secret,
    ready: &Ready,
    questions: &mpsc::Sender<Asked>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |code: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = code;
        response
    };
    if request.uri().path() == "/readyz" {
        let ok = ready.get();
        return Ok(plain(
            if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
            if ok { "ok" } else { "not ready" },
        ));
    }
    let header =
        |name: &str| request.headers().get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
    let (nonce, signature) = (header(NONCE), header(SIGNATURE));
    let Ok(body) = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await else {
        return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "too large"));
    };
    let body = body.to_bytes();
    if !secret.verify("ask", &nonce, &body, &signature) {
        return Ok(plain(StatusCode::UNAUTHORIZED, "not signed with this database's secret"));
    }
    let Ok(question) = serde_json::from_slice(&body) else {
        return Ok(plain(StatusCode::BAD_REQUEST, "not a question"));
    };
    let (reply, answer) = oneshot::channel();
    if questions.try_send((question, reply)).is_err() {
        return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "busy"));
    }
    let Ok(answer) = answer.await else { return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "ending")) };
    let body = serde_json::to_vec(&answer).unwrap_or_default();
    let response = Response::builder().header(SIGNATURE, secret.sign("answer", &nonce, &body));
    Ok(response.body(Full::new(Bytes::from(body))).unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_nonce_and_body_verify() {
        let (secret, other) = (Secret::new(b"one"), Secret::new(b"two"));
        let signature = secret.sign("ask", "1", b"body");
        assert!(secret.verify("ask", "1", b"body", &signature));
        assert!(!other.verify("ask", "1", b"body", &signature));
        assert!(!secret.verify("answer", "1", b"body", &signature));
        assert!(!secret.verify("ask", "2", b"body", &signature));
        assert!(!secret.verify("ask", "1", b"body.", &signature));
    }
}
