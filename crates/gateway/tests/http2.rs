//! HTTP/2 frame by frame (RFC 9113): what a connection must survive, what must end it, and what must end a stream.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use world::{Endpoint, Gateway, PATIENCE, echo, reply};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame.
#[derive(Debug, Clone)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of literals without indexing (RFC 7541, 6.2.2).
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let mut out = Vec::new();
        if text.len() < 127 {
            out.push(text.len() as u8);
        } else {
            out.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                out.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            out.push(rest as u8);
        }
        out.extend_from_slice(text.as_bytes());
        out
    };
    headers.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

fn with(more: &[(&str, &str)]) -> Vec<u8> {
    block(&[&GET, more].concat())
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(&GET))
}

struct Client(TcpStream);

impl Client {
    /// A connection after the prefaces of both sides.
    fn new(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], gateway.port))).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self(stream);
        client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.write(&frame(SETTINGS, 0, 0, &[]));
        client
    }

    fn write(&mut self, bytes: &[u8]) {
        // A connection that was ended meanwhile is what some tests want.
        let _ = self.0.write_all(bytes);
    }

    /// The next frame; nothing at the end of the connection.
    fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        if let Err(error) = self.0.read_exact(&mut head) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "nothing came in time");
            return None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// What becomes of a stream, or of the connection.
    fn outcome(&mut self, stream: u32) -> Outcome {
        while let Some(frame) = self.read() {
            match frame.kind {
                // `:status: 200` is index 8 of the static table (RFC 7541, appendix A).
                HEADERS if frame.stream == stream => {
                    return if frame.payload.first() == Some(&0x88) { Outcome::Answered } else { Outcome::Refused };
                }
                RST_STREAM if frame.stream == stream => return Outcome::Reset,
                GOAWAY if frame.payload[4..8] != [0, 0, 0, 0] => return Outcome::Ended,
                _ => {}
            }
        }
        Outcome::Ended
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// With 200.
    Answered,
    /// With another status.
    Refused,
    /// The stream alone.
    Reset,
    /// The whole connection, with an error.
    Ended,
}

#[test]
fn requests_are_answered_and_pings_too() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut client = Client::new(&gateway);
    for stream in [1, 3, 5] {
        client.write(&get(stream));
        assert_eq!(client.outcome(stream), Outcome::Answered);
    }
    client.write(&frame(PING, 0, 0, b"12345678"));
    loop {
        let frame = client.read().unwrap();
        if frame.kind == PING {
            assert_eq!((frame.flags, frame.payload.as_slice()), (1, b"12345678".as_slice()));
            break;
        }
    }
    // Headers in three parts.
    let headers = with(&[("x-long", &"y".repeat(300))]);
    client.write(&frame(HEADERS, END_STREAM, 7, &headers[..10]));
    client.write(&frame(CONTINUATION, 0, 7, &headers[10..50]));
    client.write(&frame(CONTINUATION, END_HEADERS, 7, &headers[50..]));
    assert_eq!(client.outcome(7), Outcome::Answered);
}

#[test]
fn malformed_requests_end_their_stream() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let without = |name: &str| block(&GET.into_iter().filter(|(known, _)| *known != name).collect::<Vec<_>>());
    let cases = [
        ("connection-specific header", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "x")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("te that is not trailers", with(&[("te", "gzip")])),
        ("upper case", with(&[("X-Upper", "a")])),
        ("pseudo header after others", [block(&[("x", "y")]), block(&GET)].concat()),
        ("unknown pseudo header", with(&[(":unknown", "a")])),
        ("response pseudo header", with(&[(":status", "200")])),
        ("two methods", with(&[(":method", "GET")])),
        ("two paths", with(&[(":path", "/b")])),
        ("no method", without(":method")),
        ("no path", without(":path")),
        ("no scheme", without(":scheme")),
        ("line feed in a value", with(&[("x", "a\nb")])),
        ("carriage return in a value", with(&[("x", "a\rHost: b")])),
        ("null in a value", with(&[("x", "a\0b")])),
        ("space in a name", with(&[("x y", "a")])),
        ("colon in a name", with(&[("x:y", "a")])),
        ("empty name", with(&[("", "a")])),
        (
            "space in the path",
            block(&[(":method", "GET"), (":scheme", "http"), (":path", "/a b"), (":authority", "a")]),
        ),
        (
            "line feed in the path",
            block(&[(":method", "GET"), (":scheme", "http"), (":path", "/a\r\nb"), (":authority", "a")]),
        ),
        ("empty path", block(&[(":method", "GET"), (":scheme", "http"), (":path", ""), (":authority", "a")])),
        ("broken method", block(&[(":method", "G T"), (":scheme", "http"), (":path", "/"), (":authority", "a")])),
    ];
    for (name, headers) in cases {
        let mut client = Client::new(&gateway);
        client.write(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &headers));
        let outcome = client.outcome(1);
        assert_ne!(outcome, Outcome::Answered, "{name}");
        if outcome != Outcome::Ended {
            client.write(&get(3));
            assert_eq!(client.outcome(3), Outcome::Answered, "{name}: the connection goes on");
        }
    }
    assert!(endpoint.count() <= 25, "what was refused did not reach the endpoint");
}

#[test]
fn a_body_has_the_length_it_says() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    for (length, data) in [("3", "abcdef"), ("9", "abc"), ("x", "abc")] {
        let mut client = Client::new(&gateway);
        let headers =
            [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("content-length", length)];
        client.write(&frame(HEADERS, END_HEADERS, 1, &block(&headers)));
        client.write(&frame(DATA, END_STREAM, 1, data.as_bytes()));
        assert_ne!(client.outcome(1), Outcome::Answered, "{length}");
    }
}

#[test]
fn what_breaks_the_connection_ends_it() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let unfinished = frame(HEADERS, END_STREAM, 1, &block(&GET));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("headers on stream 0", frame(HEADERS, END_STREAM | END_HEADERS, 0, &block(&GET))),
        ("data on stream 0", frame(DATA, END_STREAM, 0, b"x")),
        ("data on an idle stream", frame(DATA, END_STREAM, 1, b"x")),
        ("a stream of the server's", frame(HEADERS, END_STREAM | END_HEADERS, 2, &block(&GET))),
        ("a stream number that goes back", [get(5), get(3)].concat()),
        ("continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[])),
        ("another stream between headers", [unfinished.clone(), get(3)].concat()),
        ("a ping between headers", [unfinished, frame(PING, 0, 0, b"12345678")].concat()),
        (
            "broken compression",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("an index beyond the table", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff, 0x7f])),
        ("a frame that is too large", frame(DATA, 0, 1, &vec![0; 20_000])),
        ("settings of a wrong size", frame(SETTINGS, 0, 0, &[0; 5])),
        ("settings on a stream", frame(SETTINGS, 0, 1, &[])),
        ("an initial window that is too large", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
        ("a frame size that is too small", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("a ping of a wrong size", frame(PING, 0, 0, b"1234567")),
        ("a ping on a stream", frame(PING, 0, 1, b"12345678")),
        ("a window that grows by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        (
            "a window that overflows",
            [
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            ]
            .concat(),
        ),
        ("a reset of an idle stream", frame(RST_STREAM, 0, 1, &[0; 4])),
        ("a reset of stream 0", frame(RST_STREAM, 0, 0, &[0; 4])),
        ("a promise by the client", frame(5, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("padding longer than the frame", frame(DATA, 8, 1, &[200, 1, 2])),
    ];
    for (name, bytes) in cases {
        let mut client = Client::new(&gateway);
        client.write(&bytes);
        client.write(&frame(PING, 0, 0, b"lasttime"));
        let ended = loop {
            match client.read() {
                None => break true,
                Some(frame) if frame.kind == GOAWAY => break frame.payload[4..8] != [0, 0, 0, 0],
                Some(frame) if frame.kind == PING && frame.payload == b"lasttime" => break false,
                Some(_) => {}
            }
        };
        assert!(ended, "{name}");
    }
    assert_eq!(gateway.get("/").status, 200, "and the gateway goes on");
}

#[test]
fn floods_are_cut_off_and_others_are_served_meanwhile() {
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"ok"));
    let gateway = Gateway::plain(&[endpoint.address], "");
    let resident = || {
        let memory = std::fs::read_to_string(format!("/proc/{}/statm", gateway.id())).unwrap();
        memory.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    // CONTINUATION without end (CVE-2024-27316 and its like).
    let mut client = Client::new(&gateway);
    client.write(&frame(HEADERS, END_STREAM, 1, &block(&GET)));
    let part = block(&[("x", &"y".repeat(15_000))]);
    for _ in 0..2_000 {
        client.write(&frame(CONTINUATION, 0, 1, &part));
    }
    assert_ne!(client.outcome(1), Outcome::Answered);
    // Rapid reset (CVE-2023-44487).
    let mut client = Client::new(&gateway);
    let pairs = (0..20_000_u32).map(|number| 2 * number + 1);
    let pairs = pairs.map(|stream| [get(stream), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat());
    client.write(&pairs.collect::<Vec<_>>().concat());
    assert_eq!(client.outcome(u32::MAX), Outcome::Ended);
    // A header list that grows by references to one large entry (a bomb for HPACK).
    let mut client = Client::new(&gateway);
    let large = "z".repeat(3_000);
    let mut headers = block(&GET);
    headers.push(0x40);
    headers.extend_from_slice(&block(&[("bomb", &large)])[1..]);
    headers.extend(std::iter::repeat_n(0xbe, 8_000));
    client.write(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &headers));
    assert_ne!(client.outcome(1), Outcome::Answered);
    // Settings and pings whose acknowledgements nobody reads.
    let mut client = Client::new(&gateway);
    client.0.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    for _ in 0..200_000 {
        if client.0.write_all(&[frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, b"12345678")].concat()).is_err() {
            break;
        }
    }
    assert_eq!(gateway.get("/").status, 200);
    let after = resident();
    assert!(after < before + (48 << 20), "{before} bytes before, {after} after");
    assert!(endpoint.count() < 2_000, "{} requests reached the endpoint", endpoint.count());
}

#[test]
fn a_closed_window_holds_an_answer_back_and_a_silent_client_is_not_waited_for() {
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", &vec![b'x'; 200_000]));
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut client = Client::new(&gateway);
    client.write(&get(1));
    // 65,535 bytes and no more (RFC 9113, 6.9.2), until the window is opened.
    let mut read = 0;
    while read < 65_535 {
        let frame = client.read().unwrap();
        read += if frame.kind == DATA { frame.payload.len() } else { 0 };
    }
    assert_eq!(read, 65_535);
    client.write(&get(3));
    assert_eq!(client.outcome(3), Outcome::Answered, "its head needs no window");
    for stream in [0, 1] {
        client.write(&frame(WINDOW_UPDATE, 0, stream, &1_000_000_u32.to_be_bytes()));
    }
    while read < 200_000 {
        let frame = client.read().unwrap();
        read += if frame.kind == DATA && frame.stream == 1 { frame.payload.len() } else { 0 };
    }
}
