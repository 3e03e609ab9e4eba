//! Which resources are encrypted with which keys: Kubernetes' `EncryptionConfiguration`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::cipher::{self, Key};
use crate::{Error, Result};

/// Kubernetes' own limits are looser; a name is part of every value.
const NAME_BYTES_MAX: usize = 63;

/// `apiserver.config.k8s.io/v1` `EncryptionConfiguration`
/// (<https://kubernetes.io/docs/reference/config-api/apiserver-config.v1/>), with the providers `aesgcm` and `identity`.
///
/// Per entry of `resources`, the first provider writes and all read. An entry for one resource, `secrets` or
/// `deployments.apps`; for all of a group, `*.apps`, or of the core group, `*.`; or for all, `*.*`. The first that fits counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionConfiguration {
    /// `apiserver.config.k8s.io/v1`.
    pub api_version: String,
    /// `EncryptionConfiguration`.
    pub kind: String,
    /// What is encrypted, and with what.
    pub resources: Vec<ResourceRule>,
}

/// One entry of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceRule {
    /// Resources, such as `secrets`.
    pub resources: Vec<String>,
    /// The first writes, all read.
    pub providers: Vec<Provider>,
}

/// A way to write values; exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// AES-GCM with keys, the first of which writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aesgcm: Option<Keys>,
    /// No encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// The keys of a provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// In the order in which they are tried; the first writes.
    pub keys: Vec<NamedKey>,
}

/// A key and its name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedKey {
    /// Names the key in what it encrypted: never give it to another key.
    pub name: String,
    /// 32 random bytes in base64.
    pub secret: String,
}

impl std::fmt::Debug for NamedKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NamedKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// `identity: {}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// It is another kind of object.
    #[error("it must be of kind EncryptionConfiguration, apiVersion apiserver.config.k8s.io/v1, not {0}")]
    Kind(String),
    /// A rule has no or a wrong provider.
    #[error("resources[{rule}].providers: {reason}")]
    Provider {
        /// Which rule, from 0.
        rule: usize,
        /// What is wrong.
        reason: String,
    },
    /// A resource's name cannot be read.
    #[error(
        "resources[{rule}].resources: {resource:?} is not a resource such as secrets, deployments.apps, *.apps or *.*"
    )]
    Resource {
        /// Which rule, from 0.
        rule: usize,
        /// The name.
        resource: String,
    },
    /// A key cannot be used.
    #[error("key {name:?}: {reason}")]
    Key {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// How to write what is under a prefix.
#[derive(Clone, Debug)]
struct Rule {
    prefix: String,
    /// `None`: as it is.
    writes: Option<Key>,
    reads_plain: bool,
}

/// A configuration in use.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    /// The first that fits counts.
    rules: Vec<Rule>,
    keys: Vec<Key>,
}

impl EncryptionConfiguration {
    /// Encrypts `resources` with one key, and still reads what is not encrypted.
    pub fn new(resources: &[&str], key: NamedKey) -> Self {
        let aesgcm = Provider { aesgcm: Some(Keys { keys: vec![key] }), identity: None };
        let identity = Provider { aesgcm: None, identity: Some(Identity {}) };
        let resources = resources.iter().map(|resource| (*resource).to_owned()).collect();
        Self {
            api_version: "apiserver.config.k8s.io/v1".to_owned(),
            kind: "EncryptionConfiguration".to_owned(),
            resources: vec![ResourceRule { resources, providers: vec![aesgcm, identity] }],
        }
    }

    /// Puts a key before all others of every rule that encrypts; returns how many rules that are.
    pub fn put_first(&mut self, key: &NamedKey) -> usize {
        let mut changed = 0;
        for rule in &mut self.resources {
            if let Some(keys) = rule.providers.iter_mut().find_map(|provider| provider.aesgcm.as_mut()) {
                keys.keys.insert(0, key.clone());
                changed += 1;
            }
        }
        changed
    }

    /// Keeps only the first key of every rule that encrypts; returns the names of those given up.
    pub fn keep_first(&mut self) -> Vec<String> {
        let mut given_up = Vec::new();
        for rule in &mut self.resources {
            for keys in rule.providers.iter_mut().filter_map(|provider| provider.aesgcm.as_mut()) {
                given_up.extend(keys.keys.drain(1.min(keys.keys.len())..).map(|key| key.name));
            }
        }
        given_up.sort();
        given_up.dedup();
        given_up
    }

    /// The names of all keys.
    pub fn key_names(&self) -> impl Iterator<Item = &str> {
        let providers = self.resources.iter().flat_map(|rule| &rule.providers);
        providers.filter_map(|provider| provider.aesgcm.as_ref()).flat_map(|keys| &keys.keys).map(|key| &*key.name)
    }
}

impl NamedKey {
    /// A new key of random bytes.
    ///
    /// Errors: [`Error::Settings`] when the system gives none.
    pub fn random(name: String) -> Result<Self> {
        use ring::rand::SecureRandom as _;
        let mut secret = [0; 32];
        let random = ring::rand::SystemRandom::new().fill(&mut secret);
        random.map_err(|_| Error::Settings("the system gives no random numbers for a key".to_owned()))?;
        Ok(Self { name, secret: BASE64.encode(secret) })
    }
}

impl TryFrom<&NamedKey> for Key {
    type Error = EncryptionError;

    fn try_from(key: &NamedKey) -> Result<Self, EncryptionError> {
        let wrong = |reason| EncryptionError::Key { name: key.name.clone(), reason };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if key.name.is_empty() || key.name.len() > NAME_BYTES_MAX || !key.name.bytes().all(plain) {
            return Err(wrong("a name has 1 to 63 letters, digits, '-', '_' and '.'"));
        }
        let secret = BASE64.decode(&key.secret).map_err(|_| wrong("its secret is not base64"))?;
        let secret =
            secret.try_into().map_err(|_| wrong("its secret must have 32 bytes: head -c 32 /dev/urandom | base64"))?;
        Ok(Self { name: key.name.clone(), secret })
    }
}

/// The prefix of a resource's keys in the store.
fn prefix(resource: &str) -> Option<String> {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    match (plural, group) {
        ("*", "*") => Some("/".to_owned()),
        ("*", "") if resource == "*" => None,
        ("*", "") => Some("/core/".to_owned()),
        ("*", group) if plain(group) => Some(format!("/{group}/")),
        ("", _) => None,
        (plural, "") if plain(plural) => Some(format!("/core/{plural}/")),
        (plural, group) if plain(plural) && plain(group) => Some(format!("/{group}/{plural}/")),
        _ => None,
    }
}

impl Keyring {
    /// Puts a configuration to use.
    ///
    /// Errors: what is wrong with it, and where.
    pub fn new(configuration: &EncryptionConfiguration) -> Result<Self, EncryptionError> {
        let EncryptionConfiguration { api_version, kind, resources } = configuration;
        if api_version != "apiserver.config.k8s.io/v1" || kind != "EncryptionConfiguration" {
            return Err(EncryptionError::Kind(format!("{kind} {api_version}")));
        }
        let mut keyring = Self::default();
        for (rule, entry) in resources.iter().enumerate() {
            let wrong = |reason: &str| EncryptionError::Provider { rule, reason: reason.to_owned() };
            let mut writes = None;
            let mut reads_plain = false;
            for (place, provider) in entry.providers.iter().enumerate() {
                let keys = match (&provider.aesgcm, &provider.identity) {
                    (Some(keys), None) if !keys.keys.is_empty() => &keys.keys[..],
                    (Some(_), None) => return Err(wrong("aesgcm has no keys")),
                    (None, Some(_)) => &[],
                    _ => return Err(wrong("each must be either aesgcm or identity")),
                };
                reads_plain |= keys.is_empty();
                for (i, key) in keys.iter().enumerate() {
                    let key = keyring.add(Key::try_from(key)?)?;
                    if (place, i) == (0, 0) {
                        writes = Some(key);
                    }
                }
            }
            if entry.providers.is_empty() {
                return Err(wrong("at least one is needed"));
            }
            for resource in &entry.resources {
                let prefix =
                    prefix(resource).ok_or_else(|| EncryptionError::Resource { rule, resource: resource.clone() })?;
                keyring.rules.push(Rule { prefix, writes: writes.clone(), reads_plain });
            }
        }
        Ok(keyring)
    }

    /// Takes a key in; the same one may be named by several rules.
    fn add(&mut self, key: Key) -> Result<Key, EncryptionError> {
        match self.keys.iter().find(|known| known.name == key.name) {
            Some(known) if known.secret == key.secret => {}
            Some(_) => {
                return Err(EncryptionError::Key {
                    name: key.name,
                    reason: "there are two different keys of this name",
                });
            }
            None => self.keys.push(key.clone()),
        }
        Ok(key)
    }

    fn rule(&self, path: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| path.starts_with(&rule.prefix))
    }

    /// The prefixes that rules are about.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| &*rule.prefix)
    }

    /// The key that writes under `path`.
    pub(super) fn writes(&self, path: &str) -> Option<&str> {
        self.rule(path)?.writes.as_ref().map(|key| &*key.name)
    }

    /// What is written under `path` for `plain`.
    pub(super) fn seal(&self, path: &str, plain: Bytes) -> Result<Bytes> {
        let Some(key) = self.rule(path).and_then(|rule| rule.writes.as_ref()) else { return Ok(plain) };
        let failed =
            || Error::Encryption { path: path.to_owned(), reason: "the system gives no random numbers".to_owned() };
        key.seal(path, &plain).ok_or_else(failed)
    }

    /// What was meant by what is written under `path`.
    ///
    /// Errors: [`Error::Encryption`].
    pub(super) fn open(&self, path: &str, value: &Bytes) -> Result<Bytes> {
        let failed = |reason: String| Err(Error::Encryption { path: path.to_owned(), reason });
        if !cipher::is_encrypted(value) {
            return match self.rule(path) {
                Some(rule) if !rule.reads_plain => {
                    failed("it is not encrypted, and the configuration has no identity provider for it".to_owned())
                }
                _ => Ok(value.clone()),
            };
        }
        let Some((name, sealed)) = cipher::parts(value) else {
            return failed("its format is not known to this version of mainstay".to_owned());
        };
        let Some(key) = self.keys.iter().find(|key| key.name == name) else {
            return failed(format!(
                "it is encrypted with key {name:?}, which the configuration does not have: add it there"
            ));
        };
        match key.open(path, sealed) {
            Some(plain) => Ok(plain),
            None => failed(format!(
                "key {name:?} does not fit: it is another key of that name, or the value was changed, or copied from elsewhere"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(name: &str, byte: u8) -> NamedKey {
        NamedKey { name: name.to_owned(), secret: BASE64.encode([byte; 32]) }
    }

    #[test]
    fn resources_become_prefixes() {
        let cases = [("secrets", "/core/secrets/"), ("deployments.apps", "/apps/deployments/"), ("*.", "/core/")];
        let more = [("*.apps", "/apps/"), ("*.*", "/"), ("leases.coordination.k8s.io", "/coordination.k8s.io/leases/")];
        for (resource, wanted) in cases.into_iter().chain(more) {
            assert_eq!(prefix(resource).as_deref(), Some(wanted), "{resource}");
        }
        for wrong in ["", "*", ".apps", "a/b", "a.b/c"] {
            assert_eq!(prefix(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_first_provider_writes_and_all_read() {
        let mut configuration = EncryptionConfiguration::new(&["secrets"], key("one", 1));
        let old = Keyring::new(&configuration).unwrap();
        let path = "/core/secrets/a/b";
        let sealed = old.seal(path, Bytes::from("plain")).unwrap();
        assert_eq!(old.seal("/core/configmaps/a/b", Bytes::from("plain")).unwrap(), "plain");
        assert_eq!(configuration.put_first(&key("two", 2)), 1);
        let new = Keyring::new(&configuration).unwrap();
        assert_eq!((new.writes(path), new.open(path, &sealed).unwrap()), (Some("two"), Bytes::from("plain")));
        assert_eq!(new.open(path, &Bytes::from("old")).unwrap(), "old");
        assert_eq!(configuration.keep_first(), ["one"]);
        let said = Keyring::new(&configuration).unwrap().open(path, &sealed).unwrap_err().to_string();
        assert!(said.contains("\"one\"") && said.contains(path), "{said}");
        configuration.resources[0].providers.pop();
        let strict = Keyring::new(&configuration).unwrap();
        assert!(strict.open(path, &Bytes::from("old")).is_err());
        assert!(strict.open("/core/configmaps/a/b", &Bytes::from("old")).is_ok());
    }

    #[test]
    fn wrong_configurations_say_where() {
        let wrong = |change: fn(&mut EncryptionConfiguration)| {
            let mut configuration = EncryptionConfiguration::new(&["secrets"], key("one", 1));
            change(&mut configuration);
            Keyring::new(&configuration).unwrap_err().to_string()
        };
        assert!(wrong(|c| c.kind = "Pod".into()).contains("EncryptionConfiguration"));
        assert!(wrong(|c| c.resources[0].providers.clear()).contains("resources[0].providers"));
        assert!(wrong(|c| c.resources[0].providers[0] = Provider::default()).contains("either aesgcm or identity"));
        assert!(wrong(|c| c.resources[0].resources.push("*".into())).contains("\"*\""));
        assert!(wrong(|c| assert_eq!(c.put_first(&key("one", 2)), 1)).contains("two different keys"));
        assert!(wrong(|c| assert_eq!(c.put_first(&key("a:b", 2)), 1)).contains("a:b"));
        let short = |c: &mut EncryptionConfiguration| {
            c.put_first(&NamedKey { name: "short".into(), secret: "AAAA".into() });
        };
        assert!(wrong(short).contains("32 bytes"));
    }
}
