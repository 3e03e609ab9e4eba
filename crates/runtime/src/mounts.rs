//! What is mounted where, and taking it away.
//!
//! Source: `man 5 proc_pid_mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Unmounts everything that is mounted below a directory, the latest first. What is still in use goes when it no longer is.
pub fn unmount_below(directory: &Path) {
    let text = std::fs::read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    for place in below(&text, directory).into_iter().rev() {
        if let Err(error) = umount2(&place, MntFlags::MNT_DETACH) {
            tracing::debug!(place = %place.display(), %error, "not unmounted");
        }
    }
}

/// The places of a `mountinfo` that lie below a directory, in its order. Pure.
fn below(mountinfo: &[u8], directory: &Path) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let places = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape);
    places.filter(|place| place.starts_with(directory) && place != directory).collect()
}

/// Spaces and the like are written as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let (mut plain, mut rest) = (Vec::new(), text);
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            rest = &more[3..];
        } else {
            plain.push(*first);
            rest = more;
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_counts() {
        let text = b"36 35 0:31 / /data rw - tmpfs tmpfs rw\n37 35 0:32 / /data/nodes/a\\040b rw - tmpfs x rw\n38 1 0:1 / /database rw - ext4 y rw\n";
        assert_eq!(below(text, Path::new("/data")), [PathBuf::from("/data/nodes/a b")]);
    }
}
