//! Graceful node shutdown: the node is going away, its pods end in order.
//!
//! Flow: whoever shuts the machine down sends the agent SIGPWR ([`asked`]). The node says that it is not ready and refuses new pods;
//! its pods are told to end, critical ones last ([`phases`]); when all are down, or time is up, their statuses say `Failed`,
//! `Terminated`, and the agent ends.
//!
//! Source: <https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/#graceful-node-shutdown>.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use nix::libc::SIGPWR;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::context::Context;
use crate::pod::io::{Input, Stopped};
use crate::pressure::rank::is_critical;

/// How often one looks whether the pods are down.
const LOOK: Duration = Duration::from_millis(20);
/// How long the last statuses may take to reach the API.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Waits until the node is to shut down; for ever where the signal cannot be had.
pub async fn asked() {
    let heard = match signal(SignalKind::from_raw(SIGPWR)) {
        Ok(mut asked) => asked.recv().await,
        Err(_) => None,
    };
    if heard.is_none() {
        std::future::pending::<()>().await;
    }
}

/// What each phase is about, whether critical pods, and how long it may take: a third of the time is kept for those. Pure.
pub fn phases(whole: Duration) -> [(bool, Duration); 2] {
    let critical = whole / 3;
    [(false, whole.saturating_sub(critical)), (true, critical)]
}

/// Ends all pods; returns when the agent may go.
pub async fn run(context: &Arc<Context>) {
    let grace = context.config.shutdown_grace;
    tracing::warn!(grace_ms = grace.as_millis(), "the node shuts down");
    context.vitals.send_modify(|vitals| vitals.shutting_down = true);
    for (critical, limit) in phases(grace) {
        let pods = || -> Vec<String> {
            context.with_views(|views| {
                let up = views.iter().filter(|(_, view)| view.containers.values().any(|one| one.running.is_some()));
                up.filter(|(_, view)| is_critical(&view.pod) == critical).map(|(uid, _)| uid.clone()).collect()
            })
        };
        let given = SignedDuration::try_from(limit).unwrap_or_default();
        for uid in pods() {
            context.tell(&uid, Input::Stop(Stopped::shutdown(given)));
        }
        let since = Instant::now();
        while !pods().is_empty() && since.elapsed() < limit {
            tokio::time::sleep(LOOK).await;
        }
    }
    tokio::time::sleep(LAST_WORDS).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_pods_have_the_last_third() {
        let seconds = Duration::from_secs;
        assert_eq!(phases(seconds(30)), [(false, seconds(20)), (true, seconds(10))]);
    }
}
