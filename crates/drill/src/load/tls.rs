//! TLS of the load: whom it trusts, the handshake, and a look at the certificate that is shown.
//!
//! The certificate is checked as a browser checks it: chain, names, dates. Deliberately absent: client certificates, HTTP/2.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::sample::Failure;

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not a host's name.
    #[error("{0:?} is no name that a certificate could be for")]
    Name(String),
    /// Not certificates.
    #[error("what is to be trusted is no PEM certificate: {0}")]
    Trust(String),
    /// The library.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
}

/// How a load speaks TLS.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tls({:?})", self.name)
    }
}

impl Tls {
    /// With a host (a port after it is left out), trusting PEM certificates; without any, those that this machine trusts.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn new(host: &str, trusted: Option<&[u8]>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        match trusted {
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| TlsError::Trust(error.to_string()))?;
                    roots.add(certificate).map_err(|error| TlsError::Trust(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(TlsError::Trust("there is none in it".to_owned()));
                }
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Setup)?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { config: Arc::new(config), name: name(host)? })
    }

    /// The handshake.
    pub(super) async fn over(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
        let shaken = TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), stream).await;
        shaken.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match inner {
                Some(rustls::Error::InvalidCertificate(_)) => Failure::Certificate,
                _ => Failure::Broken,
            }
        })
    }

    /// The certificate that the server at an address shows under this name, whatever it is worth; DER.
    pub(crate) async fn shown(&self, address: SocketAddr, patience: Duration) -> Result<Vec<u8>, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let any = Arc::new(AnyCertificate(provider));
        let config = builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth();
        let work = async {
            let stream = TcpStream::connect(address).await?;
            TlsConnector::from(Arc::new(config)).connect(self.name.clone(), stream).await
        };
        let stream = timeout(patience, work).await.map_err(|_| "no handshake in time".to_owned())?;
        let stream = stream.map_err(|error| error.to_string())?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        shown.map(|certificate| certificate.to_vec()).ok_or_else(|| "it shows no certificate".to_owned())
    }
}

fn name(host: &str) -> Result<ServerName<'static>, TlsError> {
    let bare = match host.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => host.split(':').next().unwrap_or_default().to_owned(),
    };
    ServerName::try_from(bare).map_err(|_| TlsError::Name(host.to_owned()))
}

/// For looking only: nothing is sent over such a connection.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_its_name_alone() {
        for (host, is) in
            [("shop.example.com:8443", "shop.example.com"), ("10.0.0.1:443", "10.0.0.1"), ("shop", "shop")]
        {
            assert_eq!(name(host).ok().map(|name| name.to_str().into_owned()).as_deref(), Some(is));
        }
        assert!(matches!(Tls::new("a b", None), Err(TlsError::Name(_))));
        assert!(matches!(Tls::new("shop", Some(b"nonsense")), Err(TlsError::Trust(_))));
    }
}
