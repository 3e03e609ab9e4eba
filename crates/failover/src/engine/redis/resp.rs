//! One connection that speaks RESP 2, the protocol of Redis.
//!
//! A steward needs a dozen commands with small answers, one at a time; so no pipelining, no push messages, and limits that a
//! client library would not set.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// The longest answer that is read, in bytes: far above what INFO says with hundreds of replicas.
const ANSWER_MAX: usize = 1 << 20;
/// The most elements of a list.
const ELEMENTS_MAX: usize = 4096;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RespError {
    /// The connection.
    #[error("the connection to Redis failed: {0}")]
    Io(#[from] io::Error),
    /// The server's own words.
    #[error("Redis refused {command}: {message}")]
    Refused {
        /// The command's name.
        command: String,
        /// What it said.
        message: String,
    },
    /// Not the protocol.
    #[error("Redis answered what cannot be understood: {0}")]
    Protocol(String),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// Text, or a status.
    Text(String),
    /// A number.
    Number(i64),
    /// Several.
    List(Vec<Reply>),
    /// Nothing.
    Nil,
}

impl Reply {
    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&self) -> Vec<&str> {
        match self {
            Self::List(all) => all.iter().filter_map(Self::text).collect(),
            _ => Vec::new(),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects and, with a password, authenticates.
    ///
    /// # Errors
    /// When nobody listens, or the password is wrong.
    pub(super) async fn open(address: &str, password: Option<&str>) -> Result<Self, RespError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream: BufReader::new(stream) };
        if let Some(password) = password {
            connection.call(&["AUTH", password]).await?;
        }
        Ok(connection)
    }

    /// Sends a command and waits for its answer. After an error other than [`RespError::Refused`], or when this future was
    /// dropped, the connection is of no more use.
    ///
    /// # Errors
    /// See [`RespError`].
    pub(super) async fn call(&mut self, command: &[&str]) -> Result<Reply, RespError> {
        self.stream.write_all(&encode(command)).await?;
        match self.read(0).await? {
            Ok(reply) => Ok(reply),
            Err(message) => {
                Err(RespError::Refused { command: command.first().copied().unwrap_or_default().to_owned(), message })
            }
        }
    }

    /// One answer; the inner error is the server's.
    async fn read(&mut self, depth: u8) -> Result<Result<Reply, String>, RespError> {
        let line = self.line().await?;
        let protocol = || RespError::Protocol(line.chars().take(80).collect());
        let (kind, rest) = line.split_at_checked(1).ok_or_else(protocol)?;
        let number = || rest.parse::<i64>().map_err(|_| protocol());
        Ok(Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => return Ok(Err(rest.to_owned())),
            ":" => Reply::Number(number()?),
            "$" => match usize::try_from(number()?) {
                Ok(length) if length <= ANSWER_MAX => Reply::Text(self.bulk(length).await?),
                Ok(_) => return Err(protocol()),
                Err(_) => Reply::Nil,
            },
            "*" => match usize::try_from(number()?) {
                Ok(count) if count <= ELEMENTS_MAX && depth < 4 => {
                    let mut all = Vec::with_capacity(count);
                    for _ in 0..count {
                        let element = Box::pin(self.read(depth + 1)).await?;
                        all.push(element.unwrap_or_else(Reply::Text));
                    }
                    Reply::List(all)
                }
                Ok(_) => return Err(protocol()),
                Err(_) => Reply::Nil,
            },
            _ => return Err(protocol()),
        }))
    }

    async fn line(&mut self) -> Result<String, RespError> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(ANSWER_MAX).unwrap_or(u64::MAX);
        (&mut self.stream).take(limit).read_until(b'\n', &mut bytes).await?;
        if bytes.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let text = String::from_utf8_lossy(&bytes);
        let line = text.strip_suffix("\r\n").ok_or_else(|| RespError::Protocol("a line without an end".to_owned()))?;
        Ok(line.to_owned())
    }

    async fn bulk(&mut self, length: usize) -> Result<String, RespError> {
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes).await?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A command on the wire: a list of texts.
fn encode(command: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn a_command_is_a_list_of_texts() {
        assert_eq!(encode(&["GET", "grün"]), "*2\r\n$3\r\nGET\r\n$5\r\ngrün\r\n".as_bytes());
    }

    #[tokio::test]
    async fn every_kind_of_answer_is_understood_and_nonsense_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers = "+OK\r\n:7\r\n$3\r\nabc\r\n$-1\r\n*2\r\n$1\r\na\r\n:1\r\n-ERR no\r\n$99999999\r\n";
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answers.as_bytes()).await.unwrap();
            stream
        });
        let mut connection = Connection::open(&address, None).await.unwrap();
        let mut replies = Vec::new();
        for _ in 0..5 {
            replies.push(connection.call(&["X"]).await.unwrap());
        }
        let text = |text: &str| Reply::Text(text.to_owned());
        let list = Reply::List(vec![text("a"), Reply::Number(1)]);
        assert_eq!(replies, [text("OK"), Reply::Number(7), text("abc"), Reply::Nil, list]);
        assert!(
            matches!(connection.call(&["X"]).await, Err(RespError::Refused { message, .. }) if message == "ERR no")
        );
        assert!(matches!(connection.call(&["X"]).await, Err(RespError::Protocol(_))), "too long");
        drop(server.await.unwrap());
    }
}
