//! A cluster network of three nodes for tests: its own range and id, removed when dropped.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use mainstay_net::{
    fabric::Fabric,
    netns, nft,
    plan::{self, Network},
    pod,
    services::{Protocol, ServicePort, ServiceRules, ServiceTable},
};
use nix::sched::{CloneFlags, unshare};

pub const NODES: u32 = 3;
/// Far above what anything here takes; only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Cluster {
    pub network: Network,
    pub instance: String,
    pub fabric: Fabric,
}

impl Cluster {
    /// Uses the second octet both for the range and the id, so that concurrent tests do not meet.
    pub fn new(second_octet: u8) -> Self {
        let network = Network::parse(&format!("10.{second_octet}.0.0/16")).unwrap();
        let instance = plan::instance_id(format!("/test/{second_octet}/{}", std::process::id()).as_ref());
        let fabric = Fabric::new(network, instance.clone(), mainstay_net::fabric::FORWARDING_FILE);
        Self { network, instance, fabric }
    }

    pub fn up(second_octet: u8) -> Self {
        let cluster = Self::new(second_octet);
        cluster.fabric.preflight().unwrap();
        cluster.fabric.up(NODES).unwrap();
        cluster
    }

    pub fn node(&self, node: u32) -> Place {
        Place { name: self.fabric.netns_name(node), file: Some(netns::open(&self.fabric.netns_name(node)).unwrap()) }
    }

    /// A pod on `node` with the `last`th address of its range, which answers every connection at port 8080.
    pub fn pod(&self, node: u32, last: u8) -> Pod {
        let [a, b, c, _] = self.network.pod_cidr(node).unwrap().address.octets();
        let ip = Ipv4Addr::new(a, b, c, last);
        // A process started by a thread that has left for a new namespace starts there.
        let child = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Command::new("sleep").arg("1000").spawn().unwrap()
        });
        let child = child.join().unwrap();
        let uid = format!("{}-{ip}", self.instance);
        let pid = child.id();
        self.node(node).run(|| pod::attach(pid, &uid, ip).unwrap());
        let place = Place { name: ip.to_string(), file: Some(File::open(format!("/proc/{pid}/ns/net")).unwrap()) };
        let listener = place.run(|| TcpListener::bind((ip, 8080)).unwrap());
        let udp = place.run(|| UdpSocket::bind((ip, 8080)).unwrap());
        thread::spawn(move || {
            listener.incoming().for_each(|stream| drop(thread::spawn(move || echo(stream.unwrap(), ip))));
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(ip.to_string().as_bytes(), from);
            }
        });
        Pod { child, uid, ip, node, place }
    }

    /// The rules for `node`, or with 0 for the host.
    pub fn rules(&self, node: u32, services: &[ServicePort]) -> ServiceRules {
        ServiceRules {
            network: self.network,
            node_addresses: (node > 0).then(|| self.network.node_address(node).unwrap()).into_iter().collect(),
            pod_cidr: (node > 0).then(|| self.network.pod_cidr(node).unwrap()),
            masquerade_outbound: node == 0,
            services: services.to_vec(),
        }
    }

    /// Applies `services` on the host and every node.
    pub fn apply(&self, services: &[ServicePort]) {
        for node in 0..=NODES {
            let rules = self.rules(node, services);
            let apply = || ServiceTable::new(&self.instance).apply(&rules).unwrap();
            assert!(if node == 0 { apply() } else { self.node(node).run(apply) });
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.fabric.down().unwrap();
    }
}

/// A network namespace to run things in.
pub struct Place {
    name: String,
    file: Option<File>,
}

impl Place {
    pub const HOST: Self = Self { name: String::new(), file: None };

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.file {
            Some(file) => netns::within(&self.name, file, work).unwrap(),
            None => work(),
        }
    }

    pub fn connect(&self, address: SocketAddrV4) -> std::io::Result<Connection> {
        self.connect_within(address, PATIENCE)
    }

    pub fn connect_within(&self, address: SocketAddrV4, limit: Duration) -> std::io::Result<Connection> {
        let stream = self.run(|| TcpStream::connect_timeout(&address.into(), limit))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Connection { reader: BufReader::new(stream), who: String::new(), client: String::new() };
        let line = connection.line()?;
        let (who, client) = line.split_once(' ').unwrap_or_default();
        (connection.who, connection.client) = (who.to_owned(), client.to_owned());
        Ok(connection)
    }

    /// Which pod answers at `address`.
    pub fn who(&self, address: SocketAddrV4) -> String {
        self.connect(address).unwrap_or_else(|error| panic!("{address} from {:?}: {error}", self.name)).who
    }

    pub fn udp_who(&self, address: SocketAddrV4) -> std::io::Result<String> {
        let socket = self.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        socket.connect(address)?;
        let start = Instant::now();
        let mut buffer = [0; 64];
        // A datagram may get lost, and so may its refusal: the kernel limits the rate of its ICMP messages. Who asks by
        // UDP asks again.
        loop {
            socket.send(b"?")?;
            match socket.recv(&mut buffer) {
                Ok(bytes) => return Ok(String::from_utf8_lossy(&buffer[..bytes]).into_owned()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Asserts that `address` refuses at once.
    pub fn refused(&self, address: SocketAddrV4) {
        let start = Instant::now();
        let kind = self.connect(address).map(|connection| connection.who).unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "{address} from {:?}", self.name);
        assert!(start.elapsed() < Duration::from_millis(500), "{address} refused only after {:?}", start.elapsed());
    }
}

pub struct Connection {
    reader: BufReader<TcpStream>,
    /// The pod that answers.
    pub who: String,
    /// The client's address as the pod sees it.
    pub client: String,
}

impl Connection {
    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    pub fn says(&mut self, text: &str) -> bool {
        writeln!(self.reader.get_mut(), "{text}").is_ok() && self.line().is_ok_and(|line| line == text)
    }
}

fn echo(mut stream: TcpStream, ip: Ipv4Addr) {
    let Ok(peer) = stream.peer_addr() else { return };
    let _ = writeln!(stream, "{ip} {}", peer.ip());
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        let _ = stream.write_all(line.as_bytes());
        line.clear();
    }
}

pub struct Pod {
    child: Child,
    pub uid: String,
    pub ip: Ipv4Addr,
    pub node: u32,
    pub place: Place,
}

impl Pod {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn endpoint(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, 8080)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn service(cluster: &Cluster, number: u8, endpoints: &[&Pod]) -> ServicePort {
    let [a, b, ..] = cluster.network.cidr().address.octets();
    ServicePort {
        name: format!("default/s{number}:http"),
        protocol: Protocol::Tcp,
        cluster_ip: Some(Ipv4Addr::new(a, b, 128, 100 + number)),
        external_ips: vec![Ipv4Addr::new(a, b, 120, number)],
        port: 80,
        node_port: Some(30000 + u16::from(number)),
        affinity: None,
        cut: false,
        endpoints: endpoints.iter().map(|pod| pod.endpoint()).collect(),
    }
}

pub fn cluster_address(service: &ServicePort) -> SocketAddrV4 {
    SocketAddrV4::new(service.cluster_ip.unwrap(), service.port)
}

pub fn external_address(service: &ServicePort) -> SocketAddrV4 {
    SocketAddrV4::new(service.external_ips[0], service.port)
}

/// What the machine's network looks like: of links, routes, names and tables those that mention the cluster.
pub fn traces(cluster: &Cluster) -> Vec<String> {
    let [a, b, ..] = cluster.network.cidr().address.octets();
    let bridge = plan::bridge_name(&cluster.instance);
    let link = format!("ms{}", cluster.instance);
    // /proc/net/route shows addresses as hexadecimal numbers, the first octet last.
    let route = format!("{b:02X}{a:02X}\t");
    let file = |path| fs::read_to_string(path).unwrap();
    let mut traces: Vec<String> = [file("/proc/net/dev"), file("/proc/net/route")]
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.contains(&bridge) || line.contains(&link) || line.contains(&route))
        .map(str::to_owned)
        .collect();
    traces.extend(netns::list(&bridge).unwrap());
    traces.extend(nft::table_names().unwrap().into_iter().filter(|name| name.contains(&cluster.instance)));
    traces
}
