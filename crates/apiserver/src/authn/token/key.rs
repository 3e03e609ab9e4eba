//! The keys that sign and verify ServiceAccount tokens.
//!
//! One key signs; it and any number of others verify, so that a key can be replaced while tokens of the old one live.
//! ECDSA P-256 (ES256) and RSA (RS256), in PEM: private keys in PKCS #8 (RSA also PKCS #1), public keys as
//! SubjectPublicKeyInfo. A key's id is the SHA-256 of its public key, as in Kubernetes.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair as RsaKeyPair;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_SHA256, UnparsedPublicKey,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// SubjectPublicKeyInfo of a P-256 key up to its point (RFC 5480).
const P256_HEAD: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// AlgorithmIdentifier of RSA (RFC 8017).
const RSA_ALGORITHM: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// Why a key could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file holds no PEM of a key.
    #[error("cannot read a key from {path}: {source}; it must be PEM: PKCS #8, or for verification only, a public key")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// The key is of a kind that cannot be used.
    #[error(
        "the key in {path} cannot be used ({reason}): take ECDSA P-256 or RSA with 2048 bits or more, in PKCS #8 (openssl pkcs8 -topk8 -nocrypt)"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

enum Private {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Private {
    fn from_pkcs8(der: &[u8]) -> Result<Self, String> {
        let random = SystemRandom::new();
        match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random) {
            Ok(pair) => Ok(Self::Ecdsa(pair)),
            Err(_) => RsaKeyPair::from_pkcs8(der).map(Self::Rsa).map_err(|error| error.to_string()),
        }
    }

    fn read(path: &Path) -> Result<Self, KeyError> {
        let key =
            PrivateKeyDer::from_pem_file(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
        let unusable = |reason: String| KeyError::Unusable { path: path.to_owned(), reason };
        match key {
            PrivateKeyDer::Pkcs8(der) => Self::from_pkcs8(der.secret_pkcs8_der()).map_err(unusable),
            PrivateKeyDer::Pkcs1(der) => {
                RsaKeyPair::from_der(der.secret_pkcs1_der()).map(Self::Rsa).map_err(|error| unusable(error.to_string()))
            }
            _ => Err(unusable("it is not in PKCS #8".to_owned())),
        }
    }

    /// Its public half as SubjectPublicKeyInfo.
    fn public(&self) -> Vec<u8> {
        match self {
            Self::Ecdsa(pair) => [P256_HEAD, pair.public_key().as_ref()].concat(),
            Self::Rsa(pair) => {
                let bits = [&[0], pair.public().as_ref()].concat();
                der(0x30, &[RSA_ALGORITHM, &der(0x03, &bits)].concat())
            }
        }
    }
}

/// One DER element: tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1)..];
    let mut out = vec![tag];
    if content.len() < 0x80 {
        out.push(content.len() as u8);
    } else {
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(content);
    out
}

/// A key that verifies.
struct Public {
    id: String,
    algorithm: &'static str,
    /// A point for ES256, an RSAPublicKey for RS256.
    key: Vec<u8>,
    /// As a JSON Web Key (RFC 7517).
    web_key: Value,
}

impl Public {
    fn new(spki: &[u8]) -> Result<Self, String> {
        let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|error| error.to_string())?;
        let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, spki));
        let encode = |bytes: &[u8]| {
            let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(0);
            URL_SAFE_NO_PAD.encode(&bytes[start..])
        };
        let key = info.subject_public_key.data.to_vec();
        let (algorithm, mut web_key) = match info.parsed().map_err(|error| error.to_string())? {
            PublicKey::EC(_) if spki.starts_with(P256_HEAD) && key.len() == 65 => {
                let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&key[range]);
                ("ES256", json!({"kty": "EC", "crv": "P-256", "x": part(1..33), "y": part(33..65)}))
            }
            PublicKey::RSA(rsa) => {
                ("RS256", json!({"kty": "RSA", "n": encode(rsa.modulus), "e": encode(rsa.exponent)}))
            }
            _ => return Err("it is neither P-256 nor RSA".to_owned()),
        };
        for (field, value) in [("use", "sig"), ("alg", algorithm), ("kid", &id)] {
            web_key[field] = json!(value);
        }
        Ok(Self { id, algorithm, key, web_key })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self.algorithm {
            "ES256" => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.key).verify(message, signature),
            _ => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.key).verify(message, signature),
        };
        verified.is_ok()
    }
}

/// How tokens are made and believed: issuer, audiences and keys.
pub struct TokenKeys {
    /// The `iss` of new tokens, a URL.
    pub(crate) issuer: String,
    /// What this server calls itself in `aud`; the first is the one of tokens that do not say.
    pub(crate) audiences: Vec<String>,
    signer: Private,
    /// The signer's first.
    verifiers: Vec<Public>,
}

impl TokenKeys {
    /// Reads the key that signs and further ones, private or public, that only verify. The issuer is this server's
    /// audience, too.
    ///
    /// # Errors
    /// When a file cannot be read or holds a key of another kind.
    pub fn load(issuer: &str, signer: &Path, more: &[PathBuf]) -> Result<Self, KeyError> {
        let unusable = |path: &Path, reason: String| KeyError::Unusable { path: path.to_owned(), reason };
        let private = Private::read(signer)?;
        let mut verifiers = vec![Public::new(&private.public()).map_err(|reason| unusable(signer, reason))?];
        for path in more {
            let spki = match SubjectPublicKeyInfoDer::from_pem_file(path) {
                Ok(public) => public.to_vec(),
                Err(_) => Private::read(path)?.public(),
            };
            let public = Public::new(&spki).map_err(|reason| unusable(path, reason))?;
            if verifiers.iter().all(|known| known.id != public.id) {
                verifiers.push(public);
            }
        }
        Ok(Self { issuer: issuer.to_owned(), audiences: vec![issuer.to_owned()], signer: private, verifiers })
    }

    /// A key that nobody keeps: tokens end with the process.
    ///
    /// # Errors
    /// Without random numbers.
    pub fn ephemeral(issuer: &str) -> Result<Self, KeyError> {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let signer = pkcs8.map_err(|_| KeyError::Random)?;
        let signer = Private::from_pkcs8(signer.as_ref()).map_err(|_| KeyError::Random)?;
        let verifiers = vec![Public::new(&signer.public()).map_err(|_| KeyError::Random)?];
        Ok(Self { issuer: issuer.to_owned(), audiences: vec![issuer.to_owned()], signer, verifiers })
    }

    /// A signed token with these claims (RFC 7519, compact form).
    ///
    /// # Errors
    /// Without random numbers.
    pub(super) fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        let own = &self.verifiers[0];
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&json!({"alg": own.algorithm, "kid": own.id})), part(claims));
        let random = SystemRandom::new();
        let signature = match &self.signer {
            Private::Ecdsa(pair) => {
                pair.sign(&random, message.as_bytes()).map_err(|_| KeyError::Random)?.as_ref().to_vec()
            }
            Private::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let signed = pair.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature);
                signed.map_err(|_| KeyError::Random)?;
                signature
            }
        };
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that one of the keys signed; nothing is said about whether they hold now.
    pub(super) fn verify(&self, token: &str) -> Option<Value> {
        let (message, signature) = token.rsplit_once('.')?;
        let (head, claims) = message.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let read = |text: &str| serde_json::from_slice::<Value>(&decode(text)?).ok();
        let (head, signature) = (read(head)?, decode(signature)?);
        let candidates = self
            .verifiers
            .iter()
            .filter(|key| head["alg"] == key.algorithm && head["kid"].as_str().is_none_or(|id| id == key.id));
        candidates.into_iter().find(|key| key.verifies(message.as_bytes(), &signature))?;
        read(claims)
    }

    /// All keys that verify, as a JSON Web Key Set.
    pub(super) fn web_keys(&self) -> Value {
        json!({"keys": self.verifiers.iter().map(|key| &key.web_key).collect::<Vec<_>>()})
    }

    /// The algorithms of these keys, sorted.
    pub(super) fn algorithms(&self) -> Vec<&'static str> {
        let mut all: Vec<_> = self.verifiers.iter().map(|key| key.algorithm).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    fn openssl(directory: &Path, args: &str) {
        let status = Command::new("openssl").args(args.split(' ')).current_dir(directory).output().unwrap();
        assert!(status.status.success(), "{status:?}");
    }

    #[test]
    fn keys_of_openssl_sign_and_old_ones_still_verify() {
        let directory = tempfile::tempdir().unwrap();
        openssl(directory.path(), "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.key");
        openssl(directory.path(), "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.key");
        openssl(directory.path(), "pkey -in rsa.key -pubout -out rsa.pub");
        openssl(directory.path(), "ecparam -genkey -name secp384r1 -out p384.key");
        let at = |name: &str| directory.path().join(name);
        let claims = json!({"sub": "a"});
        let old = TokenKeys::load("i", &at("rsa.key"), &[]).unwrap();
        let token = old.sign(&claims).unwrap();
        let new = TokenKeys::load("i", &at("ec.key"), &[at("rsa.pub"), at("ec.key")]).unwrap();
        assert_eq!(new.verify(&token), Some(claims.clone()));
        assert_eq!(new.verify(&new.sign(&claims).unwrap()), Some(claims));
        assert_eq!(old.verify(&new.sign(&json!({})).unwrap()), None);
        assert_eq!(new.algorithms(), ["ES256", "RS256"]);
        assert_eq!(new.web_keys()["keys"].as_array().unwrap().len(), 2);
        assert!(TokenKeys::load("i", &at("p384.key"), &[]).is_err());
    }

    #[test]
    fn a_token_that_was_changed_is_refused() {
        let keys = TokenKeys::ephemeral("i").unwrap();
        let token = keys.sign(&json!({"sub": "a"})).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"b"}"#);
        assert_eq!(keys.verify(&format!("{}.{forged}.{}", parts[0], parts[2])), None);
        let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(keys.verify(&format!("{unsigned}.{forged}.")), None);
        for nonsense in ["", ".", "..", "a.b.c", "é.é.é"] {
            assert_eq!(keys.verify(nonsense), None);
        }
    }
}
