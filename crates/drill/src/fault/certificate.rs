//! A certificate that has run out, in place of the one in a Secret (type `kubernetes.io/tls`).
//!
//! The new one is for the same names, valid until yesterday, signed by itself with a key of its own. It counts as made when the
//! server that the load asks shows it: servers that read Secrets through a volume learn of it after a minute or so, and those that
//! read it once only never, which is an error then.

use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::FaultError;
use super::api::{LOOK, insist, is_gone};
use super::breaker::ServedAt;

/// Entries of a Secret for TLS.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// How long a server may take to show what is in the Secret.
const SHOW_PATIENCE: Duration = Duration::from_secs(90);
/// How long one look may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// How many days ago the certificate became valid, and ran out.
const VALID_DAYS_AGO: (i64, i64) = (91, 1);

/// Certificate and key, both PEM.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Pair {
    /// `tls.crt`.
    certificate: ByteString,
    /// `tls.key`.
    key: ByteString,
}

/// What is in the Secret now.
pub(super) async fn read(client: &Client, namespace: &str, name: &str) -> Result<Pair, FaultError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = insist(&format!("get secret {namespace}/{name}"), async || secrets.get(name).await).await?;
    let mut data = secret.data.unwrap_or_default();
    match (data.remove(CERTIFICATE), data.remove(KEY)) {
        (Some(certificate), Some(key)) => Ok(Pair { certificate, key }),
        _ => Err(unusable(namespace, name, format!("it has no {CERTIFICATE} and {KEY}; name a Secret for TLS"))),
    }
}

/// Puts a pair into the Secret; one that is gone needs none.
pub(super) async fn put(client: &Client, namespace: &str, name: &str, pair: &Pair) -> Result<(), FaultError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(json!({"data": {CERTIFICATE: pair.certificate, KEY: pair.key}}));
    let by = PatchParams { field_manager: Some("mainstay-drill".to_owned()), ..PatchParams::default() };
    let ask = async || match secrets.patch(name, &by, &patch).await {
        Err(error) if is_gone(&error) => Ok(()),
        other => other.map(drop),
    };
    insist(&format!("change secret {namespace}/{name}"), ask).await
}

/// A pair for the same names that ran out yesterday, and its certificate in DER.
///
/// # Errors
/// When there is no certificate in the old one.
pub(super) fn expired(
    old: &Pair,
    now: jiff::Timestamp,
    namespace: &str,
    name: &str,
) -> Result<(Pair, Vec<u8>), FaultError> {
    let wrong = |reason: String| unusable(namespace, name, reason);
    let der = CertificateDer::from_pem_slice(&old.certificate.0).map_err(|error| wrong(error.to_string()))?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| wrong(error.to_string()))?;
    let mut parameters = CertificateParams::default();
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|names| &names.value.general_names);
    parameters.subject_alt_names = names.filter_map(alternative_name).collect();
    if let Some(common) = certificate.subject().iter_common_name().next().and_then(|common| common.as_str().ok()) {
        parameters.distinguished_name.push(DnType::CommonName, common);
    }
    let day = |ago: i64| {
        let date = now.to_zoned(jiff::tz::TimeZone::UTC).date().saturating_sub(jiff::Span::new().days(ago));
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    parameters.not_before = day(VALID_DAYS_AGO.0);
    parameters.not_after = day(VALID_DAYS_AGO.1);
    let key = KeyPair::generate().map_err(|error| wrong(error.to_string()))?;
    let made = parameters.self_signed(&key).map_err(|error| wrong(error.to_string()))?;
    let bytes = |text: String| ByteString(text.into_bytes());
    Ok((Pair { certificate: bytes(made.pem()), key: bytes(key.serialize_pem()) }, made.der().to_vec()))
}

fn alternative_name(name: &GeneralName<'_>) -> Option<SanType> {
    match name {
        GeneralName::DNSName(name) => (*name).try_into().ok().map(SanType::DnsName),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| SanType::IpAddress(bytes.into())),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| SanType::IpAddress(bytes.into())),
        },
        _ => None,
    }
}

/// Waits until the server shows a certificate; answers with what shows it.
pub(super) async fn shows(place: Option<&ServedAt>, der: &[u8]) -> Result<String, FaultError> {
    let Some((address, tls)) = place else {
        let reason = "nothing asks over TLS, so nobody would see it".to_owned();
        return Err(FaultError::Target { target: "certificate-expiry".to_owned(), reason });
    };
    let since = Instant::now();
    loop {
        let seen = match tls.shown(*address, LOOK_PATIENCE).await {
            Ok(shown) if shown == der => return Ok(format!("{address} shows a certificate that ran out yesterday")),
            Ok(_) => format!("{address} still shows another certificate"),
            Err(reason) => format!("{address}: {reason}"),
        };
        if since.elapsed() > SHOW_PATIENCE {
            let seconds = SHOW_PATIENCE.as_secs();
            return Err(FaultError::NoEffect { fault: "the certificate".to_owned(), seconds, seen });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn unusable(namespace: &str, name: &str, reason: String) -> FaultError {
    FaultError::Target { target: format!("secret/{namespace}/{name}"), reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_ran_out_is_for_the_same_names() {
        let names = vec!["shop.example.com".to_owned(), "10.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let old = Pair {
            certificate: ByteString(made.cert.pem().into_bytes()),
            key: ByteString(made.signing_key.serialize_pem().into_bytes()),
        };
        let now = "2026-03-01T12:00:00Z".parse().unwrap();
        let (new, der) = expired(&old, now, "shop", "tls").unwrap();
        assert_ne!(new, old);
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(certificate.validity().not_after.timestamp(), now.as_second() - 36 * 3600);
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names[0], GeneralName::DNSName("shop.example.com"));
        assert_eq!(names.value.general_names[1], GeneralName::IPAddress(&[10, 0, 0, 1]));
        let nonsense = Pair { certificate: ByteString(b"nonsense".to_vec()), ..old };
        assert!(expired(&nonsense, now, "shop", "tls").is_err());
    }
}
