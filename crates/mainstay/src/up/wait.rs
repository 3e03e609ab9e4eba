//! Waiting until all is Ready, and saying what for.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Client;
use mainstay_informer::{Cache, Scope};
use tokio::task::JoinSet;

use super::manifest::Manifest;
use crate::instance::Instance;
use crate::progress::{self, Standing};

/// Lines of the redrawn list at most; the rest is counted.
const LINES_MAX: usize = 20;
/// How often the redrawn list is looked at when nothing changes, to show the time.
const TICK: Duration = Duration::from_millis(200);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Not at all.
    Silent,
    /// One line for each change, for logs.
    Lines,
    /// A list that is redrawn in place, for terminals.
    Redrawn,
}

/// What came of the waiting.
pub enum Outcome {
    /// Nothing is left to wait for.
    Ready {
        /// The services of the manifests.
        services: Vec<Service>,
    },
    /// The time is over.
    Waiting {
        /// What is not Ready, and why.
        reasons: Vec<String>,
    },
}

struct World {
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    deployments: Cache<Deployment>,
    services: Cache<Service>,
    _feeds: JoinSet<()>,
}

impl World {
    async fn watch(client: &Client) -> Self {
        let mut feeds = JoinSet::new();
        let (nodes, pods, deployments, services) = (Cache::new(), Cache::new(), Cache::new(), Cache::new());
        feeds.spawn(Cache::run(nodes.clone(), client.clone(), Scope::default()));
        feeds.spawn(Cache::run(pods.clone(), client.clone(), Scope::default()));
        feeds.spawn(Cache::run(deployments.clone(), client.clone(), Scope::default()));
        feeds.spawn(Cache::run(services.clone(), client.clone(), Scope::default()));
        tokio::join!(nodes.synced(), pods.synced(), deployments.synced(), services.synced());
        Self { nodes, pods, deployments, services, _feeds: feeds }
    }

    /// How everything stands that the manifests are about, by name.
    fn standings(&self, instance: &Instance, manifests: &[Manifest]) -> BTreeMap<String, Standing> {
        let mut all = Vec::new();
        for (_, name) in instance.node_names() {
            all.push(match self.nodes.get("", &name) {
                Some(node) => progress::node(&node),
                None => missing(format!("node/{name}"), "has not registered yet"),
            });
        }
        for manifest in manifests {
            let (namespace, name) = (manifest.namespace.as_deref().unwrap_or_default(), manifest.name.as_str());
            match manifest.kind.as_str() {
                "Deployment" => {
                    all.push(match self.deployments.get(namespace, name) {
                        Some(deployment) => progress::deployment(&deployment),
                        None => missing(format!("deployment/{namespace}/{name}"), "is being created"),
                    });
                    all.extend(
                        self.pods.filter(|pod| belongs(pod, namespace, name)).iter().map(|pod| progress::pod(pod)),
                    );
                }
                "Pod" => all.push(match self.pods.get(namespace, name) {
                    Some(pod) => progress::pod(&pod),
                    None => missing(format!("pod/{namespace}/{name}"), "is being created"),
                }),
                "Service" => {
                    all.extend(self.services.get(namespace, name).and_then(|service| progress::service(&service)));
                }
                _ => {}
            }
        }
        all.into_iter().map(|standing| (standing.what.clone(), standing)).collect()
    }

    async fn changed(&self, readers: &mut Readers) {
        tokio::select! {
            _ = readers.0.changed() => {}
            _ = readers.1.changed() => {}
            _ = readers.2.changed() => {}
            _ = readers.3.changed() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

type Readers = (
    mainstay_informer::Subscription<Node>,
    mainstay_informer::Subscription<Pod>,
    mainstay_informer::Subscription<Deployment>,
    mainstay_informer::Subscription<Service>,
);

fn missing(what: String, why: &str) -> Standing {
    Standing { what, node: None, waits_for: Some(why.to_owned()) }
}

/// Whether a pod is of a ReplicaSet of this deployment: its owner is named `<deployment>-<hash>`.
fn belongs(pod: &Pod, namespace: &str, deployment: &str) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    let owned = owners.clone().any(|owner| {
        owner.kind == "ReplicaSet" && owner.name.rsplit_once('-').is_some_and(|(name, _)| name == deployment)
    });
    owned && pod.metadata.namespace.as_deref() == Some(namespace)
}

/// A look at the world that goes on from one wait to the next.
pub struct Waiting<'a> {
    instance: &'a Instance,
    deadline: Instant,
    world: World,
    readers: Readers,
    screen: Screen,
}

impl<'a> Waiting<'a> {
    /// Begins to watch.
    pub async fn start(
        client: &Client,
        instance: &'a Instance,
        deadline: Instant,
        show: Progress,
        begun: Instant,
    ) -> Self {
        let world = World::watch(client).await;
        let readers = (
            world.nodes.subscribe(),
            world.pods.subscribe(),
            world.deployments.subscribe(),
            world.services.subscribe(),
        );
        let screen = Screen { show, begun, drawn: 0, told: HashSet::new() };
        Self { instance, deadline, world, readers, screen }
    }

    /// Waits until everything that the manifests are about, and every node, is Ready.
    pub async fn until_ready(&mut self, manifests: &[Manifest]) -> Outcome {
        loop {
            let standings = self.world.standings(self.instance, manifests);
            self.screen.update(&standings);
            if standings.values().all(Standing::is_well) {
                self.screen.clear();
                let services = manifests.iter().filter(|manifest| manifest.kind == "Service");
                let found = services.filter_map(|service| {
                    self.world.services.get(service.namespace.as_deref().unwrap_or_default(), &service.name)
                });
                return Outcome::Ready { services: found.map(|service| (*service).clone()).collect() };
            }
            if Instant::now() >= self.deadline {
                self.screen.clear();
                let waiting = standings.values().filter(|standing| !standing.is_well());
                return Outcome::Waiting { reasons: waiting.map(line).collect() };
            }
            tokio::select! {
                () = self.world.changed(&mut self.readers) => {}
                () = tokio::time::sleep_until(self.deadline.into()) => {}
            }
        }
    }
}

fn line(standing: &Standing) -> String {
    let node = standing.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    match &standing.waits_for {
        Some(waits_for) => format!("  {}{node}: {waits_for}", standing.what),
        None => format!("  {}{node}: Ready", standing.what),
    }
}

struct Screen {
    show: Progress,
    begun: Instant,
    /// Lines on the terminal that the next drawing replaces.
    drawn: usize,
    told: HashSet<String>,
}

impl Screen {
    fn update(&mut self, standings: &BTreeMap<String, Standing>) {
        match self.show {
            Progress::Silent => {}
            Progress::Lines => {
                for standing in standings.values() {
                    let line = line(standing);
                    if self.told.insert(line.clone()) {
                        eprintln!("{:>6.2}s{line}", self.begun.elapsed().as_secs_f64());
                    }
                }
            }
            Progress::Redrawn => self.redraw(standings),
        }
    }

    fn redraw(&mut self, standings: &BTreeMap<String, Standing>) {
        let waiting: Vec<&Standing> = standings.values().filter(|standing| !standing.is_well()).collect();
        let done = standings.len() - waiting.len();
        let mut text = self.rewind();
        let seconds = self.begun.elapsed().as_secs_f64();
        let _ = writeln!(
            text,
            "{seconds:>5.1}s  {done} of {} Ready{}",
            standings.len(),
            if waiting.is_empty() { "" } else { "; waiting for" }
        );
        for standing in waiting.iter().take(LINES_MAX) {
            let _ = writeln!(text, "{}", line(standing));
        }
        if waiting.len() > LINES_MAX {
            let _ = writeln!(text, "  and {} more", waiting.len() - LINES_MAX);
        }
        self.drawn = text.matches('\n').count();
        // A line longer than the terminal is cut, not wrapped, or the next drawing would begin at the wrong place.
        eprint!("\x1b[?7l{text}\x1b[?7h");
        let _ = std::io::stderr().flush();
    }

    /// Moves over what was drawn before and clears it.
    fn rewind(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\x1b[J", self.drawn) }
    }

    fn clear(&mut self) {
        if self.show == Progress::Redrawn {
            eprint!("{}", self.rewind());
            self.drawn = 0;
        }
    }
}

/// The table shown when all is Ready.
pub fn summary(instance: &Instance, services: &[Service], ready_ms: u128, detached: bool) -> String {
    let mut text = format!("all Ready in {:.2} s\n\n", ready_ms as f64 / 1000.0);
    let mut rows = vec![
        ("API".to_owned(), format!("https://{}", instance.api)),
        ("kubeconfig".to_owned(), instance.kubeconfig().display().to_string()),
    ];
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let address = progress::load_balancer_address(service);
        let address = address.or_else(|| service.spec.as_ref()?.cluster_ip.clone()).unwrap_or_default();
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
        let urls: Vec<String> = ports.map(|port| format!("{address}:{}", port.port)).collect();
        rows.push((format!("service {namespace}/{name}"), urls.join(", ")));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        let _ = writeln!(text, "  {name:<width$}  {value}");
    }
    let flag = if instance.data_dir == std::path::Path::new(crate::instance::DEFAULT_DATA_DIR) {
        String::new()
    } else {
        format!(" --data-dir {}", instance.data_dir.display())
    };
    let _ = write!(
        text,
        "\nnext things to try\n  export KUBECONFIG={}\n  kubectl get pods -A -o wide\n",
        instance.kubeconfig().display()
    );
    let web = services.iter().find_map(|service| {
        let address = progress::load_balancer_address(service)?;
        let port = service.spec.as_ref()?.ports.as_ref()?.first()?.port;
        Some(if port == 80 { format!("http://{address}/") } else { format!("http://{address}:{port}/") })
    });
    if let Some(url) = web {
        let _ = writeln!(text, "  curl {url}");
    }
    let _ = writeln!(
        text,
        "  mainstay fault kill node/node-2{flag}    and watch the service go on\n  mainstay status{flag}"
    );
    let _ = writeln!(
        text,
        "{}",
        if detached { format!("  mainstay down{flag}") } else { "\nCtrl-C takes everything down".to_owned() }
    );
    text
}
