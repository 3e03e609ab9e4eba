//! Cluster DNS, served by every node for its own pods.
//!
//! Flow: the address in the pods' `resolv.conf` is one of the node's own, so that a query never leaves the node → names of the
//! cluster are answered from [`zone`], everything else by [`upstream`].
//!
//! Guarantees: no other node is needed, nor the API server once its lists have arrived; until then a query waits for the
//! client's next try instead of getting a wrong answer; queries under way, connections and the length of messages are
//! limited. Answers too long for a datagram say so, and the client comes back by TCP.
//!
//! Deliberately absent: IPv6 addresses, zone transfers, DNSSEC.
//!
//! Source: RFC 1035, RFC 6891 (length of datagrams), RFC 2308 (negative answers), RFC 7766 (TCP).

mod upstream;
pub mod zone;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use simple_dns::rdata::{A, CNAME, OPT, PTR, RData, SOA, SRV, TXT};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::upstream::Upstream;
use self::zone::{Answer, DOMAIN, Data, Record, Zone};
use crate::services::ServiceNetwork;

/// The port.
const PORT: u16 = 53;
/// How long clients may remember a name of the cluster, in seconds; there or not.
const TTL: u32 = 5;
/// Datagrams of a client that does not say how long they may be (RFC 1035), and the longest that are sent at all.
const DATAGRAM_BYTES: (u16, u16) = (512, 1232);
/// Queries under way.
const QUERIES_MAX: usize = 512;
/// Connections by TCP.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Changes come in groups.
const GATHER: Duration = Duration::from_millis(10);
/// The wait before the port is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Aliases that lead from one name of the cluster to the next.
const ALIASES_MAX: usize = 8;

/// All that answering needs.
struct Names {
    zone: RwLock<Option<Arc<Zone>>>,
    upstream: Upstream,
    queries: Semaphore,
}

/// Serves names at `address`, which becomes one of the node's own, for ever.
pub async fn serve(network: ServiceNetwork, address: Ipv4Addr) {
    let (zone, upstream, queries) = (RwLock::new(None), Upstream::of_node(), Semaphore::new(QUERIES_MAX));
    let names = Arc::new(Names { zone, upstream, queries });
    tokio::spawn(follow(network, names.clone()));
    let (datagrams, listener) = loop {
        match bind(address).await {
            Ok(bound) => break bound,
            Err(error) => tracing::warn!(%address, %error, "DNS cannot listen; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    };
    tokio::join!(serve_datagrams(Arc::new(datagrams), names.clone()), serve_connections(listener, names));
}

async fn bind(address: Ipv4Addr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let added = tokio::task::spawn_blocking(move || mainstay_net::pod::add_own_address(address)).await;
    added.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
    let place = SocketAddr::from((address, PORT));
    Ok((UdpSocket::bind(place).await?, TcpListener::bind(place).await?))
}

/// Keeps the names of the cluster as Services and EndpointSlices have them.
async fn follow(network: ServiceNetwork, names: Arc<Names>) {
    let (mut services, mut slices) = (network.services.subscribe(), network.slices.subscribe());
    network.services.synced().await;
    network.slices.synced().await;
    loop {
        let (all, of) = (network.services.list(), network.slices.list());
        let zone = Zone::new(all.iter().map(|service| &**service), of.iter().map(|slice| &**slice));
        *names.zone.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(zone));
        tokio::select! {
            _ = services.changed() => {}
            _ = slices.changed() => {}
        }
        tokio::time::sleep(GATHER).await;
        services.take();
        slices.take();
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, names: Arc<Names>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok((count, from)) = socket.recv_from(&mut buffer).await else {
            // A client that closed its port: the next one is as good as any.
            continue;
        };
        let (query, socket, names) = (buffer[..count].to_vec(), socket.clone(), names.clone());
        tokio::spawn(async move {
            if let Some(answer) = names.answer(&query, false).await {
                let _ = socket.send_to(&answer, from).await;
            }
        });
    }
}

async fn serve_connections(listener: TcpListener, names: Arc<Names>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(GATHER).await;
            continue;
        };
        let names = names.clone();
        tokio::spawn(async move {
            let _slot = slot;
            converse(stream, &names).await;
        });
    }
}

/// Queries with their length before them, one after the other.
async fn converse(mut stream: TcpStream, names: &Names) {
    while let Ok(Ok(length)) = timeout(IDLE, stream.read_u16()).await {
        let mut query = vec![0; usize::from(length)];
        if !matches!(timeout(IDLE, stream.read_exact(&mut query)).await, Ok(Ok(_))) {
            return;
        }
        let Some(answer) = names.answer(&query, true).await else { return };
        let length = u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes();
        if !matches!(timeout(IDLE, stream.write_all(&[&length, answer.as_slice()].concat())).await, Ok(Ok(()))) {
            return;
        }
    }
}

impl Names {
    /// The answer to a message; none for what is not a query.
    async fn answer(&self, message: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let query = Packet::parse(message).ok().filter(|packet| !packet.has_flags(PacketFlag::RESPONSE))?;
        let Ok(_turn) = self.queries.try_acquire() else {
            return refuse(&query, RCODE::ServerFailure);
        };
        if query.opcode() != OPCODE::StandardQuery {
            return refuse(&query, RCODE::NotImplemented);
        }
        let [question] = query.questions.as_slice() else { return refuse(&query, RCODE::FormatError) };
        let (name, QTYPE::TYPE(wanted)) = (question.qname.to_string(), question.qtype) else {
            return refuse(&query, RCODE::NotImplemented);
        };
        // Nothing is known yet: silence makes the client try again, any answer would be taken for the truth.
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (records, further, code) = match zone.answer(&name, wanted) {
            Answer::Elsewhere => {
                return match self.upstream.ask(message, tcp).await {
                    Some(answer) => Some(answer),
                    None => refuse(&query, RCODE::ServerFailure),
                };
            }
            Answer::Records(records, further) => {
                let records = self.follow_aliases(&zone, records, wanted, tcp).await;
                (records, further, RCODE::NoError)
            }
            Answer::Empty => (Vec::new(), Vec::new(), RCODE::NoError),
            Answer::Missing => (Vec::new(), Vec::new(), RCODE::NameError),
        };
        let limit = if tcp { usize::from(u16::MAX) } else { usize::from(datagram_bytes(&query)) };
        reply(&query, &shuffled(records, query.id()), &further, code, limit)
    }

    /// What the name behind an alias holds, so that the client need not ask again.
    async fn follow_aliases(&self, zone: &Zone, mut records: Vec<Record>, wanted: TYPE, tcp: bool) -> Vec<Record> {
        for _ in 0..ALIASES_MAX {
            let Some((_, Data::Alias(target))) = records.last() else { break };
            if wanted == TYPE::CNAME {
                break;
            }
            let target = target.clone();
            match zone.answer(&target, wanted) {
                Answer::Records(found, _) => records.extend(found),
                Answer::Elsewhere => {
                    records.extend(self.outside(&target, wanted, tcp).await);
                    break;
                }
                Answer::Empty | Answer::Missing => break,
            }
        }
        records
    }

    /// The addresses of a name that is not the cluster's.
    async fn outside(&self, name: &str, wanted: TYPE, tcp: bool) -> Vec<Record> {
        let Ok(qname) = Name::new(name) else { return Vec::new() };
        let mut query = Packet::new_query(fresh_id());
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        query.questions.push(Question::new(qname, QTYPE::TYPE(wanted), CLASS::IN.into(), false));
        let Ok(bytes) = query.build_bytes_vec() else { return Vec::new() };
        let Some(answer) = self.upstream.ask(&bytes, tcp).await else { return Vec::new() };
        let Ok(packet) = Packet::parse(&answer) else { return Vec::new() };
        let records = packet.answers.iter().filter_map(|record| {
            let data = match &record.rdata {
                RData::A(a) => Data::Address(Ipv4Addr::from(a.address)),
                RData::CNAME(CNAME(target)) => Data::Alias(target.to_string()),
                _ => return None,
            };
            Some((record.name.to_string(), data))
        });
        records.collect()
    }
}

/// A number that nobody guesses.
fn fresh_id() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) as u16
}

/// Clients take the first: each gets another one.
fn shuffled(mut records: Vec<Record>, id: u16) -> Vec<Record> {
    if records.iter().all(|(_, data)| matches!(data, Data::Address(_) | Data::Port(..))) && !records.is_empty() {
        let turn = usize::from(id) % records.len();
        records.rotate_left(turn);
    }
    records
}

/// How long an answer by UDP may be.
fn datagram_bytes(query: &Packet<'_>) -> u16 {
    let (least, most) = DATAGRAM_BYTES;
    query.opt().map_or(least, |opt| opt.udp_packet_size.clamp(least, most))
}

fn begin<'a>(query: &Packet<'a>, code: RCODE) -> Packet<'a> {
    let mut packet = Packet::new_reply(query.id());
    *packet.opcode_mut() = query.opcode();
    *packet.rcode_mut() = code;
    packet.questions.clone_from(&query.questions);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    packet.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if query.opt().is_some() {
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: DATAGRAM_BYTES.1, version: 0 });
    }
    packet
}

fn refuse(query: &Packet<'_>, code: RCODE) -> Option<Vec<u8>> {
    begin(query, code).build_bytes_vec().ok()
}

fn reply(query: &Packet<'_>, records: &[Record], further: &[Record], code: RCODE, limit: usize) -> Option<Vec<u8>> {
    let mut packet = begin(query, code);
    packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    packet.answers = records.iter().filter_map(record).collect();
    if packet.answers.is_empty() {
        // How long the absence may be remembered (RFC 2308, section 3).
        packet.name_servers.push(authority()?);
    }
    packet.additional_records = further.iter().filter_map(record).collect();
    let bytes = packet.build_bytes_vec_compressed().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    packet.additional_records.clear();
    let bytes = packet.build_bytes_vec_compressed().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    packet.answers.clear();
    packet.set_flags(PacketFlag::TRUNCATION);
    packet.build_bytes_vec_compressed().ok()
}

fn record((name, data): &Record) -> Option<ResourceRecord<'_>> {
    let rdata = match data {
        Data::Address(address) => RData::A(A { address: (*address).into() }),
        Data::Port(port, target) => {
            RData::SRV(SRV { priority: 0, weight: 100, port: *port, target: Name::new(target).ok()? })
        }
        Data::Pointer(target) => RData::PTR(PTR(Name::new(target).ok()?)),
        Data::Alias(target) => RData::CNAME(CNAME(Name::new(target).ok()?)),
        Data::Text(text) => RData::TXT(TXT::new().with_string(text).ok()?),
    };
    Some(ResourceRecord::new(Name::new(name).ok()?, CLASS::IN, TTL, rdata))
}

fn authority() -> Option<ResourceRecord<'static>> {
    let soa = SOA {
        mname: Name::new("ns.dns.cluster.local").ok()?,
        rname: Name::new("hostmaster.cluster.local").ok()?,
        serial: 1,
        refresh: 7200,
        retry: 1800,
        expire: 86400,
        minimum: TTL,
    };
    Some(ResourceRecord::new(Name::new(DOMAIN).ok()?, CLASS::IN, TTL, RData::SOA(soa)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use simple_dns::QCLASS;

    fn query(name: &str, wanted: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(9);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, QTYPE::TYPE(wanted), QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    fn names(hosts: u8) -> Names {
        let service =
            serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "s"}, "spec": {"clusterIP": "None"}}));
        let endpoints: Vec<_> = (0..hosts).map(|host| json!({"addresses": [format!("10.0.0.{host}")]})).collect();
        let slice = serde_json::from_value(json!({
            "metadata": {"namespace": "a", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4", "endpoints": endpoints}));
        let zone = Zone::new([&service.unwrap()], [&slice.unwrap()]);
        let zone = RwLock::new(Some(Arc::new(zone)));
        Names { zone, upstream: Upstream::of_node(), queries: Semaphore::new(1) }
    }

    #[tokio::test]
    async fn answers_in_the_protocols_form() {
        let names = names(2);
        let bytes = names.answer(&query("S.a.svc.cluster.local", TYPE::A), false).await.unwrap();
        let answer = Packet::parse(&bytes).unwrap();
        assert_eq!((answer.id(), answer.answers.len(), answer.answers[0].ttl), (9, 2, 5));
        assert!(answer.has_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RESPONSE));
        let bytes = names.answer(&query("none.a.svc.cluster.local", TYPE::A), false).await.unwrap();
        let answer = Packet::parse(&bytes).unwrap();
        assert_eq!((answer.rcode(), answer.name_servers.len()), (RCODE::NameError, 1));
        assert!(names.answer(b"nonsense", false).await.is_none());
        assert!(names.answer(&bytes, false).await.is_none(), "an answer is not answered");
    }

    #[tokio::test]
    async fn too_much_for_a_datagram_comes_by_tcp() {
        let names = names(200);
        let question = query("s.a.svc.cluster.local", TYPE::A);
        let bytes = names.answer(&question, false).await.unwrap();
        let answer = Packet::parse(&bytes).unwrap();
        assert!(bytes.len() <= 512 && answer.has_flags(PacketFlag::TRUNCATION) && answer.answers.is_empty());
        let bytes = names.answer(&question, true).await.unwrap();
        assert_eq!(Packet::parse(&bytes).unwrap().answers.len(), 200);
    }
}
