//! A body compressed as it passes (RFC 1952). Every piece that comes in goes out: streams stay streams.

use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http_body::{Body, Frame};

use crate::body::{BodyError, ReplyBody};

/// A compressed body.
pub(crate) struct Gzip {
    body: ReplyBody,
    encoder: Option<GzEncoder<Vec<u8>>>,
    trailers: Option<HeaderMap>,
}

impl Gzip {
    /// Compresses at a level from 1 to 9.
    pub(crate) fn new(body: ReplyBody, level: u32) -> Self {
        Self { body, encoder: Some(GzEncoder::new(Vec::new(), Compression::new(level))), trailers: None }
    }
}

impl Body for Gzip {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        while let Some(encoder) = &mut this.encoder {
            let data = match ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()? {
                Some(frame) => match frame.into_data() {
                    Ok(data) => Some(data),
                    Err(frame) => {
                        this.trailers = frame.into_trailers().ok();
                        None
                    }
                },
                None => None,
            };
            let out = match data {
                Some(data) => {
                    encoder.write_all(&data)?;
                    // More is coming only if the body says so; then what is there must not wait for it.
                    if !this.body.is_end_stream() {
                        encoder.flush()?;
                    }
                    std::mem::take(encoder.get_mut())
                }
                None => match this.encoder.take() {
                    Some(encoder) => encoder.finish()?,
                    None => Vec::new(),
                },
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))));
            }
        }
        Poll::Ready(this.trailers.take().map(|it| Ok(Frame::trailers(it))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http_body_util::BodyExt as _;
    use std::io::Read as _;

    #[tokio::test]
    async fn what_is_compressed_can_be_read_again() {
        let text = "all work and no play ".repeat(1000);
        let body = Gzip::new(ReplyBody::Full(Bytes::from(text.clone())), 4);
        let bytes = body.collect().await.unwrap().to_bytes();
        assert!(bytes.len() < text.len() / 20);
        let mut read = String::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut read).unwrap();
        assert_eq!(read, text);
    }
}
