//! Answers as bytes: heads, and bodies in the framing that the client understands (RFC 9112, 6 and 7).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};
use http_body::{Body as _, Frame};

use super::head::RequestHead;
use crate::body::{BodyError, ReplyBody};

/// Data up to this size is written together with what is around it; more is not copied.
const COPIED_MAX: usize = 16_384;

/// What of a request matters for its answer.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, not a state machine")]
pub(super) struct Asked {
    head_only: bool,
    connect: bool,
    version: Version,
    keep_alive: bool,
    trailers: bool,
}

impl Asked {
    pub(super) fn of(head: &RequestHead) -> Self {
        Self {
            head_only: head.parts.method == Method::HEAD,
            connect: head.parts.method == Method::CONNECT,
            version: head.parts.version,
            keep_alive: head.keep_alive,
            trailers: head.trailers,
        }
    }

    /// The same, but the connection ends if it must.
    pub(super) fn unless_ending(&self, stays: bool) -> Self {
        Self { keep_alive: self.keep_alive && stays, ..self.clone() }
    }

    /// For what could not be understood.
    pub(super) fn nothing() -> Self {
        Self { head_only: false, connect: false, version: Version::HTTP_11, keep_alive: false, trailers: false }
    }

    /// Whether an answer hands the connection over to another protocol.
    pub(super) fn tunnels(&self, status: StatusCode) -> bool {
        status == StatusCode::SWITCHING_PROTOCOLS || (self.connect && status.is_success())
    }
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Nothing,
    Fixed(u64),
    Chunked,
    UntilClose,
}

/// The writing of one body.
#[derive(Debug)]
pub(super) struct Framing {
    coding: Coding,
    trailers: bool,
    ended: bool,
}

/// Writes an answer's head; answers how its body is to be written, and whether the connection stays.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    asked: &Asked,
    reply: &http::Response<ReplyBody>,
    date: &[u8],
) -> (Framing, bool) {
    let status = reply.status();
    let bodyless = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || asked.tunnels(status);
    let coding = if bodyless || asked.head_only {
        Coding::Nothing
    } else if let Some(bytes) = reply.body().size_hint().exact() {
        Coding::Fixed(bytes)
    } else if asked.version == Version::HTTP_11 {
        Coding::Chunked
    } else {
        Coding::UntilClose
    };
    out.reserve(512);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    let mut keep = asked.keep_alive && coding != Coding::UntilClose;
    let mut dated = false;
    for (name, value) in reply.headers() {
        match *name {
            // Without a body the endpoint's own length stands: it is that of the body there would be.
            CONTENT_LENGTH if coding != Coding::Nothing || (bodyless && status != StatusCode::NOT_MODIFIED) => continue,
            TRANSFER_ENCODING => continue,
            CONNECTION if !asked.tunnels(status) => {
                keep &= !value.as_bytes().eq_ignore_ascii_case(b"close");
                continue;
            }
            _ => dated |= *name == DATE,
        }
        line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    match coding {
        Coding::Fixed(bytes) => {
            out.extend_from_slice(b"content-length: ");
            decimal(out, bytes);
            out.extend_from_slice(b"\r\n");
        }
        Coding::Chunked => line(out, b"transfer-encoding", b"chunked"),
        Coding::Nothing | Coding::UntilClose => {}
    }
    if !dated {
        line(out, b"date", date);
    }
    match (keep, asked.version) {
        _ if asked.tunnels(status) => {}
        (false, _) => line(out, b"connection", b"close"),
        (true, Version::HTTP_10) => line(out, b"connection", b"keep-alive"),
        (true, _) => {}
    }
    out.extend_from_slice(b"\r\n");
    let ended = matches!(coding, Coding::Nothing | Coding::Fixed(0));
    (Framing { coding, trailers: asked.trailers, ended }, keep)
}

impl Framing {
    /// Whether nothing more is to be written.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Writes a frame; what is too large to be copied is left in `chunk`, and what follows it in `tail`.
    pub(super) fn frame(
        &mut self,
        out: &mut Vec<u8>,
        chunk: &mut Bytes,
        tail: &mut &'static [u8],
        frame: Frame<Bytes>,
    ) -> Result<(), BodyError> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                self.finish(out, frame.into_trailers().ok().as_ref())?;
                return Ok(());
            }
        };
        if data.is_empty() {
            return Ok(());
        }
        let chunked = self.coding == Coding::Chunked;
        if let Coding::Fixed(left) = &mut self.coding {
            *left = left.checked_sub(data.len() as u64).ok_or("the answer is longer than it said")?;
            self.ended = *left == 0;
        }
        if chunked {
            hexadecimal(out, data.len());
            out.extend_from_slice(b"\r\n");
        }
        let after: &'static [u8] = if chunked { b"\r\n" } else { b"" };
        if data.len() <= COPIED_MAX {
            out.extend_from_slice(&data);
            out.extend_from_slice(after);
        } else {
            (*chunk, *tail) = (data, after);
        }
        Ok(())
    }

    /// Writes the end.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>, trailers: Option<&http::HeaderMap>) -> Result<(), BodyError> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        match self.coding {
            Coding::Fixed(1..) => return Err("the answer is shorter than it said".into()),
            Coding::Chunked => {
                out.extend_from_slice(b"0\r\n");
                // Only to clients that said they read them: others would be left with bytes they do not expect.
                for (name, value) in trailers.filter(|_| self.trailers).into_iter().flatten() {
                    line(out, name.as_str().as_bytes(), value.as_bytes());
                }
                out.extend_from_slice(b"\r\n");
            }
            Coding::Nothing | Coding::UntilClose | Coding::Fixed(0) => {}
        }
        Ok(())
    }
}

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// By hand: formatting costs more than the rest of a head.
fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn hexadecimal(out: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..digits).rev().map(|digit| b"0123456789abcdef"[(number >> (4 * digit)) & 15]));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::{HeaderMap, Response};

    fn asked(version: Version) -> Asked {
        Asked { version, keep_alive: true, trailers: true, ..Asked::nothing() }
    }

    fn written(asked: &Asked, status: u16, headers: &str, body: ReplyBody) -> (String, Framing, bool) {
        let mut reply = Response::builder().status(status);
        for (name, value) in headers.lines().filter_map(|it| it.split_once(": ")) {
            reply = reply.header(name, value);
        }
        let mut out = Vec::new();
        let (framing, keep) = write_head(&mut out, asked, &reply.body(body).unwrap(), b"now");
        (String::from_utf8(out).unwrap(), framing, keep)
    }

    #[test]
    fn heads_say_how_long_the_body_is() {
        let full = || ReplyBody::Full(Bytes::from_static(b"abc"));
        let (head, _, keep) = written(&asked(Version::HTTP_11), 200, "content-length: 9\nx: y", full());
        assert_eq!((&*head, keep), ("HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 3\r\ndate: now\r\n\r\n", true));
        let (head, _, keep) = written(&asked(Version::HTTP_10), 404, "date: then\nconnection: close", full());
        let wanted = "HTTP/1.1 404 Not Found\r\ndate: then\r\ncontent-length: 3\r\nconnection: close\r\n\r\n";
        assert_eq!((&*head, keep), (wanted, false));
        let (head, framing, _) = written(&asked(Version::HTTP_10), 204, "content-length: 0", ReplyBody::Empty);
        assert_eq!(head, "HTTP/1.1 204 No Content\r\ndate: now\r\nconnection: keep-alive\r\n\r\n");
        assert!(framing.ended());
        let only_head = Asked { head_only: true, ..asked(Version::HTTP_11) };
        let (head, framing, _) = written(&only_head, 200, "content-length: 9", ReplyBody::Empty);
        assert_eq!(head, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ndate: now\r\n\r\n");
        assert!(framing.ended());
    }

    #[test]
    fn bodies_are_framed() {
        let mut out = Vec::new();
        let (mut chunk, mut tail) = (Bytes::new(), b"".as_slice());
        let mut framing = Framing { coding: Coding::Chunked, trailers: true, ended: false };
        let data = |text: &'static str| Frame::data(Bytes::from_static(text.as_bytes()));
        framing.frame(&mut out, &mut chunk, &mut tail, data("")).unwrap();
        framing.frame(&mut out, &mut chunk, &mut tail, data("hello, hello, hello")).unwrap();
        let trailers: HeaderMap = [(http::header::ETAG, "t".parse().unwrap())].into_iter().collect();
        framing.frame(&mut out, &mut chunk, &mut tail, Frame::trailers(trailers)).unwrap();
        framing.finish(&mut out, None).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "13\r\nhello, hello, hello\r\n0\r\netag: t\r\n\r\n");
        assert!(chunk.is_empty() && tail.is_empty() && framing.ended());

        let mut framing = Framing { coding: Coding::Fixed(3), trailers: false, ended: false };
        framing.frame(&mut Vec::new(), &mut chunk, &mut tail, data("ab")).unwrap();
        assert!(framing.finish(&mut Vec::new(), None).is_err(), "a byte is missing");
        let mut framing = Framing { coding: Coding::Fixed(3), trailers: false, ended: false };
        assert!(framing.frame(&mut Vec::new(), &mut chunk, &mut tail, data("abcd")).is_err(), "one is too many");
    }

    #[test]
    fn numbers_are_written() {
        for number in [0, 1, 9, 10, 15, 16, 255, 4096, usize::MAX] {
            let (mut tens, mut sixteens) = (Vec::new(), Vec::new());
            decimal(&mut tens, number as u64);
            hexadecimal(&mut sixteens, number);
            assert_eq!(String::from_utf8(tens).unwrap(), number.to_string());
            assert_eq!(String::from_utf8(sixteens).unwrap(), format!("{number:x}"));
        }
    }
}
