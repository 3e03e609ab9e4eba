//! One question to a webhook: POST of an AdmissionReview over HTTPS, with a deadline.
//!
//! A service is reached by its cluster address, as pods reach it. The certificate must be signed by the webhook's own
//! bundle or, without one, by an authority that this machine trusts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::api::Api;
use crate::guard;
use crate::limits::BODY_BYTES_MAX;
use crate::rest;

/// Bundles whose TLS settings are kept, for the sessions they can resume.
const BUNDLES_MAX: usize = 64;

/// Why a webhook gave no answer: one of admission, or one that converts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Configuration(String),
    #[error("service {0:?} not found")]
    NoService(String),
    #[error("service {0:?} has no address")]
    NoAddress(String),
    #[error("Post {url:?}: {source}")]
    Connect { url: String, source: std::io::Error },
    #[error("Post {url:?}: {reason}")]
    Exchange { url: String, reason: String },
    #[error("Post {url:?}: context deadline exceeded")]
    TooLate { url: String },
}

/// TLS settings by bundle.
#[derive(Default)]
pub(crate) struct Bundles(Mutex<HashMap<String, Arc<ClientConfig>>>);

impl Bundles {
    fn get(&self, bundle: &str) -> Result<Arc<ClientConfig>, CallError> {
        let wrong = |error: &dyn std::fmt::Display| {
            CallError::Configuration(format!("unable to load root certificates: {error}"))
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = known.get(bundle) {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore::empty();
        if bundle.is_empty() {
            let own = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(own.certs);
        } else {
            let pem = STANDARD.decode(bundle).map_err(|error| wrong(&error))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
            }
        }
        let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
        if known.len() >= BUNDLES_MAX {
            known.clear();
        }
        known.insert(bundle.to_owned(), config.clone());
        Ok(config)
    }
}

/// Where to go: the URL, and the host and port to connect to.
struct Destination {
    url: Uri,
    host: String,
    port: u16,
}

/// Asks; the answer is the whole AdmissionReview.
pub(crate) async fn ask(api: &Api, client: &Value, review: &Value, limit: Duration) -> Result<Value, CallError> {
    let destination = destination(api, client, limit).await?;
    let tls = api.bundles.get(client["caBundle"].as_str().unwrap_or_default())?;
    let url = destination.url.to_string();
    match tokio::time::timeout(limit, exchange(&destination, tls, review)).await {
        Ok(answer) => answer,
        Err(_) => Err(CallError::TooLate { url }),
    }
}

async fn destination(api: &Api, client: &Value, limit: Duration) -> Result<Destination, CallError> {
    let wrong = |what: &str| CallError::Configuration(format!("clientConfig: {what}"));
    let timeout = format!("timeout={}s", limit.as_secs());
    if let Some(given) = client["url"].as_str() {
        let mark = if given.contains('?') { '&' } else { '?' };
        let url: Uri = format!("{given}{mark}{timeout}").parse().map_err(|_| wrong("the url cannot be read"))?;
        if url.scheme_str() != Some("https") {
            return Err(wrong("the url must begin with https://"));
        }
        let host = url.host().ok_or_else(|| wrong("the url has no host"))?.trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(443);
        return Ok(Destination { url, host, port });
    }
    let service = &client["service"];
    let text = |field: &str| service[field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let failed = |error: mainstay_model::status::ApiError| CallError::Configuration(error.message);
    let found = rest::find(api, "Service", Some(namespace), name).await.map_err(failed)?;
    let found = found.ok_or_else(|| CallError::NoService(name.to_owned()))?;
    let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
    let url = format!("https://{name}.{namespace}.svc:{port}/{}?{timeout}", text("path").trim_start_matches('/'));
    let url = url.parse().map_err(|_| wrong("the service's path cannot be read"))?;
    let address = found["spec"]["externalName"].as_str().filter(|_| found["spec"]["type"] == "ExternalName");
    let address = address.or(found["spec"]["clusterIP"].as_str()).filter(|address| !matches!(*address, "" | "None"));
    let host = address.ok_or_else(|| CallError::NoAddress(name.to_owned()))?.to_owned();
    Ok(Destination { url, host, port })
}

async fn exchange(to: &Destination, tls: Arc<ClientConfig>, review: &Value) -> Result<Value, CallError> {
    let url = to.url.to_string();
    let refused = |source| CallError::Connect { url: url.clone(), source };
    let broken = |reason: &dyn std::fmt::Display| CallError::Exchange { url: url.clone(), reason: reason.to_string() };
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    // The certificate is for the name in the URL, whatever address that is.
    let name = to.url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name).map_err(|error| broken(&error))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(refused)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let carried = guard::spawn(connection);
    let authority = to.url.authority().map(ToString::to_string).unwrap_or_default();
    let path = to.url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| broken(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| broken(&error))?.to_bytes();
    carried.abort();
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body).chars().take(200).collect::<String>();
        return Err(broken(&format!("unexpected status {status}: {text}")));
    }
    serde_json::from_slice(&body).map_err(|error| broken(&error))
}
