//! Request heads (RFC 9112). Strict where two readers could take the same bytes for different requests.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};

use crate::upstream::Length;

/// Header lines that have a place without an allocation.
const HEADERS_USUAL: usize = 128;

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    pub(crate) bytes_max: usize,
    pub(crate) headers_max: usize,
}

/// A request's head, and what it says about the connection.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, not a state machine")]
pub(crate) struct RequestHead {
    pub(crate) parts: Parts,
    pub(crate) length: Length,
    pub(crate) keep_alive: bool,
    /// The client waits for 100 before it sends its body.
    pub(crate) expects: bool,
    /// The client may go on with another protocol.
    pub(crate) upgrades: bool,
    /// The client reads trailers.
    pub(crate) trailers: bool,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) message: &'static str,
}

impl Refused {
    /// 400.
    pub(super) fn bad(message: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message }
    }

    fn too_large() -> Self {
        Self { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message: "the request's head is too large" }
    }
}

/// Takes a head from the buffer; `None` if it is not whole yet.
///
/// # Errors
/// It is too large, not HTTP/1, or its length can be read in two ways.
pub(crate) fn read(buffer: &mut BytesMut, limits: HeadLimits) -> Result<Option<RequestHead>, Refused> {
    let mut usual = [const { MaybeUninit::uninit() }; HEADERS_USUAL];
    let mut many = Vec::new();
    let places = if limits.headers_max <= HEADERS_USUAL {
        &mut usual[..limits.headers_max]
    } else {
        many.resize_with(limits.headers_max, MaybeUninit::uninit);
        &mut many[..]
    };
    let mut request = httparse::Request::new(&mut []);
    let seen = &buffer[..buffer.len().min(limits.bytes_max)];
    let length = match request.parse_with_uninit_headers(seen, places) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if buffer.len() >= limits.bytes_max => return Err(Refused::too_large()),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::too_large()),
        Err(httparse::Error::Version) => {
            let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
            return Err(Refused { status, message: "this version of HTTP is not spoken here" });
        }
        Err(_) => return Err(Refused::bad("this is no HTTP request")),
    };
    let start = buffer.as_ptr() as usize;
    let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes());
    let method = method.map_err(|_| Refused::bad("the method is none"))?;
    let version = if request.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let target = request.path.unwrap_or_default();
    let target = (target.as_ptr() as usize - start, target.len());
    // Where names and values are, so that the bytes can be cut off the buffer while nothing borrows it.
    let mut places = [(0_u32, 0_u32, 0_u32, 0_u32); HEADERS_USUAL];
    let mut many_places = Vec::new();
    let count = request.headers.len();
    let places = if count <= HEADERS_USUAL {
        &mut places[..count]
    } else {
        many_places.resize(count, (0, 0, 0, 0));
        &mut many_places[..]
    };
    for (place, header) in places.iter_mut().zip(request.headers.iter()) {
        let (name, value) = (header.name.as_ptr() as usize - start, header.value.as_ptr() as usize - start);
        *place = (name as u32, header.name.len() as u32, value as u32, header.value.len() as u32);
    }
    let bytes = buffer.split_to(length).freeze();
    let cut = |at: u32, length: u32| bytes.slice(at as usize..(at + length) as usize);
    let uri = uri(&method, bytes.slice(target.0..target.0 + target.1))?;
    let mut headers = HeaderMap::with_capacity(count + ROOM);
    let mut facts = Facts::default();
    for (name_at, name_len, value_at, value_len) in places.iter().copied() {
        let name = HeaderName::from_bytes(&bytes[name_at as usize..(name_at + name_len) as usize]);
        let name = name.map_err(|_| Refused::bad("a header name is broken"))?;
        let value = HeaderValue::from_maybe_shared(cut(value_at, value_len));
        let value = value.map_err(|_| Refused::bad("a header value is broken"))?;
        facts.take(&name, &value)?;
        headers.append(name, value);
    }
    let length = facts.length(version)?;
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.method, parts.uri, parts.version, parts.headers) = (method, uri, version, headers);
    let upgrades = facts.upgrades(&mut parts) && version == Version::HTTP_11;
    Ok(Some(RequestHead {
        length,
        keep_alive: !facts.close && (version == Version::HTTP_11 || facts.keep_alive),
        expects: facts.expects && version == Version::HTTP_11 && length != Length::None,
        upgrades: upgrades || parts.method == Method::CONNECT,
        trailers: facts.trailers && version == Version::HTTP_11,
        parts,
    }))
}

/// Places for headers that are added on the way.
const ROOM: usize = 8;

fn uri(method: &Method, target: Bytes) -> Result<Uri, Refused> {
    let uri = Uri::from_maybe_shared(target).map_err(|_| Refused::bad("the target is no URI"))?;
    // Only CONNECT asks for an authority, and for nothing else (RFC 9112, 3.2.3).
    let authority = uri.scheme().is_none() && uri.authority().is_some();
    if authority != (*method == Method::CONNECT) {
        return Err(Refused::bad("the target is neither a path nor an authority"));
    }
    Ok(uri)
}

/// What the headers say about the message and the connection.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, not a state machine")]
struct Facts {
    host: bool,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    expects: bool,
    trailers: bool,
}

impl Facts {
    fn take(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), Refused> {
        match *name {
            CONTENT_LENGTH => {
                let digits = |it: &&str| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit());
                let number = value.to_str().ok().filter(digits).and_then(|it| it.parse().ok());
                let number = number.ok_or(Refused::bad("the Content-Length is not one number"))?;
                if self.length.replace(number).is_some() {
                    return Err(Refused::bad("there is more than one Content-Length"));
                }
            }
            TRANSFER_ENCODING => {
                let last = value.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
                if !last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Refused::bad("the last transfer coding is not chunked"));
                }
                if last.len() != value.len() {
                    let status = StatusCode::NOT_IMPLEMENTED;
                    return Err(Refused { status, message: "the only transfer coding spoken here is chunked" });
                }
                if std::mem::replace(&mut self.chunked, true) {
                    return Err(Refused::bad("there is more than one Transfer-Encoding"));
                }
            }
            CONNECTION => {
                for word in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    self.close |= word.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= word.eq_ignore_ascii_case(b"keep-alive");
                    self.upgrade |= word.eq_ignore_ascii_case(b"upgrade");
                }
            }
            HOST if std::mem::replace(&mut self.host, true) => return Err(Refused::bad("there is more than one Host")),
            EXPECT => self.expects = value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            TE => {
                let mut words = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                self.trailers |= words.any(|word| word.eq_ignore_ascii_case(b"trailers"));
            }
            _ => {}
        }
        Ok(())
    }

    /// RFC 9112, 6.3; where it leaves a choice, the request is refused.
    fn length(&self, version: Version) -> Result<Length, Refused> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Refused::bad("there is both a Content-Length and a Transfer-Encoding")),
            (true, None) if version == Version::HTTP_10 => Err(Refused::bad("HTTP/1.0 has no Transfer-Encoding")),
            (true, None) => Ok(Length::Chunked),
            (false, None | Some(0)) => Ok(Length::None),
            (false, Some(bytes)) => Ok(Length::Fixed(bytes)),
        }
    }

    /// Whether another protocol is asked for. Never h2c: a tunnel of HTTP would carry requests past every rule.
    fn upgrades(&self, parts: &mut Parts) -> bool {
        if !self.upgrade {
            return false;
        }
        let values = parts.headers.get_all(UPGRADE);
        let mut words = values.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).peekable();
        let some = words.peek().is_some();
        let http = words.any(|word| {
            let word = word.trim_ascii().to_ascii_lowercase();
            word.starts_with(b"h2") || word.starts_with(b"http/") || word.starts_with(b"tls/")
        });
        if http {
            parts.headers.remove(UPGRADE);
        }
        some && !http
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { bytes_max: 1000, headers_max: 20 };

    fn parse(text: &str) -> Result<Option<RequestHead>, Refused> {
        read(&mut BytesMut::from(text), LIMITS)
    }

    fn with(headers: &str) -> Result<RequestHead, Refused> {
        parse(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n")).map(Option::unwrap)
    }

    #[test]
    fn a_bodys_length_is_said_once() {
        for (headers, wanted) in [
            ("", Length::None),
            ("Content-Length: 0\r\n", Length::None),
            ("content-length:  7 \r\n", Length::Fixed(7)),
            ("Transfer-Encoding: Chunked\r\n", Length::Chunked),
        ] {
            assert_eq!(with(headers).unwrap().length, wanted, "{headers}");
        }
        for headers in [
            "Content-Length: 7\r\nContent-Length: 7\r\n",
            "Content-Length: 7, 7\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: 0x7\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: \u{b}chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Host: b\r\n",
            "X: a\r\n b\r\n",
            "X: a\rb\r\n",
            "X\0: a\r\n",
            ": a\r\n",
        ] {
            assert!(with(headers).is_err(), "{headers:?}");
        }
        assert!(parse("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn targets_have_the_form_of_their_method() {
        for good in ["GET /", "GET /a?b=c", "GET http://a/b", "OPTIONS *", "CONNECT a:80"] {
            assert!(parse(&format!("{good} HTTP/1.1\r\nHost: a\r\n\r\n")).is_ok(), "{good}");
        }
        for wrong in
            ["GET a", "GET a:80", "CONNECT /", "CONNECT http://a/", "GET", "GET  /", "G\u{e9}T /", "GET /\u{7f}"]
        {
            assert!(parse(&format!("{wrong} HTTP/1.1\r\nHost: a\r\n\r\n")).is_err(), "{wrong}");
        }
        assert_eq!(parse("GET / HTTP/2.0\r\n\r\n").unwrap_err().status, StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    }

    #[test]
    fn heads_have_limits() {
        let long = "x".repeat(2000);
        for text in [
            format!("GET /{long} HTTP/1.1\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nX: {long}"),
            format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(21)),
        ] {
            assert_eq!(parse(&text).unwrap_err().status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        assert!(parse(&format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(20))).unwrap().is_some());
        assert!(parse("GET / HTTP/1.1\r\nX:").unwrap().is_none());
    }

    #[test]
    fn connections_and_upgrades_are_as_they_say() {
        assert!(with("").unwrap().keep_alive);
        assert!(!with("Connection: x, Close\r\n").unwrap().keep_alive);
        assert!(!parse("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().keep_alive);
        assert!(parse("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().unwrap().keep_alive);
        assert!(with("Connection: upgrade\r\nUpgrade: websocket\r\n").unwrap().upgrades);
        for not in [
            "Upgrade: websocket\r\n",
            "Connection: upgrade\r\n",
            "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\n",
            "Connection: upgrade\r\nUpgrade: websocket, H2C\r\n",
        ] {
            assert!(!with(not).unwrap().upgrades, "{not:?}");
        }
        assert!(with("Expect: 100-Continue\r\nContent-Length: 1\r\n").unwrap().expects);
        assert!(!with("Expect: 100-continue\r\n").unwrap().expects, "there is nothing to wait for");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&mut BytesMut::from(&text[..]), LIMITS);
            let head = [b"GET / HTTP/1.1\r\n".as_slice(), &text, b"\r\n\r\n"].concat();
            let _ = read(&mut BytesMut::from(&head[..]), LIMITS);
        }
    }
}
