//! The same work as the API server's bench, done by etcd alone, in the transactions Kubernetes uses: a create requires that
//! the key does not exist, an update that it was last changed by a known revision.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;

use super::EtcdSettings;
use super::channel::{Channel, Repeat};
use super::errors::explain;
use super::grpc::CallError;
use super::messages::{
    Compare, Comparison, PutRequest, RANGE, RangeRequest, RangeResponse, Request, TXN, TxnRequest, TxnResponse, WATCH,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::{Error, Result};

/// An etcd and connections to it.
pub struct EtcdLoad {
    channels: Vec<Arc<Channel>>,
}

impl EtcdLoad {
    /// Prepares `connections` connections.
    pub fn new(settings: &EtcdSettings, connections: usize) -> Result<Self> {
        let channel = || Ok(Arc::new(Channel::new(settings.endpoints()?, settings.tls()?)));
        Ok(Self { channels: (0..connections).map(|_| channel()).collect::<Result<_>>()? })
    }

    fn channel(&self, client: usize) -> &Arc<Channel> {
        &self.channels[client % self.channels.len()]
    }

    /// Creates a key; returns its revision.
    pub async fn create(&self, client: usize, key: &str, value: Bytes) -> Result<i64> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.write(client, Compare::created(key.clone(), Comparison::Equal, 0), key, value).await
    }

    /// Replaces the value of a key that was last changed by `revision`; returns the new revision.
    pub async fn update(&self, client: usize, key: &str, value: Bytes, revision: i64) -> Result<i64> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.write(client, Compare::changed(key.clone(), revision), key, value).await
    }

    async fn write(&self, client: usize, compare: Compare, key: Bytes, value: Bytes) -> Result<i64> {
        let success = vec![Request::Put(PutRequest { key, value }).into()];
        let request = TxnRequest { compare: vec![compare], success, failure: Vec::new() };
        let answer: TxnResponse =
            self.channel(client).call(TXN, &request, Repeat::Never).await.map_err(explain("write"))?;
        if !answer.succeeded {
            return Err(Error::Conflict { current: None });
        }
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// Reads every key that begins with `prefix` in one answer; returns how many.
    pub async fn list(&self, prefix: &str) -> Result<usize> {
        let key = Bytes::copy_from_slice(prefix.as_bytes());
        let read = RangeRequest { key, range_end: behind(prefix), ..RangeRequest::default() };
        let answer: RangeResponse =
            self.channel(0).call(RANGE, &read, Repeat::Harmless).await.map_err(explain("read"))?;
        Ok(answer.kvs.len())
    }

    /// From the beginning of a write until the last of `watchers` has it, once for each of `changes`.
    pub async fn fan_out(&self, prefix: &str, watchers: usize, changes: usize) -> Result<Vec<Duration>> {
        let (sender, mut received) = mpsc::channel(watchers);
        let key = Bytes::copy_from_slice(prefix.as_bytes());
        let create = WatchCreateRequest { key, range_end: behind(prefix), ..WatchCreateRequest::default() };
        let request = WatchRequest { create_request: Some(create) };
        let open = |client: usize| {
            let (sender, request) = (sender.clone(), request.clone());
            async move {
                let mut answers = self.channel(client).shared_stream(WATCH, &request).await?;
                let standing: Option<WatchResponse> = answers.next().await?;
                standing.filter(|answer| answer.created).ok_or_else(|| CallError::Malformed("no watch".to_owned()))?;
                tokio::spawn(async move {
                    while let Ok(Some(answer)) = answers.next::<WatchResponse>().await {
                        if !answer.events.is_empty() && sender.send(Instant::now()).await.is_err() {
                            break;
                        }
                    }
                });
                Ok::<_, CallError>(())
            }
        };
        stream::iter(0..watchers).map(open).buffer_unordered(50).try_collect::<()>().await.map_err(explain("watch"))?;
        let mut samples = Vec::new();
        for change in 0..changes {
            let start = Instant::now();
            self.create(0, &format!("{prefix}{change}"), Bytes::from_static(b"{}")).await?;
            let mut last = start;
            for _ in 0..watchers {
                last = last.max(received.recv().await.unwrap_or(last));
            }
            samples.push(last - start);
        }
        Ok(samples)
    }
}

fn behind(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}
