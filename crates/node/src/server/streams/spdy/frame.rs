//! SPDY/3.1 frames, taken apart and put together. Pure.
//!
//! Only what streams between `kubectl` and a kubelet need: no settings, no windows (neither side keeps any).
//!
//! Source: draft-mbelshe-httpbis-spdy-00, section 2.

use std::collections::HashMap;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::super::dictionary::dictionary;

/// The longest frame that is taken.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// The longest header block, unpacked.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// The compressor's window.
const WINDOW: usize = 32 * 1024;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
/// The last frame of its sender on this stream.
const FLAG_FIN: u8 = 1;

/// Why a connection is given up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum FrameError {
    /// A frame of another version, or not a frame.
    #[error("not a SPDY/3 frame")]
    Version,
    /// A frame that is longer than any should be.
    #[error("a frame of {0} bytes, at most {FRAME_BYTES_MAX} are taken")]
    TooLong(usize),
    /// A frame that is shorter than its kind.
    #[error("a frame that is cut short")]
    Short,
    /// Headers that cannot be unpacked.
    #[error("headers that cannot be read")]
    Headers,
}

/// A frame that matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The other side opens a stream.
    Open { stream: u32, last: bool, headers: HashMap<String, String> },
    /// Bytes of a stream.
    Data { stream: u32, last: bool, bytes: Vec<u8> },
    /// The other side gives a stream up.
    Reset { stream: u32 },
    /// The other side asks whether this one is there.
    Ping { id: u32 },
    /// The other side opens no more streams.
    GoAway,
    /// Nothing that matters here.
    Other,
}

/// Takes frames off a connection's bytes.
pub(super) struct Decoder {
    bytes: Vec<u8>,
    unpacker: Unpacker,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), unpacker: Unpacker::new() }
    }

    /// Takes in what was read.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((head, _)) = self.bytes.split_first_chunk::<8>() else { return Ok(None) };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let (flags, length) = (head[4], u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize);
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if self.bytes.len() < 8 + length {
            return Ok(None);
        }
        let body = self.bytes[8..8 + length].to_vec();
        self.bytes.drain(..8 + length);
        let last = flags & FLAG_FIN != 0;
        if first >> 31 == 0 {
            return Ok(Some(Frame::Data { stream: first, last, bytes: body }));
        }
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(FrameError::Version);
        }
        let number = || {
            let (number, _) = body.split_first_chunk::<4>().ok_or(FrameError::Short)?;
            Ok(u32::from_be_bytes(*number) & 0x7fff_ffff)
        };
        Ok(Some(match first as u16 {
            SYN_STREAM => {
                let block = body.get(10..).ok_or(FrameError::Short)?;
                // Also those of a stream that will be refused: all headers are packed as one.
                let headers = headers(&self.unpacker.unpack(block)?)?;
                Frame::Open { stream: number()?, last, headers }
            }
            RST_STREAM => Frame::Reset { stream: number()? },
            PING => {
                let (id, _) = body.split_first_chunk::<4>().ok_or(FrameError::Short)?;
                Frame::Ping { id: u32::from_be_bytes(*id) }
            }
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        }))
    }
}

/// Unpacks header blocks, which are pieces of one compressed stream (RFC 1950, RFC 1951).
struct Unpacker {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    position: usize,
    begun: bool,
}

impl Unpacker {
    fn new() -> Self {
        let dictionary = dictionary();
        let mut window = vec![0; WINDOW];
        // As if it had been sent before everything else.
        window[WINDOW - dictionary.len()..].copy_from_slice(&dictionary);
        Self { state: Box::default(), window, position: 0, begun: false }
    }

    fn unpack(&mut self, mut block: &[u8]) -> Result<Vec<u8>, FrameError> {
        if !self.begun {
            let &[_, flags, ..] = block else { return Err(FrameError::Headers) };
            let length = if flags & 0x20 == 0 { 2 } else { 6 };
            block = block.get(length..).ok_or(FrameError::Headers)?;
            self.begun = true;
        }
        let mut unpacked = Vec::new();
        loop {
            let flags = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
            let (status, read, written) = decompress(&mut self.state, block, &mut self.window, self.position, flags);
            unpacked.extend_from_slice(&self.window[self.position..self.position + written]);
            self.position = (self.position + written) % WINDOW;
            block = &block[read..];
            if unpacked.len() > HEADERS_BYTES_MAX {
                return Err(FrameError::Headers);
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput => return Ok(unpacked),
                _ => return Err(FrameError::Headers),
            }
        }
    }
}

/// A count, then names and values, each with its length before it.
fn headers(block: &[u8]) -> Result<HashMap<String, String>, FrameError> {
    let mut rest = block;
    let number = |rest: &mut &[u8]| {
        let (number, tail) = rest.split_first_chunk::<4>().ok_or(FrameError::Headers)?;
        *rest = tail;
        Ok::<_, FrameError>(u32::from_be_bytes(*number) as usize)
    };
    let text = |rest: &mut &[u8]| {
        let length = number(rest)?;
        let (text, tail) = rest.split_at_checked(length).ok_or(FrameError::Headers)?;
        *rest = tail;
        Ok::<_, FrameError>(String::from_utf8_lossy(text).into_owned())
    };
    let (count, tail) = rest.split_first_chunk::<4>().ok_or(FrameError::Headers)?;
    rest = tail;
    let mut found = HashMap::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let name = text(&mut rest)?.to_lowercase();
        found.insert(name, text(&mut rest)?);
    }
    Ok(found)
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = (0x8000 | VERSION).to_be_bytes().to_vec();
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Says that a stream was accepted. Without headers, packed in the least possible way; `first` on the connection's first.
pub(super) fn reply(stream: u32, first: bool) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    if first {
        body.extend_from_slice(&[0x78, 0x01]);
    }
    // A stored block of four bytes, the count of headers; and an empty one, without which Go's reader looks for more.
    body.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
    body.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
    control(SYN_REPLY, &body)
}

/// Refuses a stream (`REFUSED_STREAM`) or gives one up (`CANCEL`).
pub(super) fn reset(stream: u32, refused: bool) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend_from_slice(&(if refused { 3_u32 } else { 5 }).to_be_bytes());
    control(RST_STREAM, &body)
}

/// Answers a ping, or asks.
pub(super) fn ping(id: u32) -> Vec<u8> {
    control(PING, &id.to_be_bytes())
}

/// Bytes of a stream; `last` ends this side of it.
pub(super) fn data(stream: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    let mut frame = stream.to_be_bytes().to_vec();
    frame.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    frame[4] = if last { FLAG_FIN } else { 0 };
    frame.extend_from_slice(bytes);
    frame
}

/// Opens a stream: what a client does, for tests.
#[cfg(test)]
pub(super) fn open(stream: u32, first: bool, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend_from_slice(&(text.len() as u32).to_be_bytes());
        block.extend_from_slice(text.as_bytes());
    }
    let mut body = stream.to_be_bytes().to_vec();
    body.extend_from_slice(&[0; 6]);
    if first {
        body.extend_from_slice(&[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
    }
    let length = block.len() as u16;
    body.push(0);
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(&(!length).to_le_bytes());
    body.extend_from_slice(&block);
    control(SYN_STREAM, &body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn decode(bytes: &[u8]) -> Vec<Frame> {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        // Byte by byte: pieces must not matter.
        for byte in bytes {
            decoder.feed(&[*byte]);
            frames.extend(decoder.next().unwrap());
        }
        frames
    }

    #[test]
    fn frames_there_and_back() {
        let mut bytes = open(1, true, &[("streamType", "error"), ("Port", "80")]);
        bytes.extend(open(3, false, &[("streamType", "data")]));
        bytes.extend([data(3, b"abc", false), data(3, b"", true), reset(1, false), ping(7)].concat());
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(
            decode(&bytes),
            [
                Frame::Open { stream: 1, last: false, headers: map(&[("streamtype", "error"), ("port", "80")]) },
                Frame::Open { stream: 3, last: false, headers: map(&[("streamtype", "data")]) },
                Frame::Data { stream: 3, last: false, bytes: b"abc".to_vec() },
                Frame::Data { stream: 3, last: true, bytes: Vec::new() },
                Frame::Reset { stream: 1 },
                Frame::Ping { id: 7 },
            ]
        );
    }

    /// What Python's `zlib` makes of `streamtype: error`, `port: 80` and then `streamtype: data` with the dictionary.
    #[test]
    fn headers_that_were_really_packed() {
        let mut unpacker = Unpacker::new();
        let found = headers(&unpacker.unpack(&FIRST).unwrap()).unwrap();
        assert_eq!((found["streamtype"].as_str(), found["port"].as_str()), ("error", "80"));
        let found = headers(&unpacker.unpack(&SECOND).unwrap()).unwrap();
        assert_eq!(found["streamtype"], "data");
    }

    const FIRST: [u8; 38] = [
        0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xe5, 0x0e, 0x70, 0x3a, 0x2b, 0x29, 0x4a, 0x4d, 0xcc, 0x85, 0x16,
        0x25, 0xac, 0xa9, 0xa0, 0x80, 0x86, 0x14, 0xcb, 0x45, 0xa0, 0x24, 0xcc, 0x64, 0x61, 0x00, 0x00, 0x00, 0x00,
        0xff, 0xff,
    ];
    const SECOND: [u8; 14] = [0x02, 0x92, 0x8c, 0x18, 0x0a, 0x41, 0x65, 0x4e, 0x22, 0x00, 0x00, 0x00, 0xff, 0xff];

    #[test]
    fn nonsense_is_refused() {
        let refuse = |bytes: &[u8]| {
            let mut decoder = Decoder::new();
            decoder.feed(bytes);
            decoder.next().unwrap_err()
        };
        assert_eq!(refuse(b"\x80\x02\x00\x01\x00\x00\x00\x00"), FrameError::Version);
        assert_eq!(refuse(b"\x00\x00\x00\x01\x00\xff\xff\xff"), FrameError::TooLong(0xff_ffff));
        assert_eq!(refuse(b"\x80\x03\x00\x03\x00\x00\x00\x01x"), FrameError::Short);
        assert_eq!(refuse(b"\x80\x03\x00\x01\x00\x00\x00\x0c0123456789\x78\x01"), FrameError::Headers);
        assert_eq!(headers(&[0, 0, 0, 9, 0, 0]), Err(FrameError::Headers));
        assert_eq!(headers(&[0xff; 8]), Err(FrameError::Headers));
    }
}
