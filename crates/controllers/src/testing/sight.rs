//! What one process sees of the API server: caches that may lag behind, by kind.

use std::collections::{BTreeMap, HashMap};

use super::store::Store;
use crate::caches::Caches;

/// What a process sees, late.
#[derive(Default)]
pub(crate) struct Sight {
    pub(crate) caches: Caches,
    cursors: BTreeMap<String, usize>,
    /// How late, by kind, in the store's time.
    pub(crate) lags: HashMap<String, u64>,
}

impl Sight {
    /// Takes in what has arrived by now. What the process has learnt by its own requests is never overwritten by older news.
    pub(crate) fn catch_up(&mut self, store: &Store, now: u64) {
        for (kind, log) in &store.logs {
            let lag = self.lags.get(kind).copied().unwrap_or(0);
            let cursor = self.cursors.entry(kind.clone()).or_default();
            while let Some(logged) = log.get(*cursor).filter(|logged| logged.time.saturating_add(lag) <= now) {
                match &logged.value {
                    Some(value) => self.caches.observe(kind, value.clone()),
                    None => self.caches.observe_deleted_at(kind, &logged.key, logged.revision),
                }
                *cursor += 1;
            }
        }
    }
}
