//! The store's calls, in etcd's words.

use bytes::Bytes;
use futures::future::BoxFuture;

use super::channel::Repeat;
use super::errors::{self, explain};
use super::messages::{
    COMPACT, CompactionRequest, Compare, Comparison, DEFRAGMENT, DeleteRangeRequest, Empty, Header, PutRequest, RANGE,
    RangeRequest, RangeResponse, Request, RequestOp, STATUS, StatusResponse, TXN, TxnRequest, TxnResponse,
};
use super::{EtcdStore, compaction, watcher};
use crate::{
    Defragmented, Deleted, Durability, Entry, Error, Expect, KEY_BYTES_MAX, Range, Result, Revision, Store, Watcher,
};

/// How many entries are read at a time.
const PAGE: usize = 1000;

impl EtcdStore {
    /// One transaction: `success` if all of `compare` hold, else `failure`.
    async fn transact(&self, step: &'static str, transaction: TxnRequest) -> Result<TxnResponse> {
        let _place = self.writes.try_acquire().map_err(|_| Error::Busy)?;
        let answer: TxnResponse = self.channel.call(TXN, &transaction, Repeat::Never).await.map_err(explain(step))?;
        Ok(answer)
    }

    fn header(&self, header: Option<&Header>) -> Revision {
        header.map_or(0, |header| self.core.place.to_ours(header.revision))
    }

    /// Reads, and says what is wrong with `at` if that is what is wrong.
    async fn read(&self, request: RangeRequest, at: Option<Revision>) -> Result<RangeResponse> {
        if let Some(at) = at
            && at < self.core.place.offset()
        {
            return Err(Error::Compacted { oldest: self.oldest().await? });
        }
        match self.channel.call(RANGE, &request, Repeat::Harmless).await {
            Ok(answer) => Ok(answer),
            Err(error) if errors::is_compacted(&error) => Err(Error::Compacted { oldest: self.oldest().await? }),
            Err(error) if errors::is_future(&error) => Err(Error::Future { current: self.revision().await? }),
            Err(error) => Err(explain("read")(error)),
        }
    }

    /// The oldest revision that can be read at: etcd says it to a watch that asks for the first of all.
    async fn oldest(&self) -> Result<Revision> {
        let oldest = compaction::compacted(&self.core.place, &self.channel).await;
        oldest.map_err(explain("ask how far back it reaches"))
    }

    fn checked(&self, key: &str) -> Result<Bytes> {
        match key.len() {
            1..=KEY_BYTES_MAX => Ok(self.core.place.key(key)),
            bytes => Err(Error::KeyLength { bytes }),
        }
    }

    /// Etcd's number for the revision to read at; 0, the present, for none.
    fn at(&self, at: Option<Revision>) -> i64 {
        at.map_or(0, |at| self.core.place.to_etcd(at))
    }

    /// The key was last changed at our `revision`.
    fn changed(&self, key: &Bytes, revision: Revision) -> Compare {
        // A revision before the shift was never etcd's: -1 is nothing's revision.
        let revision = if revision > self.core.place.offset() { self.core.place.to_etcd(revision) } else { -1 };
        Compare::changed(key.clone(), revision)
    }

    /// The state that was in the way of a transaction.
    fn conflict(&self, answer: &TxnResponse) -> Error {
        let found = answer.responses.first().and_then(|response| response.range.as_ref());
        let current = found.and_then(|range| range.kvs.first()).and_then(|kv| self.core.place.entry(kv));
        Error::Conflict { current: current.map(Box::new) }
    }
}

fn remove(key: &Bytes) -> RequestOp {
    Request::DeleteRange(DeleteRangeRequest { key: key.clone(), prev_kv: true }).into()
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<(Option<Entry>, Revision)>> {
        Box::pin(async move {
            let read = RangeRequest { key: self.core.place.key(key), revision: self.at(at), ..RangeRequest::default() };
            let answer = self.read(read, at).await?;
            let entry = answer.kvs.first().and_then(|kv| self.core.place.entry(kv));
            Ok((entry, self.header(answer.header.as_ref())))
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
            let mut range = Range { revision: at.unwrap_or_default(), ..Range::default() };
            let (mut key, range_end) = self.core.place.range(prefix, start_after);
            let mut at = at;
            loop {
                let wanted = limit.map_or(PAGE, |limit| PAGE.min(limit - range.entries.len()));
                let read = RangeRequest {
                    key,
                    range_end: range_end.clone(),
                    limit: wanted as i64,
                    revision: self.at(at),
                    // To etcd a limit of 0 is none.
                    count_only: wanted == 0,
                    ..RangeRequest::default()
                };
                let answer = self.read(read, at).await?;
                let found = answer.kvs.len();
                if at.is_none() {
                    range.revision = self.header(answer.header.as_ref());
                    at = Some(range.revision);
                }
                key = answer.kvs.last().map_or_else(Bytes::new, |kv| [&kv.key, &b"\0"[..]].concat().into());
                range.entries.extend(answer.kvs.iter().filter_map(|kv| self.core.place.entry(kv)));
                range.remaining = answer.count.unsigned_abs() - found as u64;
                if found == 0 || range.remaining == 0 || limit.is_some_and(|limit| range.entries.len() >= limit) {
                    return Ok(range);
                }
            }
        })
    }

    fn count<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let (key, range_end) = self.core.place.range(prefix, None);
            let read = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
            Ok(self.read(read, None).await?.count.unsigned_abs())
        })
    }

    fn put_with<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        _: Durability,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move {
            let place = self.checked(key)?;
            let (bytes, max) = (value.len(), self.settings.value_bytes_max);
            if bytes > max {
                return Err(Error::ValueTooLarge { bytes, max });
            }
            let read = RangeRequest { key: place.clone(), ..RangeRequest::default() };
            let compare = match expect {
                Expect::Absent => vec![Compare::created(place.clone(), Comparison::Equal, 0)],
                Expect::Revision(revision) => vec![self.changed(&place, revision)],
                Expect::Any => Vec::new(),
            };
            let put = PutRequest { key: place, value: value.clone() };
            // Reading the key behind the write says when it was created.
            let created = RangeRequest { keys_only: true, ..read.clone() };
            let success = vec![Request::Put(put).into(), Request::Range(created).into()];
            let failure = vec![Request::Range(read).into()];
            let answer = self.transact("write", TxnRequest { compare, success, failure }).await?;
            if !answer.succeeded {
                return Err(self.conflict(&answer));
            }
            let mod_revision = self.header(answer.header.as_ref());
            let written = answer.responses.get(1).and_then(|response| response.range.as_ref()?.kvs.first());
            let create_revision = written.map_or(mod_revision, |kv| self.core.place.to_ours(kv.create_revision));
            self.core.seen(mod_revision).await;
            Ok(Entry { key: key.into(), value, create_revision, mod_revision })
        })
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>> {
        Box::pin(async move {
            let place = self.checked(key)?;
            let exists = Compare::created(place.clone(), Comparison::Greater, 0);
            let read = RangeRequest { key: place.clone(), ..RangeRequest::default() };
            let (compare, success) = match expect {
                // What does not exist cannot be removed, and what exists is not absent: always a conflict.
                Expect::Absent => (vec![exists], vec![Request::Range(read.clone()).into()]),
                Expect::Any => (vec![exists], vec![remove(&place)]),
                Expect::Revision(revision) => (vec![self.changed(&place, revision)], vec![remove(&place)]),
            };
            let failure = vec![Request::Range(read).into()];
            let answer = self.transact("remove", TxnRequest { compare, success, failure }).await?;
            if !answer.succeeded || expect == Expect::Absent {
                return Err(self.conflict(&answer));
            }
            let revision = self.header(answer.header.as_ref());
            let removed =
                answer.responses.first().and_then(|response| response.delete_range.as_ref()?.prev_kvs.first());
            let entry = removed.and_then(|kv| self.core.place.entry(kv)).ok_or(Error::Closed)?;
            self.core.seen(revision).await;
            Ok(Deleted { entry, revision })
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher>> {
        Box::pin(async move {
            // The subscription first: what comes after the look into the past then cannot be missed.
            let subscription = self.core.hub.subscribe(prefix, from, self.settings.watch_buffer_max);
            if from > subscription.since {
                let current = self.revision().await?;
                if from > current {
                    return Err(Error::Future { current });
                }
            }
            let past = self.core.past(prefix, from, subscription.since)?;
            Ok(Watcher::new(watcher::Source::new(subscription, past, from)))
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if revision <= self.core.place.offset() {
                return Ok(());
            }
            let request = CompactionRequest { revision: self.core.place.to_etcd(revision) };
            // Twice is as good as once.
            match self.channel.call::<Empty>(COMPACT, &request, Repeat::Harmless).await {
                Ok(_) => self.core.forget(revision),
                Err(error) if errors::is_compacted(&error) => {}
                Err(error) if errors::is_future(&error) => {
                    return Err(Error::Future { current: self.revision().await? });
                }
                Err(error) => return Err(explain("compact")(error)),
            }
            Ok(())
        })
    }

    fn defragment(&self) -> BoxFuture<'_, Result<Defragmented>> {
        Box::pin(async move {
            let mut sizes = Defragmented::default();
            // One member after the other: each stands still meanwhile.
            for member in self.channel.each() {
                let size = || async {
                    let status: StatusResponse = member.call(STATUS, &Empty {}, Repeat::Harmless).await?;
                    Ok(status.db_size.unsigned_abs())
                };
                sizes.before_bytes += size().await.map_err(explain("ask for its size"))?;
                member.call::<Empty>(DEFRAGMENT, &Empty {}, Repeat::Harmless).await.map_err(explain("defragment"))?;
                sizes.after_bytes += size().await.map_err(explain("ask for its size"))?;
            }
            Ok(sizes)
        })
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            let key = self.core.place.record_key();
            let read = RangeRequest { key, count_only: true, ..RangeRequest::default() };
            let answer = self.read(read, None).await?;
            Ok(self.header(answer.header.as_ref()))
        })
    }
}
