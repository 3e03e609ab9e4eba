//! Who one is to which registry: Docker's configuration files, as in pull secrets. Pure.
//!
//! Source: <https://kubernetes.io/docs/tasks/configure-pod-container/pull-image-private-registry/> and, for how entries are
//! matched, <https://kubernetes.io/docs/concepts/containers/images/#config-json>.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::reference::{DEFAULT_REGISTRY, Reference};

/// A name and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The secret.
    pub password: String,
}

impl Login {
    /// The value of an `Authorization` header (RFC 7617).
    pub fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

/// The logins one has, and what else the configuration says of registries.
#[derive(Clone, Default)]
pub struct Keychain {
    logins: Vec<(String, Login)>,
    insecure: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "insecure-registries")]
    insecure: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
}

impl Keychain {
    /// Takes in a `config.json` (`kubernetes.io/dockerconfigjson`). What cannot be read is an error; entries without a
    /// login are left out.
    ///
    /// # Errors
    /// When it is not JSON of that shape.
    pub fn add_config(&mut self, text: &[u8]) -> Result<(), serde_json::Error> {
        let config: Config = serde_json::from_slice(text)?;
        self.insecure.extend(config.insecure);
        self.add(config.auths);
        Ok(())
    }

    /// Takes in an old `.dockercfg` (`kubernetes.io/dockercfg`).
    ///
    /// # Errors
    /// When it is not JSON of that shape.
    pub fn add_dockercfg(&mut self, text: &[u8]) -> Result<(), serde_json::Error> {
        self.add(serde_json::from_slice(text)?);
        Ok(())
    }

    fn add(&mut self, entries: BTreeMap<String, Entry>) {
        for (place, entry) in entries {
            let decoded = STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let from_auth = decoded.as_deref().and_then(|text| text.split_once(':'));
            let (user, password) = from_auth.unwrap_or((&entry.username, &entry.password));
            if !user.is_empty() {
                let login = Login { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() };
                self.logins.push((plain(&place), login));
            }
        }
        // The longest path is the closest match.
        self.logins.sort_by_key(|(place, _)| std::cmp::Reverse(place.len()));
    }

    /// The login for an image.
    pub fn login(&self, image: &Reference) -> Option<&Login> {
        let name = image.name();
        let fits = |place: &str| {
            let (host, path) = place.split_once('/').map_or((place, None), |(host, path)| (host, Some(path)));
            host_matches(host, &image.registry)
                && path.is_none_or(|path| {
                    name.split_once('/').is_some_and(|(_, rest)| rest == path || rest.starts_with(&format!("{path}/")))
                })
        };
        self.logins.iter().find(|(place, _)| fits(place)).map(|(_, login)| login)
    }

    /// Whether a registry may be spoken to without TLS: those of this machine, and those that the configuration names.
    pub fn may_be_plain(&self, registry: &str) -> bool {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let own = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        own || host == "localhost" || self.insecure.iter().any(|named| named == registry || named == host)
    }
}

/// `https://index.docker.io/v1/` and the like, without what is not part of the place.
fn plain(place: &str) -> String {
    let bare = place.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        other => other.to_owned(),
    }
}

/// Label by label; `*` stands for any part of one.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (mut patterns, mut labels) = (pattern.split('.'), host.split('.'));
    loop {
        match (patterns.next(), labels.next()) {
            (None, None) => return true,
            (Some(pattern), Some(label)) if label_matches(pattern, label) => {}
            _ => return false,
        }
    }
}

fn label_matches(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_closest_entry_is_the_login() {
        let auth = |text: &str| json!({"auth": STANDARD.encode(text)});
        let mut keychain = Keychain::default();
        let config = json!({"auths": {"https://index.docker.io/v1/": auth("hub:a"), "quay.io": auth("all:b"),
            "quay.io/team": auth("team:c:d"), "*.example.org": {"username": "star", "password": "e"}, "empty.io": {}},
            "insecure-registries": ["10.0.0.5:5000"]});
        keychain.add_config(config.to_string().as_bytes()).unwrap();
        for (image, user) in [
            ("nginx", Some("hub")),
            ("quay.io/other/x", Some("all")),
            ("quay.io/team/x", Some("team")),
            ("quay.io/teams/x", Some("all")),
            ("r.example.org/x", Some("star")),
            ("a.r.example.org/x", None),
            ("empty.io/x", None),
        ] {
            assert_eq!(keychain.login(&image.parse().unwrap()).map(|login| login.user.as_str()), user, "{image}");
        }
        assert_eq!(keychain.login(&"quay.io/team/x".parse().unwrap()).unwrap().password, "c:d");
        for (registry, plain) in [
            ("localhost:5000", true),
            ("127.0.0.2", true),
            ("[::1]:5000", true),
            ("10.0.0.5:5000", true),
            ("10.0.0.6:5000", false),
            ("quay.io", false),
        ] {
            assert_eq!(keychain.may_be_plain(registry), plain, "{registry}");
        }
        assert!(keychain.add_config(b"{").is_err());
    }
}
