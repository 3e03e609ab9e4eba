//! The bodies of the fuzz targets, driven by seeded random changes of what is valid: what can be had of fuzzing with a stable
//! compiler. A failure names the seed.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mainstay_gateway::fuzzing;

const ROUNDS: u64 = 3_000;

/// Changes some bytes of a sample: replaced, removed, doubled, or cut off.
fn changed(sample: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..random.usize(0..4) {
        let at = random.usize(..bytes.len().max(1));
        match random.u8(0..5) {
            _ if at >= bytes.len() => bytes.push(random.u8(..)),
            0 => bytes[at] = random.u8(..),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, b"\r\n :;,{}[]0-9"[random.usize(..13)]),
            3 => {
                let end = (at + random.usize(1..20)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn drive(body: fn(&[u8]), samples: &[&[u8]]) {
    for seed in 0..ROUNDS {
        let mut random = fastrand::Rng::with_seed(seed);
        let input = changed(samples[random.usize(..samples.len())], &mut random);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(&input))) {
            eprintln!("seed {seed}: {:?}", String::from_utf8_lossy(&input));
            resume_unwind(panic);
        }
    }
}

#[test]
fn answers() {
    drive(
        fuzzing::answer,
        &[
            b"\x20HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Empty:\r\n\r\nhello",
            b"\x40HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
            b"\x10HTTP/1.0 204 No Content\r\nConnection: close\r\n\r\n",
        ],
    );
}

#[test]
fn requests() {
    drive(
        fuzzing::request,
        &[
            b"\x20GET /a?b=c HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x\r\n\r\nrest",
            b"\x10POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"\x30CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nUpgrade: h2c\r\n\r\n",
        ],
    );
}

#[test]
fn connections() {
    let hello = b"\x16\x03\x01\x00\x38\x01\x00\x00\x34\x03\x03................................\x00\x00\x02\x13\x01\x01\x00\x00\x09\x00\x00\x00\x05\x00\x03\x00\x00\x00";
    drive(
        fuzzing::connection,
        &[
            b"PROXY TCP4 10.0.0.1 10.0.0.2 5000 80\r\nGET",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x13\x88\x00\x50",
            hello,
        ],
    );
}

#[test]
fn configurations() {
    let shop = include_bytes!("../../../examples/gateway/gateway.yaml");
    let ingress = include_bytes!("../../../examples/gateway/ingress.yaml");
    drive(fuzzing::configuration, &[shop, ingress]);
}

#[test]
fn tokens() {
    drive(
        fuzzing::token,
        &[
            b"eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            br#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": "AAAA"}]}"#,
        ],
    );
}
