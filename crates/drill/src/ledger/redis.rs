//! A ledger of Redis keys: SET and GET over RESP 2 (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
//!
//! A connection for every operation, as clients without a pool do: after a failover the next one reaches the new primary. What is
//! written goes away by itself after a day.
//! An error reply to SET (`-READONLY`, `-NOREPLICAS`, `-LOADING`, `-MOVED`) means that nothing was written.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Ledger;
use super::history::Ending;

/// Seconds that what is written is kept.
const KEPT_S: &str = "86400";

/// Keys in a Redis.
#[derive(Debug, Clone)]
pub struct RedisKeys {
    /// At least one; client *n* goes to address *n* modulo their number.
    pub addresses: Vec<SocketAddr>,
    /// The user, where the server knows several; empty: the default one.
    pub user: String,
    /// The password; empty where the server asks for none.
    pub password: String,
    /// Before each key's number, so that nothing else is touched.
    pub prefix: String,
    /// How long one operation may take.
    pub timeout: Duration,
}

/// The replies that SET and GET can have.
enum Reply {
    /// A simple string, or a bulk string's content; `None` for null.
    Text(Option<String>),
    /// `-...`.
    Error,
}

impl Ledger for RedisKeys {
    fn shown(&self) -> String {
        let address = self.addresses.first().map(ToString::to_string).unwrap_or_default();
        format!("Redis keys at {address}")
    }

    fn write(&self, client: u32, key: u64, value: u64) -> BoxFuture<'_, Ending> {
        Box::pin(async move {
            let Some(stream) = self.connect(client).await else { return Ending::Refused };
            let words = ["SET", &format!("{}{key}", self.prefix), &value.to_string(), "EX", KEPT_S];
            match timeout(self.timeout, self.exchange(stream, &words)).await {
                Ok(Ok(Reply::Text(Some(text)))) if text == "OK" => Ending::Done,
                Ok(Ok(Reply::Error)) => Ending::Refused,
                _ => Ending::Unknown,
            }
        })
    }

    fn read(&self, client: u32, key: u64) -> BoxFuture<'_, Option<Option<u64>>> {
        Box::pin(async move {
            let stream = self.connect(client).await?;
            let words = ["GET", &format!("{}{key}", self.prefix)];
            match timeout(self.timeout, self.exchange(stream, &words)).await {
                Ok(Ok(Reply::Text(None))) => Some(None),
                Ok(Ok(Reply::Text(Some(text)))) => text.parse().ok().map(Some),
                _ => None,
            }
        })
    }
}

impl RedisKeys {
    async fn connect(&self, client: u32) -> Option<TcpStream> {
        let address = self.addresses.get(client as usize % self.addresses.len().max(1))?;
        timeout(self.timeout, TcpStream::connect(address)).await.ok()?.ok()
    }

    /// One command, after the password if there is one.
    async fn exchange(&self, mut stream: TcpStream, words: &[&str]) -> io::Result<Reply> {
        let login = match (self.user.as_str(), self.password.as_str()) {
            (_, "") => None,
            ("", password) => Some(command(&["AUTH", password])),
            (user, password) => Some(command(&["AUTH", user, password])),
        };
        if let Some(login) = login {
            stream.write_all(login.as_bytes()).await?;
            let mut lines = BufReader::new(stream).lines();
            if matches!(reply(&mut lines).await?, Reply::Error) {
                return Ok(Reply::Error);
            }
            stream = lines.into_inner().into_inner();
        }
        stream.write_all(command(words).as_bytes()).await?;
        reply(&mut BufReader::new(stream).lines()).await
    }
}

/// A command as the protocol writes it: an array of bulk strings.
fn command(words: &[&str]) -> String {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        let _ = write!(command, "${}\r\n{word}\r\n", word.len());
    }
    command
}

async fn reply(lines: &mut Lines<BufReader<TcpStream>>) -> io::Result<Reply> {
    let mut line = async || lines.next_line().await?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof));
    let first = line().await?;
    match first.split_at_checked(1) {
        Some(("+", text)) => Ok(Reply::Text(Some(text.to_owned()))),
        Some(("-", _)) => Ok(Reply::Error),
        Some(("$", "-1")) => Ok(Reply::Text(None)),
        Some(("$", _)) => Ok(Reply::Text(Some(line().await?))),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}
