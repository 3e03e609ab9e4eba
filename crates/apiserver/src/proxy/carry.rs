//! One request to somebody else and the answer, with or without a switch of protocols.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::guard;
use crate::limits::Seat;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mainstay_model::status::ApiError;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::reply::{self, Body, BodyError};

/// Time to reach somebody.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a short answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
/// Time until an answer begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Headers that are between two neighbours only (RFC 9110, section 7.6.1).
const HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Somebody who answers.
pub(super) struct Place {
    /// Address and port.
    pub(super) address: (IpAddr, u16),
    /// With TLS, these credentials.
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// Who it is, for messages: `the pod's node at 10.0.0.11`.
    pub(super) who: String,
}

impl Place {
    fn unreachable(&self, error: &dyn std::fmt::Display) -> ApiError {
        ApiError::unavailable(format!("{} does not answer: {error}", self.who))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ApiError> {
        let connect = async {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            Ok::<Box<dyn Stream>, std::io::Error>(match &self.tls {
                Some(tls) => {
                    let name = ServerName::from(self.address.0);
                    Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?)
                }
                None => Box::new(stream),
            })
        };
        match timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected.map_err(|error| self.unreachable(&error)),
            Err(elapsed) => Err(self.unreachable(&elapsed)),
        }
    }
}

/// A body that could not be read to its end. (A type of its own, because a boxed error cannot be boxed again in an
/// asynchronous function.)
#[derive(Debug, thiserror::Error)]
#[error("reading the body: {0}")]
pub(super) struct Broken(#[source] pub(super) BodyError);

/// A body whose error has a name.
pub(super) fn named(body: Body) -> UnsyncBoxBody<Bytes, Broken> {
    body.map_err(Broken).boxed_unsync()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Sends a request on and answers what comes back. `headers` are the caller's; `upgrade` is the caller's connection, should
/// both switch protocols. The permit is held until all has flowed.
///
/// # Errors
/// 503 when nobody answers, 504 when not in time.
pub(super) async fn exchange(
    place: &Place,
    mut outgoing: Request<Body>,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    permit: Seat,
) -> Result<Response<Body>, ApiError> {
    let switches = headers.contains_key(header::UPGRADE);
    copy_headers(headers, outgoing.headers_mut(), switches);
    if let Ok(host) = format!("{}:{}", place.address.0, place.address.1).try_into() {
        outgoing.headers_mut().insert(header::HOST, host);
    }
    let outgoing = outgoing.map(named);
    let stream = place.connect().await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| place.unreachable(&error))?;
    guard::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to somebody else ended");
        }
        drop(permit);
    });
    let answered = timeout(ANSWER_TIMEOUT, sender.send_request(outgoing)).await;
    let mut answer = answered
        .map_err(|_| ApiError::new(504, "Timeout", format!("{} did not answer in time", place.who)))?
        .map_err(|error| place.unreachable(&error))?;
    let mut response = Response::new(reply::full(Bytes::new()));
    *response.status_mut() = answer.status();
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        copy_headers(answer.headers(), response.headers_mut(), false);
        *response.body_mut() = answer.into_body().map_err(Into::into).boxed_unsync();
        return Ok(response);
    }
    copy_headers(answer.headers(), response.headers_mut(), true);
    let agent = hyper::upgrade::on(&mut answer);
    guard::spawn(async move {
        if let (Ok(client), Ok(agent)) = (upgrade.await, agent.await) {
            let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
            // Either side failing ends the session; there is nobody left to tell.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut agent).await;
        }
    });
    Ok(response)
}

/// The body of the answer to a GET.
///
/// # Errors
/// 503 when nobody answers, or something else than 200; 504 when not in time.
pub(super) async fn fetch(place: &Place, path: &str, bytes_max: usize) -> Result<Bytes, ApiError> {
    let stream = place.connect().await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| place.unreachable(&error))?;
    let driver = guard::spawn(connection);
    let request = Request::get(path).header(header::HOST, place.address.0.to_string());
    let request = request.body(named(reply::full(Bytes::new()))).map_err(ApiError::internal)?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| place.unreachable(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(place.unreachable(&answer.status()));
        }
        let body = Limited::new(answer.into_body(), bytes_max).collect().await;
        body.map(Collected::to_bytes).map_err(|error| place.unreachable(&error))
    };
    let result = timeout(FETCH_TIMEOUT, answered).await;
    driver.abort();
    result.map_err(|_| ApiError::new(504, "Timeout", format!("{} did not answer in time", place.who)))?
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap, switches: bool) {
    for (name, value) in from {
        let kept = switches && matches!(*name, header::CONNECTION | header::UPGRADE);
        // Whoever is asked next is not to get the caller's credentials.
        let dropped = HOP.contains(&name.as_str()) || matches!(*name, header::AUTHORIZATION | header::HOST);
        if kept || !dropped {
            to.append(name.clone(), value.clone());
        }
    }
}

/// A client that accepts every certificate: whom a pod shows itself as is the pod's business.
pub(super) fn unverified_client() -> rustls::ClientConfig {
    let accept = Arc::new(AcceptAll(rustls::crypto::ring::default_provider().signature_verification_algorithms));
    rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(accept).with_no_client_auth()
}

#[derive(Debug)]
struct AcceptAll(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    #[test]
    fn what_is_between_neighbours_stays_there() {
        let mut headers = HeaderMap::new();
        for name in ["connection", "upgrade", "authorization", "accept", "x-stream-protocol-version", "host"] {
            headers.insert(HeaderName::from_static(name), http::HeaderValue::from_static("x"));
        }
        let mut copied = HeaderMap::new();
        copy_headers(&headers, &mut copied, false);
        let mut names: Vec<_> = copied.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "x-stream-protocol-version"]);
        copy_headers(&headers, &mut copied, true);
        assert!(copied.contains_key("upgrade") && !copied.contains_key("authorization"));
    }
}
