//! Writing statuses and obtaining certificates: by one gateway of the cluster, the one that holds the Lease.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use http::{Method, Request, header};
use mainstay_informer::leader::{self, LeaderSettings};
use serde_json::{Value, json};

use super::report::{self, Facts, Update};
use super::{SETTLE, World};
use crate::acme::Store;
use crate::control::Control;

/// The Lease of the gateways of a cluster.
const LEASE: &str = "mainstay-gateway";
/// Where it is unless there is a Service whose namespace it shares.
const NAMESPACE: &str = "kube-system";
/// The wait before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Waits for the lead, writes statuses and obtains certificates while it has it, for ever.
pub(crate) async fn lead(control: Rc<Control>, world: Rc<World>) {
    let namespace = world.options.service.as_ref().map_or(NAMESPACE, |service| &service.0).to_owned();
    let settings = LeaderSettings { namespace, ..LeaderSettings::new(LEASE, world.options.identity.clone()) };
    let store = Store::Cluster(world.client.clone());
    let work = || async {
        tokio::join!(write(&control, &world), control.obtain(&store));
    };
    leader::lead(world.client.clone(), settings, work).await;
}

async fn write(control: &Control, world: &World) {
    loop {
        let mut failed = false;
        for update in due(control, world) {
            match patch(world, &update).await {
                Ok(()) => {}
                // Somebody else wrote, or it is gone; the watch will say so.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    tracing::warn!(path = update.path, %error, "a status could not be written");
                    failed = true;
                }
            }
        }
        tokio::select! {
            () = world.reportable.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

fn due(control: &Control, world: &World) -> Vec<Update> {
    let last = control.last();
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string();
    let addresses = world.addresses();
    let facts = Facts { statuses: &last.statuses, problems: &last.problems, addresses: &addresses, now: &now };
    let mut updates = report::updates(&world.sources(), &facts);
    if let Some((namespace, name)) = &world.options.service
        && let Some(service) = world.object("Service", namespace, name)
    {
        let listening: BTreeSet<u16> = control.ports().iter().map(std::net::SocketAddr::port).collect();
        if let Some(ports) = report::service_ports(&service, &listening) {
            let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
            let metadata = json!({"resourceVersion": service["metadata"]["resourceVersion"]});
            updates.push(Update { path, body: json!({"metadata": metadata, "spec": {"ports": ports}}) });
        }
    }
    updates
}

async fn patch(world: &World, update: &Update) -> kube::Result<()> {
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(format!("{}?fieldManager=mainstay-gateway", update.path))
        .header(header::CONTENT_TYPE, "application/merge-patch+json")
        .body(update.body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    world.client.request::<Value>(request).await.map(drop)
}
