//! A pod's directory on the node's disk.
//!
//! ```text
//!   pods/UID/pod.json            the pod as last seen in the API
//!   pods/UID/state.json          what its machine has to remember
//!   pods/UID/etc/…               hosts, hostname, resolv.conf
//!   pods/UID/volumes/NAME/…      volumes
//!   pods/UID/termination/…       termination messages, one file per container instance
//!   pods/UID/logs/NAME/N.log     output of restart N, CRI format
//! ```
//!
//! The rest of the directory (`containers`, the shim's files) is the runtime's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;

use crate::pod::io::Instance;
use crate::pod::record::Record;
use crate::volumes;

/// Dead instances whose logs are kept, besides the present one, as the kubelet's `MaxPerPodContainerCount`.
const LOGS_KEPT: u32 = 1;

/// Files that one instance's log may have come to by rotation.
const LOG_FILES: u32 = 5;

/// A pod's directory.
#[derive(Debug, Clone)]
pub struct PodDir {
    root: PathBuf,
}

/// The directory of all pods of a node.
pub fn pods(data_dir: &Path) -> PathBuf {
    data_dir.join("pods")
}

impl PodDir {
    /// The directory of the pod with this uid.
    pub fn new(data_dir: &Path, uid: &str) -> Self {
        Self { root: pods(data_dir).join(uid) }
    }

    /// All pods that have a directory. Ones that were cut short in the making have no `pod.json`.
    pub fn list(data_dir: &Path) -> Vec<Self> {
        let entries = fs::read_dir(pods(data_dir)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().is_dir()).map(|entry| Self { root: entry.path() }).collect()
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pod's uid: the directory's name.
    pub fn uid(&self) -> String {
        self.root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Volumes.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// One of the files below `etc`.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.root.join("etc").join(name)
    }

    /// Where an instance leaves its termination message.
    pub fn termination(&self, instance: &Instance) -> PathBuf {
        self.root.join("termination").join(format!("{}-{}", instance.container, instance.attempt))
    }

    /// Where an instance's output goes.
    pub fn log(&self, instance: &Instance) -> PathBuf {
        self.root.join("logs").join(&instance.container).join(format!("{}.log", instance.attempt))
    }

    /// Makes the directory.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.root.join("etc"))?;
        fs::create_dir_all(self.root.join("termination"))
    }

    /// Makes what an instance needs, and takes away what instances long dead have left.
    pub fn prepare(&self, instance: &Instance) -> io::Result<()> {
        let log = self.log(instance);
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent)?;
        }
        if let Some(old) = instance.attempt.checked_sub(LOGS_KEPT + 1) {
            let old = Instance { container: instance.container.clone(), attempt: old };
            let _ = fs::remove_file(self.log(&old));
            for number in 1..LOG_FILES {
                let _ = fs::remove_file(self.log(&old).with_extension(format!("log.{number}")));
            }
            let _ = fs::remove_file(self.termination(&old));
        }
        fs::write(self.termination(instance), "")
    }

    /// The pod and what was remembered of it.
    pub fn load(&self) -> io::Result<(Pod, Record)> {
        let pod = serde_json::from_slice(&fs::read(self.root.join("pod.json"))?)?;
        let record = fs::read(self.root.join("state.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Ok((pod, record.unwrap_or_default()))
    }

    /// Remembers the pod. A crash of the machine loses it, but then there is nothing left to adopt.
    pub fn save_pod(&self, pod: &Pod) -> io::Result<()> {
        self.replace("pod.json", pod)
    }

    /// Remembers the machine's state.
    pub fn save_record(&self, record: &Record) -> io::Result<()> {
        self.replace("state.json", record)
    }

    fn replace(&self, name: &str, content: &impl Serialize) -> io::Result<()> {
        let temporary = self.root.join(format!("{name}.new"));
        fs::write(&temporary, serde_json::to_vec(content)?)?;
        fs::rename(temporary, self.root.join(name))
    }

    /// Removes everything.
    pub fn remove(&self) -> io::Result<()> {
        volumes::remove(&self.volumes())?;
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
