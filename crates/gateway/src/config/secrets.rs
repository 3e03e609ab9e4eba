//! Certificates and keys: from Secrets to TLS configurations.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::{Ticketer, default_provider, sign};
use rustls::crypto::verify_tls12_signature;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::compile::Work;
use super::objects::Held;
use super::status::Condition;
use super::upstreams::{Found, grant_exists};
use super::{Severity, acme};
use crate::api::core::{BackendTls, BackendTlsPolicySpec, IngressSpec};
use crate::api::gateway::{GatewaySpec, Listener};
use crate::api::route::ObjectRef;
use crate::api::{GATEWAY_GROUP, Key};
use crate::table::settings::{Protocol, UpstreamTls};

/// TLS configurations by all that they are made of. A configuration that is read again with the same certificates has the same
/// TLS configurations: sessions can be resumed and connections to endpoints kept over reloads, and no key is parsed twice.
#[derive(Debug, Default)]
pub(crate) struct TlsMemo {
    servers: Remembered<Arc<ServerConfig>>,
    clients: Remembered<Arc<UpstreamTls>>,
}

/// Each with whether it was asked for since the last sweep.
type Remembered<T> = RefCell<HashMap<Vec<u8>, (T, bool)>>;

impl TlsMemo {
    /// Forgets what was not asked for since the last time.
    pub(crate) fn sweep(&self) {
        self.servers.borrow_mut().retain(|_, (_, used)| std::mem::take(used));
        self.clients.borrow_mut().retain(|_, (_, used)| std::mem::take(used));
    }
}

/// What is known under a key, or else made.
fn remembered<T: Clone, E>(memo: &Remembered<T>, key: Vec<u8>, make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    if let Some((known, used)) = memo.borrow_mut().get_mut(&key) {
        *used = true;
        return Ok(known.clone());
    }
    let made = make()?;
    memo.borrow_mut().insert(key, (made.clone(), true));
    Ok(made)
}

/// The parts of a key, each with its length, so that no two lists of parts make the same key.
fn memo_key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut key = Vec::new();
    for part in parts {
        key.extend_from_slice(&(part.len() as u64).to_be_bytes());
        key.extend_from_slice(part);
    }
    key
}

/// Certificates, chosen by the name the client asks for; the first if none fits.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |key: &&Arc<CertifiedKey>| {
            let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
            let parsed = key.cert.first().and_then(|it| ParsedCertificate::try_from(it).ok());
            name.zip(parsed).is_some_and(|(name, it)| rustls::client::verify_server_name(&it, &name).is_ok())
        };
        if self.0.len() == 1 {
            return self.0.first().cloned();
        }
        self.0.iter().find(fits).or(self.0.first()).cloned()
    }
}

/// The TLS configuration of a listener.
///
/// # Errors
/// A reason and message for the condition `ResolvedRefs`.
pub(super) fn server_config(
    work: &Work<'_>,
    gateway: &Held<GatewaySpec>,
    listener: &Listener,
    http: bool,
) -> Result<Arc<ServerConfig>, (&'static str, String)> {
    let invalid = |message: String| ("InvalidCertificateRef", message);
    let tls = listener.tls.clone().unwrap_or_default();
    let mut keys = Vec::new();
    for reference in &tls.certificate_refs {
        let key = reference_key(reference, &gateway.key);
        if key.namespace != gateway.key.namespace
            && !grant_exists(work, GATEWAY_GROUP, "Gateway", &gateway.key.namespace, "", "Secret", &key)
        {
            return Err((
                "RefNotPermitted",
                format!("no ReferenceGrant lets Gateway {} use Secret {key}", gateway.key),
            ));
        }
        keys.push(certified_key(work, &key).map_err(invalid)?);
    }
    if keys.is_empty() {
        return Err(invalid("TLS needs certificateRefs".to_owned()));
    }
    let (client_roots, mut asked_of) = match &tls.frontend_validation {
        Some(validation) => {
            let (namespace, references) = (&gateway.key.namespace, &validation.ca_certificate_refs);
            let roots = roots(work, namespace, references).map_err(invalid)?;
            (Some(roots), root_bytes(work, namespace, references))
        }
        None => (None, Vec::new()),
    };
    asked_of.push(if http { b"http" } else { b"" });
    build_server(work, keys, client_roots, &asked_of).map_err(invalid)
}

/// The TLS configuration of all Ingresses together; `None` if none has TLS. A certificate that cannot be used is a problem of
/// its Ingress, and leaves the others alone.
pub(super) fn ingress_config(work: &mut Work<'_>, ingresses: &[&Held<IngressSpec>]) -> Option<Arc<ServerConfig>> {
    let mut keys = Vec::new();
    for ingress in ingresses {
        let awaited = acme::ingress(work, ingress);
        for name in ingress.spec.tls.iter().filter_map(|tls| tls.secret_name.as_ref()) {
            match (certified_key(work, &Key::new(&ingress.key.namespace, name)), awaited.get(name)) {
                (Ok(key), _) => keys.push(key),
                (Err(_), Some(message)) => work.problem(ingress, &["spec", "tls"], Severity::Warning, message),
                (Err(message), None) => work.problem(ingress, &["spec", "tls"], Severity::Error, message),
            }
        }
    }
    let first = ingresses.first().filter(|_| !keys.is_empty())?;
    match build_server(work, keys, None, &[b"http"]) {
        Ok(config) => Some(config),
        Err(message) => {
            work.problem(first, &["spec", "tls"], Severity::Error, message);
            None
        }
    }
}

/// A server's configuration with these certificates and what is asked of clients: their roots, as bytes, and the protocol.
fn build_server(
    work: &Work<'_>,
    keys: Vec<Arc<CertifiedKey>>,
    client_roots: Option<RootCertStore>,
    asked_of: &[&[u8]],
) -> Result<Arc<ServerConfig>, String> {
    // A certificate stands for its private key: that they belong together has been seen.
    let chains = keys.iter().flat_map(|it| it.cert.iter().map(AsRef::as_ref).chain([b"".as_slice()]));
    let key = memo_key(chains.chain(asked_of.iter().copied()));
    let http = asked_of.last() == Some(&b"http".as_slice());
    remembered(&work.options.tls.servers, key, || new_server(keys, client_roots, http))
}

fn new_server(
    keys: Vec<Arc<CertifiedKey>>,
    client_roots: Option<RootCertStore>,
    http: bool,
) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = match client_roots {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Certificates(keys)));
    if http {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    // Tickets make resumption work across cores, which share nothing else.
    config.ticketer = Ticketer::new().map_err(|error| error.to_string())?;
    Ok(Arc::new(config))
}

fn certified_key(work: &Work<'_>, key: &Key) -> Result<Arc<CertifiedKey>, String> {
    let bag = work.objects.bags.get(&("Secret", key.clone())).ok_or_else(|| format!("there is no Secret {key}"))?;
    let field = |name: &str| bag.get(name).ok_or_else(|| format!("Secret {key} has no {name}"));
    let chain = certificates(field("tls.crt")?).map_err(|error| format!("Secret {key}: tls.crt: {error}"))?;
    let private = PrivateKeyDer::from_pem_slice(field("tls.key")?);
    let private = private.map_err(|error| format!("Secret {key}: tls.key is not a PEM private key: {error}"))?;
    let signing = sign::any_supported_type(&private).map_err(|error| format!("Secret {key}: tls.key: {error}"))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(Arc::new(certified)),
        Err(error) => Err(format!("Secret {key}: tls.key does not belong to tls.crt: {error}")),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    if chain.is_empty() { Err("no PEM certificate in it".to_owned()) } else { Ok(chain) }
}

/// The trusted certificates of ConfigMaps or Secrets (`ca.crt`).
fn roots(work: &Work<'_>, namespace: &str, references: &[ObjectRef]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for reference in references {
        let kind = if reference.kind.as_deref() == Some("Secret") { "Secret" } else { "ConfigMap" };
        let key = reference_key(reference, &Key::new(namespace, ""));
        let pem = bag_value(work, kind, &key, &["ca.crt"])?;
        for certificate in certificates(pem).map_err(|error| format!("{kind} {key}: ca.crt: {error}"))? {
            roots.add(certificate).map_err(|error| format!("{kind} {key}: ca.crt: {error}"))?;
        }
    }
    Ok(roots)
}

/// The bytes of what [`roots`] read.
fn root_bytes<'a>(work: &'a Work<'_>, namespace: &str, references: &[ObjectRef]) -> Vec<&'a [u8]> {
    let bytes = |reference: &ObjectRef| {
        let kind = if reference.kind.as_deref() == Some("Secret") { "Secret" } else { "ConfigMap" };
        bag_value(work, kind, &reference_key(reference, &Key::new(namespace, "")), &["ca.crt"]).ok()
    };
    references.iter().filter_map(bytes).collect()
}

/// The first of some fields that a Secret or ConfigMap has.
pub(super) fn bag_value<'a>(
    work: &'a Work<'_>,
    kind: &'static str,
    key: &Key,
    fields: &[&str],
) -> Result<&'a [u8], String> {
    let bag = work.objects.bags.get(&(kind, key.clone())).ok_or_else(|| format!("there is no {kind} {key}"))?;
    let found = fields.iter().find_map(|field| bag.get(*field));
    found.map(Vec::as_slice).ok_or_else(|| format!("{kind} {key} has no {}", fields.join(" or ")))
}

/// The key of a reference; in the referrer's namespace if it names none.
pub(super) fn reference_key(reference: &ObjectRef, from: &Key) -> Key {
    Key::new(reference.namespace.as_deref().unwrap_or(&from.namespace), &reference.name)
}

/// The BackendTLSPolicy of a backend: of several, one for this very port, then the oldest (Gateway API, "Conflict Resolution").
fn tls_policy<'a>(work: &Work<'a>, found: &Found, key: &Key) -> Option<&'a Held<BackendTlsPolicySpec>> {
    let fits = |policy: &Held<BackendTlsPolicySpec>| {
        let targets = policy.spec.target_refs.iter().filter(|it| it.kind == found.kind && it.name == key.name);
        // 0 fits better than 1.
        targets
            .filter_map(|it| match &it.section_name {
                None => Some(1),
                section if *section == found.section => Some(0),
                Some(_) => None,
            })
            .min()
    };
    let policies = work.objects.tls_policies.values().filter(|it| it.key.namespace == key.namespace);
    let ranked = policies.filter_map(|it| Some((fits(it)?, it.meta.creation_timestamp.clone(), it.key.clone(), it)));
    ranked.min_by(|a, b| (a.0, &a.1, &a.2).cmp(&(b.0, &b.1, &b.2))).map(|it| it.3)
}

/// What a BackendTLSPolicy asks for, and what is said of it (Gateway API, `BackendTLSPolicy`, "Conditions").
fn validation(work: &Work<'_>, policy: &Held<BackendTlsPolicySpec>) -> (Result<BackendTls, String>, Vec<Condition>) {
    let asked = &policy.spec.validation;
    let written = BackendTls {
        hostname: Some(asked.hostname.clone()),
        ca_certificate_refs: asked.ca_certificate_refs.clone(),
        system_authorities: asked.well_known_ca_certificates.as_deref() == Some("System"),
        ..BackendTls::default()
    };
    let refused = |accepted, resolved: Condition, message: String| {
        let accepted = Condition::bad("Accepted", accepted, message.clone());
        (Err(message), vec![accepted, resolved])
    };
    if let Some(other) = asked.well_known_ca_certificates.as_deref().filter(|it| *it != "System") {
        let message = format!("wellKnownCACertificates {other:?} is not known; use System");
        return refused("Invalid", Condition::good("ResolvedRefs"), message);
    }
    if !asked.subject_alt_names.is_empty() {
        let message = "subjectAltNames are not checked here; name the certificate's host in hostname".to_owned();
        return refused("Invalid", Condition::good("ResolvedRefs"), message);
    }
    for reference in &asked.ca_certificate_refs {
        let kind = reference.kind.as_deref().unwrap_or_default();
        if !matches!((reference.group.as_deref().unwrap_or_default(), kind), ("", "ConfigMap" | "Secret")) {
            let message = format!("{kind} is no kind that holds certificates; use a ConfigMap");
            return refused("NoValidCACertificate", Condition::bad("ResolvedRefs", "InvalidKind", &*message), message);
        }
    }
    match roots(work, &policy.key.namespace, &asked.ca_certificate_refs) {
        Ok(_) => (Ok(written), vec![Condition::good("Accepted"), Condition::good("ResolvedRefs")]),
        Err(message) => {
            let resolved = Condition::bad("ResolvedRefs", "InvalidCACertificateRef", &*message);
            refused("NoValidCACertificate", resolved, message)
        }
    }
}

/// The authorities in a PEM, or those of the machine.
///
/// # Errors
/// There are none that can be read.
pub(crate) fn trusted(pem: Option<&[u8]>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match pem {
        None => drop(add_system_authorities(&mut roots)?),
        Some(pem) => {
            for certificate in certificates(pem)? {
                roots.add(certificate).map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(roots)
}

/// Where distributions keep the authorities that the whole machine trusts.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Adds the machine's authorities; those that cannot be read are left out, as every TLS library does it. Answers a name of
/// this version of them.
fn add_system_authorities(roots: &mut RootCertStore) -> Result<String, String> {
    let read = |file: &&str| Some((std::fs::read(file).ok()?, std::fs::metadata(file).ok()?.modified().ok()));
    let found = SYSTEM_AUTHORITIES.iter().find_map(read);
    let (pem, changed) = found.ok_or("this machine has no file of authorities; install ca-certificates")?;
    roots.add_parsable_certificates(certificates(&pem)?);
    Ok(format!("{} bytes of {changed:?}", pem.len()))
}

/// TLS to a backend: by a BackendTLSPolicy, else by the Backend itself.
///
/// # Errors
/// What could not be resolved.
pub(super) fn client_config<T>(
    work: &mut Work<'_>,
    route: &Held<T>,
    gateway: Option<&Key>,
    found: &Found,
    key: &Key,
) -> Result<Option<Arc<UpstreamTls>>, String> {
    let written = match tls_policy(work, found, key) {
        Some(policy) => {
            let (written, conditions) = validation(work, policy);
            let status = work.statuses.tls_policies.entry(policy.key.clone()).or_default();
            status.0.extend(gateway.cloned());
            status.1 = conditions;
            Some(written.map_err(|message| format!("BackendTLSPolicy {}: {message}", policy.key))?)
        }
        None => found.tls.clone(),
    };
    let Some(written) = written else { return Ok(None) };
    let rootless = written.ca_certificate_refs.is_empty() && !written.system_authorities;
    if !written.insecure_skip_verify && rootless {
        return Err(format!("TLS to {} {key} (route {}) needs caCertificateRefs", found.kind, route.key));
    }
    let certified = match &written.client_certificate_ref {
        Some(reference) => Some(certified_key(work, &reference_key(reference, key))?),
        None => None,
    };
    let mut roots_wanted = RootCertStore::empty();
    let mut system = String::new();
    if !written.insecure_skip_verify {
        roots_wanted = roots(work, &key.namespace, &written.ca_certificate_refs)?;
        if written.system_authorities {
            system = add_system_authorities(&mut roots_wanted)?;
        }
    }
    let words = format!("{written:?} {:?} {system}", found.protocol);
    let chain = certified.iter().flat_map(|it| it.cert.iter().map(AsRef::as_ref));
    let bytes = root_bytes(work, &key.namespace, &written.ca_certificate_refs);
    let memo = memo_key([words.as_bytes()].into_iter().chain(bytes).chain([b"".as_slice()]).chain(chain));
    let make = || new_client(&written, roots_wanted, certified.clone(), found.protocol);
    remembered(&work.options.tls.clients, memo, make).map(Some)
}

fn new_client(
    written: &BackendTls,
    roots: RootCertStore,
    certified: Option<Arc<CertifiedKey>>,
    protocol: Protocol,
) -> Result<Arc<UpstreamTls>, String> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let verifier: Arc<dyn ServerCertVerifier> = if written.insecure_skip_verify {
        Arc::new(AnyCertificate(provider))
    } else {
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        built.map_err(|error| error.to_string())?
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match certified {
        Some(certified) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match protocol {
        Protocol::Http1 => vec![b"http/1.1".to_vec()],
        Protocol::Http2 => vec![b"h2".to_vec()],
    };
    Ok(Arc::new(UpstreamTls { config: Arc::new(config), hostname: written.hostname.clone() }))
}

/// Believes any certificate, because the configuration says so; signatures are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
