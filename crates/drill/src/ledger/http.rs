//! Ledgers over HTTP: keys that are put and got, and a log that is appended to.
//!
//! | what | request | answer |
//! |---|---|---|
//! | write a key | `PUT <base>/keys/<key>`, the value as decimal text | 2xx once it is kept |
//! | read a key | `GET <base>/keys/<key>` | 200 with the value, 404 where there is none |
//! | append | `POST <base>/log`, `<key> <value>` as text | 2xx once it is kept |
//! | look in the log | `GET <base>/log/<key>` | 200 with the value, 404 where there is none |
//!
//! `mainstay demo store` speaks this. A fresh connection for every operation: each may reach another replica, which is what
//! a ledger wants to find out about. With several addresses client *n* goes to address *n* modulo their number.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Ledger;
use super::history::Ending;

/// Largest answer taken, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// Where a store over HTTP is.
#[derive(Debug, Clone)]
pub struct Place {
    /// At least one.
    pub addresses: Vec<SocketAddr>,
    /// The `Host` header.
    pub host: String,
    /// Before `/keys` and `/log`; empty or beginning with a slash.
    pub base: String,
    /// How long one operation may take.
    pub timeout: Duration,
}

/// Keys that are put and got.
#[derive(Debug, Clone)]
pub struct HttpKeys(pub Place);

/// A log that is appended to; its keys are set once.
#[derive(Debug, Clone)]
pub struct HttpLog(pub Place);

impl Ledger for HttpKeys {
    fn shown(&self) -> String {
        format!("HTTP keys at {}{}", self.0.host, self.0.base)
    }

    fn write(&self, client: u32, key: u64, value: u64) -> BoxFuture<'_, Ending> {
        Box::pin(async move { self.0.write(client, Method::PUT, format!("/keys/{key}"), value.to_string()).await })
    }

    fn read(&self, client: u32, key: u64) -> BoxFuture<'_, Option<Option<u64>>> {
        Box::pin(async move { self.0.read(client, format!("/keys/{key}")).await })
    }
}

impl Ledger for HttpLog {
    fn shown(&self) -> String {
        format!("HTTP log at {}{}", self.0.host, self.0.base)
    }

    fn write(&self, client: u32, key: u64, value: u64) -> BoxFuture<'_, Ending> {
        Box::pin(async move { self.0.write(client, Method::POST, "/log".to_owned(), format!("{key} {value}")).await })
    }

    fn read(&self, client: u32, key: u64) -> BoxFuture<'_, Option<Option<u64>>> {
        Box::pin(async move { self.0.read(client, format!("/log/{key}")).await })
    }

    fn is_append_only(&self) -> bool {
        true
    }
}

/// How an exchange ended.
enum Answer {
    Status(StatusCode, Bytes),
    /// Nothing was sent.
    NotSent,
    /// Something was sent, and nothing complete came back.
    Nothing,
}

impl Place {
    async fn write(&self, client: u32, method: Method, path: String, body: String) -> Ending {
        match self.ask(client, method, path, body).await {
            Answer::Status(status, _) if status.is_success() => Ending::Done,
            // The client is told that it was wrong; a server's own trouble may have come after the deed.
            Answer::Status(status, _) if status.is_client_error() => Ending::Refused,
            Answer::NotSent => Ending::Refused,
            Answer::Status(..) | Answer::Nothing => Ending::Unknown,
        }
    }

    async fn read(&self, client: u32, path: String) -> Option<Option<u64>> {
        match self.ask(client, Method::GET, path, String::new()).await {
            Answer::Status(StatusCode::OK, body) => std::str::from_utf8(&body).ok()?.trim().parse().ok().map(Some),
            Answer::Status(StatusCode::NOT_FOUND, _) => Some(None),
            _ => None,
        }
    }

    async fn ask(&self, client: u32, method: Method, path: String, body: String) -> Answer {
        let Some(address) = self.addresses.get(client as usize % self.addresses.len().max(1)) else {
            return Answer::NotSent;
        };
        let connecting = timeout(self.timeout, TcpStream::connect(address)).await;
        let Ok(Ok(stream)) = connecting else { return Answer::NotSent };
        let _ = stream.set_nodelay(true);
        let exchanged = timeout(self.timeout, exchange(stream, &self.host, method, self.base.clone() + &path, body));
        exchanged.await.ok().flatten().unwrap_or(Answer::Nothing)
    }
}

async fn exchange(stream: TcpStream, host: &str, method: Method, path: String, body: String) -> Option<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(header::HOST, host);
    let answer = sender.send_request(request.body(Full::new(Bytes::from(body))).ok()?).await;
    let answer = match answer {
        Ok(answer) => {
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.ok();
            body.map(|body| Answer::Status(status, body.to_bytes()))
        }
        Err(_) => None,
    };
    connection.abort();
    answer
}
