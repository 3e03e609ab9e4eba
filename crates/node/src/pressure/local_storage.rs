//! What pods take on the node's disk, and whether that is more than they may.
//!
//! Counted are what containers write to their root file systems, their logs, and `emptyDir` volumes on disk; the kernel gives no
//! quota for them here, so that who takes too much is evicted when that is seen. Volumes in memory are held to their size by the
//! kernel itself.
//!
//! Source: <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#local-ephemeral-storage>,
//! <https://kubernetes.io/docs/concepts/storage/volumes/#emptydir>.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use mainstay_model::quantity::Quantity;

use crate::pod::dir::PodDir;
use crate::pressure::rank::{Bound, storage};

/// Entries of one directory tree that are looked at; a larger one counts as what was seen of it.
const ENTRIES_MAX: u64 = 1_000_000;

/// What something takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes in blocks that are allocated.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl Taken {
    fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, inodes: self.inodes + other.inodes }
    }

    /// What a directory and all below it take, links not followed, other file systems left out. Zero where there is none.
    pub fn by(root: &Path) -> Self {
        let mut sum = Self::default();
        let Ok(top) = fs::symlink_metadata(root) else { return sum };
        let mut rest = vec![root.to_owned()];
        while let Some(directory) = rest.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let Ok(found) = entry.metadata() else { continue };
                sum = sum.and(Self { bytes: found.blocks() * 512, inodes: 1 });
                if sum.inodes > ENTRIES_MAX {
                    return sum;
                }
                if found.is_dir() && found.dev() == top.dev() {
                    rest.push(entry.path());
                }
            }
        }
        sum
    }
}

/// What a pod takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodTaken {
    /// Its containers' root file systems and logs, by name.
    pub containers: BTreeMap<String, Taken>,
    /// Its `emptyDir` volumes on disk, by name.
    pub volumes: BTreeMap<String, Taken>,
}

impl PodTaken {
    /// Looks at a pod's directory. `containers` are names with the ids of those that run. Blocking.
    pub fn look(pod: &Pod, dir: &PodDir, containers: &[(String, Option<String>)]) -> Self {
        let logs = dir.root().join("logs");
        let of_container = |(name, id): &(String, Option<String>)| {
            let layer = id.as_ref().map(|id| Taken::by(&dir.root().join("containers").join(id).join("upper")));
            (name.clone(), layer.unwrap_or_default().and(Taken::by(&logs.join(name))))
        };
        let on_disk = volumes(pod).filter(|volume| is_on_disk(volume));
        Self {
            containers: containers.iter().map(of_container).collect(),
            volumes: on_disk
                .map(|volume| (volume.name.clone(), Taken::by(&dir.volumes().join(&volume.name))))
                .collect(),
        }
    }

    /// All of it.
    pub fn sum(&self) -> Taken {
        self.containers.values().chain(self.volumes.values()).fold(Taken::default(), |sum, one| sum.and(*one))
    }

    /// Why the pod has to go, if it takes more than it may.
    pub fn excess(&self, pod: &Pod) -> Option<String> {
        for volume in volumes(pod) {
            let Some((limit, text)) = size_limit(volume) else { continue };
            if self.volumes.get(&volume.name).is_some_and(|taken| taken.bytes > limit) {
                return Some(format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{text}\". ", volume.name));
            }
        }
        let own = containers(pod);
        for container in &own {
            let limit = storage(container, Bound::Limit);
            if limit > 0 && self.containers.get(&container.name).is_some_and(|taken| taken.bytes > limit) {
                let text = limit_text(container);
                return Some(format!(
                    "Container {} exceeded its local ephemeral storage limit \"{text}\". ",
                    container.name
                ));
            }
        }
        let total: u64 = own.iter().map(|container| storage(container, Bound::Limit)).sum();
        let whole = own.iter().all(|container| storage(container, Bound::Limit) > 0);
        (whole && total > 0 && self.sum().bytes > total).then(|| {
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {}Ki. ", total / 1024)
        })
    }
}

/// Whether a pod has a limit that has to be looked after.
pub fn is_limited(pod: &Pod) -> bool {
    volumes(pod).any(|volume| size_limit(volume).is_some())
        || containers(pod).iter().any(|container| storage(container, Bound::Limit) > 0)
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn containers(pod: &Pod) -> Vec<&Container> {
    pod.spec.iter().flat_map(|spec| &spec.containers).collect()
}

fn is_on_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|spec| spec.medium.as_deref().unwrap_or_default() != "Memory")
}

/// The size limit of a volume on disk, in bytes and as it was written.
fn size_limit(volume: &Volume) -> Option<(u64, &str)> {
    let limit = volume.empty_dir.as_ref().filter(|_| is_on_disk(volume))?.size_limit.as_ref()?;
    let bytes = u64::try_from(limit.0.parse::<Quantity>().ok()?.value()).ok().filter(|bytes| *bytes > 0)?;
    Some((bytes, &limit.0))
}

fn limit_text(container: &Container) -> &str {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    limits.and_then(|limits| limits.get("ephemeral-storage")).map_or("", |text| &text.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {
            "containers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": "100Ki"}}}],
            "volumes": [{"name": "disk", "emptyDir": {"sizeLimit": "64Ki"}}, {"name": "free", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Ki"}}]}}))
        .unwrap()
    }

    fn taken(container: u64, disk: u64, free: u64) -> PodTaken {
        let of = |bytes| Taken { bytes, inodes: 1 };
        PodTaken {
            containers: [("a".to_owned(), of(container << 10))].into(),
            volumes: [("disk".to_owned(), of(disk << 10)), ("free".to_owned(), of(free << 10))].into(),
        }
    }

    #[test]
    fn every_limit_is_looked_at() {
        let pod = pod();
        assert!(is_limited(&pod) && !is_limited(&Pod::default()));
        assert_eq!(taken(40, 40, 20).excess(&pod), None);
        for (taken, words) in [
            (taken(0, 65, 0), "EmptyDir volume \"disk\" exceeds the limit \"64Ki\""),
            (taken(101, 0, 0), "Container a exceeded its local ephemeral storage limit \"100Ki\""),
            (taken(40, 40, 21), "exceeds the total limit of containers 100Ki"),
        ] {
            let message = taken.excess(&pod).unwrap();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_pods_directory_is_counted() {
        let data = tempfile::tempdir().unwrap();
        let dir = PodDir::new(data.path(), "u");
        for (path, size) in [
            ("containers/x/upper/f", 8192),
            ("containers/x/work/ignored", 8192),
            ("logs/a/0.log", 4096),
            ("volumes/disk/deep/er/f", 16384),
        ] {
            let path = dir.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; size]).unwrap();
        }
        std::os::unix::fs::symlink("/", dir.volumes().join("disk/link")).unwrap();
        let seen = PodTaken::look(&pod(), &dir, &[("a".to_owned(), Some("x".to_owned()))]);
        assert!((12288..20480).contains(&seen.containers["a"].bytes), "{seen:?}");
        assert_eq!(seen.volumes["disk"].inodes, 4, "two directories, a file and a link that is not followed");
        assert_eq!(seen.volumes.len(), 2);
    }
}
