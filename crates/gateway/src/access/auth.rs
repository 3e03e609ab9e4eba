//! Who the user is: basic authentication (RFC 7617) or a bearer token (RFC 6750).

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use rustls::crypto::ring::default_provider;

use super::jwt::{Jwks, JwtRules};

/// What a rule accepts; any one of them is enough.
#[derive(Debug, Default)]
pub(crate) struct Authenticator {
    pub(crate) basic: Option<BasicUsers>,
    pub(crate) jwt: Option<(JwtRules, Jwks)>,
}

/// Names with hashed passwords.
#[derive(Debug, Default)]
pub(crate) struct BasicUsers {
    pub(crate) realm: String,
    users: HashMap<String, Vec<u8>>,
}

/// Why nobody came in: what `WWW-Authenticate` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denied(pub(crate) HeaderValue);

/// The user, and headers that the backend gets about them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Authenticator {
    /// Checks a request's credentials. `now_s` is the time in seconds since 1970.
    ///
    /// # Errors
    /// The challenge to answer with.
    pub(crate) fn check(&self, headers: &HeaderMap, now_s: i64) -> Result<User, Denied> {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (scheme, credentials) = given.split_once(' ').unwrap_or((given, ""));
        if let Some(basic) = &self.basic
            && scheme.eq_ignore_ascii_case("basic")
            && let Some(name) = basic.check(credentials.trim())
        {
            return Ok(User { name, headers: Vec::new() });
        }
        if let Some((rules, keys)) = &self.jwt
            && scheme.eq_ignore_ascii_case("bearer")
            && let Ok(claims) = keys.verify(credentials.trim(), rules, now_s)
        {
            return Ok(User {
                name: claims["sub"].as_str().unwrap_or_default().to_owned(),
                headers: rules.headers(&claims),
            });
        }
        Err(self.challenge(scheme))
    }

    /// Headers that only this authenticator may set; a client's own are dropped.
    pub(crate) fn owned_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.jwt.iter().flat_map(|(rules, _)| rules.claim_headers.iter().map(|(_, header)| header))
    }

    fn challenge(&self, scheme: &str) -> Denied {
        let realm = self.basic.as_ref().map_or("", |basic| basic.realm.as_str());
        let text = match (&self.basic, &self.jwt) {
            (Some(_), None) => format!("Basic realm=\"{realm}\", charset=\"UTF-8\""),
            _ if scheme.eq_ignore_ascii_case("bearer") => "Bearer error=\"invalid_token\"".to_owned(),
            _ => "Bearer".to_owned(),
        };
        Denied(HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Basic")))
    }
}

impl BasicUsers {
    /// Reads lines of `name:{SHA256}base64` or `name:{PLAIN}password`.
    ///
    /// # Errors
    /// The first line that is neither. Slow hashes (bcrypt) are refused: each request would pay for them.
    pub(crate) fn parse(realm: &str, text: &str) -> Result<Self, String> {
        let mut users = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = || format!("line {}: write NAME:{{SHA256}}BASE64 or NAME:{{PLAIN}}PASSWORD", number + 1);
            let (name, secret) = line.trim().split_once(':').ok_or_else(wrong)?;
            let hash = match (secret.strip_prefix("{SHA256}"), secret.strip_prefix("{PLAIN}")) {
                (Some(encoded), _) => STANDARD.decode(encoded).map_err(|_| wrong())?,
                (None, Some(plain)) => sha256(plain.as_bytes()),
                (None, None) => return Err(wrong()),
            };
            users.insert(name.to_owned(), hash);
        }
        Ok(Self { realm: realm.replace(['"', '\\'], ""), users })
    }

    fn check(&self, credentials: &str) -> Option<String> {
        let decoded = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
        let (name, password) = decoded.split_once(':')?;
        let wanted = self.users.get(name)?;
        same(wanted, &sha256(password.as_bytes())).then(|| name.to_owned())
    }
}

/// SHA-256 by the TLS library's own implementation.
fn sha256(bytes: &[u8]) -> Vec<u8> {
    let suites = default_provider().cipher_suites;
    let hash = suites.iter().find_map(|suite| {
        let hash = suite.tls13()?.common.hash_provider;
        (hash.output_len() == 32).then_some(hash)
    });
    hash.map(|hash| hash.hash(bytes).as_ref().to_vec()).unwrap_or_default()
}

/// Compares in a time that does not depend on where the difference is.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with(credentials: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(credentials));
        [(AUTHORIZATION, value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn basic_users_are_checked_by_their_hash() {
        // printf secret | openssl dgst -sha256 -binary | base64
        let text = "ann:{SHA256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=\nbob:{PLAIN}b:c\n";
        let basic = Some(BasicUsers::parse("shop", text).unwrap());
        let authenticator = Authenticator { basic, jwt: None };
        assert_eq!(authenticator.check(&with("ann:secret"), 0).unwrap().name, "ann");
        assert_eq!(authenticator.check(&with("bob:b:c"), 0).unwrap().name, "bob");
        for wrong in ["ann:Secret", "ann:", "eve:secret", "ann"] {
            assert!(authenticator.check(&with(wrong), 0).is_err(), "{wrong}");
        }
        let denied = authenticator.check(&HeaderMap::new(), 0).unwrap_err();
        assert_eq!(denied.0, "Basic realm=\"shop\", charset=\"UTF-8\"");
        assert!(BasicUsers::parse("", "ann:$2y$05$x").is_err());
    }
}
