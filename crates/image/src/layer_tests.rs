//! What layers become on disk, and what is refused. Those that make devices or set owners need root.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use super::*;

/// An archive of entries: kind, name, link or content.
fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == EntryType::Directory { 0o750 } else { 0o640 });
        header.set_mtime(1_700_000_000);
        let is_file = *kind == EntryType::Regular;
        header.set_size(if is_file { text.len() as u64 } else { 0 });
        // Written as it is: the builder would refuse names that an attacker would not.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        if !is_file && !text.is_empty() {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, if is_file { text.as_bytes() } else { &[] }).unwrap();
    }
    builder.into_inner().unwrap()
}

fn unpacked(entries: &[(EntryType, &str, &str)]) -> (tempfile::TempDir, Result<Digest, LayerError>) {
    let root = tempfile::tempdir().unwrap();
    let inner = root.path().join("image");
    fs::create_dir(&inner).unwrap();
    let result = unpack(&archive(entries)[..], &inner, None);
    (root, result)
}

const DIR: EntryType = EntryType::Directory;
const FILE: EntryType = EntryType::Regular;
const SYM: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

#[test]
fn files_links_and_whiteouts_become_what_the_overlay_understands() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return;
    }
    let (root, result) = unpacked(&[
        (DIR, "etc/", ""),
        (FILE, "etc/one", "1"),
        (FILE, "./etc/one", "2"),
        (HARD, "etc/two", "etc/one"),
        (SYM, "var", "/data"),
        (DIR, "data", ""),
        (FILE, "var/inside", "x"),
        (FILE, "usr/lib/deep/file", "y"),
        (FILE, "etc/.wh.gone", ""),
        (FILE, "data/.wh..wh..opq", ""),
    ]);
    result.unwrap();
    let image = root.path().join("image");
    assert_eq!(fs::read_to_string(image.join("etc/one")).unwrap(), "2");
    let (one, two) = (fs::metadata(image.join("etc/one")).unwrap(), fs::metadata(image.join("etc/two")).unwrap());
    assert_eq!(
        (one.ino(), one.nlink(), one.permissions().mode() & 0o7777, one.mtime()),
        (two.ino(), 2, 0o640, 1_700_000_000)
    );
    assert_eq!(fs::metadata(image.join("etc")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::metadata(image.join("etc")).unwrap().mtime(), 1_700_000_000);
    // Through the link, but inside the image.
    assert_eq!(fs::read_to_string(image.join("data/inside")).unwrap(), "x");
    assert_eq!(fs::read_to_string(image.join("usr/lib/deep/file")).unwrap(), "y");
    let gone = fs::symlink_metadata(image.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0; 4];
    assert_eq!(rustix::fs::getxattr(image.join("data"), OPAQUE_XATTR, &mut value[..]).unwrap(), 1);
}

#[test]
fn what_leads_out_is_refused_and_writes_nothing() {
    for entries in [
        &[(FILE, "../evil", "x")][..],
        &[(FILE, "a/../../evil", "x")],
        &[(DIR, "a", ""), (HARD, "a/b", "../../etc/passwd")],
        &[(HARD, "shadow", "/etc/shadow")],
        &[(SYM, "out", "../.."), (FILE, "out/evil", "x"), (FILE, "../evil", "x")],
        &[(SYM, "loop", "loop"), (FILE, "loop/evil", "x")],
    ] {
        let (root, result) = unpacked(entries);
        assert!(result.is_err(), "{entries:?}");
        assert!(!root.path().join("evil").exists() && !root.path().parent().unwrap().join("evil").exists());
    }
    // A link that would lead out of the directory leads to the image's own root.
    let (root, result) = unpacked(&[(SYM, "up", "../../../../tmp"), (DIR, "tmp", ""), (FILE, "up/evil", "x")]);
    result.unwrap();
    assert!(root.path().join("image/tmp/evil").exists());
}

#[test]
fn compressed_or_not_the_digest_is_that_of_the_archive() {
    use std::io::Write as _;
    let plain = archive(&[(FILE, "a", "b")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    for bytes in [&plain, &gzip] {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(unpack(&bytes[..], root.path(), Some(&Digest::of(&plain))).unwrap(), Digest::of(&plain));
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(unpack(&bytes[..], root.path(), Some(&Digest::of(b""))), Err(LayerError::Differs { .. })));
        assert!(unpack(&bytes[..bytes.len() / 2], root.path(), Some(&Digest::of(&plain))).is_err());
    }
}
