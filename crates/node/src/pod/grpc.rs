//! The gRPC health check: one unary call over HTTP/2 in clear text.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>,
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Of an answer, which has a few bytes.
const ANSWER_BYTES_MAX: usize = 4096;
/// `HealthCheckResponse.ServingStatus` by number.
const STATES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks the server at the other end of `stream` how `service` is; the empty name means the server.
///
/// # Errors
/// What went wrong, or how it is if not well.
pub(super) async fn check(stream: TcpStream, host: &str, service: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("error: health rpc probe failed: {error}");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let driver = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{host}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(Bytes::from(message(service))))
        .map_err(|error| failed(&error))?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| failed(&error))?;
        // A call that failed at once has its status among the headers.
        let text = |name: &str| {
            let trailers = body.trailers().and_then(|trailers| trailers.get(name));
            trailers.or_else(|| head.headers.get(name)).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        match text("grpc-status").as_deref() {
            Some("0") => {}
            Some("12") => return Err("error: this server does not implement the grpc health protocol".to_owned()),
            Some(code) => {
                let why = text("grpc-message").unwrap_or_default();
                return Err(failed(&format!("rpc error: code = {code} desc = {why}")));
            }
            None => return Err(failed(&format!("HTTP status {} without grpc-status", head.status))),
        }
        match state(&body.to_bytes()) {
            1 => Ok(()),
            other => {
                let name = STATES.get(other as usize).copied().unwrap_or("UNKNOWN");
                Err(format!("service unhealthy (responded with \"{name}\")"))
            }
        }
    };
    let result = answered.await;
    driver.abort();
    result
}

/// `HealthCheckRequest{service}` with the five bytes before every message: not compressed, and how long.
fn message(service: &str) -> Vec<u8> {
    let mut body = Vec::new();
    if !service.is_empty() {
        body.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            body.push(length as u8 | 0x80);
            length >>= 7;
        }
        body.push(length as u8);
        body.extend_from_slice(service.as_bytes());
    }
    let mut message = vec![0];
    message.extend_from_slice(&(body.len() as u32).to_be_bytes());
    message.extend_from_slice(&body);
    message
}

/// `HealthCheckResponse.status`, field 1; 0 where it is not there.
fn state(answer: &[u8]) -> u8 {
    match answer.get(5..) {
        Some([0x08, state, ..]) => *state,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use std::convert::Infallible;
    use tokio::net::TcpListener;

    /// A server that answers one check with this state and gRPC status.
    async fn asked(state: u8, code: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let sent = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(&sent[..], b"\0\0\0\0\x04\x0a\x02db");
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", code.parse().unwrap());
                let data = Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, state]));
                let frames = [Ok::<_, Infallible>(data), Ok(Frame::trailers(trailers))];
                Ok::<_, Infallible>(http::Response::new(StreamBody::new(futures::stream::iter(frames))))
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
        let result = check(TcpStream::connect(address).await.unwrap(), "127.0.0.1", "db").await;
        server.abort();
        result
    }

    #[tokio::test]
    async fn serving_is_well_and_nothing_else() {
        assert_eq!(asked(1, "0").await, Ok(()));
        assert_eq!(asked(2, "0").await, Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()));
        assert!(asked(1, "12").await.unwrap_err().contains("does not implement"));
        assert!(asked(1, "5").await.unwrap_err().contains("code = 5"));
    }
}
