//! Named network namespaces, kept as `ip netns` keeps them: a bind mount of the namespace on `/run/netns/NAME`
//! (`man 8 ip-netns`). A namespace so named lives on without any process in it.
//!
//! A thread that enters a namespace stays there and so do the threads it starts, so only two things here ever enter one:
//! [`enter`], for a process that is still single-threaded, and [`within`], on a short-lived thread of its own.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

const DIRECTORY: &str = "/run/netns";

/// Why an operation on a named network namespace failed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The name could not be a file name of its own.
    #[error("{0:?} is not a usable name for a network namespace")]
    Name(String),
    /// The namespace could not be opened.
    #[error("cannot open network namespace {name}; `mainstay up` creates it")]
    Open {
        /// The name or path.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("cannot enter network namespace {name}; this needs root (CAP_SYS_ADMIN)")]
    Enter {
        /// The name or path.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The process has several threads: the others would stay behind.
    #[error("cannot enter network namespace {name}: the process already has {threads} threads")]
    Threads {
        /// The name.
        name: String,
        /// How many there are.
        threads: usize,
    },
    /// The namespace could not be created or mounted.
    #[error("cannot create network namespace {name}; this needs root (CAP_SYS_ADMIN)")]
    Create {
        /// The name.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The mount or its file could not be removed.
    #[error("cannot remove network namespace {name}")]
    Remove {
        /// The name.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The directory of names could not be read.
    #[error("cannot list {DIRECTORY}")]
    List(#[source] io::Error),
    /// The short-lived thread could not be started or ended in a panic.
    #[error("the thread for network namespace {0} failed")]
    Thread(String),
}

fn path(name: &str) -> Result<PathBuf, NetnsError> {
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || name.contains('/') {
        return Err(NetnsError::Name(name.to_owned()));
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// Moves the calling process into namespace `name`. It must still be single-threaded: threads started before would stay
/// behind, threads started later follow.
pub fn enter(name: &str) -> Result<(), NetnsError> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(NetnsError::Threads { name: name.to_owned(), threads });
    }
    let file = open(name)?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetnsError::Enter { name: name.to_owned(), source: errno.into() })
}

/// Whether namespace `name` exists.
pub fn exists(name: &str) -> bool {
    path(name).is_ok_and(|path| is_namespace(&path))
}

/// A name that is not mounted is an ordinary file: what is left when a creation was cut short.
fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type().0 == libc::NSFS_MAGIC)
}

/// The names that begin with `prefix`, sorted; including ones whose creation was cut short.
pub fn list(prefix: &str) -> Result<Vec<String>, NetnsError> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(NetnsError::List(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(NetnsError::List)?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens namespace `name`.
pub fn open(name: &str) -> Result<File, NetnsError> {
    File::open(path(name)?).map_err(|source| NetnsError::Open { name: name.to_owned(), source })
}

/// Runs `work` on a short-lived thread inside `namespace` (an open namespace file; `name` is for messages).
///
/// The caller's own thread never changes namespace. A netlink socket opened by `work` may be returned and used from
/// anywhere; it stays in that namespace.
pub fn within<T: Send>(
    name: &str,
    namespace: impl AsFd + Send,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    on_thread(name, || {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::Enter { name: name.to_owned(), source: errno.into() })?;
        Ok(work())
    })
}

/// Runs `work` on a short-lived thread inside the namespace called `name`.
pub fn within_named<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    within(name, open(name)?, work)
}

fn on_thread<T: Send>(name: &str, work: impl FnOnce() -> Result<T, NetnsError> + Send) -> Result<T, NetnsError> {
    let failed = || NetnsError::Thread(name.to_owned());
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".to_owned()).stack_size(256 << 10);
        let handle = builder.spawn_scoped(scope, work).map_err(|_| failed())?;
        handle.join().map_err(|_| failed())?
    })
}

/// Creates namespace `name`, or keeps the one that exists.
pub(crate) fn create(name: &str) -> Result<File, NetnsError> {
    let path = path(name)?;
    if is_namespace(&path) {
        return open(name);
    }
    let failed = |source| NetnsError::Create { name: name.to_owned(), source };
    // Another cluster going down may remove the empty directory between the two calls.
    let place = || {
        fs::create_dir_all(DIRECTORY)?;
        File::create(&path)
    };
    place().or_else(|_| place()).map_err(failed)?;
    on_thread(name, || {
        let bind = || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none = None::<&str>;
            mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)?;
            Ok(())
        };
        bind().map_err(failed)
    })?;
    open(name)
}

/// Removes the name; the namespace itself ends with its last process. Nothing to do is success.
pub(crate) fn remove(name: &str) -> Result<(), NetnsError> {
    let path = path(name)?;
    let failed = |source| NetnsError::Remove { name: name.to_owned(), source };
    // Not mounted (EINVAL) and not there (ENOENT) are both fine.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Leave no empty directory behind; others' names, or `ip netns` having mounted it, make this fail, which is right.
    let _ = fs::remove_dir(DIRECTORY);
    Ok(())
}
