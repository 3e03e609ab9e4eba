//! Leader election by Lease: of several processes one does the work.
//!
//! Flow: read the Lease → [`Candidate::judge`] what to do → take, renew or wait, and read again. While it leads, the work runs;
//! it is dropped when the lead is lost.
//!
//! Guarantees: the holder stops by itself before the Lease can run out for the others: it counts `renew_deadline` from when it
//! **sent** its last acknowledged renewal, they count `lease_duration` from when they last **saw** the Lease change, each by its
//! own monotonic clock; wall clocks are never compared. Writes are guarded by the revision that was read, so of two that take
//! the Lease at once one succeeds. A process that starts again under its old identity goes on at once.
//!
//! Source: <https://kubernetes.io/docs/concepts/architecture/leases/#leader-election>; the rule of the two clocks is the
//! design page's.

use std::pin::pin;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};

/// Settings of [`lead`].
#[derive(Debug, Clone)]
pub struct LeaderSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who this is; must be unique among the candidates, and the same after a restart.
    pub identity: String,
    /// Without a change for so long, others take the Lease.
    pub lease_duration: Duration,
    /// Without an acknowledged renewal for so long, the holder stops. Must be well below `lease_duration`.
    pub renew_deadline: Duration,
    /// How often the Lease is renewed, or looked at.
    pub retry_period: Duration,
}

impl LeaderSettings {
    /// Settings for a LAN: another leads at most five seconds after the leader was heard last.
    pub fn new(name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(5),
            renew_deadline: Duration::from_secs(3),
            retry_period: Duration::from_millis(500),
        }
    }
}

/// What to do about the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// There is none, nobody holds it, or its holder has been silent for too long.
    Take,
    /// It is ours.
    Renew,
    /// Another holds it.
    Wait,
}

/// What a candidate remembers of the Lease.
#[derive(Debug, Default)]
struct Candidate {
    /// What it said last, and when that was first seen.
    seen: Option<(String, Duration)>,
}

impl Candidate {
    fn judge(&mut self, lease: Option<&LeaseSpec>, settings: &LeaderSettings, now: Duration) -> Move {
        let Some(lease) = lease else { return Move::Take };
        let holder = lease.holder_identity.as_deref().unwrap_or_default();
        if holder == settings.identity {
            return Move::Renew;
        }
        let said = format!("{holder} {:?}", lease.renew_time.as_ref().map(|time| time.0));
        let since = match &self.seen {
            Some((known, since)) if *known == said => *since,
            _ => {
                self.seen = Some((said, now));
                now
            }
        };
        if holder.is_empty() || now.saturating_sub(since) >= settings.lease_duration { Move::Take } else { Move::Wait }
    }
}

/// Runs `work` while this process leads, for ever; `work` is called anew each time the lead is won.
pub async fn lead<F: Future<Output = ()>>(client: Client, settings: LeaderSettings, work: impl Fn() -> F) {
    let api: Api<Lease> = Api::namespaced(client, &settings.namespace);
    let start = Instant::now();
    let mut candidate = Candidate::default();
    loop {
        let sent = Instant::now();
        if attempt(&api, &settings, &mut candidate, start).await == Some(true) {
            tracing::info!(lease = settings.name, identity = settings.identity, "leading");
            let renewing = pin!(renew_until_lost(&api, &settings, sent));
            tokio::select! {
                () = renewing => tracing::warn!(lease = settings.name, "the lead is lost; the work stops"),
                () = work() => {}
            }
        }
        tokio::time::sleep(settings.retry_period).await;
    }
}

async fn renew_until_lost(api: &Api<Lease>, settings: &LeaderSettings, mut acknowledged: Instant) {
    let mut candidate = Candidate::default();
    let start = Instant::now();
    loop {
        let left = settings.renew_deadline.saturating_sub(acknowledged.elapsed());
        let sent = Instant::now();
        match tokio::time::timeout(left, attempt(api, settings, &mut candidate, start)).await {
            Ok(Some(true)) => acknowledged = sent,
            Ok(Some(false)) | Err(_) => return,
            Ok(None) => {}
        }
        let pause = settings.retry_period.min(settings.renew_deadline.saturating_sub(acknowledged.elapsed()));
        tokio::time::sleep(pause).await;
    }
}

/// One look at the Lease and, if it is to be ours, one write. `None` when the API server could not be asked.
async fn attempt(
    api: &Api<Lease>,
    settings: &LeaderSettings,
    candidate: &mut Candidate,
    start: Instant,
) -> Option<bool> {
    let known = api.get_opt(&settings.name).await.ok()?;
    let spec = known.as_ref().and_then(|lease| lease.spec.as_ref());
    let taken = match candidate.judge(spec, settings, start.elapsed()) {
        Move::Wait => return Some(false),
        Move::Take => true,
        Move::Renew => false,
    };
    let now = MicroTime(Timestamp::now());
    let mut lease = known.clone().unwrap_or_default();
    lease.metadata.name = Some(settings.name.clone());
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(settings.identity.clone());
    spec.lease_duration_seconds = i32::try_from(settings.lease_duration.as_secs()).ok();
    spec.renew_time = Some(now.clone());
    if taken {
        spec.acquire_time = Some(now);
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(-1) + 1);
    }
    let options = PostParams::default();
    let written = match known {
        Some(_) => api.replace(&settings.name, &options, &lease).await,
        None => api.create(&options, &lease).await,
    };
    match written {
        Ok(_) => Some(true),
        // Another was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(by.to_owned()),
            renew_time: Timestamp::from_second(renewed).ok().map(MicroTime),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn expiry_is_judged_by_ones_own_clock_since_the_last_change() {
        let settings = LeaderSettings::new("l", "me");
        let at = Duration::from_secs;
        let mut candidate = Candidate::default();
        assert_eq!(candidate.judge(None, &settings, at(0)), Move::Take);
        assert_eq!(candidate.judge(Some(&held("me", 0)), &settings, at(0)), Move::Renew);
        // The other's wall clock is years behind: that says nothing.
        for second in 0..20 {
            assert_eq!(candidate.judge(Some(&held("you", second)), &settings, at(second as u64)), Move::Wait);
        }
        assert_eq!(candidate.judge(Some(&held("you", 19)), &settings, at(23)), Move::Wait);
        assert_eq!(candidate.judge(Some(&held("you", 19)), &settings, at(24)), Move::Take);
        assert_eq!(candidate.judge(Some(&held("", 19)), &settings, at(25)), Move::Take);
    }

    #[test]
    fn the_holder_stops_before_others_may_take_over() {
        let settings = LeaderSettings::new("l", "me");
        assert!(settings.renew_deadline + settings.retry_period < settings.lease_duration);
    }
}
