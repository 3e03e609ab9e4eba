//! Opening connections to endpoints.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::io::Io;
use crate::table::settings::{UpstreamSettings, UpstreamTls};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Refused, unreachable, no ports left.
    #[error("connecting to {0}: {1}")]
    Tcp(SocketAddr, #[source] io::Error),
    /// Not in time.
    #[error("connecting to {0}: no answer within {1:?}")]
    TimedOut(SocketAddr, Duration),
    /// The name in the policy is none.
    #[error("{0:?} is not a server name")]
    Name(String),
    /// The certificate, or anything else about TLS.
    #[error("TLS with {0}: {1}")]
    Tls(SocketAddr, #[source] io::Error),
    /// The endpoint does not speak HTTP/2.
    #[error("HTTP/2 with {0}: {1}")]
    Http2(SocketAddr, #[source] hyper::Error),
}

/// Opens a connection, with TLS if the upstream has it.
pub(crate) async fn connect(address: SocketAddr, settings: &UpstreamSettings) -> Result<Io, ConnectError> {
    let limit = settings.connect_timeout;
    let opening = async {
        let tcp = TcpStream::connect(address).await.map_err(|error| ConnectError::Tcp(address, error))?;
        // Requests are whole when they are written; waiting for more would only delay them.
        let _ = tcp.set_nodelay(true);
        match &settings.tls {
            None => Ok(Io::Plain(tcp)),
            Some(tls) => secure(address, tcp, tls).await,
        }
    };
    tokio::time::timeout(limit, opening).await.unwrap_or(Err(ConnectError::TimedOut(address, limit)))
}

async fn secure(address: SocketAddr, tcp: TcpStream, tls: &UpstreamTls) -> Result<Io, ConnectError> {
    let name = match &tls.hostname {
        Some(name) => ServerName::try_from(name.clone()).map_err(|_| ConnectError::Name(name.clone()))?,
        None => ServerName::IpAddress(address.ip().into()),
    };
    let stream = TlsConnector::from(tls.config.clone()).connect(name, tcp).await;
    stream.map(|it| Io::Tls(Box::new(it.into()))).map_err(|error| ConnectError::Tls(address, error))
}
