//! Names that are not the cluster's: asked of the servers that the node itself asks, and remembered for a while.
//!
//! Guarantees: an answer is taken only from who was asked, with the number and the question that were sent; at most
//! [`CACHE_MAX`] answers are remembered, none longer than [`REMEMBER_MAX`] or than its own records allow.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use simple_dns::rdata::RData;
use simple_dns::{Packet, PacketFlag, RCODE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers remembered.
const CACHE_MAX: usize = 4096;
/// The longest time an answer is remembered: what CoreDNS is usually told.
const REMEMBER_MAX: Duration = Duration::from_secs(30);
/// The longest time a refusal is remembered.
const REMEMBER_MISSING_MAX: Duration = Duration::from_secs(5);
/// Where the node's servers are named; the second where a local resolver stands between.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// The longest answer by UDP.
const DATAGRAM_BYTES_MAX: usize = 4096;

struct Remembered {
    answer: Vec<u8>,
    until: Instant,
}

/// The servers, and what they said.
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
    cache: Mutex<HashMap<Vec<u8>, Remembered>>,
}

impl Upstream {
    /// The servers that the node asks, without those that only the machine itself reaches.
    pub(super) fn of_node() -> Self {
        let texts = FILES.iter().filter_map(|file| std::fs::read_to_string(file).ok());
        let servers = texts.map(|text| servers(&text)).find(|servers| !servers.is_empty()).unwrap_or_default();
        Self::new(servers)
    }

    fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, cache: Mutex::default() }
    }

    /// The answer to a query, with the query's number; none when nobody answers.
    pub(super) async fn ask(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let key = [&query[2..], &[u8::from(tcp)]].concat();
        if let Some(mut answer) = self.remembered(&key) {
            answer[..2].copy_from_slice(&query[..2]);
            return Some(answer);
        }
        for server in &self.servers {
            let exchanged = async { if tcp { by_tcp(*server, query).await } else { by_udp(*server, query).await } };
            if let Ok(Some(answer)) = timeout(PATIENCE, exchanged).await {
                self.remember(key, &answer);
                return Some(answer);
            }
        }
        None
    }

    fn remembered(&self, key: &[u8]) -> Option<Vec<u8>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(key).filter(|found| found.until > Instant::now()).map(|found| found.answer.clone())
    }

    fn remember(&self, key: Vec<u8>, answer: &[u8]) {
        let Some(time) = lifetime(answer).filter(|time| !time.is_zero()) else { return };
        let now = Instant::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_MAX {
            cache.retain(|_, found| found.until > now);
        }
        if cache.len() < CACHE_MAX {
            cache.insert(key, Remembered { answer: answer.to_vec(), until: now + time });
        }
    }
}

/// The servers that a `resolv.conf` names.
fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = named.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    addresses.filter(|address| !address.is_loopback()).map(|address| SocketAddr::new(address, 53)).collect()
}

/// How long an answer may be remembered.
fn lifetime(answer: &[u8]) -> Option<Duration> {
    let packet = Packet::parse(answer).ok()?;
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return None;
    }
    let seconds = packet.answers.iter().map(|record| record.ttl).min();
    match (packet.rcode(), seconds) {
        (RCODE::NoError, Some(seconds)) => Some(Duration::from_secs(seconds.into()).min(REMEMBER_MAX)),
        (RCODE::NoError | RCODE::NameError, None) => {
            let authority = packet.name_servers.iter().find_map(|record| match &record.rdata {
                RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                _ => None,
            })?;
            Some(Duration::from_secs(authority.into()).min(REMEMBER_MISSING_MAX))
        }
        _ => None,
    }
}

/// Whether an answer is to this query: its number and its question.
fn belongs(query: &[u8], answer: &[u8]) -> bool {
    let (Ok(asked), Ok(answered)) = (Packet::parse(query), Packet::parse(answer)) else { return false };
    let same = |(a, b): (&simple_dns::Question<'_>, &simple_dns::Question<'_>)| {
        a.qname.to_string().eq_ignore_ascii_case(&b.qname.to_string()) && a.qtype == b.qtype
    };
    asked.id() == answered.id()
        && answered.has_flags(PacketFlag::RESPONSE)
        && asked.questions.len() == answered.questions.len()
        && asked.questions.iter().zip(&answered.questions).all(same)
}

async fn by_udp(server: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    // A port of its own for every query: whoever wants to forge an answer has to guess it.
    let any = if server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from([0_u16; 8]) };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(query).await.ok()?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let count = socket.recv(&mut buffer).await.ok()?;
        if belongs(query, &buffer[..count]) {
            buffer.truncate(count);
            return Some(buffer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let length = u16::try_from(query.len()).ok()?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await.ok()?;
    let count = stream.read_u16().await.ok()?;
    let mut answer = vec![0; usize::from(count)];
    stream.read_exact(&mut answer).await.ok()?;
    belongs(query, &answer).then_some(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use simple_dns::rdata::A;
    use simple_dns::{CLASS, Name, QCLASS, QTYPE, Question, ResourceRecord, TYPE};

    fn query(id: u16) -> Vec<u8> {
        let mut packet = Packet::new_query(id);
        let name = Name::new("example.org").unwrap();
        packet.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    #[tokio::test]
    async fn asked_once_and_remembered_and_forgeries_are_dropped() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream::new(vec![server.local_addr().unwrap()]);
        let answering = tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (count, from) = server.recv_from(&mut buffer).await.unwrap();
            let mut reply = Packet::parse(&buffer[..count]).unwrap().into_reply();
            let name = Name::new("example.org").unwrap();
            let record = RData::A(A { address: Ipv4Addr::new(1, 2, 3, 4).into() });
            reply.answers.push(ResourceRecord::new(name, CLASS::IN, 60, record));
            let good = reply.build_bytes_vec().unwrap();
            reply.set_id(reply.id() ^ 1);
            server.send_to(&reply.build_bytes_vec().unwrap(), from).await.unwrap();
            server.send_to(&good, from).await.unwrap();
        });
        let first = upstream.ask(&query(7), false).await.unwrap();
        assert_eq!(Packet::parse(&first).unwrap().answers.len(), 1);
        answering.await.unwrap();
        // The server is gone; the answer is not.
        let second = upstream.ask(&query(8), false).await.unwrap();
        assert_eq!(Packet::parse(&second).unwrap().id(), 8);
    }

    #[test]
    fn only_servers_that_can_be_reached() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch a\nnameserver 2620:fe::fe\n";
        assert_eq!(servers(text), ["9.9.9.9:53".parse().unwrap(), "[2620:fe::fe]:53".parse().unwrap()]);
    }
}
