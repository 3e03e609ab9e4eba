//! A real webhook: an HTTPS server of the test.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio_rustls::TlsAcceptor;

/// A webhook that answers what `answer` makes of the request; it keeps the requests.
pub(crate) struct Hook {
    /// Where it is.
    pub(crate) url: String,
    /// The authority of its certificate, as `caBundle` has it.
    pub(crate) bundle: String,
    /// What it was asked, in order.
    pub(crate) requests: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    /// Starts one on a port of its own.
    pub(crate) async fn start(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let tls = rustls::ServerConfig::builder().with_no_client_auth();
        let tls = tls.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/hook", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer, acceptor) = (requests.clone(), Arc::new(answer), TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, answer, acceptor) = (kept.clone(), answer.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (kept, answer) = (kept.clone(), answer.clone());
                        async move {
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let mut review: Value = serde_json::from_slice(&body).unwrap();
                            let request = review["request"].take();
                            let mut response = answer(&request);
                            response["uid"] = request["uid"].clone();
                            kept.lock().unwrap().push(request);
                            review["response"] = response;
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(review.to_string()))))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { url, bundle: STANDARD.encode(made.cert.pem()), requests }
    }
}
