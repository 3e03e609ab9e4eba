//! What is broken right now, on disk before it is broken.
//!
//! One JSON file, replaced whole and synced before each fault is made, so that whatever happens to the drill, everything it has
//! broken can be found and undone. Undoing may be repeated, so an entry too many does no harm.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Fault;
use super::certificate::Pair;

/// Why the journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file.
    #[error("cannot {doing} the journal {path}: {source}")]
    File {
        /// The step.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a journal.
    #[error("{path} is not a drill's journal: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// How to undo one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "undo")]
pub enum Undo {
    /// The machine knows how.
    Machine {
        /// What was done.
        fault: Fault,
    },
    /// Put the Deployment's pod template back.
    Template {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// `spec.template` as it was.
        template: Value,
    },
    /// Delete a pod that was made.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Put the certificate of a Secret back.
    Certificate {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What was in it.
        pair: Pair,
    },
    /// Let pods onto the node again.
    Uncordon {
        /// The node.
        node: String,
    },
}

/// The file, and what it says.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    entries: Vec<Undo>,
}

impl Journal {
    /// The journal at `path`; none there is an empty one.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let entries = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| JournalError::Damaged { path: path.to_owned(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(JournalError::File { doing: "read", path: path.to_owned(), source }),
        };
        Ok(Self { path: path.to_owned(), entries })
    }

    /// What is to be undone, the newest last.
    pub fn entries(&self) -> &[Undo] {
        &self.entries
    }

    /// Notes one thing that is about to be broken; it is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written; then nothing may be broken.
    pub fn add(&mut self, undo: Undo) -> Result<(), JournalError> {
        self.entries.push(undo);
        let saved = self.save();
        if saved.is_err() {
            self.entries.pop();
        }
        saved
    }

    /// Strikes what has been undone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn strike(&mut self, undo: &Undo) -> Result<(), JournalError> {
        self.entries.retain(|entry| entry != undo);
        self.save()
    }

    fn save(&self) -> Result<(), JournalError> {
        let failed = |doing| move |source| JournalError::File { doing, path: self.path.clone(), source };
        if self.entries.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove")(error)),
                _ => Ok(()),
            };
        }
        let draft = self.path.with_extension("new");
        let text = serde_json::to_vec_pretty(&self.entries)
            .map_err(|source| JournalError::Damaged { path: self.path.clone(), source })?;
        // For its owner alone: a pod template may hold what is not for everyone, and a certificate's key is never.
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
        let mut file = file.map_err(failed("write"))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write"))?;
        fs::rename(&draft, &self.path).map_err(failed("write"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_dead_drills_journal_is_found_and_worked_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drill.journal");
        let (first, second) =
            (Undo::Uncordon { node: "node-1".to_owned() }, Undo::Uncordon { node: "node-2".to_owned() });
        let mut journal = Journal::open(&path).unwrap();
        journal.add(first.clone()).unwrap();
        journal.add(second.clone()).unwrap();
        drop(journal);
        let mut found = Journal::open(&path).unwrap();
        assert_eq!(found.entries(), [first.clone(), second.clone()]);
        found.strike(&second).unwrap();
        found.strike(&first).unwrap();
        assert!(!path.exists());
        fs::write(&path, "nonsense").unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Damaged { .. })));
    }
}
