//! Unpacks one layer into a directory that the overlay file system can use as one of its lower ones.
//!
//! Flow: gzip, Zstandard or nothing around it is recognised by its first bytes; each entry of the archive is made below the
//! directory; whiteouts become what overlayfs understands.
//!
//! Guarantees: nothing is written outside the directory. Every path is resolved by the kernel with the directory as its root
//! (`RESOLVE_IN_ROOT`), names with `..` are refused, and no link is followed at the last step. Owners, modes, times, hard
//! links, device nodes, `user.*` attributes and file capabilities are kept; other attributes are dropped, because some steer
//! the overlay itself.
//!
//! Sources: <https://github.com/opencontainers/image-spec/blob/main/layer.md>,
//! <https://docs.kernel.org/filesystems/overlayfs.html#whiteouts-and-opaque-directories>.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat, fchmod,
    fchown, fsetxattr, linkat, makedev, mkdirat, mknodat, open, openat, openat2, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use crate::digest::{Digest, HashingReader};

/// What a layer may unpack to, in bytes and entries.
const BYTES_MAX: u64 = 64 << 30;
const ENTRIES_MAX: u64 = 1 << 21;
/// Before the name of what is deleted.
const WHITEOUT: &[u8] = b".wh.";
/// In a directory that hides what lies below it.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The overlay's sign of such a directory.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Where archives keep extended attributes.
const PAX_XATTR: &str = "SCHILY.xattr.";

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive cannot be read.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// An entry that leads elsewhere.
    #[error("the layer's entry {0:?} leads out of the image; the archive is refused")]
    Outside(PathBuf),
    /// A link through which an entry cannot be made.
    #[error("cannot make {path:?} of the layer")]
    Make {
        /// The entry.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Too much of it.
    #[error("the layer unpacks to more than {BYTES_MAX} bytes or {ENTRIES_MAX} entries")]
    TooLarge,
    /// Not what the image's configuration says.
    #[error("the layer's content is {found}, but the image's configuration says {wanted}")]
    Differs {
        /// What it is.
        found: Digest,
        /// What it should be.
        wanted: Digest,
    },
}

/// Unpacks a layer, compressed or not, into the empty directory `root`, and checks that it is the one wanted; `None` takes
/// any. Answers its digest. Blocking.
///
/// # Errors
/// See [`LayerError`]; the directory then holds a part of it.
pub fn unpack(layer: impl Read, root: &Path, wanted: Option<&Digest>) -> Result<Digest, LayerError> {
    let plain = decompress(layer).map_err(LayerError::Read)?;
    let mut archive = tar::Archive::new(HashingReader::new(plain));
    archive.set_ignore_zeros(false);
    let mut unpacking = Unpacking::new(root)?;
    for entry in archive.entries().map_err(LayerError::Read)? {
        unpacking.take(entry.map_err(LayerError::Read)?)?;
    }
    unpacking.finish()?;
    let found = archive.into_inner().finish().map_err(LayerError::Read)?;
    match wanted {
        Some(wanted) if *wanted != found => Err(LayerError::Differs { found, wanted: wanted.clone() }),
        _ => Ok(found),
    }
}

/// What lies in a layer, whatever is around it.
pub(crate) fn decompress<'a>(layer: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(1 << 16, layer);
    let head = reader.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(reader).map_err(io::Error::other)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(reader))
}

struct Unpacking {
    root: OwnedFd,
    /// The directory of the entry before this one: mostly also of this one.
    last: Option<(PathBuf, OwnedFd)>,
    /// Directories and when they were changed, set when nothing is made in them any more.
    times: Vec<(PathBuf, u64)>,
    bytes: u64,
    entries: u64,
}

fn made(path: &Path) -> impl Fn(Errno) -> LayerError {
    move |errno| LayerError::Make { path: path.to_owned(), source: errno.into() }
}

impl Unpacking {
    fn new(root: &Path) -> Result<Self, LayerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(root, flags, Mode::empty()).map_err(made(root))?;
        Ok(Self { root, last: None, times: Vec::new(), bytes: 0, entries: 0 })
    }

    fn take(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), LayerError> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let shown = entry.path().map_err(LayerError::Read)?.into_owned();
        let path = inside(&shown).ok_or_else(|| LayerError::Outside(shown.clone()))?;
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.header().size().unwrap_or(0));
        if self.bytes > BYTES_MAX || self.entries > ENTRIES_MAX {
            return Err(LayerError::TooLarge);
        }
        let Some(name) = path.file_name().map(std::ffi::OsStr::to_owned) else {
            return self.root_itself(&entry);
        };
        self.enter(path.parent().unwrap_or(Path::new("")), &shown)?;
        let Some((_, parent)) = &self.last else { return Ok(()) };
        let bytes = name.as_encoded_bytes();
        if bytes == OPAQUE {
            return fsetxattr(parent, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(made(&shown));
        }
        if let Some(hidden) = bytes.strip_prefix(WHITEOUT) {
            let _ = unlinkat(parent, hidden, AtFlags::empty());
            return mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
                .map_err(made(&shown));
        }
        let place = Place { root: &self.root, parent, name: &name, shown: &shown };
        place.make(&mut entry, kind)?;
        if kind == EntryType::Directory {
            self.times.push((path, entry.header().mtime().unwrap_or(0)));
        }
        Ok(())
    }

    fn root_itself(&self, entry: &Entry<'_, impl Read>) -> Result<(), LayerError> {
        let (uid, gid, mode) = owner(entry);
        let path = Path::new("/");
        fchown(&self.root, Some(uid), Some(gid)).map_err(made(path))?;
        fchmod(&self.root, mode).map_err(made(path))
    }

    /// Makes the directory the one that entries are made in.
    fn enter(&mut self, path: &Path, shown: &Path) -> Result<(), LayerError> {
        if self.last.as_ref().is_some_and(|(last, _)| last == path) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let find = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            openat2(&self.root, path, flags, Mode::empty(), resolve)
        };
        let mut so_far = PathBuf::new();
        let mut found = match find(path) {
            Err(Errno::NOENT) => find(&so_far).map_err(made(shown))?,
            other => {
                self.last = Some((path.to_owned(), other.map_err(made(shown))?));
                return Ok(());
            }
        };
        for part in path {
            so_far.push(part);
            found = match find(&so_far) {
                Err(Errno::NOENT) => {
                    mkdirat(&found, part, Mode::from(0o755)).map_err(made(shown))?;
                    find(&so_far).map_err(made(shown))?
                }
                other => other.map_err(made(shown))?,
            };
        }
        self.last = Some((path.to_owned(), found));
        Ok(())
    }

    fn finish(mut self) -> Result<(), LayerError> {
        for (path, seconds) in std::mem::take(&mut self.times).into_iter().rev() {
            let name = path.file_name().map(std::ffi::OsStr::to_owned).unwrap_or_default();
            self.enter(path.parent().unwrap_or(Path::new("")), &path)?;
            if let Some((_, parent)) = &self.last {
                // Replaced by something else since, or hidden: then there is nothing to set.
                let _ = utimensat(parent, &name, &times(seconds), AtFlags::SYMLINK_NOFOLLOW);
            }
        }
        Ok(())
    }
}

/// A path without what leads nowhere; `None` if it leads upwards.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

fn owner(entry: &Entry<'_, impl Read>) -> (Uid, Gid, Mode) {
    let header = entry.header();
    let id = |number: io::Result<u64>| {
        number.ok().and_then(|number| u32::try_from(number).ok()).filter(|id| *id != u32::MAX)
    };
    let uid = Uid::from_raw(id(header.uid()).unwrap_or(0));
    (uid, Gid::from_raw(id(header.gid()).unwrap_or(0)), Mode::from(header.mode().unwrap_or(0o644) & 0o7777))
}

fn times(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Where one entry is made.
struct Place<'a> {
    root: &'a OwnedFd,
    parent: &'a OwnedFd,
    name: &'a std::ffi::OsStr,
    shown: &'a Path,
}

impl Place<'_> {
    fn make(&self, entry: &mut Entry<'_, impl Read>, kind: EntryType) -> Result<(), LayerError> {
        let failed = made(self.shown);
        let (uid, gid, mode) = owner(entry);
        let seconds = entry.header().mtime().unwrap_or(0);
        if kind == EntryType::Directory {
            return self.directory(entry, uid, gid, mode);
        }
        // The later of two entries with one name counts.
        match unlinkat(self.parent, self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(entry, uid, gid, mode);
            }
            EntryType::Link => return self.hard_link(entry),
            EntryType::Symlink => {
                let target = entry.link_name().map_err(LayerError::Read)?.unwrap_or_default();
                symlinkat(target.as_ref(), self.parent, self.name).map_err(&failed)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
                let device = makedev(number(entry.header().device_major()), number(entry.header().device_minor()));
                let kind = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                mknodat(self.parent, self.name, kind, mode, device).map_err(&failed)?;
            }
            _ => return Ok(()),
        }
        chownat(self.parent, self.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
        utimensat(self.parent, self.name, &times(seconds), AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)
    }

    fn directory(&self, entry: &mut Entry<'_, impl Read>, uid: Uid, gid: Gid, mode: Mode) -> Result<(), LayerError> {
        let failed = made(self.shown);
        match mkdirat(self.parent, self.name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(self.parent, self.name, flags, Mode::empty()).map_err(&failed)?;
        fchown(&made, Some(uid), Some(gid)).map_err(&failed)?;
        fchmod(&made, mode).map_err(&failed)?;
        self.attributes(entry, &made)
    }

    fn file(&self, entry: &mut Entry<'_, impl Read>, uid: Uid, gid: Gid, mode: Mode) -> Result<(), LayerError> {
        let failed = made(self.shown);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(self.parent, self.name, flags, Mode::from(0o600)).map_err(&failed)?);
        io::copy(entry, &mut file).map_err(|source| LayerError::Make { path: self.shown.to_owned(), source })?;
        fchown(&file, Some(uid), Some(gid)).map_err(&failed)?;
        fchmod(&file, mode).map_err(&failed)?;
        self.attributes(entry, &file)?;
        rustix::fs::futimens(&file, &times(entry.header().mtime().unwrap_or(0))).map_err(&failed)
    }

    fn hard_link(&self, entry: &Entry<'_, impl Read>) -> Result<(), LayerError> {
        let target = entry.link_name().map_err(LayerError::Read)?.unwrap_or_default().into_owned();
        let outside = || LayerError::Outside(target.clone());
        let path = inside(&target).ok_or_else(outside)?;
        let (above, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().ok_or_else(outside)?);
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let above = openat2(self.root, above, flags, Mode::empty(), resolve).map_err(made(self.shown))?;
        linkat(&above, name, self.parent, self.name, AtFlags::empty()).map_err(made(self.shown))
    }

    /// The attributes that are the image's to set.
    fn attributes(&self, entry: &mut Entry<'_, impl Read>, file: impl std::os::fd::AsFd) -> Result<(), LayerError> {
        let Some(extensions) = entry.pax_extensions().map_err(LayerError::Read)? else { return Ok(()) };
        for extension in extensions.flatten() {
            let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(PAX_XATTR)) else { continue };
            if name != "security.capability" && !name.starts_with("user.") {
                continue;
            }
            match fsetxattr(&file, name, extension.value_bytes(), XattrFlags::empty()) {
                // The disk does not keep such attributes.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(made(self.shown)(errno)),
            }
        }
        Ok(())
    }
}

/// Makes a directory readable for everybody, as a root directory has to be.
pub(crate) fn open_to_all(path: &Path) -> io::Result<()> {
    chmod(path, Mode::from(0o755)).map_err(Into::into)
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
