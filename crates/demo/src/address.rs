//! Where another service is: from `http://catalogue` to a socket address.
//!
//! # Flow
//! an IP address in the URL → as it is; a name → DNS → else the service environment variables
//! (`CATALOGUE_SERVICE_HOST` and `_PORT`, which every pod gets for the services that existed when it started) → else
//! an error that names both.
//!
//! Answers are kept for [`FRESH`]: a DNS server that does not answer would otherwise add [`LOOKUP_TIMEOUT`] to every
//! page.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long one lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(300);
/// How long an address found is used before it is looked up again.
const FRESH: Duration = Duration::from_secs(5);

/// Another service's address, as configured, with what it last resolved to.
#[derive(Debug)]
pub(crate) struct Address {
    host: String,
    /// None: 80 for a name found in DNS, the service's own port where the environment variables say it.
    port: Option<u16>,
    found: Mutex<Option<(SocketAddr, Instant)>>,
}

/// Why a service's address is unusable.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Only `http://host` and `http://host:port` are understood.
    #[error("{0:?} is not of the form http://host or http://host:port")]
    Form(String),
    /// Neither DNS nor the environment knows the name.
    #[error("{host:?} is neither in DNS nor in the environment ({host_variable}); does the Service exist?")]
    Unknown {
        /// The name looked up.
        host: String,
        /// The variable that would have told.
        host_variable: String,
    },
}

impl Address {
    /// Reads `http://host[:port][/]`.
    pub(crate) fn parse(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::Form(text.to_owned());
        let authority = text.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
            None => (authority, None),
        };
        if host.is_empty() || host.contains(['/', ':', '@']) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port, found: Mutex::new(None) })
    }

    /// The host as written, for the `Host` header.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The address to connect to.
    pub(crate) async fn resolve(&self) -> Result<SocketAddr, AddressError> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, self.port.unwrap_or(80)));
        }
        if let Some((address, at)) = *self.found()
            && at.elapsed() < FRESH
        {
            return Ok(address);
        }
        let address = match self.in_dns().await {
            Some(address) => address,
            None => self.in_environment(|name| std::env::var(name).ok())?,
        };
        *self.found() = Some((address, Instant::now()));
        Ok(address)
    }

    async fn in_dns(&self) -> Option<SocketAddr> {
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port.unwrap_or(80)));
        // IPv4 first: pods have no IPv6 address.
        let addresses: Vec<_> = tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await.ok()?.ok()?.collect();
        addresses.iter().find(|it| it.is_ipv4()).or(addresses.first()).copied()
    }

    /// The variables of the Service with the name's first label.
    /// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
    fn in_environment(&self, variable: impl Fn(&str) -> Option<String>) -> Result<SocketAddr, AddressError> {
        let service = self.host.split('.').next().unwrap_or_default().to_uppercase().replace('-', "_");
        let host_variable = format!("{service}_SERVICE_HOST");
        let ip = variable(&host_variable).and_then(|text| text.parse::<IpAddr>().ok());
        let told_port = || variable(&format!("{service}_SERVICE_PORT")).and_then(|text| text.parse().ok());
        match ip {
            Some(ip) => Ok(SocketAddr::new(ip, self.port.or_else(told_port).unwrap_or(80))),
            None => Err(AddressError::Unknown { host: self.host.clone(), host_variable }),
        }
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Option<(SocketAddr, Instant)>> {
        self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_plain_http_addresses_are_taken() {
        for good in ["http://catalogue", "http://catalogue/", "http://10.0.0.1:8080", "http://cart.shop.svc:81"] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        for bad in ["catalogue", "https://catalogue", "http://", "http://a/b", "http://a:port", "http://me@a"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_environment_knows_services_by_their_first_label() {
        let told = |name: &str| match name {
            "MY_CART_SERVICE_HOST" => Some("10.96.0.7".to_owned()),
            "MY_CART_SERVICE_PORT" => Some("8081".to_owned()),
            _ => None,
        };
        let resolve = |text| Address::parse(text).unwrap().in_environment(told);
        assert_eq!(resolve("http://my-cart.shop.svc").unwrap().to_string(), "10.96.0.7:8081");
        assert_eq!(resolve("http://my-cart:9").unwrap().to_string(), "10.96.0.7:9");
        let error = resolve("http://other").unwrap_err().to_string();
        assert!(error.contains("OTHER_SERVICE_HOST"), "{error}");
    }
}
