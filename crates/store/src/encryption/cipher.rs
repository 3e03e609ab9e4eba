//! One value, encrypted.
//!
//! ```text
//! mainstay:enc:aesgcm:v1:NAME:  salt, 32 bytes  ciphertext  tag, 16 bytes
//! ```
//!
//! AES-256-GCM (NIST SP 800-38D) with the path of the value as associated data. Each value has a key of its own, derived
//! with HKDF-SHA256 (RFC 5869) from the configured key and a random salt: so no nonce is ever used twice with one key,
//! however many values are written. (With one key and random nonces NIST allows 2³² values; a busy cluster gets there.)

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};

/// How every encrypted value begins; JSON never does.
pub(super) const MARK: &[u8] = b"mainstay:enc:";
const FORMAT: &str = "mainstay:enc:aesgcm:v1:";
const SALT_BYTES: usize = 32;
const INFO: &[u8] = b"mainstay value, aesgcm v1";

/// A key of the configuration. Its content is never shown.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) secret: [u8; 32],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether a value is encrypted, by whatever key.
pub(super) fn is_encrypted(value: &[u8]) -> bool {
    value.starts_with(MARK)
}

/// The parts of an encrypted value: the key's name, and what comes after it.
pub(super) fn parts(value: &[u8]) -> Option<(&str, &[u8])> {
    let rest = value.strip_prefix(FORMAT.as_bytes())?;
    let end = rest.iter().position(|byte| *byte == b':')?;
    Some((std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]))
}

impl Key {
    /// The key for one value.
    fn derive(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let secret = Salt::new(HKDF_SHA256, salt).extract(&self.secret);
        let derived = secret.expand(&[INFO], &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(derived)))
    }

    /// Encrypts what is to lie under `path`; `None` if the system gives no random numbers.
    pub(super) fn seal(&self, path: &str, plain: &[u8]) -> Option<Bytes> {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).ok()?;
        let mut body = plain.to_vec();
        self.derive(&salt)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key([0; NONCE_LEN]), Aad::from(path), &mut body)
            .ok()?;
        Some([FORMAT.as_bytes(), self.name.as_bytes(), b":", &salt, &body].concat().into())
    }

    /// Decrypts what lies under `path`, behind the key's name; `None` if it was made with another key or for another
    /// path, or changed since.
    pub(super) fn open(&self, path: &str, sealed: &[u8]) -> Option<Bytes> {
        let (salt, body) = sealed.split_at_checked(SALT_BYTES)?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        let length = self.derive(salt)?.open_in_place(nonce, Aad::from(path), &mut body).ok()?.len();
        body.truncate(length);
        Some(body.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_value_is_bound_to_key_and_path_and_cannot_be_changed() {
        let key = Key { name: "one".to_owned(), secret: [1; 32] };
        let sealed = key.seal("/a", b"plain").unwrap();
        assert!(is_encrypted(&sealed) && !sealed.windows(5).any(|window| window == b"plain"));
        let (name, body) = parts(&sealed).unwrap();
        assert_eq!((name, &key.open("/a", body).unwrap()[..]), ("one", &b"plain"[..]));
        assert_ne!(key.seal("/a", b"plain").unwrap(), sealed, "the same text twice looks different");
        assert!(key.open("/b", body).is_none());
        assert!(Key { secret: [2; 32], ..key.clone() }.open("/a", body).is_none());
        for i in 0..body.len() {
            let mut changed = body.to_vec();
            changed[i] ^= 1;
            assert!(key.open("/a", &changed).is_none(), "byte {i}");
        }
        assert!(key.open("/a", &body[..20]).is_none());
        assert!(!format!("{key:?}").contains("1, 1"));
    }
}
