//! Where in etcd our keys and revisions are: under a root, so that several uses can share an etcd; and shifted, so that
//! revisions do not go back when a snapshot is restored into an etcd that has counted less far.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::channel::{Channel, Repeat};
use super::errors::explain;
use super::messages::{
    KeyValue, PutRequest, RANGE, RangeRequest, RangeResponse, Request, TXN, TxnRequest, TxnResponse,
};
use crate::{Entry, Error, Result, Revision};

/// What is kept beside the keys, under `ROOT!mainstay`, in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Our revisions are etcd's and this.
    pub(super) revision_offset: Revision,
    /// A restore has begun and not ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) restoring: bool,
}

/// The root and the shift.
#[derive(Clone, Debug)]
pub(super) struct Place {
    root: String,
    offset: Revision,
}

impl Place {
    /// `root` such as `/mainstay`; a `/` at its end is not part of it.
    pub(super) fn new(root: &str, offset: Revision) -> Self {
        Self { root: root.trim_end_matches('/').to_owned(), offset }
    }

    /// The key of the [`Record`]: beside our keys, which have a `/` after the root.
    pub(super) fn record_key(&self) -> Bytes {
        Bytes::from(format!("{}!mainstay", self.root))
    }

    pub(super) fn key(&self, key: &str) -> Bytes {
        let mut bytes = Vec::with_capacity(self.root.len() + key.len());
        bytes.extend_from_slice(self.root.as_bytes());
        bytes.extend_from_slice(key.as_bytes());
        Bytes::from(bytes)
    }

    /// First key and the key behind the last one of those that begin with `prefix` and come after `start_after`.
    pub(super) fn range(&self, prefix: &str, start_after: Option<&str>) -> (Bytes, Bytes) {
        // Ours are only those with a `/` after the root: nothing of `/mainstay-too`.
        let first = self.key(if prefix.is_empty() { "/" } else { prefix });
        let mut end = first.to_vec();
        // Keys are UTF-8, which has no byte 0xff: the last byte can always be counted up.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let first = match start_after {
            Some(key) if key >= prefix => self.key(&format!("{key}\0")),
            _ => first,
        };
        (first, end.into())
    }

    /// Our number of etcd's revision.
    pub(super) fn to_ours(&self, revision: i64) -> Revision {
        revision.unsigned_abs() + self.offset
    }

    /// Etcd's number of our revision; 1, the first there is, for those before the shift.
    pub(super) fn to_etcd(&self, revision: Revision) -> i64 {
        i64::try_from(revision.saturating_sub(self.offset).max(1)).unwrap_or(i64::MAX)
    }

    /// The revision before which nothing can be asked for.
    pub(super) fn offset(&self) -> Revision {
        self.offset
    }

    /// An entry in our words; `None` for a key that is not ours.
    pub(super) fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        let key = std::str::from_utf8(&kv.key).ok()?.strip_prefix(&*self.root)?;
        Some(Entry {
            key: key.into(),
            value: kv.value.clone(),
            create_revision: self.to_ours(kv.create_revision),
            mod_revision: self.to_ours(kv.mod_revision),
        })
    }
}

/// Reads the record, and etcd's present revision.
pub(super) async fn read_record(channel: &Channel, place: &Place) -> Result<(Record, i64)> {
    let read = RangeRequest { key: place.record_key(), ..RangeRequest::default() };
    let answer: RangeResponse =
        channel.call(RANGE, &read, Repeat::Harmless).await.map_err(explain("read its record"))?;
    let revision = answer.header.map_or(0, |header| header.revision);
    let Some(kv) = answer.kvs.first() else { return Ok((Record::default(), revision)) };
    let record = serde_json::from_slice(&kv.value).map_err(|error| {
        Error::Settings(format!("the record under {:?} in etcd is damaged: {error}", String::from_utf8_lossy(&kv.key)))
    })?;
    Ok((record, revision))
}

pub(super) async fn write_record(channel: &Channel, place: &Place, record: &Record) -> Result<()> {
    let value = serde_json::to_vec(record).unwrap_or_default().into();
    let put = Request::Put(PutRequest { key: place.record_key(), value });
    let transaction = TxnRequest { success: vec![put.into()], ..TxnRequest::default() };
    // Writing the same twice is harmless.
    let written = channel.call::<TxnResponse>(TXN, &transaction, Repeat::Harmless).await;
    written.map(drop).map_err(explain("write its record"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_under_the_root() {
        let place = Place::new("/mainstay/", 0);
        let text = |prefix, after| {
            let (first, end) = place.range(prefix, after);
            (String::from_utf8_lossy(&first).into_owned(), String::from_utf8_lossy(&end).into_owned())
        };
        assert_eq!(text("", None), ("/mainstay/".to_owned(), "/mainstay0".to_owned()));
        assert_eq!(text("/a/", Some("/a/b")), ("/mainstay/a/b\0".to_owned(), "/mainstay/a0".to_owned()));
        assert_eq!(text("/b/", Some("/a/b")), ("/mainstay/b/".to_owned(), "/mainstay/b0".to_owned()));
        assert_eq!(&place.record_key()[..], b"/mainstay!mainstay");
    }

    #[test]
    fn revisions_are_shifted_both_ways() {
        let place = Place::new("/m", 1000);
        assert_eq!((place.to_ours(7), place.to_etcd(1007), place.to_etcd(5)), (1007, 7, 1));
    }
}
