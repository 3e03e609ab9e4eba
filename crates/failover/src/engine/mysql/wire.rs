//! One connection that speaks MariaDB's client protocol, over the server's Unix socket.
//!
//! A steward needs a dozen statements with small answers, one at a time, as text; so no prepared statements, no compression, no
//! encryption, one way to authenticate, and limits that a client library would not set.
//!
//! Source: <https://mariadb.com/kb/en/clientserver-protocol/>.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// The longest packet that is read, in bytes.
const PACKET_MAX: usize = 1 << 20;
/// The most rows of an answer.
const ROWS_MAX: usize = 4096;
/// What the client can do: long passwords, protocol 4.1, its authentication, plugins of that.
const CAPABILITIES: u32 = 0x1 | 0x200 | 0x8000 | 0x8_0000;
/// `utf8mb3_general_ci`, which every version knows.
const CHARACTER_SET: u8 = 33;
/// The way to authenticate.
const PLUGIN: &[u8] = b"mysql_native_password\0";
/// First byte of a packet: well; an error; the end of rows (of fewer than nine bytes).
const OK: u8 = 0;
const ERROR: u8 = 0xff;
const END: u8 = 0xfe;
/// In place of a text's length: there is none.
const NULL: u8 = 0xfb;

/// Why a statement has no answer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection.
    #[error("the connection to MariaDB failed: {0}")]
    Io(#[from] io::Error),
    /// The server's own words.
    #[error("MariaDB refused `{statement}`: {message}")]
    Refused {
        /// The statement, or what was done instead.
        statement: String,
        /// What it said.
        message: String,
    },
    /// Not the protocol.
    #[error("MariaDB answered what cannot be understood to `{0}`")]
    Protocol(String),
}

/// A row: its columns by name. What is NULL is not in it.
pub(super) type Row = BTreeMap<String, String>;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<UnixStream>,
    sequence: u8,
}

impl Connection {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// When nobody listens, or the password is wrong.
    pub(super) async fn open(socket: &Path, user: &str, password: &str) -> Result<Self, WireError> {
        let stream = BufReader::new(UnixStream::connect(socket).await?);
        let mut connection = Self { stream, sequence: 0 };
        let greeting = connection.read("the greeting").await?;
        let scramble = scramble(&greeting).ok_or_else(|| WireError::Protocol("the greeting".to_owned()))?;
        let mut answer = Vec::from(CAPABILITIES.to_le_bytes());
        answer.extend((1_u32 << 24).to_le_bytes());
        answer.push(CHARACTER_SET);
        answer.extend([0; 23]);
        answer.extend(user.as_bytes());
        answer.extend([0, 20]);
        answer.extend(token(password, &scramble));
        answer.extend(PLUGIN);
        connection.write(&answer).await?;
        let packet = connection.read("the password").await?;
        // Asked to authenticate in another way, or with another scramble.
        if packet.first() == Some(&END) {
            let scramble = packet.strip_suffix(&[0]).and_then(|it| it.last_chunk::<20>());
            let scramble = scramble.ok_or_else(|| WireError::Protocol("the password".to_owned()))?;
            connection.write(&token(password, scramble)).await?;
            connection.read("the password").await?;
        }
        Ok(connection)
    }

    /// Sends one statement and waits for its rows. After an error other than [`WireError::Refused`], or when this future was
    /// dropped, the connection is of no more use.
    ///
    /// # Errors
    /// See [`WireError`].
    pub(super) async fn query(&mut self, statement: &str) -> Result<Vec<Row>, WireError> {
        self.sequence = 0;
        self.write(&[&[3], statement.as_bytes()].concat()).await?;
        let protocol = || WireError::Protocol(statement.to_owned());
        let head = self.read(statement).await?;
        let columns = match head.first() {
            Some(&OK) => return Ok(Vec::new()),
            Some(count) if *count < NULL => usize::from(*count),
            _ => return Err(protocol()),
        };
        let mut names = Vec::with_capacity(columns);
        for _ in 0..columns {
            // Catalogue, schema, table, original table, name, …
            let packet = self.read(statement).await?;
            let mut rest = &packet[..];
            let texts: Option<Vec<_>> = (0..5).map(|_| text(&mut rest)).collect();
            names.push(texts.and_then(|mut it| it.pop().flatten()).ok_or_else(protocol)?);
        }
        self.read(statement).await?;
        let mut rows = Vec::new();
        loop {
            let packet = self.read(statement).await?;
            if packet.first() == Some(&END) && packet.len() < 9 {
                return Ok(rows);
            }
            let mut rest = &packet[..];
            let mut row = Row::new();
            for name in &names {
                if let Some(value) = text(&mut rest).ok_or_else(protocol)? {
                    row.insert(name.clone(), value);
                }
            }
            rows.push(row);
            if rows.len() > ROWS_MAX {
                return Err(protocol());
            }
        }
    }

    /// One packet. An error that the server sends is the answer to `statement`.
    async fn read(&mut self, statement: &str) -> Result<Vec<u8>, WireError> {
        let mut head = [0; 4];
        self.stream.read_exact(&mut head).await?;
        let length = usize::from(head[0]) | usize::from(head[1]) << 8 | usize::from(head[2]) << 16;
        if length > PACKET_MAX {
            return Err(WireError::Protocol(statement.to_owned()));
        }
        self.sequence = head[3].wrapping_add(1);
        let mut packet = vec![0; length];
        self.stream.read_exact(&mut packet).await?;
        if packet.first() == Some(&ERROR) {
            // Number, a mark and five characters of SQLSTATE, then the text.
            let from = if packet.get(3) == Some(&b'#') { 9 } else { 3 };
            let message = String::from_utf8_lossy(packet.get(from..).unwrap_or_default()).into_owned();
            return Err(WireError::Refused { statement: statement.to_owned(), message });
        }
        Ok(packet)
    }

    async fn write(&mut self, packet: &[u8]) -> Result<(), WireError> {
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX).to_le_bytes();
        let head = [length[0], length[1], length[2], self.sequence];
        self.stream.write_all(&[&head, packet].concat()).await?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }
}

/// The twenty random bytes of the server's greeting: eight after the version and the connection's number, twelve further on.
fn scramble(greeting: &[u8]) -> Option<[u8; 20]> {
    let version = greeting.iter().skip(1).position(|byte| *byte == 0)?;
    let rest = greeting.get(1 + version + 1 + 4..)?;
    let bytes: Vec<u8> = rest.get(..8)?.iter().chain(rest.get(8 + 19..8 + 19 + 12)?).copied().collect();
    bytes.try_into().ok()
}

/// `SHA1(password) XOR SHA1(scramble + SHA1(SHA1(password)))`.
fn token(password: &str, scramble: &[u8; 20]) -> Vec<u8> {
    let hash = |bytes: &[u8]| digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec();
    let once = hash(password.as_bytes());
    let mixed = hash(&[scramble.as_slice(), &hash(&once)].concat());
    once.iter().zip(mixed).map(|(a, b)| a ^ b).collect()
}

/// A text with its length before it, taken off the front; the inner `None` is NULL, the outer that there is no such thing.
#[allow(clippy::option_option)] // the two mean what the protocol means
fn text(rest: &mut &[u8]) -> Option<Option<String>> {
    let (first, after) = rest.split_first()?;
    let (length, after) = match *first {
        NULL => {
            *rest = after;
            return Some(None);
        }
        0xfc => (usize::from(after.first()?.to_owned()) | usize::from(*after.get(1)?) << 8, after.get(2..)?),
        0xfd => {
            let bytes = after.first_chunk::<3>()?;
            (usize::from(bytes[0]) | usize::from(bytes[1]) << 8 | usize::from(bytes[2]) << 16, after.get(3..)?)
        }
        short if short < NULL => (usize::from(short), after),
        _ => return None,
    };
    let (value, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(Some(String::from_utf8_lossy(value).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_length_before_them() {
        let long = "x".repeat(300);
        let bytes = [&[3][..], b"abc", &[NULL], &[0xfc, 44, 1], long.as_bytes(), &[0]].concat();
        let mut rest = &bytes[..];
        let all: Vec<_> = std::iter::from_fn(|| text(&mut rest)).collect();
        assert_eq!(all, [Some("abc".to_owned()), None, Some(long), Some(String::new())]);
        assert_eq!(text(&mut &[5, b'a'][..]), None, "cut short");
    }

    #[test]
    fn a_greeting_holds_twenty_random_bytes() {
        let random: Vec<u8> = (1..=20).collect();
        let greeting =
            [&[10][..], b"5.5.5-10.11\0", &[1, 0, 0, 0], &random[..8], &[0; 19], &random[8..], &[0]].concat();
        assert_eq!(scramble(&greeting).map(Vec::from), Some(random));
        assert_eq!(scramble(&greeting[..30]), None);
    }

    #[test]
    fn a_password_is_never_sent_itself() {
        // Computed by MariaDB's own definition, with another program.
        let scramble: [u8; 20] = std::array::from_fn(|index| u8::try_from(index).unwrap_or(0) + 1);
        assert_eq!(token("secret", &scramble), EXPECTED);
    }

    const EXPECTED: [u8; 20] = [
        0xb3, 0x2b, 0xb3, 0xa5, 0x83, 0xe1, 0x34, 0x0c, 0x0a, 0x11, 0x08, 0xd5, 0x8b, 0x1b, 0xe4, 0x97, 0x81, 0xad,
        0x8c, 0x2f,
    ];
}
