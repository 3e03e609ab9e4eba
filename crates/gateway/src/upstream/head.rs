//! Heads of HTTP/1.1 messages: what is written to an endpoint, and what is read from it.

use bytes::BytesMut;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Version};

use super::h1::ExchangeError;

/// Largest response head, in bytes.
const HEAD_BYTES_MAX: usize = 65_535;
/// Most header lines of a response.
const HEADERS_MAX: usize = 128;

/// Places for headers that are added on the way to the client: a map that grows is made anew.
const ROOM: usize = 4;

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// None at all.
    None,
    /// So many bytes.
    Fixed(u64),
    /// Chunked.
    Chunked,
    /// Until the connection is closed; only for responses.
    Close,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) length: Length,
    pub(crate) keep_alive: bool,
}

/// Writes a request's head. `headers` must be free of framing and hop-by-hop headers.
pub(crate) fn write(
    out: &mut Vec<u8>,
    method: &Method,
    target: &str,
    headers: &HeaderMap,
    length: Length,
    upgrade: Option<&HeaderValue>,
) {
    out.reserve(256);
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        line(out, name.as_str(), value.as_bytes());
    }
    match length {
        // A body of no length is still said, where its absence would be a surprise (RFC 9110, 8.6).
        Length::None if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
            line(out, "content-length", b"0");
        }
        Length::None | Length::Close => {}
        Length::Fixed(bytes) => line(out, "content-length", bytes.to_string().as_bytes()),
        Length::Chunked => line(out, "transfer-encoding", b"chunked"),
    }
    if let Some(protocol) = upgrade {
        line(out, "connection", b"upgrade");
        line(out, "upgrade", protocol.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Reads a response's head from the buffer; `None` if it is not whole yet.
///
/// # Errors
/// It is too large, not HTTP, or its length can be read in two ways.
pub(crate) fn read(buffer: &mut BytesMut, method: &Method) -> Result<Option<Head>, ExchangeError> {
    let mut parsed = [const { std::mem::MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let seen = &buffer[..buffer.len().min(HEAD_BYTES_MAX)];
    let status = config.parse_response_with_uninit_headers(&mut response, seen, &mut parsed);
    let length = match status.map_err(|_| ExchangeError::Head("it is not HTTP/1.1"))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if buffer.len() >= HEAD_BYTES_MAX => {
            return Err(ExchangeError::Head("it is too large"));
        }
        httparse::Status::Partial => return Ok(None),
    };
    let start = buffer.as_ptr() as usize;
    // Heads are shorter than 64 KiB, so that places in them fit into 16 bits.
    let mut indices = [(0_u16, 0_u16, 0_u16, 0_u16); HEADERS_MAX];
    let count = response.headers.len();
    for (index, header) in indices.iter_mut().zip(response.headers.iter()) {
        let (name, value) = (header.name.as_ptr() as usize - start, header.value.as_ptr() as usize - start);
        *index = (name as u16, (name + header.name.len()) as u16, value as u16, (value + header.value.len()) as u16);
    }
    let (code, minor) = (response.code.unwrap_or(0), response.version.unwrap_or(0));
    let bytes = buffer.split_to(length).freeze();
    let mut headers = HeaderMap::with_capacity(count + ROOM);
    for (name_from, name_to, from, to) in indices.into_iter().take(count) {
        let name = HeaderName::from_bytes(&bytes[usize::from(name_from)..usize::from(name_to)]);
        let value = HeaderValue::from_maybe_shared(bytes.slice(usize::from(from)..usize::from(to)));
        let name = name.map_err(|_| ExchangeError::Head("a header name is broken"))?;
        headers.append(name, value.map_err(|_| ExchangeError::Head("a header value is broken"))?);
    }
    let status = StatusCode::from_u16(code).map_err(|_| ExchangeError::Head("its status is none"))?;
    let version = if minor == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let length = body_length(status, version, method, &mut headers)?;
    let keep_alive = keep_alive(version, &headers) && length != Length::Close;
    Ok(Some(Head { status, headers, length, keep_alive }))
}

/// RFC 9112, 6.3.
fn body_length(
    status: StatusCode,
    version: Version,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<Length, ExchangeError> {
    let chunked = match last_coding(headers) {
        None => false,
        Some(last) if last.eq_ignore_ascii_case(b"chunked") && version == Version::HTTP_11 => true,
        Some(_) => return Err(ExchangeError::Head("its transfer coding is not chunked")),
    };
    let fixed = content_length(headers)?;
    if method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        headers.remove(TRANSFER_ENCODING);
        return Ok(Length::None);
    }
    if chunked {
        // Both: the coding counts, and what it hides is not passed on (RFC 9112, 6.3, rule 3).
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
        return Ok(Length::Chunked);
    }
    Ok(fixed.map_or(Length::Close, |bytes| if bytes == 0 { Length::None } else { Length::Fixed(bytes) }))
}

fn last_coding(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get_all(TRANSFER_ENCODING).iter().next_back()?;
    let last = value.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
    Some(last.trim_ascii().to_vec())
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ExchangeError> {
    let mut found = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let text = std::str::from_utf8(part.trim_ascii()).unwrap_or_default();
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse::<u64>().ok().filter(|_| digits);
            match (number, found) {
                (Some(number), None) => found = Some(number),
                (Some(number), Some(before)) if number == before => {}
                _ => return Err(ExchangeError::Head("its content-length is not one number")),
            }
        }
    }
    Ok(found)
}

fn keep_alive(version: Version, headers: &HeaderMap) -> bool {
    let says = |word: &str| {
        headers.get_all(CONNECTION).iter().any(|value| {
            value.as_bytes().split(|byte| *byte == b',').any(|it| it.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
        })
    };
    if version == Version::HTTP_11 { !says("close") } else { says("keep-alive") && !says("close") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Option<Head>, ExchangeError> {
        read(&mut BytesMut::from(text), &Method::GET)
    }

    #[test]
    fn a_bodys_length_is_that_of_rfc_9112() {
        for (headers, wanted) in [
            ("Content-Length: 5\r\n", Length::Fixed(5)),
            ("Content-Length: 0\r\n", Length::None),
            ("Content-Length: 5, 5\r\nContent-Length: 5\r\n", Length::Fixed(5)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Length::Chunked),
            ("Transfer-Encoding: gzip, Chunked\r\n", Length::Chunked),
            ("", Length::Close),
        ] {
            let head = parse(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n")).unwrap().unwrap();
            assert_eq!(head.length, wanted, "{headers}");
            assert!(wanted != Length::Chunked || !head.headers.contains_key("content-length"));
        }
        for headers in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: +5\r\n",
            "Content-Length:\r\n",
            "Transfer-Encoding: gzip\r\n",
            "A : b\r\n",
            "A: b\r\n c\r\n",
        ] {
            assert!(parse(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n")).is_err(), "{headers}");
        }
        let mut not_modified = BytesMut::from("HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(read(&mut not_modified, &Method::GET).unwrap().unwrap().length, Length::None);
    }

    #[test]
    fn connections_are_kept_as_they_say() {
        let keep = |text: &str| parse(text).unwrap().unwrap().keep_alive;
        assert!(keep("HTTP/1.1 204 x\r\n\r\n"));
        assert!(!keep("HTTP/1.1 204 x\r\nConnection: a, Close\r\n\r\n"));
        assert!(!keep("HTTP/1.0 204 x\r\n\r\n"));
        assert!(keep("HTTP/1.0 204 x\r\nConnection: keep-alive\r\n\r\n"));
        assert!(!keep("HTTP/1.1 200 x\r\n\r\n"), "its body ends with the connection");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&mut BytesMut::from(&text[..]), &Method::GET);
            let head = [b"HTTP/1.1 200 OK\r\n".as_slice(), &text, b"\r\n\r\n"].concat();
            let _ = read(&mut BytesMut::from(&head[..]), &Method::HEAD);
        }
    }
}
