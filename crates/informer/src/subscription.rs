//! A reader's set of changed objects: level-triggered, bounded by the number of objects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::cache::ObjectKey;

/// An object that changed since the reader last asked.
#[derive(Debug)]
pub struct Change<K> {
    /// Which object.
    pub key: ObjectKey,
    /// The object as the reader last could have seen it; `None` if it is new.
    pub before: Option<Arc<K>>,
    /// The object now; `None` if it is gone.
    pub after: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The versions there are, new and old: what a controller maps to the keys it must look at.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<K>> {
        self.after.iter().chain(self.before.iter())
    }
}

pub(crate) struct Mailbox<K> {
    dirty: Mutex<HashMap<ObjectKey, Change<K>>>,
    wake: Notify,
}

impl<K> Mailbox<K> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { dirty: Mutex::new(HashMap::new()), wake: Notify::new() })
    }

    /// Notes a change; changes of one object melt into one, from its oldest `before` to its newest `after`.
    pub(crate) fn note(&self, key: &ObjectKey, before: Option<&Arc<K>>, after: Option<&Arc<K>>) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.entry(key.clone()).and_modify(|change| change.after = after.cloned()).or_insert_with(|| Change {
            key: key.clone(),
            before: before.cloned(),
            after: after.cloned(),
        });
        drop(dirty);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<Change<K>> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.drain().map(|(_, change)| change).collect()
    }
}

/// One reader's view of what changed in a cache.
pub struct Subscription<K>(pub(crate) Arc<Mailbox<K>>);

impl<K> Subscription<K> {
    /// Waits until something changed and takes all of it, at least one change.
    pub async fn changed(&mut self) -> Vec<Change<K>> {
        loop {
            let changes = self.0.take();
            if !changes.is_empty() {
                return changes;
            }
            self.0.wake.notified().await;
        }
    }

    /// Takes what changed without waiting; may be empty.
    pub fn take(&mut self) -> Vec<Change<K>> {
        self.0.take()
    }
}
