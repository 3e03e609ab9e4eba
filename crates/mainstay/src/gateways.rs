//! Gateways run while there is something for them to do: the server applies `deployments/gateway.yaml` as soon as there is a
//! Gateway or an Ingress of class `mainstay`, and takes the pods away a while after the last is gone.
//!
//! So a cluster that has no need of gateways has none in memory. The Service in front stays, and with it its address: a Gateway
//! that is made anew gets the same.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, DeleteParams};
use mainstay_informer::{Cache, Scope};
use serde::{Deserialize, Serialize};

use crate::up::manifest::{self, ManifestError};

const FILE: &str = "gateway.yaml";
const MANIFESTS: &str = include_str!("../deployments/gateway.yaml");
const NAMESPACE: &str = "kube-system";
const DEPLOYMENT: &str = "mainstay-gateway";
/// The class of Gateways and Ingresses that these gateways are for.
const CLASS: &str = "mainstay";

/// How long gateways stay when nothing needs them: somebody may be replacing one object by another.
const LINGER: Duration = Duration::from_secs(30);
/// The wait before another attempt.
const RETRY: Duration = Duration::from_secs(1);

/// A Gateway, as far as it decides whether gateways are needed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Gateway {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: GatewaySpec,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GatewaySpec {
    gateway_class_name: String,
}

mainstay_informer::namespaced_kind!(Gateway, "gateway.networking.k8s.io", "v1", "Gateway", "gateways");

/// Keeps gateways running while they are needed, for ever.
pub async fn run(client: Client) {
    let (gateways, ingresses) = (Cache::<Gateway>::new(), Cache::<Ingress>::new());
    let (mut of_gateways, mut of_ingresses) = (gateways.subscribe(), ingresses.subscribe());
    let watches = async {
        tokio::join!(
            gateways.clone().run(client.clone(), Scope::default()),
            ingresses.clone().run(client.clone(), Scope::default())
        )
    };
    let work = async {
        tokio::join!(gateways.synced(), ingresses.synced());
        // Unknown at first: pods may run from before.
        let mut running = None;
        loop {
            let needed = !gateways.filter(is_ours).is_empty() || !ingresses.filter(wants_gateway).is_empty();
            let mut wait = None;
            if needed && running != Some(true) {
                match deploy(&client).await {
                    Ok(()) => running = Some(true),
                    Err(error) => {
                        tracing::warn!(%error, "the gateways cannot be started yet");
                        wait = Some(RETRY);
                    }
                }
            } else if !needed && running != Some(false) {
                wait = Some(LINGER);
            }
            let changed = tokio::select! {
                _ = of_gateways.changed() => true,
                _ = of_ingresses.changed() => true,
                () = tokio::time::sleep(wait.unwrap_or(LINGER)), if wait.is_some() => false,
            };
            if !changed && !needed && withdraw(&client).await {
                running = Some(false);
            }
        }
    };
    tokio::join!(watches, work);
}

fn is_ours(gateway: &Gateway) -> bool {
    gateway.spec.gateway_class_name == CLASS
}

fn wants_gateway(ingress: &Ingress) -> bool {
    let class = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    class == Some(CLASS)
}

async fn deploy(client: &Client) -> Result<(), ManifestError> {
    let mut manifests = Vec::new();
    manifest::parse(Path::new(FILE), MANIFESTS, &mut manifests)?;
    for manifest in manifests {
        manifest.ensure(client).await?;
    }
    Ok(())
}

/// Deletes the Deployment; answers whether it is gone.
async fn withdraw(client: &Client) -> bool {
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    match api.delete(DEPLOYMENT, &DeleteParams::background()).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) => status.code == 404,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_manifests_can_be_read() {
        let mut manifests = Vec::new();
        manifest::parse(Path::new(FILE), MANIFESTS, &mut manifests).unwrap();
        assert_eq!(manifests.last().unwrap().shown(), format!("deployment/{DEPLOYMENT}"));
    }

    #[test]
    fn an_ingress_of_another_class_needs_no_gateway() {
        let mut ingress = Ingress::default();
        assert!(!wants_gateway(&ingress));
        ingress.spec.get_or_insert_default().ingress_class_name = Some("nginx".to_owned());
        assert!(!wants_gateway(&ingress));
        ingress.spec.get_or_insert_default().ingress_class_name = Some(CLASS.to_owned());
        assert!(wants_gateway(&ingress));
    }
}
