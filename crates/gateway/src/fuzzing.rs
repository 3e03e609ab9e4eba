//! What strangers can send, for fuzzing: each function takes any bytes and checks what must hold for all of them.
//!
//! `fuzz/` has a cargo-fuzz target for each; `tests/fuzz.rs` drives them with seeded input on a stable compiler. Not part of the
//! crate's interface.

use std::path::Path;

use bytes::BytesMut;
use http::{HeaderMap, Method};

use crate::access::fuzz_token;
use crate::config::{Objects, Options, compile, source};
use crate::core::{fuzz_proxy_protocol, fuzz_sni};
use crate::server::{HeadLimits, read_request};
use crate::transcode::Transcoder;
use crate::upstream::{Chunked, Length, Piece, read_head};

/// An endpoint's answer: whatever is in it, it is the same however the network cuts it, and never more than arrived.
pub fn answer(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let whole = read_answer(&[bytes]);
    let (first, second) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let halves = read_answer(&[first, second]);
    assert_eq!(whole, halves, "an answer was read differently when it came in two pieces");
    if let Some((_, body, _)) = whole {
        assert!(body.len() <= bytes.len());
    }
}

/// Status, body and trailers; nothing if it is broken or not whole.
fn read_answer(pieces: &[&[u8]]) -> Option<(u16, Vec<u8>, HeaderMap)> {
    let (mut buffer, mut pieces) = (BytesMut::new(), pieces.iter());
    let head = loop {
        match read_head(&mut buffer, &Method::GET) {
            Ok(Some(head)) => break head,
            Ok(None) => buffer.extend_from_slice(pieces.next()?),
            Err(_) => return None,
        }
    };
    let status = head.status.as_u16();
    match head.length {
        Length::Chunked => {}
        Length::None => return Some((status, Vec::new(), HeaderMap::new())),
        Length::Fixed(_) | Length::Close => {
            for piece in pieces {
                buffer.extend_from_slice(piece);
            }
            return Some((status, buffer.to_vec(), HeaderMap::new()));
        }
    }
    let (mut chunked, mut body) = (Chunked::Size, Vec::new());
    loop {
        match chunked.next(&mut buffer) {
            Ok(Piece::Data(data)) => body.extend_from_slice(&data),
            Ok(Piece::End(trailers)) => return Some((status, body, trailers)),
            Ok(Piece::More) => buffer.extend_from_slice(pieces.next()?),
            Err(_) => return None,
        }
    }
}

/// A client's request: however the network cuts it, it is the same, and what is taken for its head ends with an empty line.
pub fn request(bytes: &[u8]) {
    let limits = HeadLimits { bytes_max: 4_096, headers_max: 20 };
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let mut whole = BytesMut::from(bytes);
    let at_once = read_request(&mut whole, limits);
    let mut pieces = BytesMut::from(&bytes[..usize::from(*cut).min(bytes.len())]);
    let first = read_request(&mut pieces, limits);
    if let Ok(None) = first {
        pieces.extend_from_slice(&bytes[usize::from(*cut).min(bytes.len())..]);
        let later = read_request(&mut pieces, limits);
        assert_eq!(at_once.is_ok(), later.is_ok(), "a head was read differently when it came in two pieces");
        assert_eq!(whole, pieces);
    }
    if let Ok(Some(head)) = at_once {
        let taken = &bytes[..bytes.len() - whole.len()];
        assert!(taken.ends_with(b"\n\r\n") || taken.ends_with(b"\n\n"));
        assert!(head.parts.headers.len() <= 20);
    }
}

/// Descriptors and a request for them.
pub fn descriptors(bytes: &[u8]) {
    if let Ok(transcoder) = Transcoder::new(bytes)
        && let Some(call) = transcoder.find(&Method::GET, "/v1/a")
    {
        let _ = call.request(Some("a=b&c.d=e"), b"{}");
    }
}

/// The first bytes of a connection: a PROXY header, or a TLS hello.
pub fn connection(bytes: &[u8]) {
    fuzz_proxy_protocol(bytes);
    fuzz_sni(bytes);
}

/// A configuration, of which nothing may make the compiler fail as a whole.
pub fn configuration(bytes: &[u8]) {
    let mut sources = Vec::new();
    if source::parse(Path::new("fuzz.yaml"), &String::from_utf8_lossy(bytes), &mut sources).is_err() {
        return;
    }
    let compiled = compile(&Objects::decode(&sources), &Options::default());
    for problem in compiled.problems {
        drop(problem.to_string());
    }
}

/// A bearer token, or a set of keys.
pub fn token(bytes: &[u8]) {
    fuzz_token(&String::from_utf8_lossy(bytes));
}
