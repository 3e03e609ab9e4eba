//! The PROXY protocol, versions 1 and 2 (HAProxy, "The PROXY protocol", 2020).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// How a header of version 2 begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, its end included.
const LINE_MAX: usize = 107;
/// Longest header of version 2 that is taken, with its extensions.
const HEADER_MAX: usize = 536;

/// A parsed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes it takes.
    length: usize,
    /// The client's address; `None` if the proxy speaks for itself.
    source: Option<SocketAddr>,
}

/// Reads the header that a connection must begin with; answers the client's address, if it says one.
///
/// # Errors
/// There is none within `limit`, or it is broken.
pub(super) async fn accept(stream: &mut TcpStream, limit: Duration) -> io::Result<Option<SocketAddr>> {
    let reading = async {
        let mut buffer = [0; HEADER_MAX];
        loop {
            let seen = stream.peek(&mut buffer).await?;
            match parse(&buffer[..seen]).map_err(io::Error::other)? {
                Some(header) => {
                    stream.read_exact(&mut buffer[..header.length]).await?;
                    return Ok(header.source);
                }
                None if seen == 0 || seen == HEADER_MAX => return Err(io::ErrorKind::UnexpectedEof.into()),
                // What is there stays readable: waiting for readiness would not wait for more.
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    tokio::time::timeout(limit, reading).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Any bytes: what is taken for a header is within them.
pub(crate) fn fuzz(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(HEADER_MAX)];
    if let Ok(Some(header)) = parse(bytes) {
        assert!(header.length <= bytes.len());
    }
}

/// Parses what has arrived; `None` if it may still become a header.
fn parse(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] == SIGNATURE[..known] {
        return if bytes.len() < 16 { Ok(None) } else { parse_v2(bytes) };
    }
    let known = bytes.len().min(6);
    if bytes[..known] != b"PROXY "[..known] {
        return Err("the connection does not begin with the PROXY protocol");
    }
    match bytes.windows(2).take(LINE_MAX).position(|it| it == b"\r\n") {
        Some(end) => parse_v1(&bytes[..end]).map(|source| Some(Header { length: end + 2, source })),
        None if bytes.len() >= LINE_MAX => Err("the PROXY line is too long"),
        None => Ok(None),
    }
}

fn parse_v1(line: &[u8]) -> Result<Option<SocketAddr>, &'static str> {
    const WRONG: &str = "the PROXY line is broken";
    let line = std::str::from_utf8(line).map_err(|_| WRONG)?;
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, port, to_port] => {
            let address: IpAddr = source.parse().map_err(|_| WRONG)?;
            let other: IpAddr = destination.parse().map_err(|_| WRONG)?;
            let fits = |it: IpAddr| it.is_ipv4() == (*family == "TCP4");
            let (port, _): (u16, u16) = (port.parse().map_err(|_| WRONG)?, to_port.parse().map_err(|_| WRONG)?);
            if fits(address) && fits(other) { Ok(Some(SocketAddr::new(address, port))) } else { Err(WRONG) }
        }
        _ => Err(WRONG),
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    let length = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if bytes[12] >> 4 != 2 || length > HEADER_MAX {
        return Err("the PROXY header is of no version that is known, or too long");
    }
    let Some(body) = bytes.get(16..length) else { return Ok(None) };
    let source = match (bytes[12] & 0xf, bytes[13]) {
        // LOCAL, the proxy's own check; or a family that has no address and port.
        (0, _) | (1, 0..=0x10 | 0x12..=0x20 | 0x22..) => None,
        (1, 0x11) if body.len() >= 12 => {
            let address = Ipv4Addr::new(body[0], body[1], body[2], body[3]);
            Some(SocketAddr::from((address, u16::from_be_bytes([body[8], body[9]]))))
        }
        (1, 0x21) if body.len() >= 36 => {
            let octets: [u8; 16] = body[..16].try_into().map_err(|_| "the PROXY header is broken")?;
            Some(SocketAddr::from((Ipv6Addr::from(octets), u16::from_be_bytes([body[32], body[33]]))))
        }
        (1, 0x11 | 0x21) => return Err("the PROXY header is too short"),
        _ => return Err("the PROXY header has a command that is not known"),
    };
    Ok(Some(Header { length, source }))
}

/// A header for an endpoint.
pub(super) fn write(version: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let v4 = source.is_ipv4() && destination.is_ipv4();
    let wide = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    if version == 1 {
        let family = if v4 { "TCP4" } else { "TCP6" };
        let shown = |it: IpAddr| if v4 { it.to_string() } else { wide(it).to_string() };
        let (from, to) = (shown(source.ip()), shown(destination.ip()));
        return format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes();
    }
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(if v4 { &[0x21, 0x11, 0, 12] } else { &[0x21, 0x21, 0, 36] });
    for address in [source, destination] {
        match address.ip() {
            IpAddr::V4(address) if v4 => header.extend_from_slice(&address.octets()),
            address => header.extend_from_slice(&wide(address).octets()),
        }
    }
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_again() {
        for (source, destination) in
            [("192.0.2.1:1", "192.0.2.2:2"), ("[2001:db8::1]:1", "[2001:db8::2]:2"), ("192.0.2.1:1", "[::1]:2")]
        {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            for version in [1, 2] {
                let mut bytes = write(version, source, destination);
                let length = bytes.len();
                bytes.extend_from_slice(b"GET / HTTP/1.1");
                let header = parse(&bytes).unwrap().unwrap();
                let read = header.source.unwrap();
                assert_eq!((header.length, read.port(), read.ip().to_canonical()), (length, 1, source.ip()));
                for end in 0..length {
                    assert_eq!(parse(&bytes[..end]), Ok(None), "{version} {end}");
                }
            }
        }
        assert_eq!(parse(b"PROXY UNKNOWN\r\n").unwrap().unwrap().source, None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(tail in prop::collection::vec(any::<u8>(), 0..80)) {
            for start in [&SIGNATURE[..], b"PROXY ", b""] {
                let _ = parse(&[start, &tail].concat());
            }
        }
    }
}
