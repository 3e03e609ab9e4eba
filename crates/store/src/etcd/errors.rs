//! What etcd says, in our words.
//!
//! etcd tells its errors apart by their text
//! (<https://github.com/etcd-io/etcd/blob/main/api/v3rpc/rpctypes/error.go>); the codes of gRPC are too few for that.

use std::sync::Arc;

use super::grpc::{CallError, RESOURCE_EXHAUSTED};
use crate::Error;

fn says(error: &CallError, words: &str) -> bool {
    matches!(error, CallError::Refused { message, .. } if message.contains(words))
}

pub(super) fn is_compacted(error: &CallError) -> bool {
    says(error, "required revision has been compacted")
}

pub(super) fn is_future(error: &CallError) -> bool {
    says(error, "required revision is a future revision")
}

/// Any other error; `step` is what was being done.
pub(super) fn explain(step: &'static str) -> impl FnOnce(CallError) -> Error {
    move |error| match &error {
        _ if says(&error, "database space exceeded") => Error::EtcdFull,
        _ if says(&error, "too many requests") => Error::Busy,
        CallError::Refused { code: RESOURCE_EXHAUSTED, .. } => Error::Busy,
        _ => Error::Storage { step, source: Arc::new(error) },
    }
}
