//! Names of images, as people write them in manifests. Pure.
//!
//! Source: <https://kubernetes.io/docs/concepts/containers/images/#image-names> and the grammar in
//! <https://github.com/distribution/reference>.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// Where names without a registry are looked for.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of names without one.
pub const DEFAULT_TAG: &str = "latest";
/// The longest name, without tag and digest, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// The longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

/// Names one image in one registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The registry's host, with its port if it has one; `docker.io` if none was named.
    pub registry: String,
    /// The repository there, such as `library/nginx`.
    pub repository: String,
    /// The tag; `latest` if neither tag nor digest was given.
    pub tag: Option<String>,
    /// The digest of the manifest; it wins over the tag.
    pub digest: Option<Digest>,
}

/// A text that names no image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("couldn't parse image name \"{name}\": invalid reference format: {why}")]
pub struct InvalidName {
    /// The text.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl FromStr for Reference {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let refuse = |why| InvalidName { name: text.to_owned(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| refuse("the digest is not sha256:…"))?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse("the tag may hold letters, digits, '_', '.', '-', at most 128"));
        }
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(refuse("the name must have 1 to 255 characters"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest.to_owned()),
            _ => (DEFAULT_REGISTRY, name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if !registry.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte)) {
            return Err(refuse("the registry is not a host name"));
        }
        if !repository.split('/').all(is_component) {
            return Err(refuse("repository name must be lowercase letters, digits and single separators"));
        }
        let official = registry == DEFAULT_REGISTRY && !repository.contains('/');
        let repository = if official { format!("library/{repository}") } else { repository };
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Whether the first part of a name is a registry and not the beginning of a repository.
fn is_registry(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= TAG_BYTES_MAX
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || b".-".contains(&byte))
}

/// Letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    if !(bytes.first().is_some_and(|byte| plain(*byte)) && bytes.last().is_some_and(|byte| plain(*byte))) {
        return false;
    }
    bytes
        .split(|byte| plain(*byte))
        .all(|gap| matches!(gap, [] | [b'.' | b'_'] | [b'_', b'_']) || gap.iter().all(|b| *b == b'-'))
}

impl Reference {
    /// Registry and repository: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What a registry is asked for: the digest, or else the tag.
    pub fn version(&self) -> String {
        self.digest.as_ref().map_or_else(|| self.tag.clone().unwrap_or_default(), ToString::to_string)
    }

    /// Whether the name may mean another image tomorrow, so that the pull policy is `Always` unless one is set.
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some(DEFAULT_TAG)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.name())?;
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => write!(formatter, "@{digest}"),
            (Some(tag), None) => write!(formatter, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_as_people_write_them() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("index.docker.io/x", "docker.io/library/x:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("quay.io/a/b__c/d--e:T_1", "quay.io/a/b__c/d--e:T_1"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            (&format!("ghcr.io/a/b:v1@{digest}"), &format!("ghcr.io/a/b@{digest}")),
        ] {
            let parsed: Reference = text.parse().unwrap();
            assert_eq!(parsed.to_string(), *full);
            assert_eq!(parsed.to_string().parse::<Reference>().unwrap().to_string(), *full);
        }
        assert!("nginx".parse::<Reference>().unwrap().is_latest());
        for bad in ["", "Nginx", "a//b", "nginx:", "a/-b", "a..b", "nginx@sha256:0", "a b", "x:y z", ":tag", "a___b"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in ".{0,80}") {
            if let Ok(parsed) = text.parse::<Reference>() {
                prop_assert_eq!(parsed.to_string().parse::<Reference>().unwrap().to_string(), parsed.to_string());
            }
        }
    }
}
