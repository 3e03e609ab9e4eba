//! The cluster's authority and the certificates it signs.
//!
//! One authority per instance, made once and kept. Everything else is signed anew at every start, so that a certificate
//! never gets old without a restart, and the names in it fit the addresses of today. ECDSA P-256 throughout.
//!
//! Who is who in a client certificate: <https://kubernetes.io/docs/setup/best-practices/certificates/>.

use std::fs;
use std::net::{IpAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use crate::instance::{Instance, InstanceError, write_private};

/// Days that a signed certificate is good for.
const LEAF_DAYS: i64 = 365;
/// Days that the authority is good for.
const AUTHORITY_DAYS: i64 = 3650;
/// The file of the key that signs ServiceAccount tokens.
const TOKEN_KEY: &str = "sa.key";

/// Why the certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Making or signing a certificate failed.
    #[error("cannot make the certificate of {who}: {source}")]
    Sign {
        /// Whose.
        who: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] InstanceError),
    /// The authority's own files could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kubeconfig could not be written as YAML.
    #[error("cannot write the kubeconfig: {0}")]
    Kubeconfig(String),
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Pair {
    /// PEM certificate.
    pub certificate: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

impl Pair {
    /// Where the pair of a name lies.
    pub fn of(pki: &Path, name: &str) -> Self {
        Self { certificate: pki.join(format!("{name}.crt")), key: pki.join(format!("{name}.key")) }
    }
}

/// The certificate of the authority.
pub fn authority_file(pki: &Path) -> PathBuf {
    pki.join("ca.crt")
}

/// What a certificate says.
struct Subject<'a> {
    file: &'a str,
    common_name: String,
    organisation: Option<&'a str>,
    names: Vec<SanType>,
}

/// The key that signs ServiceAccount tokens, `sa.key`, and those that only verify: every other `sa-*.key` and
/// `sa-*.pub`. To replace the key, rename it to `sa-old.key` and start the server again; delete it a day later.
pub fn token_keys(pki: &Path) -> (PathBuf, Vec<PathBuf>) {
    let entries = fs::read_dir(pki).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_former = |path: &PathBuf| {
        let key = path.extension().is_some_and(|extension| extension == "key" || extension == "pub");
        key && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sa-"))
    };
    (pki.join(TOKEN_KEY), entries.filter(is_former).collect())
}

/// Makes the authority if there is none, signs everybody's certificates and writes the kubeconfig.
///
/// # Errors
/// When a file cannot be written or the authority's are damaged.
pub fn prepare(instance: &Instance) -> Result<(), PkiError> {
    let pki = instance.pki();
    let issuer = authority(&pki)?;
    token_key(&pki)?;
    let plan = instance.plan().map_err(InstanceError::from)?;
    let dns = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut names: Vec<SanType> = dns.iter().filter_map(|name| name.parse().ok().map(SanType::DnsName)).collect();
    let addresses = [*instance.api.ip(), plan.host_address(), plan.kubernetes_service_address(), [127, 0, 0, 1].into()];
    names.extend(addresses.map(|address| SanType::IpAddress(IpAddr::V4(address))));
    let server = Subject { file: "server", common_name: "kube-apiserver".to_owned(), organisation: None, names };
    sign(&pki, &issuer, &server)?;
    // What the API server shows to the agents.
    let masters = Some("system:masters");
    let to_agents = Subject {
        file: "agents-client",
        common_name: "kube-apiserver-kubelet-client".to_owned(),
        organisation: masters,
        names: vec![],
    };
    sign(&pki, &issuer, &to_agents)?;
    let admin =
        Subject { file: "admin", common_name: "kubernetes-admin".to_owned(), organisation: masters, names: vec![] };
    sign(&pki, &issuer, &admin)?;
    for (number, name) in instance.node_names() {
        let address = plan.node_address(number).map_err(InstanceError::from)?;
        let mut names = vec![SanType::IpAddress(IpAddr::V4(address))];
        names.extend(name.parse().ok().map(SanType::DnsName));
        let common_name = format!("system:node:{name}");
        sign(&pki, &issuer, &Subject { file: &name, common_name, organisation: Some("system:nodes"), names })?;
    }
    let common_name = format!("system:mainstay:{NETWORK_POLICIES}");
    sign(&pki, &issuer, &Subject { file: NETWORK_POLICIES, common_name, organisation: None, names: vec![] })?;
    let others = std::iter::once(NETWORK_POLICIES.to_owned());
    for name in instance.node_names().map(|(_, name)| name).chain(others) {
        let inner = instance.inner_api().map_err(InstanceError::from)?;
        write_kubeconfig(&pki, &node_kubeconfig(instance, &name), inner, &Pair::of(&pki, &name))?;
    }
    write_kubeconfig(&pki, &instance.kubeconfig(), instance.api, &Pair::of(&pki, "admin"))
}

/// Makes the key of ServiceAccount tokens if there is none: tokens outlive the server.
fn token_key(pki: &Path) -> Result<(), PkiError> {
    let path = pki.join(TOKEN_KEY);
    if path.exists() {
        return Ok(());
    }
    let key = KeyPair::generate().map_err(|source| PkiError::Sign { who: "service accounts".to_owned(), source })?;
    Ok(write_private(&path, key.serialize_pem().as_bytes())?)
}

fn authority(pki: &Path) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let failed = |source| PkiError::Sign { who: "the authority".to_owned(), source };
    let pair = Pair::of(pki, "ca");
    if pair.certificate.exists() {
        let read =
            |path: &PathBuf| fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.clone(), source });
        let key = KeyPair::from_pem(&read(&pair.key)?).map_err(failed)?;
        return Issuer::from_ca_cert_pem(&read(&pair.certificate)?, key).map_err(failed);
    }
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, "mainstay");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid_for(&mut parameters, AUTHORITY_DAYS);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    // The key first: a certificate without its key would look like a finished authority.
    write_private(&pair.key, key.serialize_pem().as_bytes())?;
    write_private(&pair.certificate, certificate.pem().as_bytes())?;
    Ok(Issuer::new(parameters, key))
}

fn sign(pki: &Path, issuer: &Issuer<'_, KeyPair>, subject: &Subject<'_>) -> Result<(), PkiError> {
    let failed = |source| PkiError::Sign { who: subject.common_name.clone(), source };
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, subject.common_name.as_str());
    if let Some(organisation) = subject.organisation {
        parameters.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    parameters.subject_alt_names.clone_from(&subject.names);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    valid_for(&mut parameters, LEAF_DAYS);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = parameters.signed_by(&key, issuer).map_err(failed)?;
    let pair = Pair::of(pki, subject.file);
    write_private(&pair.certificate, certificate.pem().as_bytes())?;
    write_private(&pair.key, key.serialize_pem().as_bytes())?;
    Ok(())
}

/// From yesterday, for clocks that differ, and for `days` from now.
fn valid_for(parameters: &mut CertificateParams, days: i64) {
    let day = |offset: i64| {
        let date = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
        let date = date.saturating_add(jiff::Span::new().days(offset));
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    parameters.not_before = day(-1);
    parameters.not_after = day(days);
}

/// Writes a kubeconfig that reaches `server` as the owner of `pair`.
fn write_kubeconfig(pki: &Path, path: &Path, server: SocketAddrV4, pair: &Pair) -> Result<(), PkiError> {
    let encode = |path: &PathBuf| {
        let bytes = fs::read(path).map_err(|source| PkiError::Read { path: path.clone(), source })?;
        Ok::<_, PkiError>(BASE64.encode(bytes))
    };
    let cluster = json!({
        "server": format!("https://{server}"), "certificate-authority-data": encode(&authority_file(pki))?,
    });
    let user = json!({"client-certificate-data": encode(&pair.certificate)?, "client-key-data": encode(&pair.key)?});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "mainstay",
        "clusters": [{"name": "mainstay", "cluster": cluster}],
        "users": [{"name": "mainstay", "user": user}],
        "contexts": [{"name": "mainstay", "context": {"cluster": "mainstay", "user": "mainstay"}}],
    });
    let text = serde_saphyr::to_string(&config).map_err(|error| PkiError::Kubeconfig(error.to_string()))?;
    Ok(write_private(path, text.as_bytes())?)
}

/// The part of every agent that enforces network policies: it may see where all pods are, which a node itself may not.
pub const NETWORK_POLICIES: &str = "network-policies";

/// The kubeconfig of a node's agent.
pub fn node_kubeconfig(instance: &Instance, node: &str) -> PathBuf {
    instance.pki().join(format!("{node}.kubeconfig"))
}
