//! A store that is timed.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use mainstay_store::{Defragmented, Deleted, Durability, Entry, Expect, Range, Result, Revision, Store, Watcher};

use super::Metrics;

/// Passes everything on and notes how long it took.
pub(crate) struct Timed {
    inner: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Timed {
    pub(crate) fn new(inner: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    fn timed<'a, T: 'a>(&'a self, operation: &'static str, what: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        let since = Instant::now();
        what.inspect(move |_| self.metrics.store(operation, since.elapsed())).boxed()
    }
}

impl Store for Timed {
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<(Option<Entry>, Revision)>> {
        self.timed("get", self.inner.get(key, at))
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Range>> {
        self.timed("list", self.inner.range(prefix, start_after, limit, at))
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
        let operation = if expect == Expect::Absent { "create" } else { "update" };
        self.timed(operation, self.inner.put_with(key, value, expect, durability))
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>> {
        self.timed("delete", self.inner.delete(key, expect))
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher>> {
        self.inner.watch(prefix, from)
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        self.timed("compact", self.inner.compact(revision))
    }

    fn defragment(&self) -> BoxFuture<'_, Result<Defragmented>> {
        self.inner.defragment()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        self.inner.revision()
    }
}
