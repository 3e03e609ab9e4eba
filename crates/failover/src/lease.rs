//! The record in a `coordination.k8s.io/v1` Lease: an annotation, beside the fields everybody knows.
//!
//! Every write replaces the object that was read, with its `resourceVersion`: of two that write at once, one is refused. Reads
//! name no `resourceVersion`, so they are answered from the newest state. People may set two annotations on the Lease:
//! `mainstay.dev/paused: "true"` suspends automatic failover; `mainstay.dev/switchover: NAME` (or empty: the best) moves the primary.

use std::cell::RefCell;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::core::{Handover, MemberId, Record, Written};

/// The record, as JSON.
pub const RECORD: &str = "mainstay.dev/record";
/// "true" suspends automatic failover.
pub const PAUSED: &str = "mainstay.dev/paused";
/// Asks for another primary; removed when there is one.
pub const SWITCHOVER: &str = "mainstay.dev/switchover";

/// The Lease of one database.
pub struct LeaseStore {
    api: Api<Lease>,
    name: String,
    ttl_ms: u64,
    limit: Duration,
    /// The newest seen.
    known: RefCell<Option<Lease>>,
}

/// What a look at the Lease showed.
#[derive(Debug, Clone)]
pub struct Look {
    /// The record.
    pub record: Record,
    /// Somebody asked for another primary.
    pub handover: Option<Handover>,
}

impl LeaseStore {
    /// The Lease `name`; every request is given up after `limit`.
    pub fn new(client: Client, namespace: &str, name: &str, ttl_ms: u64, limit: Duration) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), ttl_ms, limit, known: RefCell::default() }
    }

    /// The Lease now: `Ok(None)` when there is none, an error when nobody knows.
    pub async fn read(&self) -> Result<Option<Look>, String> {
        let answer = tokio::time::timeout(self.limit, self.api.get_opt(&self.name)).await;
        let lease = answer.map_err(|_| format!("no answer within {:?}", self.limit))?.map_err(|it| it.to_string())?;
        let Some(lease) = lease else { return Ok(None) };
        let look = look(&lease);
        // A Lease that nobody has written a record to is none yet; it is there to be replaced.
        let none = look.record.renewal == 0;
        let mut known = self.known.borrow_mut();
        let older = known.as_ref().map(look_renewal).is_some_and(|it| look.record.renewal < it);
        if !older {
            *known = Some(lease);
        }
        Ok((!none).then_some(look))
    }

    /// Replaces the record that was seen last. What a peer told of is read first, because the API replaces only what was read.
    pub async fn write(&self, record: &Record) -> Written {
        if self.known.borrow().as_ref().map_or(0, look_renewal) + 1 < record.renewal {
            // What cannot be read now is refused below.
            let _ = self.read().await;
        }
        let known = self.known.borrow().clone();
        let mut lease = known.clone().unwrap_or_default();
        // Only what the decision was made upon may be replaced.
        if known.as_ref().is_some_and(|it| look_renewal(it) + 1 != record.renewal) {
            return Written::Conflict;
        }
        self.fill(&mut lease, record);
        let options = PostParams::default();
        let request = async {
            match &known {
                Some(_) => self.api.replace(&self.name, &options, &lease).await,
                None => self.api.create(&options, &lease).await,
            }
        };
        match tokio::time::timeout(self.limit, request).await {
            Ok(Ok(new)) => {
                *self.known.borrow_mut() = Some(new);
                Written::Done
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Written::Conflict,
            Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) => {
                tracing::warn!(message = status.message, "the Lease was refused");
                // Refused is not done.
                Written::Conflict
            }
            Ok(Err(_)) | Err(_) => Written::Unknown,
        }
    }

    fn fill(&self, lease: &mut Lease, record: &Record) {
        let before = look(lease).record;
        lease.metadata.name = Some(self.name.clone());
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(RECORD.to_owned(), serde_json::to_string(record).unwrap_or_default());
        if record.epoch != before.epoch {
            annotations.remove(SWITCHOVER);
        }
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        if record.epoch != before.epoch {
            spec.acquire_time = Some(now.clone());
        }
        // An empty holder is how an API object says that there is none.
        spec.holder_identity = Some(record.holder.as_ref().map_or(String::new(), ToString::to_string));
        spec.lease_duration_seconds = i32::try_from(self.ttl_ms.div_ceil(1000)).ok();
        spec.lease_transitions = i32::try_from(record.epoch).ok();
        spec.renew_time = Some(now);
    }
}

fn look_renewal(lease: &Lease) -> u64 {
    look(lease).record.renewal
}

/// What a Lease says.
pub fn look(lease: &Lease) -> Look {
    let annotation = |name: &str| lease.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let mut record: Record = annotation(RECORD).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    record.paused = annotation(PAUSED).is_some_and(|it| it == "true");
    let asked = annotation(SWITCHOVER);
    let handover = asked.map(|to| Handover { to: (!to.is_empty()).then(|| MemberId::new(to.as_str())) });
    Look { record, handover }
}
