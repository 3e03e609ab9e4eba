//! What a member must not forget: whose writes its files are a beginning of, and what it promised. One small file beside the data.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::core::{Lineage, Promise};

/// The state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Kept {
    lineage: Lineage,
    promise: Option<Promise>,
}

/// The file.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    kept: Kept,
}

impl State {
    /// Reads the file; there may be none yet.
    pub fn open(path: &Path) -> io::Result<Self> {
        let kept = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), kept })
    }

    /// Whose writes its files are a beginning of.
    pub fn lineage(&self) -> Lineage {
        self.kept.lineage
    }

    /// The last promise.
    pub fn promise(&self) -> Option<Promise> {
        self.kept.promise
    }

    /// Changes the lineage; on disk when this returns.
    pub fn set_lineage(&mut self, lineage: Lineage) -> io::Result<()> {
        self.keep(Kept { lineage, ..self.kept.clone() })
    }

    /// Gives a promise; on disk when this returns. One that was given is never taken back.
    pub fn promise_too(&mut self, promise: Promise) -> io::Result<()> {
        let later = self.kept.promise.filter(|it| it.renewal > promise.renewal);
        self.keep(Kept { promise: Some(later.unwrap_or(promise)), ..self.kept.clone() })
    }

    fn keep(&mut self, kept: Kept) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&kept).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.kept = kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_promised_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut state = State::open(&path).unwrap();
        state.promise_too(Promise { epoch: 3, renewal: 9 }).unwrap();
        state.promise_too(Promise { epoch: 2, renewal: 8 }).unwrap();
        state.set_lineage(Lineage { epoch: 3, ..Lineage::default() }).unwrap();
        let again = State::open(&path).unwrap();
        assert_eq!(again.promise(), Some(Promise { epoch: 3, renewal: 9 }));
        assert_eq!(again.lineage().epoch, 3);
    }
}
