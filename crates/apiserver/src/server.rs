//! The listener: TCP → TLS → who calls → HTTP/1.1 or HTTP/2 → [`Api::handle`].

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::api::Api;
use crate::authn::User;
use crate::exchange::Peer;
use crate::guard::{self, GuardedTasks};
use crate::limits::{Connections, HEAD_BYTES_MAX, HEAD_TIMEOUT};

/// Where the server's own identity and the authority over its clients lie, in PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority that signs client certificates.
    pub client_authority: PathBuf,
}

/// Why serving could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A PEM file could not be read.
    #[error("cannot read {path}: {source}")]
    ReadPem {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate, key and authority do not go together.
    #[error("the server's certificate cannot be used: {0}")]
    Certificate(String),
}

impl TlsFiles {
    fn config(&self) -> Result<ServerConfig, ServeError> {
        let read = |path: &PathBuf| {
            let named = |source| ServeError::ReadPem { path: path.display().to_string(), source };
            CertificateDer::pem_file_iter(path).map_err(named)?.collect::<Result<Vec<_>, _>>().map_err(named)
        };
        let unusable = |error: &dyn std::fmt::Display| ServeError::Certificate(error.to_string());
        let mut authorities = RootCertStore::empty();
        for certificate in read(&self.client_authority)? {
            authorities.add(certificate).map_err(|error| unusable(&error))?;
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|source| ServeError::ReadPem { path: self.key.display().to_string(), source })?;
        // Who has no certificate may have a token, or asks for health only: `authn` and `authz` decide.
        let verifier = WebPkiClientVerifier::builder(Arc::new(authorities)).allow_unauthenticated().build();
        let verifier = verifier.map_err(|error| unusable(&error))?;
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(read(&self.certificate)?, key)
            .map_err(|error| unusable(&error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Serves the API on all `listeners` until the future is dropped.
///
/// # Errors
/// When the TLS files cannot be used.
pub async fn serve(api: Arc<Api>, listeners: Vec<TcpListener>, tls: &TlsFiles) -> Result<Infallible, ServeError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls.config()?));
    // What an earlier run has begun to delete.
    if let Err(error) = crate::custom::clean_up(&api).await {
        tracing::warn!(%error, "definitions that are being deleted wait for the next deletion");
    }
    let places = Arc::<Connections>::default();
    let loops =
        listeners.into_iter().map(|listener| Box::pin(accept(api.clone(), listener, acceptor.clone(), places.clone())));
    let (never, _, _) = futures::future::select_all(loops).await;
    match never {}
}

async fn accept(api: Arc<Api>, listener: TcpListener, acceptor: TlsAcceptor, places: Arc<Connections>) -> Infallible {
    loop {
        // Without a place new connections wait in the kernel's queue. There is always one some time.
        let Some(vacancy) = places.vacancy().await else { continue };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                // Who has too many is closed at once, before it costs a handshake.
                let Some(place) = places.take(vacancy, address) else { continue };
                let (api, acceptor) = (api.clone(), acceptor.clone());
                guard::spawn(async move {
                    connection(api, stream, acceptor, Peer(address)).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors: wait for some to be given back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(api: Arc<Api>, stream: TcpStream, acceptor: TlsAcceptor, peer: Peer) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await else { return };
    let user =
        stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(|der| User::from_certificate(der));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (api, user) = (api.clone(), user.clone());
        async move { Ok::<_, Infallible>(api.handle(request, user).await) }
    });
    let mut builder = auto::Builder::new(GuardedTasks);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).max_concurrent_streams(1000).max_header_list_size(HEAD_BYTES_MAX as u32);
    http2.keep_alive_interval(HEAD_TIMEOUT).keep_alive_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(error = %error, "connection ended");
    }
}
