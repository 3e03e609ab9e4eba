//! Root file systems.
//!
//! Either the layers of an image, stacked by an overlay; or the special image `mainstay.dev/host`: an overlay over this
//! machine's own root file system, so that installed programs run as isolated containers with nothing to pull. What a container must not see of the machine — secrets, people's
//! homes, Mainstay's own data — is covered by empty, opaque directories and files in a layer in between, which all
//! containers of a pod share.
//!
//! Source: <https://docs.kernel.org/filesystems/overlayfs.html>.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};
use serde::{Deserialize, Serialize};

/// The name of the special image.
pub const HOST_IMAGE: &str = "mainstay.dev/host";

/// What a container runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRef {
    /// This machine's own root file system, under an overlay.
    #[default]
    Host,
    /// Directories on top of each other.
    Layers {
        /// Where they are.
        store: PathBuf,
        /// Their names there, lowest first.
        layers: Vec<String>,
    },
}

/// Whether a name such as `mainstay.dev/host:latest` means this machine's own root file system.
pub fn is_host(name: &str) -> bool {
    let bare = name.split_once('@').map_or(name, |(bare, _)| bare);
    bare.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(bare, |(bare, _)| bare) == HOST_IMAGE
}

/// Why a root file system could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A directory or file of the upper layer could not be made.
    #[error("cannot prepare {path}: {source}")]
    Prepare {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A layer or the whole could not be mounted.
    #[error("cannot mount a part of the root file system at {path}: {source}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: nix::Error,
    },
}

/// Directories that a container has for itself, empty, with these permissions.
const EMPTY: &[(&str, u32)] = &[
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("etc/ssh", 0o755),
    ("etc/ssl/private", 0o700),
    // Debian keeps copies of the password files here.
    ("var/backups", 0o755),
    ("var/tmp", 0o1777),
];

/// Files that a container sees empty.
const BLANK: &[&str] = &["etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-"];

/// Where the program itself is found in the host image.
pub const PROGRAM: &str = "/usr/local/bin/mainstay";

/// Where in the pod's directory the layer is that all its containers share.
pub(crate) const BASE: &str = "base";

/// Size limit of an upper layer in memory, where the data directory cannot hold one.
const MEMORY_UPPER: &str = "size=512m,mode=755";

/// What lies over the machine's root file system in every container of a pod: emptiness where nothing may be seen. Made
/// once, in memory, in the caller's mount namespace.
///
/// # Errors
/// See [`ImageError`].
pub(crate) fn make_base(pod: &Path, hidden: &[PathBuf]) -> Result<(), ImageError> {
    let base = pod.join(BASE);
    make_dir(&base, 0o755)?;
    mount(Some("mainstay"), &base, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=755"))
        .map_err(|source| ImageError::Mount { path: base.clone(), source })?;
    let empty = EMPTY.iter().map(|(path, mode)| (Path::new("/").join(path), *mode));
    let mut covered: Vec<PathBuf> = Vec::new();
    for (path, mode) in empty.chain(hidden.iter().map(|path| (path.clone(), 0o700))) {
        // Where it really is: covering a link would hide nothing. What is not there needs no cover.
        let Ok(path) = path.canonicalize() else { continue };
        if path.is_dir() && path != Path::new("/") && !covered.iter().any(|above| path.starts_with(above)) {
            cover(&base, path.strip_prefix("/").unwrap_or(&path), mode)?;
            covered.push(path);
        }
    }
    let blank = BLANK.iter().filter(|path| Path::new("/").join(path).exists());
    for path in blank.chain([&PROGRAM.trim_start_matches('/')]) {
        let file = base.join(path);
        make_parents(&base, Path::new(path))?;
        File::create(&file).map_err(|source| ImageError::Prepare { path: file, source })?;
    }
    Ok(())
}

/// Mounts a container's root file system at `dir/rootfs`, in the caller's mount namespace; the machine's own over the pod's
/// base.
///
/// # Errors
/// See [`ImageError`].
pub(crate) fn mount_image(image: &ImageRef, pod: &Path, dir: &Path) -> Result<PathBuf, ImageError> {
    let rootfs = dir.join("rootfs");
    make_dir(&rootfs, 0o755)?;
    let lower = match image {
        ImageRef::Host => {
            Lower { directory: None, layers: format!("{}:/", escape(&pod.join(BASE))), flags: MsFlags::empty() }
        }
        ImageRef::Layers { store, layers } => {
            let topmost_first: Vec<_> = layers.iter().rev().map(String::as_str).collect();
            // An image without layers is an empty directory; devices in images open nothing, wherever they point.
            let layers = if layers.is_empty() { "." } else { &topmost_first.join(":") };
            Lower { directory: Some(store), layers: layers.to_owned(), flags: MsFlags::MS_NODEV }
        }
    };
    match overlay(&lower, dir, &rootfs) {
        // The directory lies on a file system that cannot be an upper layer (an overlay itself, say): use memory.
        Err(ImageError::Mount { source: nix::Error::EINVAL | nix::Error::EOPNOTSUPP, .. }) => {
            let memory = dir.join("memory");
            make_dir(&memory, 0o700)?;
            mount(Some("mainstay"), &memory, Some("tmpfs"), MsFlags::empty(), Some(MEMORY_UPPER))
                .map_err(|source| ImageError::Mount { path: memory.clone(), source })?;
            overlay(&lower, &memory, &rootfs)?;
        }
        other => other?,
    }
    Ok(rootfs)
}

/// What lies below a container's own layer.
struct Lower<'a> {
    /// Where the layers' names start: with long ones a hundred layers would not fit the page that the options may have.
    directory: Option<&'a Path>,
    layers: String,
    flags: MsFlags,
}

fn overlay(lower: &Lower<'_>, dir: &Path, rootfs: &Path) -> Result<(), ImageError> {
    if let Some(directory) = lower.directory {
        // The shim is single-threaded, so that nobody else is moved.
        let enter = |path: &Path| {
            std::env::set_current_dir(path).map_err(|source| ImageError::Prepare { path: path.to_owned(), source })
        };
        enter(directory)?;
        let mounted = overlay_here(lower, dir, rootfs);
        enter(Path::new("/"))?;
        return mounted;
    }
    overlay_here(lower, dir, rootfs)
}

fn overlay_here(lower: &Lower<'_>, dir: &Path, rootfs: &Path) -> Result<(), ImageError> {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    make_dir(&upper, 0o755)?;
    make_dir(&work, 0o700)?;
    let layers = format!("lowerdir={},upperdir={},workdir={}", lower.layers, escape(&upper), escape(&work));
    // Volatile: what a container wrote goes with it, so it need not reach the disk before the file system is unmounted.
    // Kernels before 5.10 do not know that.
    let attempt = |options: &str| mount(Some("overlay"), rootfs, Some("overlay"), lower.flags, Some(options));
    attempt(&format!("{layers},volatile"))
        .or_else(|_| attempt(&layers))
        .map_err(|source| ImageError::Mount { path: rootfs.to_owned(), source })
}

/// A path as a mount option, in which a comma would end it and a colon a layer.
fn escape(path: &Path) -> String {
    let mut text = path.display().to_string();
    for special in ["\\", ",", ":"] {
        text = text.replace(special, &format!("\\{special}"));
    }
    text
}

/// An empty directory in the layer in between that hides what is below it.
fn cover(upper: &Path, path: &Path, mode: u32) -> Result<(), ImageError> {
    make_parents(upper, path)?;
    let place = upper.join(path);
    make_dir(&place, mode)?;
    set_opaque(&place).map_err(|source| ImageError::Prepare { path: place, source: source.into() })
}

/// The directories above `path`, with the owners and permissions they have on the machine.
fn make_parents(upper: &Path, path: &Path) -> Result<(), ImageError> {
    let mut so_far = PathBuf::new();
    for part in path.parent().into_iter().flat_map(Path::components) {
        so_far.push(part);
        let place = upper.join(&so_far);
        if place.exists() {
            continue;
        }
        let there = fs::metadata(Path::new("/").join(&so_far)).ok();
        make_dir(&place, there.as_ref().map_or(0o755, |there| there.permissions().mode() & 0o7777))?;
        if let Some(there) = there.filter(|there| there.uid() != 0 || there.gid() != 0) {
            chown(&place, Some(there.uid()), Some(there.gid()))
                .map_err(|source| ImageError::Prepare { path: place, source })?;
        }
    }
    Ok(())
}

fn make_dir(path: &Path, mode: u32) -> Result<(), ImageError> {
    let failed = |source| ImageError::Prepare { path: path.to_owned(), source };
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.map_err(failed)?,
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
}

#[allow(unsafe_code)]
fn set_opaque(path: &Path) -> Result<(), nix::Error> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| nix::Error::EINVAL)?;
    // SAFETY: both names and the value are valid, NUL-terminated (or counted) and live over the call.
    let result =
        unsafe { libc::setxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), c"y".as_ptr().cast(), 1, 0) };
    nix::Error::result(result).map(drop)
}

/// Makes a container's working directory if it is missing, as other runtimes do. Links lead nowhere but into the root file
/// system.
///
/// # Errors
/// [`ImageError::Prepare`], for example when a file is in the way.
pub(crate) fn make_working_dir(rootfs: &Path, path: &Path) -> Result<(), ImageError> {
    let failed = |source: nix::Error| ImageError::Prepare { path: path.to_owned(), source: source.into() };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(rootfs, flags, Mode::empty()).map_err(failed)?;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let enter = |path: &Path| openat2(&root, path, how);
    let mut so_far = PathBuf::from(".");
    for part in path.strip_prefix("/").unwrap_or(path) {
        let above = enter(&so_far).map_err(failed)?;
        so_far.push(part);
        match enter(&so_far) {
            Err(nix::Error::ENOENT) => mkdirat(&above, part, Mode::from_bits_truncate(0o755)).map_err(failed)?,
            entered => drop(entered.map_err(failed)?),
        }
    }
    Ok(())
}

/// Takes the root file system and its layers away.
pub(crate) fn unmount(dir: &Path) {
    for place in ["rootfs", "memory"] {
        // Not mounted is as good as unmounted.
        let _ = umount2(&dir.join(place), MntFlags::MNT_DETACH);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn working_directories_are_made_inside_only() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/data", root.path().join("link")).unwrap();
        fs::create_dir(root.path().join("data")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for path in ["/", "/a/b", "/a/b/c", "/link/x"] {
            make_working_dir(root.path(), Path::new(path)).unwrap();
        }
        assert!(root.path().join("a/b/c").is_dir() && root.path().join("data/x").is_dir());
        assert!(make_working_dir(root.path(), Path::new("/file/x")).is_err());
    }

    #[test]
    fn the_machines_own_image_has_one_name() {
        for name in ["mainstay.dev/host", "mainstay.dev/host:latest", "mainstay.dev/host@sha256:00"] {
            assert!(is_host(name), "{name}");
        }
        assert!(!is_host("nginx:1.27") && !is_host("mainstay.dev/host/x"));
    }
}
