//! Breaking things on purpose, on this machine: kill, pause, isolate, heal.
//!
//! Works on cgroups and links alone, without the API, so that a fault can be made and undone when the control plane is the
//! thing that is broken. A node's fault is noted in `run/faults/NODE`, so that the supervisor lets the dead lie; that of the
//! control plane in `run/faults/server`.
//!
//! | verb    | pod                      | node, zone                                   | control-plane |
//! |---------|--------------------------|----------------------------------------------|---------------|
//! | kill    | SIGKILL to its containers| link down, SIGKILL to every process          | SIGKILL       |
//! | pause   | freeze its processes     | freeze every process, the agent's too        | SIGSTOP       |
//! | isolate | its link down            | link down                                    | –             |
//! | heal    | link up, thaw            | link up, thaw, the supervisor restarts the agent | SIGCONT, the supervisor restarts it |
//!
//! Every fault is looked at before it is reported as done.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use mainstay_net::fabric::{FORWARDING_FILE, Fabric, FabricError};
use mainstay_net::netns::NetnsError;
use mainstay_net::plan;
use mainstay_runtime::cgroup::{CgroupError, Cgroups, Disk, NodeCgroup};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::{FaultArgs, FaultVerb, Output};
use crate::instance::{Instance, InstanceError, node_number, write_private};
use crate::up::processes;

/// How the control plane is named as a target.
const CONTROL_PLANE: &str = "control-plane";
/// Its process's role, after which its note is named.
const SERVER: &str = "server";
/// How long a fault may take to show.
const EFFECT: Duration = Duration::from_secs(2);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// Processes die.
    Kill,
    /// Processes stand still.
    Pause,
    /// The link is down.
    Isolate,
}

impl FaultKind {
    fn done(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Pause => "paused",
            Self::Isolate => "isolated",
        }
    }
}

/// To what it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// A node.
    Node(String),
    /// All nodes of a zone.
    Zone(String),
    /// The API server.
    ControlPlane,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            ["pod", name] if !name.is_empty() => Ok(Self::Pod { namespace: None, name: (*name).to_owned() }),
            ["pod", namespace, name] if !name.is_empty() => {
                Ok(Self::Pod { namespace: Some((*namespace).to_owned()), name: (*name).to_owned() })
            }
            ["node", name] if !name.is_empty() => Ok(Self::Node((*name).to_owned())),
            ["zone", name] if !name.is_empty() => Ok(Self::Zone((*name).to_owned())),
            [CONTROL_PLANE] => Ok(Self::ControlPlane),
            _ => Err(format!("{text:?} is not pod/NAME, pod/NAMESPACE/NAME, node/NAME, zone/NAME or {CONTROL_PLANE}")),
        }
    }
}

/// Why a fault could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The instance is not usable.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// No such pod, node or zone.
    #[error("there is no {what} {name:?} here; {hint}")]
    NoSuch {
        /// pod, node or zone.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// Where to look.
        hint: String,
    },
    /// Several pods have the name.
    #[error("several namespaces have a pod {name:?} ({namespaces}); say which: pod/NAMESPACE/{name}")]
    Ambiguous {
        /// The name.
        name: String,
        /// Where.
        namespaces: String,
    },
    /// The link could not be switched.
    #[error(transparent)]
    Link(#[from] FabricError),
    /// The node's namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The processes could not be reached.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A pod's link could not be switched.
    #[error("the pod's link could not be switched: {0}")]
    PodLink(#[from] mainstay_net::pod::PodError),
    /// It was done, and nothing shows it.
    #[error("{target} is not {fault} although that was tried; {seen}")]
    NoEffect {
        /// To what.
        target: String,
        /// What was done, as a participle.
        fault: &'static str,
        /// What is seen instead.
        seen: String,
    },
    /// Something that cannot be done to it.
    #[error("{target} cannot be {fault}; kill or pause it")]
    Senseless {
        /// To what.
        target: String,
        /// What was asked, as a participle.
        fault: &'static str,
    },
    /// The note of the fault could not be written or read.
    #[error("cannot use {path}: {source}")]
    Note {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A fault in force, as noted in `run/faults`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    target: String,
    fault: FaultKind,
    since: jiff::Timestamp,
}

/// A pod found on disk.
struct Found {
    node: String,
    namespace: String,
    name: String,
    uid: String,
}

/// Runs `mainstay fault`.
///
/// # Errors
/// See [`FaultError`].
pub fn run(args: &FaultArgs) -> Result<(), FaultError> {
    let instance = Instance::load(&args.data_dir)?;
    let faults = Faults::new(instance)?;
    if let Some((kind, targets)) = args.verb.fault() {
        for target in targets {
            tell(&faults.make(kind, target)?);
        }
        return Ok(());
    }
    match &args.verb {
        FaultVerb::Ls { output } => {
            faults.list(*output);
            Ok(())
        }
        FaultVerb::Heal { targets } if targets.is_empty() => faults.heal_all(),
        FaultVerb::Heal { targets } => {
            for target in targets {
                tell(&faults.heal(target)?);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Tells what was done.
fn tell(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}

/// The hands that make faults on an instance's machine.
pub struct Faults {
    instance: Instance,
    fabric: Fabric,
    cgroups: Cgroups,
}

impl Faults {
    /// Those of an instance.
    ///
    /// # Errors
    /// When its network or control groups cannot be used.
    pub fn new(instance: Instance) -> Result<Self, FaultError> {
        let network = instance.plan().map_err(InstanceError::from)?;
        let fabric = Fabric::new(network, instance.id(), FORWARDING_FILE);
        Ok(Self { instance, fabric, cgroups: Cgroups::detect()? })
    }

    /// Makes a fault and looks that it is there; answers with a line for each thing that was hit.
    ///
    /// # Errors
    /// See [`FaultError`].
    pub fn make(&self, kind: FaultKind, target: &Target) -> Result<Vec<String>, FaultError> {
        match target {
            Target::Pod { namespace, name } => self.make_pod(kind, &self.find_pod(namespace.as_deref(), name)?),
            Target::ControlPlane => self.make_server(kind),
            _ => self.nodes(target)?.iter().map(|node| self.make_node(kind, node)).collect(),
        }
    }

    fn make_pod(&self, kind: FaultKind, pod: &Found) -> Result<Vec<String>, FaultError> {
        let shown = format!("pod/{}/{}", pod.namespace, pod.name);
        let cgroup = self.node_cgroup(&pod.node).pod(&pod.uid);
        // A killed pod is restarted at once; there is nothing to heal.
        if kind != FaultKind::Kill {
            self.note(&pod_note(pod), &shown, kind)?;
        }
        match kind {
            FaultKind::Kill => {
                let before = cgroup.container_processes();
                cgroup.kill_containers()?;
                let left = || before.iter().filter(|pid| processes::is_alive(Pid::from_raw(**pid))).count();
                seen(&shown, kind, || left() == 0, || format!("{} of its processes are left", left()))?;
            }
            FaultKind::Pause => {
                cgroup.freeze(true)?;
                seen(&shown, kind, || cgroup.is_frozen(), || "its control group is not frozen".to_owned())?;
            }
            FaultKind::Isolate => self.set_pod_link(pod, false)?,
        }
        Ok(vec![format!("{shown} {}", kind.done())])
    }

    fn make_node(&self, kind: FaultKind, node: &str) -> Result<String, FaultError> {
        let (shown, number) = (format!("node/{node}"), node_number(node).unwrap_or_default());
        let cgroup = self.node_cgroup(node);
        // Noted first: the supervisor must not restart what is about to die.
        self.note(node, &shown, kind)?;
        if kind != FaultKind::Pause {
            self.fabric.set_link(number, false)?;
            let is_down = || self.fabric.link_is_up(number).is_ok_and(|up| !up);
            seen(&shown, kind, is_down, || "its link is up".to_owned())?;
        }
        match kind {
            FaultKind::Kill => {
                cgroup.kill()?;
                let left = || cgroup.processes().len();
                seen(&shown, kind, || left() == 0, || format!("{} of its processes are left", left()))?;
            }
            FaultKind::Pause => {
                cgroup.freeze(true)?;
                seen(&shown, kind, || cgroup.is_frozen(), || "its control group is not frozen".to_owned())?;
            }
            FaultKind::Isolate => {}
        }
        Ok(format!("{shown} {}", kind.done()))
    }

    fn make_server(&self, kind: FaultKind) -> Result<Vec<String>, FaultError> {
        let signal = match kind {
            FaultKind::Kill => Signal::SIGKILL,
            FaultKind::Pause => Signal::SIGSTOP,
            FaultKind::Isolate => {
                return Err(FaultError::Senseless { target: CONTROL_PLANE.to_owned(), fault: kind.done() });
            }
        };
        self.note(SERVER, CONTROL_PLANE, kind)?;
        if let Some(pid) = processes::find(&self.instance, SERVER) {
            let _ = signal::kill(pid, signal);
            let is_done =
                || if kind == FaultKind::Kill { !processes::is_alive(pid) } else { processes::is_stopped(pid) };
            seen(CONTROL_PLANE, kind, is_done, || "its process runs".to_owned())?;
        }
        Ok(vec![format!("{CONTROL_PLANE} {}", kind.done())])
    }

    /// Heals; what is well already is fine. Answers with a line for each thing.
    ///
    /// # Errors
    /// See [`FaultError`].
    pub fn heal(&self, target: &Target) -> Result<Vec<String>, FaultError> {
        match target {
            Target::Pod { namespace, name } => {
                let pod = self.find_pod(namespace.as_deref(), name)?;
                self.heal_pod(&pod)?;
                Ok(vec![format!("pod/{}/{} healed", pod.namespace, pod.name)])
            }
            Target::ControlPlane => self.heal_server().map(|()| vec![format!("{CONTROL_PLANE} healed")]),
            _ => {
                let heal = |node: &String| self.heal_node(node).map(|()| format!("node/{node} healed"));
                self.nodes(target)?.iter().map(heal).collect()
            }
        }
    }

    fn heal_server(&self) -> Result<(), FaultError> {
        if let Some(pid) = processes::find(&self.instance, SERVER) {
            let _ = signal::kill(pid, Signal::SIGCONT);
        }
        self.forget(SERVER)
    }

    fn heal_all(&self) -> Result<(), FaultError> {
        let pods = self.pods();
        for note in self.notes() {
            match note.target.split('/').collect::<Vec<_>>().as_slice() {
                ["node", node] => self.heal_node(node)?,
                [CONTROL_PLANE] => self.heal_server()?,
                ["pod", namespace, name] => match pods.iter().find(|p| p.namespace == *namespace && p.name == *name) {
                    Some(pod) => self.heal_pod(pod)?,
                    None => self.forget(&format!("{namespace}.{name}"))?,
                },
                _ => {}
            }
            println!("{} healed", note.target);
        }
        Ok(())
    }

    fn heal_pod(&self, pod: &Found) -> Result<(), FaultError> {
        self.node_cgroup(&pod.node).pod(&pod.uid).freeze(false)?;
        self.set_pod_link(pod, true)?;
        self.forget(&pod_note(pod))
    }

    fn heal_node(&self, node: &str) -> Result<(), FaultError> {
        self.fabric.set_link(node_number(node).unwrap_or_default(), true)?;
        self.node_cgroup(node).freeze(false)?;
        self.forget(node)
    }

    fn list(&self, output: Output) {
        let notes = self.notes();
        if output == Output::Json {
            println!("{}", serde_json::to_string_pretty(&notes).unwrap_or_default());
            return;
        }
        if notes.is_empty() {
            println!("no faults in force");
        }
        for note in notes {
            let age = mainstay_model::meta::age(note.since, jiff::Timestamp::now());
            println!("{:<40} {:<10} {age} ago", note.target, note.fault.done());
        }
    }

    fn nodes(&self, target: &Target) -> Result<Vec<String>, FaultError> {
        let all: Vec<(u32, String)> = self.instance.node_names().collect();
        let chosen: Vec<String> = match target {
            Target::Node(name) => all.iter().filter(|(_, node)| node == name).map(|(_, n)| n.clone()).collect(),
            Target::Zone(zone) => all
                .iter()
                .filter(|(number, _)| self.instance.zone_of(*number) == *zone)
                .map(|(_, n)| n.clone())
                .collect(),
            Target::Pod { .. } | Target::ControlPlane => Vec::new(),
        };
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        let hint = all.iter().map(|(number, node)| format!("{node} in {}", self.instance.zone_of(*number)));
        let hint = format!("there are {}", hint.collect::<Vec<_>>().join(", "));
        let (what, name) = match target {
            Target::Zone(name) => ("zone", name),
            Target::Node(name) | Target::Pod { name, .. } => ("node", name),
            Target::ControlPlane => ("node", &hint),
        };
        Err(FaultError::NoSuch { what, name: name.clone(), hint: hint.clone() })
    }

    /// All pods of all nodes, from what the agents keep on disk.
    fn pods(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for (_, node) in self.instance.node_names() {
            let pods = fs::read_dir(self.instance.node_dir(&node).join("pods"));
            for directory in pods.into_iter().flatten().flatten() {
                let Ok(text) = fs::read(directory.path().join("pod.json")) else { continue };
                let Ok(pod) = serde_json::from_slice::<Value>(&text) else { continue };
                // Either the whole object or just its name, namespace and uid.
                let place = if pod["metadata"].is_object() { &pod["metadata"] } else { &pod };
                let text = |field: &str| place[field].as_str().unwrap_or_default().to_owned();
                let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
                found.push(Found { node: node.clone(), namespace, name, uid });
            }
        }
        found
    }

    fn find_pod(&self, namespace: Option<&str>, name: &str) -> Result<Found, FaultError> {
        let mut matching: Vec<Found> = self.pods();
        matching.retain(|pod| pod.name == name && namespace.is_none_or(|namespace| pod.namespace == namespace));
        let namespaces: Vec<String> = matching.iter().map(|pod| pod.namespace.clone()).collect();
        match matching.pop() {
            Some(_) if namespaces.iter().any(|n| *n != namespaces[0]) => {
                Err(FaultError::Ambiguous { name: name.to_owned(), namespaces: namespaces.join(", ") })
            }
            Some(pod) => Ok(pod),
            None => {
                let hint = "`kubectl get pods -A -o wide` shows the pods that run".to_owned();
                Err(FaultError::NoSuch { what: "pod", name: name.to_owned(), hint })
            }
        }
    }

    /// The processes of a pod's containers.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn pod_processes(&self, namespace: &str, name: &str) -> Result<Vec<i32>, FaultError> {
        let pod = self.find_pod(Some(namespace), name)?;
        Ok(self.node_cgroup(&pod.node).pod(&pod.uid).container_processes())
    }

    /// The network namespace of a pod, and that of its node with the name of the pod's link in it.
    ///
    /// # Errors
    /// When there is no such pod, nothing runs in it, or it uses its node's network.
    pub fn pod_network(&self, namespace: &str, name: &str) -> Result<(fs::File, String, String), FaultError> {
        let pod = self.find_pod(Some(namespace), name)?;
        let node = plan::netns_name(&self.instance.id(), node_number(&pod.node).unwrap_or_default());
        let of_node = mainstay_net::netns::open(&node)?;
        let processes = self.node_cgroup(&pod.node).pod(&pod.uid).container_processes();
        let own = |pid: &i32| {
            let file = fs::File::open(format!("/proc/{pid}/ns/net")).ok()?;
            (inode(&file) != inode(&of_node)).then_some(file)
        };
        let hint = "none of its processes has a network of its own; does it run, and without hostNetwork?".to_owned();
        let found = processes.iter().find_map(own);
        let found = found.ok_or_else(|| FaultError::NoSuch { what: "pod", name: name.to_owned(), hint })?;
        Ok((found, node, plan::pod_link_name(&pod.uid)))
    }

    /// Those of all pods of a namespace.
    pub fn namespace_processes(&self, namespace: &str) -> Vec<i32> {
        let pods = self.pods().into_iter().filter(|pod| pod.namespace == namespace);
        pods.flat_map(|pod| self.node_cgroup(&pod.node).pod(&pod.uid).container_processes()).collect()
    }

    /// Slows the disk that the instance lies on for a pod or the pods of nodes, or with `None` no longer; answers with how many
    /// groups took it.
    ///
    /// # Errors
    /// When there is no such target, or the kernel refuses.
    pub fn throttle(&self, target: &Target, bytes_per_second: Option<u64>) -> Result<usize, FaultError> {
        let disk = Disk::of(&self.instance.data_dir)?;
        if let Target::Pod { namespace, name } = target {
            let pod = self.find_pod(namespace.as_deref(), name)?;
            return Ok(self.node_cgroup(&pod.node).pod(&pod.uid).throttle(disk, bytes_per_second)?);
        }
        let each = self.nodes(target)?.into_iter().map(|node| self.node_cgroup(&node).throttle(disk, bytes_per_second));
        Ok(each.sum::<Result<usize, CgroupError>>()?)
    }

    fn node_cgroup(&self, node: &str) -> NodeCgroup {
        self.cgroups.node(&self.instance.id(), node)
    }

    fn set_pod_link(&self, pod: &Found, up: bool) -> Result<(), FaultError> {
        let namespace = plan::netns_name(&self.instance.id(), node_number(&pod.node).unwrap_or_default());
        let directory = self.instance.node_dir(&pod.node).join("pods").join(&pod.uid);
        let place = if up { pod_place(&directory) } else { None };
        mainstay_net::netns::within_named(&namespace, || match place {
            Some((pid, address)) => mainstay_net::pod::attach(pid, &pod.uid, address),
            // Its processes are gone: there is no link to bring up.
            None if up => Ok(()),
            None => mainstay_net::pod::cut(&pod.uid),
        })??;
        Ok(())
    }

    fn note(&self, file: &str, target: &str, fault: FaultKind) -> Result<(), FaultError> {
        let note = Note { target: target.to_owned(), fault, since: jiff::Timestamp::now() };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        Ok(write_private(&self.instance.fault_file(file), &text)?)
    }

    fn forget(&self, file: &str) -> Result<(), FaultError> {
        let path = self.instance.fault_file(file);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FaultError::Note { path, source }),
            _ => Ok(()),
        }
    }

    fn notes(&self) -> Vec<Note> {
        let files = fs::read_dir(self.instance.data_dir.join("run/faults")).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| fs::read(file.path()).ok());
        let mut notes: Vec<Note> = texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect();
        notes.sort_by(|a, b| a.target.cmp(&b.target));
        notes
    }
}

/// A process in the pod's network namespace and the pod's address, from what shim and agent keep on disk.
fn pod_place(directory: &Path) -> Option<(u32, Ipv4Addr)> {
    let record: Value = serde_json::from_slice(&fs::read(directory.join("state.json")).ok()?).ok()?;
    let address = record["ip"].as_str()?.parse().ok()?;
    let running = mainstay_runtime::sandbox::recorded_processes(directory);
    Some((u32::try_from(*running.first()?).ok()?, address))
}

/// Which file it is.
fn inode(file: &fs::File) -> Option<u64> {
    file.metadata().ok().map(|found| found.ino())
}

/// Waits until a fault shows.
fn seen(
    target: &str,
    kind: FaultKind,
    shows: impl Fn() -> bool,
    instead: impl Fn() -> String,
) -> Result<(), FaultError> {
    let since = Instant::now();
    while !shows() {
        if since.elapsed() > EFFECT {
            return Err(FaultError::NoEffect { target: target.to_owned(), fault: kind.done(), seen: instead() });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The name of a pod's note: no node has a dot in its name.
fn pod_note(pod: &Found) -> String {
    format!("{}.{}", pod.namespace, pod.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_refused() {
        assert_eq!("node/node-1".parse(), Ok(Target::Node("node-1".to_owned())));
        let pod = Target::Pod { namespace: Some("shop".to_owned()), name: "a".to_owned() };
        assert_eq!("pod/shop/a".parse(), Ok(pod));
        assert_eq!("control-plane".parse(), Ok(Target::ControlPlane));
        assert!("deployment/a".parse::<Target>().is_err());
        assert!("pod/".parse::<Target>().is_err());
    }
}
