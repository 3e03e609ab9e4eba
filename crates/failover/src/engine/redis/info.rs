//! `INFO replication`, and positions that survive a restart.
//!
//! Redis counts its replication stream from zero again after a restart from the append-only file. So the primary writes a mark
//! into the stream with every probe ([`Mark`]): under which history it counts (the replication id), and how much had been
//! written before that history began (the base). A position is base plus Redis' own offset. A restarted server takes the last
//! mark of its append-only file and the bytes behind it.
//!
//! Marks are in the data, so replicas, copies and files have them too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// The key of the mark.
pub(super) const KEY: &str = "mainstay:position";
/// How far back from its end an append-only file is searched for the last mark: marks are a fraction of a second apart.
const SEARCH_MAX: u64 = 256 << 20;

/// What the primary writes into its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// The replication id under which `base` counts.
    pub(super) history: String,
    /// What had been written before.
    pub(super) base: u64,
    /// The position when the mark was written.
    pub(super) position: u64,
}

impl Mark {
    pub(super) fn text(&self) -> String {
        format!("{} {} {}", self.history, self.base, self.position)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (history, base, position) = (words.next()?, words.next()?, words.next()?);
        Some(Self { history: history.to_owned(), base: base.parse().ok()?, position: position.parse().ok()? })
    }
}

/// The answer of `INFO replication`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Replication {
    pub(super) primary: bool,
    /// Redis' own offset.
    pub(super) offset: u64,
    /// The present replication id, and the one before a promotion.
    pub(super) histories: [String; 2],
    /// `host:port` it is told to follow.
    pub(super) source: Option<String>,
    pub(super) receiving: bool,
    /// Replicas that are past their first copy: announced name and acknowledged offset.
    pub(super) replicas: Vec<(String, u64)>,
}

impl Replication {
    pub(super) fn parse(text: &str) -> Self {
        let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
        let field = |key: &str| fields.get(key).copied().unwrap_or_default();
        let number = |key: &str| field(key).parse().unwrap_or(0);
        let primary = field("role") == "master";
        let source = (!primary).then(|| format!("{}:{}", field("master_host"), field("master_port")));
        let offset = if primary { "master_repl_offset" } else { "slave_repl_offset" };
        let replicas = fields.iter().filter(|(key, _)| is_replica(key)).filter_map(|(_, value)| replica(value));
        Self {
            primary,
            offset: number(offset),
            histories: ["master_replid", "master_replid2"].map(|key| field(key).to_owned()),
            source,
            receiving: field("master_link_status") == "up",
            replicas: replicas.collect(),
        }
    }
}

/// `slave0`, `slave1`, …
fn is_replica(key: &str) -> bool {
    key.strip_prefix("slave").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

fn replica(value: &str) -> Option<(String, u64)> {
    let fields: BTreeMap<&str, &str> = value.split(',').filter_map(|field| field.split_once('=')).collect();
    let online = fields.get("state") == Some(&"online");
    online.then(|| Some((fields.get("ip")?.to_string(), fields.get("offset")?.parse().ok()?))).flatten()
}

/// How far the append-only files of a stopped server reach: the last mark and what follows it. 0 without any.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn recovered(directory: &Path) -> io::Result<u64> {
    let mut files: Vec<_> = match std::fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    files.retain(|path| path.extension().is_some_and(|it| it == "aof"));
    let mut best = 0;
    for file in files {
        best = best.max(last_mark(&file)?);
    }
    Ok(best)
}

fn last_mark(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(SEARCH_MAX)))?;
    let mut bytes = Vec::new();
    file.take(SEARCH_MAX).read_to_end(&mut bytes)?;
    let found = bytes.windows(KEY.len()).rposition(|window| window == KEY.as_bytes());
    // KEY \r\n $LENGTH \r\n VALUE \r\n, and then whatever was written later.
    let parsed = found.and_then(|at| {
        let rest = bytes.get(at + KEY.len()..)?.strip_prefix(b"\r\n$")?;
        let line = rest.iter().position(|byte| *byte == b'\r')?;
        let size: usize = std::str::from_utf8(rest.get(..line)?).ok()?.parse().ok()?;
        let value = std::str::from_utf8(rest.get(line + 2..line + 2 + size)?).ok()?;
        let behind = rest.len().saturating_sub(line + 2 + size + 2);
        Some(Mark::parse(value)?.position + u64::try_from(behind).ok()?)
    });
    Ok(parsed.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_info_says() {
        let primary = Replication::parse(
            "# Replication\r\nrole:master\r\nconnected_slaves:2\r\nslave0:ip=shop-1,port=6379,state=online,offset=98,lag=0\r\n\
             slave1:ip=shop-2,port=6379,state=wait_bgsave,offset=0,lag=0\r\nmaster_replid:aa\r\nmaster_replid2:bb\r\n\
             master_repl_offset:100\r\nslave_expires_tracked_keys:0\r\n",
        );
        assert!(primary.primary && primary.source.is_none());
        assert_eq!(primary.replicas, [("shop-1".to_owned(), 98)], "one that is being copied to does not count");
        assert_eq!((primary.offset, primary.histories[1].as_str()), (100, "bb"));
        let replica = Replication::parse(
            "role:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\nmaster_link_status:up\r\nslave_repl_offset:7\r\n",
        );
        assert!(!replica.primary && replica.receiving);
        assert_eq!((replica.offset, replica.source.as_deref()), (7, Some("10.0.0.1:6379")));
    }

    #[test]
    fn the_position_of_a_stopped_server_is_its_last_mark_and_what_follows() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(recovered(directory.path()).unwrap(), 0);
        let mark = Mark { history: "a".repeat(40), base: 5, position: 1000 };
        assert_eq!(Mark::parse(&mark.text()), Some(mark.clone()));
        let value = mark.text();
        let written = format!("*3\r\n$3\r\nSET\r\n$17\r\n{KEY}\r\n${}\r\n{value}\r\n", value.len());
        let older = written.replace("1000", "0999");
        let text = format!("{older}*1\r\n$4\r\nPING\r\n{written}*2\r\n$3\r\nDEL\r\n$1\r\nx\r\n");
        std::fs::write(directory.path().join("a.1.incr.aof"), text).unwrap();
        assert_eq!(recovered(directory.path()).unwrap(), 1000 + 20);
        assert_eq!(recovered(&directory.path().join("none")).unwrap(), 0);
    }
}
