//! A rate limit with its keys, shared by the cores of one gateway.
//!
//! It is one of the few things that cores share: an exact limit must be counted in one place. The keys are spread over
//! shards, so that two cores rarely want the same lock, and a lock is held for the few instructions of one decision.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};

use super::rate::{Decision, Rate};
use crate::table::settings::LimitSettings;

const SHARDS: usize = 16;
/// Keys of a shard at most; about 100 bytes each.
const KEYS_MAX: usize = 8_192;

/// A rate limit.
#[derive(Debug)]
pub(crate) struct Limiter {
    settings: LimitSettings,
    shards: [Mutex<HashMap<Box<[u8]>, Rate>>; SHARDS],
    hasher: RandomState,
}

impl Limiter {
    /// A limit nobody has asked yet.
    pub(crate) fn new(settings: LimitSettings) -> Self {
        Self { settings, shards: Default::default(), hasher: RandomState::new() }
    }

    /// Its settings: a limit with the same ones is kept over a reload.
    pub(crate) fn settings(&self) -> &LimitSettings {
        &self.settings
    }

    /// A request with a key asks at a time in nanoseconds since any fixed moment.
    pub(crate) fn ask(&self, key: &[u8], now_ns: u64) -> Decision {
        let shard = if key.is_empty() { 0 } else { self.hasher.hash_one(key) as usize % SHARDS };
        let mut keys = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rate) = keys.get_mut(key) {
            return rate.ask(&self.settings, now_ns);
        }
        if keys.len() >= KEYS_MAX {
            keys.retain(|_, rate| !rate.is_idle(&self.settings, now_ns));
            // Still full of active keys: one of them starts anew, rather than that memory grows.
            if keys.len() >= KEYS_MAX
                && let Some(any) = keys.keys().next().cloned()
            {
                keys.remove(&any);
            }
        }
        keys.entry(key.into()).or_insert_with(|| Rate::new(self.settings.algorithm)).ask(&self.settings, now_ns)
    }
}
