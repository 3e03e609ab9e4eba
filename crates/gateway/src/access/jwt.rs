//! Signed tokens (RFC 7519) against a set of keys (RFC 7517), with the algorithms of RFC 7518 that use public keys.
//!
//! Verification is that of the TLS library: RS256, RS384, RS512, ES256, ES384 and EdDSA. HMAC tokens are refused: a gateway
//! that can verify them could also make them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{HeaderName, HeaderValue};
use rustls::SignatureScheme;
use rustls::crypto::ring::default_provider;
use serde::Deserialize;
use serde_json::Value;

/// Seconds that clocks may differ.
const LEEWAY_S: i64 = 30;
/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 16_384;

/// What must hold beside the signature.
#[derive(Debug, Clone, Default)]
pub(crate) struct JwtRules {
    pub(crate) issuer: Option<String>,
    /// One of them must be in `aud`, if there are any.
    pub(crate) audiences: Vec<String>,
    /// Claim and the header it becomes.
    pub(crate) claim_headers: Vec<(String, HeaderName)>,
}

impl JwtRules {
    /// The headers that a token's claims become.
    pub(crate) fn headers(&self, claims: &Value) -> Vec<(HeaderName, HeaderValue)> {
        let value = |claim: &Value| match claim {
            Value::Null => None,
            Value::String(text) => HeaderValue::from_str(text).ok(),
            other => HeaderValue::from_str(&other.to_string()).ok(),
        };
        self.claim_headers
            .iter()
            .filter_map(|(claim, header)| Some((header.clone(), value(&claims[claim.as_str()])?)))
            .collect()
    }
}

/// A set of public keys.
#[derive(Debug, Default)]
pub(crate) struct Jwks(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The subject public key as the TLS library takes it.
    public: Vec<u8>,
    kind: &'static str,
}

/// Why a token is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TokenError {
    #[error("not a token of three base64url parts")]
    Form,
    #[error("algorithm {0} is not accepted")]
    Algorithm(String),
    #[error("no key of the set has signed it")]
    Signature,
    #[error("it is not valid at this time")]
    Time,
    #[error("it is for somebody else or from somebody else")]
    Audience,
}

#[derive(Deserialize)]
struct Written {
    kty: String,
    kid: Option<String>,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

impl Jwks {
    /// Reads a JSON Web Key Set; keys of kinds that are not known are left out.
    ///
    /// # Errors
    /// It is not a key set, or no key of it can be used.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let set: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        let listed = set["keys"].as_array().ok_or("not a JWK set: it has no \"keys\"")?;
        let keys: Vec<Key> = listed.iter().filter_map(|key| public_key(&Written::deserialize(key).ok()?)).collect();
        if keys.is_empty() {
            Err("no RSA, EC (P-256, P-384) or Ed25519 key in the set".to_owned())
        } else {
            Ok(Self(keys))
        }
    }

    /// The claims of a token that is valid at `now_s`, in seconds since 1970.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub(crate) fn verify(&self, token: &str, rules: &JwtRules, now_s: i64) -> Result<Value, TokenError> {
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form);
        let json =
            |part: &str| decode(part).and_then(|it| serde_json::from_slice::<Value>(&it).map_err(|_| TokenError::Form));
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Form);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
        let (head, body) = signed.split_once('.').filter(|(_, body)| !body.contains('.')).ok_or(TokenError::Form)?;
        let (head, claims, signature) = (json(head)?, json(body)?, decode(signature)?);
        let algorithm = head["alg"].as_str().unwrap_or_default();
        let (kind, scheme) = scheme(algorithm).ok_or_else(|| TokenError::Algorithm(algorithm.to_owned()))?;
        // `crit` names extensions that must be understood; none is.
        if !head["crit"].is_null() {
            return Err(TokenError::Form);
        }
        let signature =
            if kind.starts_with("EC") { der_signature(&signature).ok_or(TokenError::Form)? } else { signature };
        let wanted = head["kid"].as_str();
        let fits =
            |key: &&Key| key.kind == kind && (wanted.is_none() || key.id.is_none() || key.id.as_deref() == wanted);
        let signers = self.0.iter().filter(fits);
        if !signers.into_iter().any(|key| signed_by(key, scheme, signed.as_bytes(), &signature)) {
            return Err(TokenError::Signature);
        }
        let time = |claim: &str| claims[claim].as_f64();
        let now = now_s as f64;
        let leeway = LEEWAY_S as f64;
        if time("exp").is_some_and(|exp| now >= exp + leeway) || time("nbf").is_some_and(|nbf| now + leeway < nbf) {
            return Err(TokenError::Time);
        }
        let for_us = rules.audiences.is_empty()
            || match &claims["aud"] {
                Value::String(one) => rules.audiences.contains(one),
                Value::Array(all) => {
                    all.iter().filter_map(Value::as_str).any(|it| rules.audiences.iter().any(|a| a == it))
                }
                _ => false,
            };
        if !for_us || rules.issuer.as_deref().is_some_and(|issuer| claims["iss"] != issuer) {
            return Err(TokenError::Audience);
        }
        Ok(claims)
    }
}

fn scheme(algorithm: &str) -> Option<(&'static str, SignatureScheme)> {
    Some(match algorithm {
        "RS256" => ("RSA", SignatureScheme::RSA_PKCS1_SHA256),
        "RS384" => ("RSA", SignatureScheme::RSA_PKCS1_SHA384),
        "RS512" => ("RSA", SignatureScheme::RSA_PKCS1_SHA512),
        "ES256" => ("EC256", SignatureScheme::ECDSA_NISTP256_SHA256),
        "ES384" => ("EC384", SignatureScheme::ECDSA_NISTP384_SHA384),
        "EdDSA" => ("ED", SignatureScheme::ED25519),
        _ => return None,
    })
}

fn signed_by(key: &Key, scheme: SignatureScheme, message: &[u8], signature: &[u8]) -> bool {
    let provider = default_provider();
    let mapping = provider.signature_verification_algorithms.mapping;
    let algorithms = mapping.iter().filter(|(known, _)| *known == scheme).flat_map(|(_, algorithms)| algorithms.iter());
    algorithms.into_iter().any(|algorithm| algorithm.verify_signature(&key.public, message, signature).is_ok())
}

/// Any text, as a token and as a set of keys: it is refused or taken, and nothing else happens.
pub(crate) fn fuzz(text: &str) {
    let numbers = URL_SAFE_NO_PAD.encode([7; 32]);
    let known = format!(r#"{{"keys": [{{"kty": "EC", "crv": "P-256", "x": "{numbers}", "y": "{numbers}"}}]}}"#);
    for keys in [known.as_str(), text].into_iter().filter_map(|it| Jwks::parse(it).ok()) {
        let _ = keys.verify(text, &JwtRules::default(), 0);
    }
}

fn public_key(written: &Written) -> Option<Key> {
    let number = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|it| !it.is_empty());
    let point = |kind, length: usize| {
        let (x, y) = (number(&written.x)?, number(&written.y)?);
        let good = x.len() == length && y.len() == length;
        good.then(|| (kind, [vec![4], x, y].concat()))
    };
    let (kind, public) = match (written.kty.as_str(), written.crv.as_str()) {
        ("RSA", _) => {
            ("RSA", der(0x30, &[der_integer(&number(&written.n)?), der_integer(&number(&written.e)?)].concat()))
        }
        ("EC", "P-256") => point("EC256", 32)?,
        ("EC", "P-384") => point("EC384", 48)?,
        ("OKP", "Ed25519") => ("ED", number(&written.x).filter(|it| it.len() == 32)?),
        _ => return None,
    };
    Some(Key { id: written.kid.clone(), public, kind })
}

/// A JWS signature of an elliptic curve is two numbers side by side (RFC 7518, 3.4); verification takes ASN.1.
fn der_signature(raw: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = (raw.len().is_multiple_of(2) && !raw.is_empty()).then(|| raw.split_at(raw.len() / 2))?;
    Some(der(0x30, &[der_integer(r), der_integer(s)].concat()))
}

/// An ASN.1 INTEGER of an unsigned big-endian number (X.690, 8.3).
fn der_integer(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len().saturating_sub(1));
    let mut number = bytes[start..].to_vec();
    if number.first().is_none_or(|byte| byte & 0x80 != 0) {
        number.insert(0, 0);
    }
    der(2, &number)
}

/// A DER element (X.690, 8.1.3).
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut element = vec![tag];
    match content.len() {
        short @ 0..=127 => element.push(short as u8),
        long => {
            let bytes = (long as u32).to_be_bytes();
            let bytes = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(3)..];
            element.push(0x80 | bytes.len() as u8);
            element.extend_from_slice(bytes);
        }
    }
    element.extend_from_slice(content);
    element
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn token(pair: &rcgen::KeyPair, head: &Value, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(head), encode(claims));
        let der = rustls_pki_types::PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let key = rustls::crypto::ring::sign::any_eddsa_type(&match der {
            rustls_pki_types::PrivateKeyDer::Pkcs8(key) => key,
            _ => unreachable!("rcgen writes PKCS#8"),
        })
        .unwrap();
        let signature = key.choose_scheme(&[SignatureScheme::ED25519]).unwrap().sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn only_what_a_key_of_the_set_signed_is_believed() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
        let keys =
            Jwks::parse(&json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": x}]}).to_string()).unwrap();
        let head = json!({"alg": "EdDSA", "kid": "1"});
        let claims = json!({"iss": "us", "aud": ["shop"], "sub": "ann", "exp": 1000, "team": 7});
        let rules = JwtRules {
            issuer: Some("us".into()),
            audiences: vec!["shop".into()],
            claim_headers: vec![("team".into(), HeaderName::from_static("x-team"))],
        };
        let good = token(&pair, &head, &claims);
        let verified = keys.verify(&good, &rules, 999).unwrap();
        assert_eq!(verified["sub"], "ann");
        assert_eq!(rules.headers(&verified), [(HeaderName::from_static("x-team"), HeaderValue::from_static("7"))]);
        assert_eq!(keys.verify(&good, &rules, 1030), Err(TokenError::Time));
        let other = JwtRules { audiences: vec!["bank".into()], ..rules.clone() };
        assert_eq!(keys.verify(&good, &other, 999), Err(TokenError::Audience));
        let stranger = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert_eq!(keys.verify(&token(&stranger, &head, &claims), &rules, 0), Err(TokenError::Signature));
        let none = token(&pair, &json!({"alg": "none"}), &claims);
        assert_eq!(keys.verify(&none, &rules, 0), Err(TokenError::Algorithm("none".into())));
        for wrong in ["", ".", "a.b", "a.b.c", "a.b.c.d"] {
            assert!(keys.verify(wrong, &rules, 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_written_in_der() {
        assert_eq!(der_integer(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(der_integer(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(der_integer(&[0]), [2, 1, 0]);
        assert_eq!(der(0x30, &[0; 200])[..3], [0x30, 0x81, 200]);
    }
}
