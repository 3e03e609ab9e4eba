//! kill -9 at random moments: this test binary runs itself as a writer and kills it.
//!
//! `STORE_CRASH_ROUNDS` sets how often (100), `STORE_CRASH_SEED` repeats a run.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_store::{Change, Durability, EmbeddedStore, Error, Event, Expect, Revision, Settings, Store};

const CHILD: &str = "STORE_CRASH_CHILD";
const WRITERS: u64 = 6;

/// A value that shows any tear: its number, over and over, for a length that depends on it.
fn value(number: u64) -> Bytes {
    number.to_be_bytes().repeat(1 + (number as usize * 37) % 700).into()
}

fn number(value: &[u8]) -> u64 {
    let number = u64::from_be_bytes(value[..8].try_into().unwrap());
    assert_eq!(value, &self::value(number)[..], "a torn value");
    number
}

/// One line of the child's report; printed in one piece.
fn say(what: &str, revision: Revision, key: &str, content: &str) {
    let line = format!("\n{what} {revision} {key} {content} .\n");
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

fn content(event: &Event) -> String {
    match &event.change {
        Change::Put { entry, .. } => number(&entry.value).to_string(),
        Change::Delete { .. } => "deleted".to_owned(),
    }
}

async fn write(store: Arc<EmbeddedStore>, writer: u64, start: u64, durability: Durability) {
    let what = if durability == Durability::Immediate { "durable" } else { "relaxed" };
    let mut next = start;
    loop {
        let key = format!("/{what}/{writer}/{}", next % 5);
        let entry = store.put_with(&key, value(next), Expect::Any, durability).await.unwrap();
        say(what, entry.mod_revision, &key, &next.to_string());
        next += 1;
        if durability == Durability::Relaxed {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else if next.is_multiple_of(7) {
            let deleted = store.delete(&key, Expect::Revision(entry.mod_revision)).await.unwrap();
            say(what, deleted.revision, &key, "deleted");
        }
    }
}

/// The child: writes and watches until it is killed. Does nothing when run as an ordinary test.
#[test]
fn child() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(EmbeddedStore::open(Path::new(&directory), Settings::default()).unwrap());
        let start = store.revision().await.unwrap() * 10;
        let mut watcher = store.watch("/", store.revision().await.unwrap()).await.unwrap();
        for writer in 0..WRITERS {
            tokio::spawn(write(Arc::clone(&store), writer, start, Durability::Immediate));
        }
        tokio::spawn(write(Arc::clone(&store), 0, start, Durability::Relaxed));
        while let Some(event) = watcher.next().await {
            let event = event.unwrap();
            say("seen", event.revision, event.key(), &content(&event));
        }
    });
}

/// What the children reported, over all rounds.
#[derive(Default)]
struct Report {
    /// What each revision was said to be: by acknowledgement, by a watch, after a restart.
    known: BTreeMap<Revision, (String, String)>,
    durable_max: Revision,
    seen_max: Revision,
    /// Acknowledged as durable: revision, key, content.
    durable: Vec<(Revision, String, String)>,
}

impl Report {
    fn learn(&mut self, revision: Revision, key: &str, content: &str) {
        let new = (key.to_owned(), content.to_owned());
        let known = self.known.entry(revision).or_insert_with(|| new.clone());
        assert_eq!(*known, new, "revision {revision} was given to two different changes");
    }

    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, revision, key, content, "."] = words[..] else { return };
        let revision = revision.parse().unwrap();
        self.learn(revision, key, content);
        match what {
            "durable" => {
                self.durable_max = self.durable_max.max(revision);
                self.durable.push((revision, key.to_owned(), content.to_owned()));
            }
            "seen" => {
                assert!(revision > self.seen_max, "watched out of order");
                self.seen_max = revision;
            }
            _ => {}
        }
    }
}

/// Runs a child and kills it after `life` from its first word on.
fn run_and_kill(directory: &Path, life: Duration) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut report = String::new();
    while !report.contains("durable ") {
        assert!(output.read_line(&mut report).unwrap() > 0, "the child ended by itself: {report}");
    }
    let reader = std::thread::spawn(move || {
        output.read_to_string(&mut report).unwrap();
        report
    });
    std::thread::sleep(life);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

async fn examine(directory: &Path, report: &mut Report) {
    let store = EmbeddedStore::open(directory, Settings::default()).unwrap();
    let revision = store.revision().await.unwrap();
    let last_known = *report.known.last_key_value().unwrap().0;
    assert!(revision >= last_known, "revisions went back from {last_known} to {revision}");

    // Every acknowledged write is there, or something later is.
    let mut newest: BTreeMap<&str, (Revision, &str)> = BTreeMap::new();
    for (revision, key, content) in &report.durable {
        let known = newest.entry(key).or_insert((*revision, content));
        *known = (*known).max((*revision, content));
    }
    let range = store.range("/", None, None, None).await.unwrap();
    let stored: BTreeMap<&str, _> = range.entries.iter().map(|entry| (&*entry.key, entry)).collect();
    for (key, (revision, content)) in newest {
        let Some(entry) = stored.get(key) else {
            // Deleted: acknowledged, or by the child's last, unanswered word.
            let unanswered = content != "deleted" && content.parse::<u64>().is_ok_and(|n| (n + 1) % 7 == 0);
            assert!(content == "deleted" || unanswered, "lost: {key} {content} of {revision}");
            continue;
        };
        assert!(entry.mod_revision >= revision, "{key} went back from {revision} to {}", entry.mod_revision);
        if entry.mod_revision == revision {
            assert_eq!(number(&entry.value).to_string(), content);
        }
    }

    // Watching goes on where it ended, unless what was seen last is what was lost.
    match store.watch("/", report.seen_max).await {
        Ok(mut watcher) => {
            let from = report.seen_max;
            let mut after = Vec::new();
            while watcher.progress() < revision {
                let Ok(event) = tokio::time::timeout(Duration::from_millis(200), watcher.next()).await else { break };
                let event = event.unwrap().unwrap();
                assert!(event.revision > report.seen_max, "a duplicate");
                report.seen_max = event.revision;
                report.learn(event.revision, event.key(), &content(&event));
                after.push(event.revision);
            }
            let missed = report.durable.iter().find(|(revision, ..)| *revision > from && !after.contains(revision));
            assert!(missed.is_none(), "a gap: {missed:?}");
        }
        Err(Error::Compacted { oldest }) => {
            assert!(report.seen_max > report.durable_max && oldest <= revision);
        }
        Err(error) => panic!("{error}"),
    }
    report.seen_max = report.seen_max.max(revision);
}

#[test]
fn nothing_acknowledged_is_lost_to_kill_9() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let rounds = number("STORE_CRASH_ROUNDS").unwrap_or(100);
    let seed = number("STORE_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("STORE_CRASH_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut report = Report::default();
    for round in 0..rounds {
        let output = run_and_kill(directory.path(), Duration::from_micros(random.u64(0..120_000)));
        output.split('\n').for_each(|line| report.read(line));
        runtime.block_on(examine(directory.path(), &mut report));
        println!("round {round}: {} durable writes, {} revisions seen", report.durable.len(), report.known.len());
    }
    assert!(report.known.values().any(|(key, _)| key.starts_with("/relaxed")), "no relaxed write was tried");
}
