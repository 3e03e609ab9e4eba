//! Health-check node ports: a load balancer outside asks each node whether it has endpoints of a service whose
//! `externalTrafficPolicy` is `Local`, and sends traffic only to those that have.
//!
//! Flow: a change of the services or their endpoints wakes the loop; ports that are wanted get a listener, others lose theirs. Every
//! request is answered from the caches: 200 with endpoints, 503 without.
//!
//! Limits: connections of a port, time and size of a request.
//!
//! Source: <https://kubernetes.io/docs/reference/networking/virtual-ips/#external-traffic-policy>,
//! `spec.healthCheckNodePort`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::ServiceNetwork;
use super::rules::{SERVICE_NAME, ready_on};

/// Connections of a port at a time.
const CONNECTIONS_MAX: usize = 32;
/// For a request's head, and for a whole connection.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A port that is taken is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Changes come in groups.
const GATHER: Duration = Duration::from_millis(20);

/// A service, by namespace and name.
type Name = (String, String);

/// Keeps the listeners of a node, for ever.
pub async fn serve(network: ServiceNetwork, node: String, address: Ipv4Addr) {
    let mut services = network.services.subscribe();
    network.services.synced().await;
    let mut open: HashMap<u16, (Name, JoinHandle<()>)> = HashMap::new();
    loop {
        let wanted: HashMap<u16, Name> =
            network.services.list().iter().filter_map(|service| port_of(service)).collect();
        open.retain(|port, (name, task)| {
            let stays = wanted.get(port) == Some(name) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for (port, name) in wanted {
            let task = || tokio::spawn(listen(network.clone(), node.clone(), (address, port).into(), name.clone()));
            open.entry(port).or_insert_with(|| (name.clone(), task()));
        }
        tokio::select! {
            _ = services.changed() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
        tokio::time::sleep(GATHER).await;
        services.take();
    }
}

/// The port at which a service's health is asked for.
fn port_of(service: &Service) -> Option<(u16, Name)> {
    let spec = service.spec.as_ref()?;
    let local =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = u16::try_from(spec.health_check_node_port.filter(|_| local)?).ok().filter(|port| *port > 0)?;
    Some((port, (service.metadata.namespace.clone()?, service.metadata.name.clone()?)))
}

async fn listen(network: ServiceNetwork, node: String, address: SocketAddr, name: Name) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%address, %error, service = ?name, "no health-check node port");
            return tokio::time::sleep(RETRY).await;
        }
    };
    let (slots, facts) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new((network, node, name)));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let facts = facts.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                let answer = answer(&facts.0, &facts.1, &facts.2);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(TIMEOUT).keep_alive(false);
            let _ = tokio::time::timeout(TIMEOUT, http.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
}

/// As kube-proxy's answer.
fn answer(network: &ServiceNetwork, node: &str, (namespace, name): &Name) -> Response<Full<Bytes>> {
    let own = |slice: &k8s_openapi::api::discovery::v1::EndpointSlice| {
        let of = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        slice.metadata.namespace.as_ref() == Some(namespace) && of == Some(name)
    };
    let slices = network.slices.filter(own);
    let count = ready_on(slices.iter().map(|slice| &**slice), node);
    let body = json!({
        "service": {"namespace": namespace, "name": name}, "localEndpoints": count, "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = if count > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(count));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn service(kind: &str, policy: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "b"},
            "spec": {"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 31_000}}))
        .unwrap()
    }

    #[test]
    fn only_local_balancers_have_one() {
        assert_eq!(port_of(&service("LoadBalancer", "Local")), Some((31_000, ("a".to_owned(), "b".to_owned()))));
        assert_eq!(port_of(&service("LoadBalancer", "Cluster")), None);
        assert_eq!(port_of(&service("NodePort", "Local")), None);
    }

    #[test]
    fn it_says_what_the_node_has() {
        let network = ServiceNetwork {
            services: mainstay_informer::Cache::new(),
            slices: mainstay_informer::Cache::new(),
            pods: mainstay_informer::Cache::new(),
        };
        let name = ("a".to_owned(), "b".to_owned());
        assert_eq!(answer(&network, "n1", &name).status(), StatusCode::SERVICE_UNAVAILABLE);
        let slice = json!({"metadata": {"namespace": "a", "name": "b-1", "resourceVersion": "1", "labels": {SERVICE_NAME: "b"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1"},
                {"addresses": ["10.0.0.2"], "nodeName": "n1", "conditions": {"ready": false}}]});
        network.slices.observe(serde_json::from_value(slice).unwrap());
        let here = answer(&network, "n1", &name);
        assert_eq!(
            (here.status(), here.headers()["x-load-balancing-endpoint-weight"].as_bytes()),
            (StatusCode::OK, &b"1"[..])
        );
        assert_eq!(answer(&network, "n2", &name).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
