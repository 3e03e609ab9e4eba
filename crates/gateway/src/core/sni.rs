//! The server name in a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3), without taking the bytes away.

/// The name that is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sni {
    /// This one, or none.
    Name(Option<String>),
    /// More bytes are needed.
    More,
    /// This is not TLS.
    NotTls,
}

/// Any bytes: once a name is found, more bytes do not change it.
pub(crate) fn fuzz(bytes: &[u8]) {
    let (half, _) = bytes.split_at(bytes.len() / 2);
    if let found @ Sni::Name(_) = sni(half) {
        assert_eq!(sni(bytes), found);
    }
}

/// Looks into what has arrived of a connection.
pub(super) fn sni(bytes: &[u8]) -> Sni {
    match bytes {
        [0x16, 3, _, ..] | [0x16, 3] | [0x16] | [] => {}
        _ => return Sni::NotTls,
    }
    let mut hello = Vec::new();
    let mut rest = bytes;
    // A hello may be cut into several records.
    loop {
        let Some((head, body)) = rest.split_at_checked(5) else { return Sni::More };
        if head[0] != 0x16 {
            return Sni::NotTls;
        }
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        let part = &body[..length.min(body.len())];
        hello.extend_from_slice(part);
        if let [kind, a, b, c, ..] = hello.as_slice() {
            let wanted = 4 + usize::from(*a) * 65_536 + usize::from(*b) * 256 + usize::from(*c);
            if *kind != 1 || wanted > 65_536 {
                return Sni::NotTls;
            }
            if hello.len() >= wanted {
                return Sni::Name(name(&hello[4..wanted]));
            }
        }
        if part.len() < length {
            return Sni::More;
        }
        rest = &body[length..];
    }
}

fn name(hello: &[u8]) -> Option<String> {
    let mut at = Reader(hello);
    at.skip(34)?;
    let session = at.number(1)?;
    at.skip(session)?;
    let suites = at.number(2)?;
    at.skip(suites)?;
    let methods = at.number(1)?;
    at.skip(methods)?;
    let length = at.number(2)?;
    let mut extensions = Reader(at.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let length = extensions.number(2)?;
        let mut body = Reader(extensions.take(length)?);
        if kind == 0 {
            let _list = body.number(2)?;
            let host = body.number(1)? == 0;
            let length = body.number(2)?;
            let text = std::str::from_utf8(body.take(length)?).ok()?;
            return host.then(|| text.to_ascii_lowercase());
        }
    }
    None
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(drop)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number * 256 + usize::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A real hello, from the TLS library.
    fn hello(host: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(config), host.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_is_found_once_the_hello_is_whole() {
        let bytes = hello("shop.example.com");
        for end in 0..bytes.len() {
            assert_eq!(sni(&bytes[..end]), Sni::More, "{end}");
        }
        assert_eq!(sni(&bytes), Sni::Name(Some("shop.example.com".into())));
        assert_eq!(sni(&hello("192.0.2.1")), Sni::Name(None));
        assert_eq!(sni(b"GET / HTTP/1.1"), Sni::NotTls);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(at in 0_usize..300, byte in any::<u8>(), tail in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = hello("a.example");
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = sni(&bytes);
            let _ = sni(&[&[0x16, 3, 1], tail.as_slice()].concat());
        }
    }
}
