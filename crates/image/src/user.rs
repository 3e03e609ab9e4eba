//! Whom an image's programs run as: names looked up in its own `/etc/passwd` and `/etc/group`.
//!
//! Source: <https://github.com/opencontainers/image-spec/blob/main/config.md>, "User".

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

/// Of `/etc/passwd` and `/etc/group`, as much is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A user of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// There is no such user or group.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unable to find {what} {name}: no matching entries in {file}")]
pub struct NoSuchUser {
    what: &'static str,
    name: String,
    file: &'static str,
}

/// The accounts of an image.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them from an image's layers, given lowest first.
    pub fn read(layers: &[PathBuf]) -> Self {
        Self { passwd: file(layers, "etc/passwd"), group: file(layers, "etc/group") }
    }

    /// The user of a text such as `nginx`, `1000`, `1000:nogroup`; empty means root.
    ///
    /// # Errors
    /// When a name is in no file. Numbers need not be.
    pub fn find(&self, text: &str) -> Result<User, NoSuchUser> {
        let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
        let name = if name.is_empty() { "0" } else { name };
        let entry = self
            .passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&name) || fields.get(2) == Some(&name));
        let number = |text: Option<&&str>| text.and_then(|text| text.parse::<u32>().ok());
        let uid = number(Some(&name)).or_else(|| number(entry.as_ref()?.get(2)));
        let uid = uid.ok_or_else(|| NoSuchUser { what: "user", name: name.to_owned(), file: "passwd file" })?;
        let gid = match group.filter(|group| !group.is_empty()) {
            Some(group) => self.group(group)?,
            None => entry.as_ref().and_then(|fields| number(fields.get(3))).unwrap_or(0),
        };
        let account = entry.as_ref().and_then(|fields| fields.first().copied());
        let groups = account.map(|account| self.groups_of(account)).unwrap_or_default();
        Ok(User { uid, gid, groups: groups.into_iter().filter(|further| *further != gid).collect() })
    }

    fn group(&self, name: &str) -> Result<u32, NoSuchUser> {
        if let Ok(number) = name.parse() {
            return Ok(number);
        }
        let mut groups = self.group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let found = groups.find(|fields| fields.first() == Some(&name)).and_then(|fields| fields.get(2)?.parse().ok());
        found.ok_or_else(|| NoSuchUser { what: "group", name: name.to_owned(), file: "group file" })
    }

    fn groups_of(&self, account: &str) -> Vec<u32> {
        let of = |line: &str| {
            let fields: Vec<_> = line.split(':').collect();
            let member = fields.get(3)?.split(',').any(|member| member == account);
            if member { fields.get(2)?.parse().ok() } else { None }
        };
        self.group.lines().filter_map(of).collect()
    }
}

/// A file of an image; empty if there is none. Links lead nowhere but into the layer.
fn file(layers: &[PathBuf], path: &str) -> String {
    layers.iter().rev().find_map(|layer| in_layer(layer, path)).unwrap_or_default()
}

fn in_layer(layer: &Path, path: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let root = open(layer, flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Without waiting for what may be a pipe.
    let found = openat2(&root, path, flags | OFlags::NONBLOCK, Mode::empty(), resolve);
    let Ok(found) = found else {
        // Deleted by this layer: what lower ones have does not count.
        let hidden = openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
        let kind = FileType::from_raw_mode(fstat(&hidden).ok()?.st_mode);
        return (kind == FileType::CharacterDevice).then(String::new);
    };
    let mut text = String::new();
    let is_file = fstat(&found).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    if is_file {
        let _ = File::from(found).take(FILE_BYTES_MAX).read_to_string(&mut text);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_numbers_are_looked_up_in_the_topmost_file() {
        let root = tempfile::tempdir().unwrap();
        let layers = ["lower", "upper"].map(|name| root.path().join(name));
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::write(layers[0].join("etc/passwd"), "web:x:1:1::/:\n").unwrap();
        std::fs::write(layers[1].join("etc/passwd"), "root:x:0:0::/root:\nweb:x:101:102::/:\n").unwrap();
        std::fs::write(layers[0].join("etc/group"), "web:x:102:\nlogs:x:200:web,other\nspare:x:300:\n").unwrap();
        let accounts = Accounts::read(&layers);
        let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
        assert_eq!(accounts.find("web").unwrap(), user(101, 102, &[200]));
        assert_eq!(accounts.find("101").unwrap(), user(101, 102, &[200]));
        assert_eq!(accounts.find("web:spare").unwrap(), user(101, 300, &[200]));
        assert_eq!(accounts.find("7:8").unwrap(), user(7, 8, &[]));
        assert_eq!(accounts.find("").unwrap(), user(0, 0, &[]));
        assert_eq!(
            accounts.find("nobody").unwrap_err().to_string(),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert!(accounts.find("web:none").is_err());
    }
}
