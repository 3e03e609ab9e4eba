//! Writes a payload so that readers see all of it or nothing of it, in the layout that programs know from the kubelet:
//!
//! ```text
//!   ..1a2b3c/key     the files of one version
//!   ..data           → ..1a2b3c   (replaced by rename)
//!   key              → ..data/key
//! ```

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crate::volumes::payload::Payload;

/// The link to the present version.
const DATA: &str = "..data";

/// Makes `directory` hold `payload`; returns whether anything changed. `version` is a name no earlier version had.
///
/// Blocking. Repeatable: what an interrupted call left behind is cleared by the next.
pub fn write(directory: &Path, payload: &Payload, version: &str, group: Option<u32>) -> io::Result<bool> {
    fs::create_dir_all(directory)?;
    let data = directory.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && holds(&data, payload) {
        return Ok(false);
    }
    let new = format!("..{version}");
    let place = directory.join(&new);
    fs::create_dir_all(&place)?;
    fs::set_permissions(&place, Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let full = place.join(path);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut handle = OpenOptions::new().write(true).create(true).truncate(true).mode(file.mode).open(&full)?;
        handle.write_all(&file.data)?;
        // Again, because the process's umask has been taken off the mode.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        handle.set_permissions(Permissions::from_mode(mode))?;
        if group.is_some() {
            std::os::unix::fs::chown(&full, None, group)?;
        }
    }
    let temporary = directory.join("..data_tmp");
    let _ = fs::remove_file(&temporary);
    symlink(&new, &temporary)?;
    fs::rename(&temporary, &data)?;
    link_names(directory, payload)?;
    sweep(directory, &new)?;
    Ok(true)
}

fn top_names(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').next()).collect()
}

/// The visible names: there for every file, and gone for files that are gone.
fn link_names(directory: &Path, payload: &Payload) -> io::Result<()> {
    let names = top_names(payload);
    for name in &names {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(name.as_ref()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes versions other than the present one.
fn sweep(directory: &Path, keep: &str) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("..") && name != keep && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Whether the present version has exactly these files.
fn holds(data: &Path, payload: &Payload) -> bool {
    fn count(directory: &Path) -> usize {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
    }
    let same = |(path, file): (&String, &crate::volumes::payload::File)| {
        fs::read(data.join(path)).is_ok_and(|content| content == file.data)
    };
    payload.iter().all(same) && count(data) == payload.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::volumes::payload::File;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file =
            |(path, data): &(&str, &str)| ((*path).to_owned(), File { data: data.as_bytes().to_vec(), mode: 0o640 });
        files.iter().map(file).collect()
    }

    fn listing(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_layout_and_its_updates() {
        let temporary = tempfile::tempdir().unwrap();
        let volume = temporary.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1"), ("d/b", "2")]), "v1", None).unwrap());
        assert_eq!(listing(&volume), ["..data", "..v1", "a", "d"]);
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_to_string(volume.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(!write(&volume, &payload(&[("a", "1"), ("d/b", "2")]), "v2", None).unwrap());
        assert!(write(&volume, &payload(&[("a", "3"), ("c", "4")]), "v2", None).unwrap());
        assert_eq!(listing(&volume), ["..data", "..v2", "a", "c"]);
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(write(&volume, &payload(&[("a", "3")]), "v3", None).unwrap());
        assert_eq!(listing(&volume), ["..data", "..v3", "a"]);
    }
}
