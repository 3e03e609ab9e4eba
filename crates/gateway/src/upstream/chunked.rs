//! Chunked transfer coding (RFC 9112, 7.1). Strict: what one reader could take for something else is an error.

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// Longest line with a chunk's size and its extensions, in bytes.
const SIZE_LINE_MAX: usize = 256;
/// Longest trailer section, in bytes.
const TRAILERS_MAX: usize = 16_384;

/// Reads chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunked {
    /// Before a size.
    Size,
    /// So many bytes of the chunk are left.
    Data(u64),
    /// Before the line end that follows a chunk.
    DataEnd,
    /// After the last chunk.
    Trailers,
    /// After the end.
    Done,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A part of the body.
    Data(Bytes),
    /// The trailers, possibly none: the end.
    End(HeaderMap),
    /// More bytes are needed.
    More,
}

/// Why it is not chunked coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("broken chunked coding: {0}")]
pub(crate) struct ChunkError(&'static str);

impl Chunked {
    /// The next piece of what is in the buffer.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, ChunkError> {
        loop {
            match *self {
                Self::Size => match line(buffer, SIZE_LINE_MAX)? {
                    None => return Ok(Piece::More),
                    Some(length) => {
                        let size = size(&buffer[..length])?;
                        buffer.advance(length + 2);
                        *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                    }
                },
                Self::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Piece::More);
                    }
                    let take = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - take as u64;
                    *self = if left == 0 { Self::DataEnd } else { Self::Data(left) };
                    return Ok(Piece::Data(buffer.split_to(take).freeze()));
                }
                Self::DataEnd => {
                    if buffer.len() < 2 {
                        return Ok(Piece::More);
                    }
                    if &buffer[..2] != b"\r\n" {
                        return Err(ChunkError("a chunk is longer than its size"));
                    }
                    buffer.advance(2);
                    *self = Self::Size;
                }
                Self::Trailers => {
                    let Some(end) = trailers_end(buffer)? else { return Ok(Piece::More) };
                    let section = buffer.split_to(end);
                    *self = Self::Done;
                    return trailers(&section).map(Piece::End);
                }
                Self::Done => return Ok(Piece::End(HeaderMap::new())),
            }
        }
    }
}

/// The length of the first line; `None` if it is not whole yet.
fn line(buffer: &[u8], max: usize) -> Result<Option<usize>, ChunkError> {
    match buffer.iter().take(max + 2).position(|byte| *byte == b'\n') {
        Some(at) if at > 0 && buffer[at - 1] == b'\r' => Ok(Some(at - 1)),
        Some(_) => Err(ChunkError("a line ends without a carriage return")),
        None if buffer.len() > max => Err(ChunkError("a line is too long")),
        None => Ok(None),
    }
}

fn size(line: &[u8]) -> Result<u64, ChunkError> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let rest = &line[digits..];
    let extension = rest.iter().find(|byte| !matches!(byte, b' ' | b'\t'));
    if digits == 0 || digits > 15 || extension.is_some_and(|byte| *byte != b';') || rest.contains(&b'\r') {
        return Err(ChunkError("a chunk's size is not a hexadecimal number"));
    }
    let text = std::str::from_utf8(&line[..digits]).unwrap_or_default();
    u64::from_str_radix(text, 16).map_err(|_| ChunkError("a chunk's size is not a hexadecimal number"))
}

/// The end of the trailer section, its empty line included.
fn trailers_end(buffer: &[u8]) -> Result<Option<usize>, ChunkError> {
    if buffer.starts_with(b"\r\n") {
        return Ok(Some(2));
    }
    match buffer.windows(4).position(|window| window == b"\r\n\r\n") {
        Some(at) => Ok(Some(at + 4)),
        None if buffer.len() > TRAILERS_MAX => Err(ChunkError("the trailers are too long")),
        None => Ok(None),
    }
}

fn trailers(section: &[u8]) -> Result<HeaderMap, ChunkError> {
    let mut parsed = [httparse::EMPTY_HEADER; 64];
    let mut trailers = HeaderMap::new();
    if section.len() <= 2 {
        return Ok(trailers);
    }
    match httparse::parse_headers(section, &mut parsed) {
        Ok(httparse::Status::Complete((_, found))) => {
            for header in found {
                let name = HeaderName::from_bytes(header.name.as_bytes());
                let value = HeaderValue::from_bytes(header.value);
                let (Ok(name), Ok(value)) = (name, value) else { return Err(ChunkError("a trailer is not a header")) };
                trailers.append(name, value);
            }
            Ok(trailers)
        }
        _ => Err(ChunkError("a trailer is not a header")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, usize), ChunkError> {
        let (mut state, mut buffer, mut body) = (Chunked::Size, BytesMut::new(), Vec::new());
        let mut input = text.chunks(step);
        loop {
            match state.next(&mut buffer)? {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::End(trailers) => {
                    return Ok((body, trailers, buffer.len() + input.map(<[u8]>::len).sum::<usize>()));
                }
                Piece::More => match input.next() {
                    Some(more) => buffer.extend_from_slice(more),
                    None => return Err(ChunkError("it ends early")),
                },
            }
        }
    }

    #[test]
    fn chunks_and_trailers_are_read_in_any_pieces() {
        let text = b"5;a=b\r\nhello\r\n00006 \r\n world\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\nnext";
        for step in 1..text.len() {
            let (body, trailers, rest) = read(text, step).unwrap();
            assert_eq!((body.as_slice(), rest), (b"hello world".as_slice(), 4), "{step}");
            assert_eq!(trailers["x-sum"], "1");
        }
        assert_eq!(read(b"0\r\n\r\n", 1).unwrap().0, b"");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let cases: [&[u8]; 10] = [
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n",
            b"\r\n",
            b"5 5\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\n",
            b"0\r\nbad trailer\r\n\r\n",
        ];
        for text in cases {
            assert!(read(text, text.len()).is_err(), "{:?}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_read_for_ever(text in prop::collection::vec(any::<u8>(), 0..300), step in 1_usize..20) {
            let _ = read(&text, step);
        }
    }
}
