//! A Database of three members on the three nodes of a cluster, and ways to break it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::disk::Disk;
use crate::cluster::{Cluster, MAINSTAY, PATIENCE, text};

/// Where Debian's package puts PostgreSQL's programs.
const INSTALLED: &str = "/usr/lib/postgresql";
/// The programs that are watched.
const SERVERS: [&str; 3] = ["postgres", "redis-server", "mariadbd"];
/// Small, and no slower than they must be: three of them share this machine.
const PARAMETERS: &str = "{shared_buffers: 16MB, max_connections: '30', max_wal_size: 256MB}";

/// A user of people's.
pub const USERS: &str = "  users: [{name: shop}]\n";

/// Whether PostgreSQL's programs are there.
pub fn installed() -> bool {
    fs::read_dir(INSTALLED).is_ok_and(|mut versions| versions.next().is_some())
}

/// The cluster and its Database; all of it ends with this.
pub struct Members {
    pub cluster: Cluster,
    /// Nobody else on this machine has a database of that name, so its processes are known by it.
    pub name: String,
    address: String,
    password: String,
    frozen: Vec<i32>,
    /// That of the first member, where it has one of its own. Dropped after the cluster.
    pub disk: Option<Disk>,
}

impl Members {
    /// PostgreSQL with these further settings; and waits until a write is on more than one member.
    pub fn start(more: &str) -> Self {
        let all = Self::of("postgres", &format!("  parameters: {PARAMETERS}\n{more}"));
        all.ready();
        all
    }

    fn ready(&self) {
        self.until_whole("the beginning");
        let table = "CREATE TABLE IF NOT EXISTS ledger (id bigint PRIMARY KEY)";
        self.until("the table is made", |it| it.query(table).is_some());
    }

    /// Any engine, not waited for.
    pub fn of(engine: &str, more: &str) -> Self {
        Self::on(engine, more, |_, _| None)
    }

    /// PostgreSQL whose first member has a small disk of its own.
    pub fn with_disk() -> Self {
        let disk = |cluster: &Cluster, name: &str| Some(Disk::of_claim(cluster, &format!("data-{name}-0")));
        let all = Self::on("postgres", &format!("  parameters: {PARAMETERS}\n"), disk);
        all.ready();
        assert!(all.disk.as_ref().is_some_and(Disk::is_used), "the first member's data are elsewhere");
        all
    }

    fn on(engine: &str, more: &str, disk: impl FnOnce(&Cluster, &str) -> Option<Disk>) -> Self {
        let cluster = Cluster::new();
        let name = format!("{engine}{}", std::process::id());
        cluster.start(&[]);
        cluster.wait("databases are known", || cluster.get(&["databases"])["items"].is_array());
        let disk = disk(&cluster, &name);
        cluster.apply(&format!(
            "apiVersion: mainstay.dev/v1alpha1\nkind: Database\nmetadata: {{name: {name}}}\nspec:\n  engine: {engine}\n{more}"
        ));
        let mut all = Self { cluster, name, address: String::new(), password: String::new(), frozen: Vec::new(), disk };
        let primary = format!("{}-primary", all.name);
        all.cluster.wait("the database has its Service", || {
            all.cluster.get(&["service", &primary])["spec"]["clusterIP"].is_string()
        });
        let service = all.cluster.get(&["service", &primary]);
        all.address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
        let secret = all.cluster.get(&["secret", &all.name]);
        all.password = decoded(&secret["data"]["password"]);
        all
    }

    /// How a user of people's connects, by what its Secret says; the Service by its address, because this is no pod.
    pub fn conninfo_of_user(&self, user: &str) -> String {
        let secret = self.cluster.get(&["secret", &format!("{}-{user}", self.name)]);
        let uri = decoded(&secret["data"]["uri"]);
        uri.replace(&format!("{}-primary.default.svc", self.name), &self.address)
    }

    /// Address of the primary's Service, and the password.
    pub fn service(&self) -> (&str, &str) {
        (&self.address, &self.password)
    }

    /// How clients reach whoever accepts writes: by the Service.
    pub fn conninfo(&self) -> String {
        self.conninfo_of(&self.address)
    }

    fn conninfo_of(&self, address: &str) -> String {
        let password = &self.password;
        format!("host={address} user=postgres password='{password}' dbname=postgres connect_timeout=1")
    }

    /// How each member is reached, whoever it is, by its name.
    pub fn every_conninfo(&self) -> BTreeMap<String, String> {
        let pods = self.pods().into_iter();
        let reached = pods.filter_map(|pod| Some((name(&pod), self.conninfo_of(pod["status"]["podIP"].as_str()?))));
        reached.collect()
    }

    /// Rows of a statement, by whoever accepts writes.
    pub fn query(&self, statement: &str) -> Option<Vec<Vec<String>>> {
        Self::query_as(&self.conninfo(), statement)
    }

    pub fn query_as(address: &str, statement: &str) -> Option<Vec<Vec<String>>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let work = async {
                let (client, connection) = tokio_postgres::connect(address, NoTls).await.ok()?;
                tokio::spawn(connection);
                let rows = client.simple_query(statement).await.ok()?.into_iter().filter_map(|it| match it {
                    SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect())
                    }
                    _ => None,
                });
                Some(rows.collect())
            };
            tokio::time::timeout(Duration::from_secs(2), work).await.ok()?
        })
    }

    /// Every row there is.
    pub fn rows(&self) -> BTreeSet<u64> {
        let rows = self.query("SELECT id FROM ledger").expect("the primary answers");
        rows.iter().map(|row| row[0].parse().unwrap()).collect()
    }

    pub fn pods(&self) -> Vec<Value> {
        let label = format!("mainstay.dev/database={}", self.name);
        self.cluster.get(&["pods", "-l", &label])["items"].as_array().cloned().unwrap_or_default()
    }

    fn record(&self) -> Value {
        let lease = self.cluster.get(&["lease", &self.name]);
        let record = lease["metadata"]["annotations"]["mainstay.dev/record"].as_str().unwrap_or_default();
        serde_json::from_str(record).unwrap_or_default()
    }

    /// Who holds the Lease.
    pub fn primary(&self) -> String {
        // Right after the API was away it may not answer yet.
        self.until("somebody holds the Lease", |it| it.record()["holder"].is_string());
        self.record()["holder"].as_str().unwrap().to_owned()
    }

    /// Somebody else.
    pub fn replica(&self) -> String {
        let primary = self.primary();
        self.pods().iter().map(name).find(|name| *name != primary).unwrap()
    }

    pub fn node_of(&self, member: &str) -> String {
        self.cluster.get(&["pod", member])["spec"]["nodeName"].as_str().unwrap().to_owned()
    }

    /// Waits for a primary with everybody else's answer counting for its commits.
    pub fn until_whole(&self, what: &str) {
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'";
        self.until(&format!("all members are there ({what})"), |it| {
            it.query(streaming).is_some_and(|rows| rows[0][0] == "2")
        });
    }

    /// Waits until the Database says that all is well.
    pub fn until_healthy(&self, what: &str) {
        self.until(&format!("the database is healthy ({what})"), |it| {
            it.cluster.get(&["database", &it.name])["status"]["state"] == "Healthy"
        });
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !holds(self) {
            assert!(since.elapsed() < PATIENCE, "waited in vain until {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let run = |args: &[&str]| {
            let output = self.cluster.kubectl(args).output().unwrap();
            format!("--- {}\n{}", args.join(" "), text(&output))
        };
        let mut all = run(&["get", "databases,pods", "-o", "wide"]) + &run(&["get", "lease", &self.name, "-o", "yaml"]);
        for pod in self.pods().iter().map(name) {
            all += &run(&["logs", &pod, "--tail=120"]);
            all += &run(&["logs", &pod, "--previous", "--tail=40"]);
        }
        all
    }

    /// Runs `mainstay db` and expects success.
    pub fn db(&self, args: &[&str]) -> String {
        let mut command = Command::new(MAINSTAY);
        let output = command.arg("db").args(args).env("KUBECONFIG", self.cluster.dir().join("kubeconfig")).output();
        let text = text(output.as_ref().unwrap());
        assert!(output.unwrap().status.success(), "mainstay db {args:?} failed: {text}\n{}", self.logs());
        text
    }

    /// The process of a member's steward, as this machine numbers it.
    pub fn steward(&self, member: &str) -> i32 {
        let asks = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let follows =
                |word: &str, next: &str| words.windows(2).any(|two| two == [word.as_bytes(), next.as_bytes()]);
            words.get(1) == Some(&b"steward".as_slice())
                && follows("--member", member)
                && follows("--lease", &self.name)
        };
        let found = processes().into_iter().find(asks);
        found.unwrap_or_else(|| panic!("no steward of {member} runs\n{}", self.logs()))
    }

    /// The process of a member's server.
    pub fn server(&self, member: &str) -> i32 {
        let found = children(self.steward(member)).into_iter().find(|pid| SERVERS.contains(&command(*pid).as_str()));
        found.unwrap_or_else(|| panic!("no server of {member} runs\n{}", self.logs()))
    }

    pub fn kill_server(&self, member: &str) {
        kill(Pid::from_raw(self.server(member)), Signal::SIGKILL).unwrap();
    }

    /// Kills the steward and nothing else; its server must be gone soon after.
    pub fn kill_steward(&self, member: &str) {
        let (steward, server) = (self.steward(member), self.server(member));
        kill(Pid::from_raw(steward), Signal::SIGKILL).unwrap();
        self.until("the server died with its steward", |_| !SERVERS.contains(&command(server).as_str()));
    }

    /// Kills stewards and servers of all members.
    pub fn kill_all(&self) {
        let stewards: Vec<i32> = self.pods().iter().map(|pod| self.steward(&name(pod))).collect();
        for steward in stewards {
            kill(Pid::from_raw(steward), Signal::SIGKILL).unwrap();
        }
    }

    /// Kills steward and server at the same moment.
    pub fn kill_both(&self, member: &str) {
        for pid in [self.server(member), self.steward(member)] {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
    }

    /// SIGSTOP to the server and all its children, and to the steward too.
    pub fn freeze(&mut self, member: &str, steward: bool) {
        let server = self.server(member);
        let mut pids = children(server);
        pids.push(server);
        if steward {
            pids.insert(0, self.steward(member));
        }
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
        }
        self.frozen = pids;
    }

    /// SIGCONT to what was frozen.
    pub fn thaw(&mut self) {
        for pid in self.frozen.drain(..) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// A value of a Secret.
fn decoded(value: &Value) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
    String::from_utf8(bytes.unwrap()).unwrap()
}

fn name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(Path::new("/proc").join(format!("{pid}/task/{pid}/children"))).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The name of a process that is there and not a zombie.
fn command(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let alive = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'));
    let name = stat.split_once('(').and_then(|(_, rest)| Some(rest.rsplit_once(')')?.0.to_owned()));
    name.filter(|_| alive).unwrap_or_default()
}
