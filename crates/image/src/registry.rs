//! The pulling half of the distribution protocol.
//!
//! Flow of a request: ask → on 401 get a token from where the answer says, or log in, and ask again → follow redirections,
//! which must not see the login → what is busy or broken is asked again, with growing waits.
//!
//! Guarantees: a login is sent to its registry and to the token service that the registry names, to nobody else; without TLS
//! only to registries of this machine or those that the configuration names; answers have limits.
//!
//! Source: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>,
//! <https://distribution.github.io/distribution/spec/auth/token/>.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::auth::Keychain;
use crate::manifest;
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// The largest manifest or configuration, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// How long a registry may take to answer, and to accept a connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts of one request, and the first wait between them; each further one is twice as long.
const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// Redirections of one request.
const REDIRECTS_MAX: usize = 5;
/// What Docker Hub's registry is called, other than in names.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot be reached.
    #[error("failed to do request to {url}")]
    Request {
        /// What was asked.
        url: String,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("{url} did not answer within {ANSWER_TIMEOUT:?}")]
    Timeout {
        /// What was asked.
        url: String,
    },
    /// There is no such thing.
    #[error("{0}: not found")]
    NotFound(String),
    /// It wants another login.
    #[error("pull access denied for {0}, repository does not exist or may require authorization")]
    Denied(String),
    /// Another answer.
    #[error("unexpected status from {url}: {status}: {text}")]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: StatusCode,
        /// What it said, cut.
        text: String,
    },
    /// An answer that makes no sense.
    #[error("{url} answered with what is no {what}")]
    Answer {
        /// What was asked.
        url: String,
        /// What it should have been.
        what: &'static str,
    },
}

impl RegistryError {
    /// Whether it may be different the next time.
    fn is_passing(&self) -> bool {
        match self {
            Self::Request { .. } | Self::Timeout { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            _ => false,
        }
    }
}

/// Speaks to registries.
pub struct Registry {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    keychain: Keychain,
    /// What let us in, by registry and repository.
    passes: Mutex<HashMap<String, String>>,
    /// Registries that are known to speak without TLS.
    plain: Mutex<HashMap<String, bool>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Registry {
    /// With these logins. Trusts the certificates that this machine trusts.
    ///
    /// # Errors
    /// When the machine's certificates cannot be read.
    pub fn new(keychain: Keychain) -> std::io::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector =
            HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1().wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, keychain, passes: Mutex::default(), plain: Mutex::default() })
    }

    /// The manifest of an image, or the index of its manifests, with its media type.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn manifest(&self, image: &Reference, version: &str) -> Result<Bytes, RegistryError> {
        let path = format!("manifests/{version}");
        let answer = self.ask(Method::GET, image, &path, manifest::ACCEPT).await?;
        document(answer, &format!("{image}")).await
    }

    /// The digest that a name has now, if the registry says so.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn digest(&self, image: &Reference) -> Result<Option<crate::digest::Digest>, RegistryError> {
        let path = format!("manifests/{}", image.version());
        let answer = self.ask(Method::HEAD, image, &path, manifest::ACCEPT).await?;
        let digest = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        Ok(digest.and_then(|text| text.parse().ok()))
    }

    /// A small blob.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn document(&self, image: &Reference, digest: &crate::digest::Digest) -> Result<Bytes, RegistryError> {
        document(self.blob(image, digest).await?, &digest.to_string()).await
    }

    /// A blob, to be read as it comes.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn blob(
        &self,
        image: &Reference,
        digest: &crate::digest::Digest,
    ) -> Result<Response<Incoming>, RegistryError> {
        self.ask(Method::GET, image, &format!("blobs/{digest}"), "*/*").await
    }

    async fn ask(
        &self,
        method: Method,
        image: &Reference,
        path: &str,
        accept: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            match self.ask_once(&method, image, path, accept).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    tracing::debug!(%image, path, %error, attempt, "registry asked again");
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                answered => return answered,
            }
        }
        unreachable!("the last attempt answers")
    }

    async fn ask_once(
        &self,
        method: &Method,
        image: &Reference,
        path: &str,
        accept: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        let host = if image.registry == DEFAULT_REGISTRY { DOCKER_HUB } else { &image.registry };
        let name = image.name();
        let mut url = format!("{}://{host}/v2/{}/{path}", self.scheme(host), image.repository);
        let (mut logged_in, mut redirected) = (false, 0);
        let mut pass = lock(&self.passes).get(&name).cloned();
        loop {
            let answer = match self.send(method, &url, accept, pass.as_deref()).await {
                Err(RegistryError::Request { .. })
                    if redirected == 0 && url.starts_with("https:") && self.keychain.may_be_plain(host) =>
                {
                    lock(&self.plain).insert(host.to_owned(), true);
                    url = url.replacen("https:", "http:", 1);
                    continue;
                }
                other => other?,
            };
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            if status.is_redirection() && redirected < REDIRECTS_MAX {
                let next = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let next = next.ok_or_else(|| RegistryError::Answer { url: url.clone(), what: "redirection" })?;
                let next = resolve(&url, next)
                    .ok_or_else(|| RegistryError::Answer { url: url.clone(), what: "redirection" })?;
                if authority(&next) != authority(&url) {
                    pass = None;
                }
                (url, redirected) = (next, redirected + 1);
                continue;
            }
            if status == StatusCode::UNAUTHORIZED && !logged_in && redirected == 0 {
                let mut challenges =
                    answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
                let challenge =
                    challenges.find_map(Challenge::read).ok_or_else(|| RegistryError::Denied(name.clone()))?;
                let found = self.log_in(image, &challenge).await?;
                lock(&self.passes).insert(name.clone(), found.clone());
                (pass, logged_in) = (Some(found), true);
                continue;
            }
            return Err(match status {
                StatusCode::NOT_FOUND => RegistryError::NotFound(image.to_string()),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied(name),
                _ => RegistryError::Status { url, status, text: beginning(answer).await },
            });
        }
    }

    fn scheme(&self, host: &str) -> &'static str {
        if lock(&self.plain).get(host).copied().unwrap_or(false) { "http" } else { "https" }
    }

    async fn send(
        &self,
        method: &Method,
        url: &str,
        accept: &str,
        pass: Option<&str>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut request = Request::builder().method(method).uri(url).header(ACCEPT, accept);
        request = request.header(USER_AGENT, concat!("mainstay/", env!("CARGO_PKG_VERSION")));
        if let Some(pass) = pass {
            request = request.header(AUTHORIZATION, pass);
        }
        let failed = |source| RegistryError::Request { url: url.to_owned(), source };
        let request = request.body(Empty::new()).map_err(|error| failed(error.into()))?;
        match tokio::time::timeout(ANSWER_TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| failed(error.into())),
            Err(_) => Err(RegistryError::Timeout { url: url.to_owned() }),
        }
    }

    /// What to show at the door from now on.
    async fn log_in(&self, image: &Reference, challenge: &Challenge) -> Result<String, RegistryError> {
        let login = self.keychain.login(image);
        let Challenge::Bearer { realm, service } = challenge else {
            return login.map(crate::auth::Login::basic).ok_or_else(|| RegistryError::Denied(image.name()));
        };
        let scope = format!("repository:{}:pull", image.repository);
        let join = if realm.contains('?') { '&' } else { '?' };
        let url = format!("{realm}{join}service={}&scope={}", encoded(service), encoded(&scope));
        let host = authority(&url).unwrap_or_default();
        if url.starts_with("http:") && !self.keychain.may_be_plain(&host) {
            return Err(RegistryError::Denied(image.name()));
        }
        let answer =
            self.send(&Method::GET, &url, "application/json", login.map(crate::auth::Login::basic).as_deref()).await?;
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(RegistryError::Denied(image.name())),
            status => return Err(RegistryError::Status { url, status, text: beginning(answer).await }),
        }
        let body = document(answer, &url).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|_| RegistryError::Answer { url, what: "token" })?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        Ok(format!("Bearer {token}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a registry wants to be convinced.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

impl Challenge {
    /// Reads a `WWW-Authenticate` header (RFC 9110, section 11.6.1).
    fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => Some(Self::Basic),
            "bearer" => {
                let realm = parameter(rest, "realm")?;
                Some(Self::Bearer { realm, service: parameter(rest, "service").unwrap_or_default() })
            }
            _ => None,
        }
    }
}

/// A quoted parameter of a challenge; commas may stand in quotes.
fn parameter(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.trim_matches([',', ' ']).eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = next;
    }
    None
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn authority(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.authority().map(ToString::to_string)
}

/// A redirection's target, which may be relative to where it was found. From TLS it leads only to TLS.
fn resolve(from: &str, to: &str) -> Option<String> {
    if let Some(path) = to.strip_prefix('/') {
        let base: Uri = from.parse().ok()?;
        return Some(format!("{}://{}/{path}", base.scheme_str()?, base.authority()?));
    }
    let target: Uri = to.parse().ok()?;
    let allowed = match target.scheme_str()? {
        "https" => true,
        "http" => from.starts_with("http:"),
        _ => false,
    };
    allowed.then(|| to.to_owned())
}

async fn document(answer: Response<Incoming>, url: &str) -> Result<Bytes, RegistryError> {
    let body = Limited::new(answer.into_body(), DOCUMENT_BYTES_MAX);
    match tokio::time::timeout(ANSWER_TIMEOUT, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(source)) => Err(RegistryError::Request { url: url.to_owned(), source }),
        Err(_) => Err(RegistryError::Timeout { url: url.to_owned() }),
    }
}

/// The beginning of what an answer says, for people.
async fn beginning(answer: Response<Incoming>) -> String {
    let body = document(answer, "").await.unwrap_or_default();
    String::from_utf8_lossy(&body[..body.len().min(256)]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#;
        let (realm, service) = ("https://auth.docker.io/token".to_owned(), "registry.docker.io".to_owned());
        assert_eq!(Challenge::read(text), Some(Challenge::Bearer { realm, service }));
        assert_eq!(Challenge::read("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::read("Negotiate"), None);
        assert_eq!(Challenge::read("Bearer service=\"x\""), None);
        assert_eq!(encoded("a b+c/d:e"), "a%20b%2Bc/d:e");
    }

    #[test]
    fn redirections_do_not_leave_tls() {
        let from = "https://r.io/v2/x";
        assert_eq!(resolve(from, "/other").as_deref(), Some("https://r.io/other"));
        assert_eq!(resolve(from, "https://cdn.io/x?y").as_deref(), Some("https://cdn.io/x?y"));
        assert_eq!(resolve(from, "http://cdn.io/x"), None);
        assert_eq!(resolve(from, "file:///etc/passwd"), None);
    }
}
