//! The store that encrypts what goes down and decrypts what comes up.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::Keyring;
use super::cipher::{is_encrypted, parts};
use crate::{
    Change, Defragmented, Deleted, Durability, Entry, Error, Event, Expect, Range, Result, Revision, Store, WatchError,
    WatchSource, Watcher,
};

/// How many entries are looked at at a time.
const PAGE: usize = 500;
/// How many values are written anew at the same time.
const AT_ONCE: usize = 32;

/// A [`Store`] whose values are encrypted in the one below, as a [`Keyring`] says.
pub struct Encrypted {
    inner: Arc<dyn Store>,
    /// Watches keep the place, not the keyring: a new one is theirs too.
    keyring: Arc<RwLock<Arc<Keyring>>>,
}

/// How what the rules are about is written at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Values by the name of their key.
    pub by_key: BTreeMap<String, u64>,
    /// Values that are not encrypted.
    pub plain: u64,
    /// Values that the rules would write otherwise today.
    pub outdated: u64,
}

impl Encrypted {
    /// Lays encryption over `inner`.
    pub fn new(inner: Arc<dyn Store>, keyring: Keyring) -> Self {
        Self { inner, keyring: Arc::new(RwLock::new(Arc::new(keyring))) }
    }

    /// Goes on with another configuration.
    pub fn use_keyring(&self, keyring: Keyring) {
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keyring);
    }

    fn keyring(&self) -> Arc<Keyring> {
        now(&self.keyring)
    }

    /// How the values are written that the rules are about.
    pub async fn survey(&self) -> Result<Survey> {
        let mut survey = Survey::default();
        let keyring = self.keyring();
        self.visit(&keyring, |entry| {
            match parts(&entry.value) {
                Some((name, _)) => *survey.by_key.entry(name.to_owned()).or_default() += 1,
                None if is_encrypted(&entry.value) => *survey.by_key.entry("?".to_owned()).or_default() += 1,
                None => survey.plain += 1,
            }
            survey.outdated += u64::from(is_outdated(&keyring, entry));
        })
        .await?;
        Ok(survey)
    }

    /// Writes anew what the present rules would write otherwise: after a rotation, with the new key. Each value gets a
    /// new revision, as with Kubernetes. Returns how many.
    ///
    /// What somebody else writes meanwhile needs it no more. Errors: the first value that cannot be read or written.
    pub async fn rewrite(&self) -> Result<u64> {
        let keyring = self.keyring();
        let mut outdated = Vec::new();
        self.visit(&keyring, |entry| {
            if is_outdated(&keyring, entry) {
                outdated.push((Arc::clone(&entry.key), entry.mod_revision));
            }
        })
        .await?;
        let rewritten = stream::iter(outdated).map(|(key, revision)| self.rewrite_one(key, revision));
        rewritten.buffer_unordered(AT_ONCE).try_fold(0, |sum, one| async move { Ok(sum + u64::from(one)) }).await
    }

    async fn rewrite_one(&self, key: Arc<str>, revision: Revision) -> Result<bool> {
        let (entry, _) = self.get(&key, None).await?;
        let Some(entry) = entry.filter(|entry| entry.mod_revision == revision) else { return Ok(false) };
        match self.put(&key, entry.value, Expect::Revision(revision)).await {
            Ok(_) => Ok(true),
            Err(Error::Conflict { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Visits what the rules are about, as it is written.
    async fn visit(&self, keyring: &Keyring, mut visit: impl FnMut(&Entry)) -> Result<()> {
        for prefix in keyring.prefixes() {
            let (mut after, mut at): (Option<Arc<str>>, Option<Revision>) = (None, None);
            loop {
                let page = self.inner.range(prefix, after.as_deref(), Some(PAGE), at).await?;
                page.entries.iter().for_each(&mut visit);
                if !page.more() {
                    break;
                }
                after = page.entries.last().map(|entry| Arc::clone(&entry.key));
                at = Some(page.revision);
            }
        }
        Ok(())
    }
}

fn now(keyring: &RwLock<Arc<Keyring>>) -> Arc<Keyring> {
    Arc::clone(&keyring.read().unwrap_or_else(PoisonError::into_inner))
}

fn is_outdated(keyring: &Keyring, entry: &Entry) -> bool {
    parts(&entry.value).map(|(name, _)| name) != keyring.writes(&entry.key)
}

fn opened(keyring: &Keyring, entry: Entry) -> Result<Entry> {
    let value = keyring.open(&entry.key, &entry.value)?;
    Ok(Entry { value, ..entry })
}

/// Decrypts the state that was in the way.
fn refused(keyring: &Keyring, error: Error) -> Error {
    match error {
        Error::Conflict { current: Some(entry) } => match opened(keyring, *entry) {
            Ok(entry) => Error::Conflict { current: Some(Box::new(entry)) },
            Err(error) => error,
        },
        error => error,
    }
}

impl Store for Encrypted {
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<(Option<Entry>, Revision)>> {
        Box::pin(async move {
            let (entry, revision) = self.inner.get(key, at).await?;
            Ok((entry.map(|entry| opened(&self.keyring(), entry)).transpose()?, revision))
        })
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Range>> {
        Box::pin(async move {
            let mut range = self.inner.range(prefix, start_after, limit, at).await?;
            let keyring = self.keyring();
            for entry in &mut range.entries {
                entry.value = keyring.open(&entry.key, &entry.value)?;
            }
            Ok(range)
        })
    }

    fn count<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<u64>> {
        self.inner.count(prefix)
    }

    fn put_with<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        durability: Durability,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move {
            let keyring = self.keyring();
            let sealed = keyring.seal(key, value.clone())?;
            let written = self.inner.put_with(key, sealed, expect, durability).await;
            written.map(|entry| Entry { value, ..entry }).map_err(|error| refused(&keyring, error))
        })
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>> {
        Box::pin(async move {
            let keyring = self.keyring();
            let deleted = self.inner.delete(key, expect).await.map_err(|error| refused(&keyring, error))?;
            // It is removed, whether or not anybody can still read it.
            let value = keyring.open(key, &deleted.entry.value).unwrap_or_default();
            Ok(Deleted { entry: Entry { value, ..deleted.entry }, ..deleted })
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher>> {
        Box::pin(async move {
            let inner = self.inner.watch(prefix, from).await?;
            Ok(Watcher::new(Source { inner, keyring: Arc::clone(&self.keyring) }))
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        self.inner.compact(revision)
    }

    fn defragment(&self) -> BoxFuture<'_, Result<Defragmented>> {
        self.inner.defragment()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        self.inner.revision()
    }
}

/// A watch whose events are decrypted.
struct Source {
    inner: Watcher,
    keyring: Arc<RwLock<Arc<Keyring>>>,
}

impl Source {
    fn translate(&self, event: Arc<Event>) -> Result<Arc<Event>> {
        let needed = match &event.change {
            Change::Put { entry, previous } => {
                is_encrypted(&entry.value) || previous.as_ref().is_some_and(|entry| is_encrypted(&entry.value))
            }
            Change::Delete { previous } => is_encrypted(&previous.value),
        };
        // What is not encrypted stays shared by all watchers.
        if !needed {
            return Ok(event);
        }
        let keyring = now(&self.keyring);
        let change = match event.change.clone() {
            Change::Put { entry, previous } => Change::Put {
                entry: opened(&keyring, entry)?,
                previous: previous.map(|entry| opened(&keyring, entry)).transpose()?,
            },
            Change::Delete { previous } => Change::Delete { previous: opened(&keyring, previous)? },
        };
        Ok(Arc::new(Event { revision: event.revision, change }))
    }
}

impl WatchSource for Source {
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, WatchError>>> {
        let polled = ready!(futures::Stream::poll_next(std::pin::Pin::new(&mut self.inner), context));
        Poll::Ready(polled.map(|event| event.and_then(|event| self.translate(event).map_err(WatchError::Read))))
    }

    fn progress(&self) -> Revision {
        self.inner.progress()
    }
}
