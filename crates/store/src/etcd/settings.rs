//! Which etcd, and how to speak with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::channel::Endpoint;
use crate::{Error, Result};

/// Where keys lie unless told otherwise.
const ROOT: &str = "/mainstay";
/// Leaves room for key and envelope below etcd's default limit of 1.5 MiB for a request.
const VALUE_BYTES_MAX: usize = (3 << 19) - 4096;

/// Where the certificates for etcd lie, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority that signed the servers' certificates.
    pub authority: PathBuf,
    /// Our certificate and its key, where etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Which etcd, and the limits of an [`EtcdStore`](super::EtcdStore).
#[derive(Clone, Debug)]
pub struct EtcdSettings {
    /// Addresses such as `10.0.0.1:2379`, of members of one cluster.
    pub addresses: Vec<String>,
    /// What all keys begin with, such as `/mainstay`.
    pub root: String,
    /// How to speak TLS; without it connections are not encrypted.
    pub tls: Option<TlsFiles>,
    /// The largest value, in bytes.
    pub value_bytes_max: usize,
    /// How many events a watcher may be behind before its watch is ended.
    pub watch_buffer_max: usize,
    /// How long past revisions are kept; zero leaves compaction to somebody else.
    pub keep_for: Duration,
    /// How many past revisions are kept, if that is less.
    pub keep_revisions: u64,
}

impl EtcdSettings {
    /// Reads `etcd://HOST:PORT[,HOST:PORT…][/ROOT]`.
    ///
    /// Errors: [`Error::Settings`].
    pub fn parse(url: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::Settings(format!(
                "{url:?} is not the address of an etcd: {why}; write etcd://10.0.0.1:2379,10.0.0.2:2379"
            ))
        };
        let rest = url.strip_prefix("etcd://").ok_or_else(|| wrong("it does not begin with etcd://"))?;
        let (hosts, root) =
            rest.split_once('/').map_or((rest, ROOT.to_owned()), |(hosts, root)| (hosts, format!("/{root}")));
        let addresses: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        for address in &addresses {
            let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("a port is missing"))?;
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(wrong(&format!("{address:?} is not HOST:PORT")));
            }
        }
        let root = root.trim_end_matches('/').to_owned();
        if root.is_empty() {
            return Err(wrong("the root is empty"));
        }
        Ok(Self {
            addresses,
            root,
            tls: None,
            value_bytes_max: VALUE_BYTES_MAX,
            watch_buffer_max: 4096,
            keep_for: Duration::from_secs(600),
            keep_revisions: 100_000,
        })
    }

    pub(super) fn endpoints(&self) -> Result<Vec<Endpoint>> {
        if self.addresses.is_empty() {
            return Err(Error::Settings("no address of an etcd is given".to_owned()));
        }
        Ok(self.addresses.iter().map(|authority| Endpoint { authority: authority.clone() }).collect())
    }

    pub(super) fn tls(&self) -> Result<Option<Arc<rustls::ClientConfig>>> {
        let Some(files) = &self.tls else { return Ok(None) };
        let failed = |path: &Path, error: &dyn std::fmt::Display| {
            Error::Settings(format!("cannot use {}: {error}", path.display()))
        };
        let certificates = |path: &Path| {
            let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(path, &error))?;
            read.collect::<std::result::Result<Vec<_>, _>>().map_err(|error| failed(path, &error))
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(&files.authority)? {
            roots.add(certificate).map_err(|error| failed(&files.authority, &error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| failed(&files.authority, &error))?.with_root_certificates(roots);
        let mut config = match &files.identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
                let own = certificates(certificate)?;
                config.with_client_auth_cert(own, secret).map_err(|error| failed(certificate, &error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_read() {
        let settings = EtcdSettings::parse("etcd://10.0.0.1:2379,[::1]:2379").unwrap();
        assert_eq!((settings.addresses.len(), &*settings.root), (2, "/mainstay"));
        assert_eq!(EtcdSettings::parse("etcd://a:1/one/two/").unwrap().root, "/one/two");
        for wrong in ["http://a:1", "etcd://a", "etcd://a:b", "etcd://:1", "etcd://a:1,", "etcd://a:1/"] {
            let said = EtcdSettings::parse(wrong).unwrap_err().to_string();
            assert!(said.contains("etcd://10.0.0.1"), "{said}");
        }
    }
}
