//! What is kept between runs, as Secrets: accounts with what was tried, and certificates.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{Attempts, Certificate, Entry};
use crate::api::Key;

/// The label of Secrets that are made here (Kubernetes, "Recommended Labels"), and its value.
pub(crate) const MANAGED: (&str, &str) = ("app.kubernetes.io/managed-by", "mainstay-gateway");
/// The annotation that says who gave a certificate.
pub(crate) const SERVER: &str = "mainstay.dev/acme-server";
/// Where an account's Secret has its credentials, the thumbprint of its key, and what was tried.
pub(crate) const ACCOUNT: &str = "account.json";
pub(crate) const THUMBPRINT: &str = "thumbprint";
pub(crate) const ATTEMPTS: &str = "attempts.json";

fn secret(key: &Key, kind: &str, server: &str, data: &BTreeMap<&str, &[u8]>) -> Value {
    let data: BTreeMap<&str, String> = data.iter().map(|(name, value)| (*name, STANDARD.encode(value))).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": key.namespace,
            "name": key.name,
            "labels": { MANAGED.0: MANAGED.1 },
            "annotations": { SERVER: server },
        },
        "type": kind,
        "data": data,
    })
}

/// The Secret of a certificate, as TLS is kept in Kubernetes.
pub(super) fn certificate_secret(entry: &Entry, chain: &str, private: &str) -> Value {
    let data = BTreeMap::from([("tls.crt", chain.as_bytes()), ("tls.key", private.as_bytes())]);
    secret(&entry.secret, "kubernetes.io/tls", &entry.issuer.server, &data)
}

/// The Secret of an account: its credentials and thumbprint if it is registered, and what was tried.
pub(super) fn account_secret(
    entry: &Entry,
    registered: Option<(&str, &str)>,
    attempts: &BTreeMap<String, Attempts>,
) -> Value {
    let attempts = serde_json::to_vec(attempts).unwrap_or_default();
    let mut data = BTreeMap::from([(ATTEMPTS, attempts.as_slice())]);
    if let Some((credentials, thumbprint)) = registered {
        data.insert(ACCOUNT, credentials.as_bytes());
        data.insert(THUMBPRINT, thumbprint.as_bytes());
    }
    secret(&entry.issuer.account, "Opaque", &entry.issuer.server, &data)
}

/// What matters of the first certificate of a chain; `None` if there is none that can be read.
pub(crate) fn certificate(pem: &[u8], server: &str) -> Option<Certificate> {
    let first = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
    let (_, parsed) = X509Certificate::from_der(&first).ok()?;
    let names = parsed.subject_alternative_name().ok()??.value.general_names.iter();
    let dns = names.filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None });
    Some(Certificate {
        names: dns.map(str::to_lowercase).collect(),
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
        server: server.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_certificate_is_read() {
        let made = rcgen::generate_simple_self_signed(vec!["A.example".to_owned(), "b.example".to_owned()]).unwrap();
        let read = certificate(made.cert.pem().as_bytes(), "s").unwrap();
        assert_eq!(read.names.iter().map(String::as_str).collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert!(read.not_before < read.not_after);
        assert_eq!(certificate(b"nothing", "s"), None);
    }
}
