//! Enforces NetworkPolicies for the pods of this node: [`plan`] decides, [`serve`] does.
//!
//! Flow: NetworkPolicies are cached; as soon as there is one, so are the labels and addresses of all pods and namespaces. A
//! change wakes the loop, which plans everything anew and applies it in one transaction.
//!
//! Guarantees: without policies nothing is watched but policies; nothing is applied before all lists have arrived, so that a
//! restart never opens what was closed; a failed transaction leaves the former rules and is tried again.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use mainstay_informer::{Cache, Scope};
use mainstay_net::policy::PolicyTable;

use crate::context::Context;

/// Changes come in groups.
const GATHER: Duration = Duration::from_millis(5);
/// The wait after a transaction that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Does it, for ever.
pub async fn serve(context: Arc<Context>) {
    let policies = Cache::<NetworkPolicy>::new();
    tokio::spawn(policies.clone().run(context.config.client.clone(), Scope::default()));
    policies.synced().await;
    let mut changed = policies.subscribe();
    while policies.list().is_empty() {
        changed.changed().await;
    }
    let (pods, namespaces) = (Cache::<Pod>::new(), Cache::<Namespace>::new());
    let client = context.config.network_client.clone();
    tokio::spawn(pods.clone().run(client.clone(), Scope::default()));
    tokio::spawn(namespaces.clone().run(client, Scope::default()));
    pods.synced().await;
    namespaces.synced().await;

    let (mut of_pods, mut of_namespaces) = (pods.subscribe(), namespaces.subscribe());
    let mut table = Some(PolicyTable::new(&context.config.instance));
    loop {
        let rules = plan::plan(&policies.list(), &pods.list(), &namespaces.list(), &context.config.name);
        let mut taken = table.take().unwrap_or_else(|| PolicyTable::new(&context.config.instance));
        let wait = match tokio::task::spawn_blocking(move || (taken.apply(rules), taken)).await {
            Ok((Ok(_), back)) => {
                table = Some(back);
                Duration::MAX
            }
            Ok((Err(error), back)) => {
                tracing::warn!(%error, "network policies not applied; the former ones stand");
                table = Some(back);
                RETRY
            }
            Err(_) => RETRY,
        };
        tokio::select! {
            _ = changed.changed() => {}
            _ = of_pods.changed() => {}
            _ = of_namespaces.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
        tokio::time::sleep(GATHER).await;
        changed.take();
        of_pods.take();
        of_namespaces.take();
    }
}
