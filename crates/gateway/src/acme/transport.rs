//! How an ACME server is asked: HTTP/1.1 over TLS, a connection for each request. Few are made, and far apart.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::ClientConfig;
use rustls::crypto::ring::default_provider;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::trusted;

/// Longest time for a request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A client that believes these authorities.
pub(super) struct Transport(TlsConnector);

impl Transport {
    /// With the authorities in this PEM, or those of the machine.
    ///
    /// # Errors
    /// There are none, in words.
    pub(super) fn new(roots: Option<&[u8]>) -> Result<Self, String> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let config = builder.with_root_certificates(trusted(roots)?).with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }
}

impl HttpClient for Transport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let connector = self.0.clone();
        Box::pin(async move {
            let asked = request.uri().clone();
            let asking = tokio::time::timeout(TIMEOUT, ask(connector, request));
            let timed_out = || AnyError::from(format!("no answer within {TIMEOUT:?}"));
            let answer = asking.await.unwrap_or_else(|_| Err(timed_out()));
            let answer = answer.map_err(|error| Error::Other(format!("{asked}: {error}").into()))?;
            Ok(BytesResponse::from(answer))
        })
    }
}

async fn ask(
    connector: TlsConnector,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<Response<Full<Bytes>>, AnyError> {
    let uri = request.uri().clone();
    if uri.scheme_str() != Some("https") {
        return Err("an ACME server is asked over https only".into());
    }
    let authority = uri.authority().ok_or("the URL has no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str())?);
    *request.uri_mut() = Uri::from(uri.path_and_query().cloned().ok_or("the URL has no path")?);
    let tcp = TcpStream::connect((host.as_str(), authority.port_u16().unwrap_or(443))).await?;
    let tls = connector.connect(ServerName::try_from(host)?, tcp).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    let answering = async move {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, Full::new(body)))
    };
    // The connection ends by itself once its only sender is gone.
    let (answer, _) = tokio::join!(answering, connection);
    answer
}
