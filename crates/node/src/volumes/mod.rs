//! A pod's volumes on the node's disk, and the mounts that its containers get.
//!
//! Kinds: emptyDir (disk, memory), hostPath, configMap, secret, downwardAPI, projected, and claims whose volume is a
//! directory (`hostPath`, `local`). Everything here blocks.
//!
//! Deliberately absent: volumes that have to be attached or mounted from elsewhere (CSI, NFS, iSCSI), block devices. Size limits
//! of directories are looked after from outside: see [`crate::pressure::local_storage`].

pub mod atomic;
pub mod payload;
mod reclaim;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use mainstay_runtime::protocol::{MemoryVolume, Propagation};
use nix::mount::{MntFlags, umount2};

use crate::env::{self, Claim, PodFacts, Sources, expand};
use crate::volumes::payload::{PayloadError, is_inside};
pub use crate::volumes::reclaim::reclaim_volumes;

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Its content.
    #[error("MountVolume.SetUp failed for volume \"{volume}\": {source}")]
    Payload {
        /// The volume.
        volume: String,
        /// What is wrong.
        #[source]
        source: PayloadError,
    },
    /// A hostPath that is not of the type that was asked for.
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPathType {
        /// The path.
        path: String,
        /// What it should be.
        wanted: String,
    },
    /// A kind of volume that there is not.
    #[error("volume \"{0}\" is of a kind that this node does not support")]
    Unsupported(String),
    /// A claim without a volume.
    #[error("Unable to attach or mount volumes for volume \"{volume}\": persistentvolumeclaim \"{claim}\" {why}")]
    Claim {
        /// The volume.
        volume: String,
        /// The claim.
        claim: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A mount of a volume that the pod does not have.
    #[error("volume \"{0}\" is mounted but not declared")]
    Undeclared(String),
    /// A sub-path that leaves the volume.
    #[error("subPath {0:?} is not a relative path inside the volume")]
    SubPath(String),
    /// The disk.
    #[error("cannot {step} {path}: {source}")]
    Disk {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

fn disk(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    move |source| VolumeError::Disk { step, path: path.display().to_string(), source }
}

/// A bind mount into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where it comes from, on the node.
    pub source: PathBuf,
    /// Where it goes to, in the container.
    pub target: String,
    /// Whether it cannot be written to.
    pub read_only: bool,
    /// `mountPropagation`: which later mounts below are seen on the other side.
    pub propagation: Option<Propagation>,
}

/// A volume on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where it is.
    pub path: PathBuf,
    /// Nobody may write to it, whatever the mount says.
    pub read_only: bool,
}

/// The volumes of a pod by name.
pub type Volumes = BTreeMap<String, Place>;

/// Makes the volumes of a pod below `directory`. Repeatable; what programs wrote stays.
pub fn prepare(
    pod: &core::Pod,
    directory: &Path,
    sources: &Sources,
    facts: &PodFacts,
    version: &str,
) -> Result<Volumes, VolumeError> {
    let (spec, group) = (pod.spec.as_ref(), group_of(pod));
    let mut volumes = Volumes::new();
    for volume in spec.into_iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let place = directory.join(&volume.name);
        let fail = |source| VolumeError::Payload { volume: volume.name.clone(), source };
        if volume.empty_dir.is_some() {
            empty_dir(&place, group)?;
        } else if let Some(host) = &volume.host_path {
            host_path(host, 0o755)?;
            volumes.insert(volume.name.clone(), Place { path: PathBuf::from(&host.path), read_only: false });
            continue;
        } else if let Some(claim) = env::claim_name(pod, volume) {
            let path = claimed(volume, &claim, sources, group)?;
            let of_claim = volume.persistent_volume_claim.as_ref().and_then(|claim| claim.read_only);
            volumes.insert(volume.name.clone(), Place { path, read_only: of_claim == Some(true) });
            continue;
        } else if let Some(files) = payload::payload(pod, volume, sources, facts).map_err(fail)? {
            atomic::write(&place, &files, version, group).map_err(disk("write volume", &place))?;
        } else {
            return Err(VolumeError::Unsupported(volume.name.clone()));
        }
        // What is made from objects is changed there, not here.
        let read_only = volume.empty_dir.is_none();
        volumes.insert(volume.name.clone(), Place { path: place, read_only });
    }
    Ok(volumes)
}

/// Whether a pod has files that are made from objects, and have to follow them.
pub fn holds_objects(pod: &core::Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .into_iter()
        .any(|v| v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some())
}

/// Brings the files that are made from objects up to date; those of volumes that were never made are left alone.
pub fn refresh(
    pod: &core::Pod,
    directory: &Path,
    sources: &Sources,
    facts: &PodFacts,
    version: &str,
) -> Result<(), VolumeError> {
    let group = group_of(pod);
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let place = directory.join(&volume.name);
        let fail = |source| VolumeError::Payload { volume: volume.name.clone(), source };
        if place.is_dir()
            && let Some(files) = payload::payload(pod, volume, sources, facts).map_err(fail)?
        {
            atomic::write(&place, &files, version, group).map_err(disk("write volume", &place))?;
        }
    }
    Ok(())
}

fn group_of(pod: &core::Pod) -> Option<u32> {
    let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    security.and_then(|security| security.fs_group).and_then(|group| u32::try_from(group).ok())
}

/// The directory of a claim's volume, given to the pod's group.
fn claimed(volume: &core::Volume, name: &str, sources: &Sources, group: Option<u32>) -> Result<PathBuf, VolumeError> {
    let refuse = |why| Err(VolumeError::Claim { volume: volume.name.clone(), claim: name.to_owned(), why });
    let spec = match sources.claims.get(name) {
        None | Some(Claim::Missing) => return refuse("not found"),
        Some(Claim::Unbound) => return refuse("is not bound to a volume"),
        Some(Claim::Bound(spec)) => spec,
    };
    let path = if let Some(host) = &spec.host_path {
        // Whoever runs in the pod is to be able to write to what was made for it.
        host_path(host, 0o777)?;
        PathBuf::from(&host.path)
    } else if let Some(local) = &spec.local {
        fs::metadata(&local.path).map_err(disk("find", Path::new(&local.path)))?;
        PathBuf::from(&local.path)
    } else {
        return Err(VolumeError::Unsupported(volume.name.clone()));
    };
    if let Some(group) = group {
        give_to_group(&path, group).map_err(disk("give to fsGroup", &path))?;
    }
    Ok(path)
}

/// Lets a group read and write everything below a directory, and own what is made there later. A directory that is the
/// group's already is not walked through again (`fsGroupChangePolicy: OnRootMismatch`).
///
/// Source: <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods>.
fn give_to_group(root: &Path, group: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(root)?;
    if found.gid() == group && found.permissions().mode() & 0o2070 == 0o2070 {
        return Ok(());
    }
    if found.is_dir() {
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                give_to_group(&entry.path(), group)?;
            } else {
                lchown(entry.path(), None, Some(group))?;
                if entry.file_type()?.is_file() {
                    let mode = entry.metadata()?.permissions().mode();
                    fs::set_permissions(entry.path(), Permissions::from_mode(mode | 0o660))?;
                }
            }
        }
    }
    // The directory last: by it one sees that all below is done.
    lchown(root, None, Some(group))?;
    fs::set_permissions(root, Permissions::from_mode(found.permissions().mode() & 0o7777 | 0o2770))
}

fn empty_dir(place: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    if place.exists() {
        return Ok(());
    }
    fs::create_dir_all(place).map_err(disk("create", place))?;
    if group.is_some() {
        std::os::unix::fs::chown(place, None, group).map_err(disk("give to fsGroup", place))?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(place, Permissions::from_mode(mode)).map_err(disk("set the mode of", place))
}

/// The volumes of a pod that live in memory: the sandbox mounts them where only the pod sees them.
///
/// Source: <https://kubernetes.io/docs/concepts/storage/volumes/#emptydir>.
pub fn in_memory(pod: &core::Pod, directory: &Path) -> Vec<MemoryVolume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let of = |volume: &core::Volume| {
        let spec = volume.empty_dir.as_ref().filter(|spec| spec.medium.as_deref() == Some("Memory"))?;
        let limit =
            spec.size_limit.as_ref().and_then(|limit| limit.0.parse::<mainstay_model::quantity::Quantity>().ok());
        let size_bytes = limit.filter(|limit| !limit.is_zero()).and_then(|limit| u64::try_from(limit.value()).ok());
        Some(MemoryVolume { path: directory.join(&volume.name), size_bytes, group: group_of(pod) })
    };
    volumes.filter_map(of).collect()
}

/// Source: <https://kubernetes.io/docs/concepts/storage/volumes/#hostpath-volume-types>.
fn host_path(spec: &core::HostPathVolumeSource, mode: u32) -> Result<(), VolumeError> {
    let path = Path::new(&spec.path);
    let kind = spec.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(disk("create", path))?;
            return fs::set_permissions(path, Permissions::from_mode(mode)).map_err(disk("set the mode of", path));
        }
        "FileOrCreate" if !path.exists() => return fs::write(path, "").map_err(disk("create", path)),
        _ => {}
    }
    let found = fs::metadata(path).map(|meta| meta.file_type());
    let fits = match (kind, found) {
        ("", _) => true,
        ("Directory" | "DirectoryOrCreate", Ok(found)) => found.is_dir(),
        ("File" | "FileOrCreate", Ok(found)) => found.is_file(),
        ("Socket", Ok(found)) => found.is_socket(),
        ("CharDevice", Ok(found)) => found.is_char_device(),
        ("BlockDevice", Ok(found)) => found.is_block_device(),
        _ => false,
    };
    if fits { Ok(()) } else { Err(VolumeError::HostPathType { path: spec.path.clone(), wanted: kind.to_lowercase() }) }
}

/// The bind mounts of one container.
pub fn binds(
    container: &core::Container,
    volumes: &Volumes,
    environment: &BTreeMap<String, String>,
) -> Result<Vec<Bind>, VolumeError> {
    let mut binds = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name).ok_or_else(|| VolumeError::Undeclared(mount.name.clone()))?;
        let expanded = mount.sub_path_expr.as_deref().map(|text| expand(text, environment));
        let sub_path = expanded.or_else(|| mount.sub_path.clone()).filter(|path| !path.is_empty());
        let source = match sub_path {
            Some(sub_path) => inside(&volume.path, &sub_path)?,
            None => volume.path.clone(),
        };
        binds.push(Bind {
            source,
            target: mount.mount_path.clone(),
            read_only: volume.read_only || mount.read_only.unwrap_or(false),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Some(Propagation::FromMachine),
                Some("Bidirectional") => Some(Propagation::Both),
                _ => None,
            },
        });
    }
    // A mount below another one has to come after it.
    binds.sort_by(|a, b| a.target.trim_end_matches('/').cmp(b.target.trim_end_matches('/')));
    Ok(binds)
}

/// A place inside a volume, made as a directory if nothing is there. Links must not lead out of the volume.
fn inside(volume: &Path, sub_path: &str) -> Result<PathBuf, VolumeError> {
    let refused = || VolumeError::SubPath(sub_path.to_owned());
    if !is_inside(sub_path) {
        return Err(refused());
    }
    let root = volume.canonicalize().map_err(disk("resolve", volume))?;
    let mut place = root.clone();
    for part in Path::new(sub_path).components() {
        place.push(part);
        match place.canonicalize() {
            Ok(real) if real.starts_with(&root) => place = real,
            Ok(_) => return Err(refused()),
            Err(_) => fs::create_dir(&place).map_err(disk("create", &place))?,
        }
    }
    Ok(place)
}

/// Removes what [`prepare`] made. Memory volumes are unmounted first; what cannot be is left for the next attempt.
pub fn remove(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Most are not mounts, which the kernel answers with EINVAL.
        let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn directories_sub_paths_and_the_order_of_mounts() {
        let temporary = tempfile::tempdir().unwrap();
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"containers": [],
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "host", "hostPath": {"path": "/tmp", "type": "Directory"}}]}}))
        .unwrap();
        let volumes = prepare(&pod, temporary.path(), &Sources::default(), &PodFacts::default(), "v1").unwrap();
        let scratch = &volumes["scratch"];
        assert_eq!(fs::metadata(&scratch.path).unwrap().permissions().mode() & 0o777, 0o777);
        assert_eq!(volumes["host"].path, Path::new("/tmp"));
        let mounts = |mounts| -> core::Container {
            serde_json::from_value(json!({"name": "a", "volumeMounts": mounts})).unwrap()
        };
        let environment = BTreeMap::from([("POD".to_owned(), "web".to_owned())]);
        let container = mounts(json!([
            {"name": "scratch", "mountPath": "/data/deep", "subPathExpr": "logs/$(POD)"},
            {"name": "host", "mountPath": "/data", "readOnly": true}]));
        let found = binds(&container, &volumes, &environment).unwrap();
        assert_eq!(found[0].target, "/data");
        assert!(found[0].read_only);
        assert_eq!(found[1].source, scratch.path.canonicalize().unwrap().join("logs/web"));
        std::os::unix::fs::symlink("/etc", scratch.path.join("out")).unwrap();
        for bad in ["../x", "/etc", "out/passwd"] {
            let container = mounts(json!([{"name": "scratch", "mountPath": "/d", "subPath": bad}]));
            assert!(matches!(binds(&container, &volumes, &environment), Err(VolumeError::SubPath(_))), "{bad}");
        }
        remove(temporary.path()).unwrap();
        assert!(!temporary.path().exists());
    }

    #[test]
    fn claims_become_directories_of_the_pods_group() {
        let temporary = tempfile::tempdir().unwrap();
        let data = temporary.path().join("data");
        let pod = |group: serde_json::Value| -> core::Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "web"}, "spec": {"containers": [], "securityContext": group,
                "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}},
                    {"name": "own", "ephemeral": {}}]}}),
            )
            .unwrap()
        };
        let bound = |path: &Path| {
            let spec = json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}});
            Claim::Bound(serde_json::from_value(spec).unwrap())
        };
        let mut sources = Sources::default();
        let make = |pod: &core::Pod, sources: &Sources| {
            prepare(pod, temporary.path(), sources, &PodFacts::default(), "v1").map_err(|error| error.to_string())
        };
        assert!(make(&pod(json!({})), &sources).unwrap_err().contains("\"c\" not found"));
        sources.claims.insert("c".to_owned(), bound(&data));
        sources.claims.insert("web-own".to_owned(), Claim::Unbound);
        assert!(make(&pod(json!({})), &sources).unwrap_err().contains("\"web-own\" is not bound"));
        sources.claims.insert("web-own".to_owned(), bound(&temporary.path().join("own")));
        let volumes = make(&pod(json!({})), &sources).unwrap();
        assert_eq!(volumes["d"], Place { path: data.clone(), read_only: true });
        assert!(!volumes["own"].read_only);
        fs::write(data.join("file"), "").unwrap();
        if nix::unistd::Uid::effective().is_root() {
            make(&pod(json!({"fsGroup": 1234})), &sources).unwrap();
            for path in [data.clone(), data.join("file")] {
                assert_eq!(fs::metadata(&path).unwrap().gid(), 1234);
            }
            assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o2070, 0o2070);
        }
    }

    #[test]
    fn host_path_types_are_checked() {
        let check = |path: &str, kind: &str| {
            host_path(&core::HostPathVolumeSource { path: path.to_owned(), type_: Some(kind.to_owned()) }, 0o755)
        };
        assert!(
            check("/", "Directory").is_ok() && check("/dev/null", "CharDevice").is_ok() && check("/nope", "").is_ok()
        );
        assert_eq!(check("/nope", "File").unwrap_err().to_string(), "hostPath type check failed: /nope is not a file");
    }
}
