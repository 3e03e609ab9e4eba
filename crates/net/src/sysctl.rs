//! Kernel settings of the calling thread's network namespace, under `/proc/sys/net`.

use std::{fs, io, path::PathBuf};

/// Reads a setting such as `ipv4/ip_forward`, without the newline.
pub(crate) fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(path(name)).map(|text| text.trim().to_owned())
}

/// Writes a setting unless it already has that value.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    if read(name)? == value { Ok(()) } else { fs::write(path(name), value) }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
