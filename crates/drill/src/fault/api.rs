//! Faults by the Kubernetes API: what works on any cluster.

use std::time::{Duration, Instant};

use http::{Method, Request, header};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, EvictParams, ListParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{EFFECT_PATIENCE, FaultError};
use crate::resource::FaultSettings;

/// Between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// How long draining a node may take: PodDisruptionBudgets make it wait for replacements.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn failed(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> FaultError {
    let doing = doing.into();
    move |source| FaultError::Api { doing, source: Box::new(source) }
}

/// Asks until the API answers, yes or no: a connection that breaks while a cluster is under stress is no reason to give up.
pub(super) async fn insist<T>(doing: &str, mut ask: impl AsyncFnMut() -> kube::Result<T>) -> Result<T, FaultError> {
    let since = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error @ kube::Error::Api(_)) => return Err(failed(doing)(error)),
            Err(error) if since.elapsed() > EFFECT_PATIENCE => return Err(failed(doing)(error)),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Whether the API said that the object is not there.
pub(super) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Deletes a pod without grace: its processes get SIGKILL, and its owner makes another.
pub(super) async fn kill_pod(client: &Client, namespace: &str, name: &str) -> Result<String, FaultError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let before = pods.get(name).await.map_err(failed(format!("get pod {namespace}/{name}")))?.uid();
    let without_grace = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete(name, &without_grace).await.map_err(failed(format!("delete pod {namespace}/{name}")))?;
    let since = Instant::now();
    loop {
        match pods.get(name).await {
            Err(error) if is_gone(&error) => break,
            Ok(pod) if pod.uid() != before || pod.metadata.deletion_timestamp.is_some() => break,
            _ => {}
        }
        if since.elapsed() > EFFECT_PATIENCE {
            return Err(no_effect(format!("the deletion of pod {name}"), "it is still there".to_owned()));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(format!("pod/{namespace}/{name} deleted without grace"))
}

pub(super) fn no_effect(fault: String, seen: String) -> FaultError {
    FaultError::NoEffect { fault, seconds: EFFECT_PATIENCE.as_secs(), seen }
}

/// The pod template of a Deployment, as it is.
pub(super) async fn template(client: &Client, namespace: &str, name: &str) -> Result<Value, FaultError> {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
    let ask = async || client.request(Request::get(&path).body(Vec::new()).map_err(kube::Error::HttpError)?).await;
    let object: Value = insist(&format!("get deployment {namespace}/{name}"), ask).await?;
    Ok(object["spec"]["template"].clone())
}

/// Puts a pod template in place of the one that is there.
pub(super) async fn set_template(
    client: &Client,
    namespace: &str,
    name: &str,
    template: &Value,
) -> Result<(), FaultError> {
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}?fieldManager=mainstay-drill");
    let ask = async || {
        let request = Request::builder().method(Method::PATCH).uri(&path);
        let request = request.header(header::CONTENT_TYPE, "application/json-patch+json");
        let body = patch.to_string().into_bytes();
        client.request::<Value>(request.body(body).map_err(kube::Error::HttpError)?).await
    };
    insist(&format!("change the pod template of deployment {namespace}/{name}"), ask).await.map(drop)
}

/// The image whose pods have this program, unless the settings name another.
const IMAGE: &str = "mainstay.dev/host";

/// A template whose pods start and never become ready: they are probed at a port where nobody listens. With a `status`, they
/// become ready and answer that; with a `template`, that is merged in instead.
///
/// # Errors
/// When no container says where it listens.
pub(super) fn bad_template(template: &Value, settings: &FaultSettings) -> Result<Value, String> {
    let mut bad = template.clone();
    let containers = bad["spec"]["containers"].as_array_mut();
    match (settings.status, &settings.template) {
        (_, Some(merge)) => merge_into(&mut bad, merge),
        (Some(status), None) => {
            let listens = containers.into_iter().flatten().find_map(|container| Some((port(container)?, container)));
            let (port, container) =
                listens.ok_or("no container of it says at which port it listens; use settings.template")?;
            container["image"] = json!(settings.image.as_deref().unwrap_or(IMAGE));
            container["command"] = json!([
                "mainstay",
                "demo",
                "broken",
                "--quiet",
                "--listen",
                format!("0.0.0.0:{port}"),
                "--status",
                status.to_string()
            ]);
            // What only the program itself could be asked for by commands is left out.
            let is_command = |part: &Value| ["exec", "postStart", "preStop"].iter().any(|word| !part[word].is_null());
            if let Some(fields) = container.as_object_mut() {
                fields.remove("args");
                fields.retain(|name, part| !(name.ends_with("Probe") || name == "lifecycle") || !is_command(part));
            }
        }
        (None, None) => {
            for container in containers.into_iter().flatten() {
                container["readinessProbe"] =
                    json!({"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1});
            }
        }
    }
    Ok(bad)
}

/// Where a container says that it listens: its first port, else that of a probe.
fn port(container: &Value) -> Option<u64> {
    let probes = ["readinessProbe", "livenessProbe", "startupProbe"].iter();
    let probed = probes.flat_map(|probe| ["httpGet", "tcpSocket"].map(|how| &container[probe][how]["port"]));
    [&container["ports"][0]["containerPort"]].into_iter().chain(probed).find_map(Value::as_u64)
}

/// JSON merge patch (RFC 7396).
fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(object) = target.as_object_mut() {
                object.remove(key);
            }
        } else {
            merge_into(&mut target[key], value);
        }
    }
}

/// The template with a note of the moment, as `kubectl rollout restart` makes it.
pub(super) fn restarted_template(template: &Value, now: jiff::Timestamp) -> Value {
    let mut template = template.clone();
    template["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = json!(now.to_string());
    template
}

/// Waits until the Deployment's controller has made a pod of the new template; answers with what shows it.
pub(super) async fn release_shows(client: &Client, namespace: &str, name: &str) -> Result<String, FaultError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let since = Instant::now();
    loop {
        let doing = format!("get deployment {namespace}/{name}");
        let deployment = insist(&doing, async || deployments.get(name).await).await?;
        let status = deployment.status.unwrap_or_default();
        let observed = status.observed_generation >= deployment.metadata.generation;
        let updated = status.updated_replicas.unwrap_or_default();
        if observed && updated > 0 {
            return Ok(format!(
                "{updated} pods of the new template, {} Ready in all",
                status.ready_replicas.unwrap_or(0)
            ));
        }
        if since.elapsed() > EFFECT_PATIENCE {
            return Err(no_effect(format!("the release of {name}"), "no pod of the new template".to_owned()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Closes a node to new pods, or opens it again.
pub(super) async fn set_cordon(client: &Client, node: &str, closed: bool) -> Result<(), FaultError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let ask = async || {
        let result = if closed { nodes.cordon(node).await } else { nodes.uncordon(node).await };
        match result {
            Err(error) if !closed && is_gone(&error) => Ok(()),
            other => other.map(drop),
        }
    };
    insist(&format!("cordon node {node}"), ask).await
}

/// Evicts all pods of a closed node as `kubectl drain` does, heeding PodDisruptionBudgets; pods of DaemonSets and mirror pods
/// stay. Answers when they are gone.
pub(super) async fn drain(client: &Client, node: &str) -> Result<String, FaultError> {
    let pods: Api<Pod> = Api::all(client.clone());
    let (since, mut evicted) = (Instant::now(), 0);
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let mut asked = std::collections::HashSet::new();
    loop {
        let there = insist(&format!("list the pods of node {node}"), async || pods.list(&on_node).await).await?;
        let due: Vec<&Pod> = there.iter().filter(|pod| is_drained(pod)).collect();
        if due.is_empty() {
            return Ok(format!("{evicted} pods evicted from {node}"));
        }
        for pod in due {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            if pod.metadata.deletion_timestamp.is_some() || asked.contains(&pod.uid()) {
                continue;
            }
            let of: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            match of.evict(&name, &EvictParams::default()).await {
                Ok(_) => {
                    asked.insert(pod.uid());
                    evicted += 1;
                }
                // 429: a budget says not now. 404: gone already. No answer: asked again in the next round.
                Err(kube::Error::Api(status)) if status.code == 429 || status.code == 404 => {}
                Err(error) if !matches!(error, kube::Error::Api(_)) => {}
                Err(error) => return Err(failed(format!("evict pod {namespace}/{name}"))(error)),
            }
        }
        if since.elapsed() > DRAIN_PATIENCE {
            let seen = "pods are still there; does a PodDisruptionBudget allow none to go?".to_owned();
            let seconds = DRAIN_PATIENCE.as_secs();
            return Err(FaultError::NoEffect { fault: format!("the drain of {node}"), seconds, seen });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is_drained(pod: &Pod) -> bool {
    let by_daemon_set = pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet");
    let is_mirror = pod.annotations().contains_key("kubernetes.io/config.mirror");
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    !by_daemon_set && !is_mirror && !matches!(phase, "Succeeded" | "Failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_release_starts_and_never_becomes_ready() {
        let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [
            {"name": "a", "image": "x", "readinessProbe": {"httpGet": {"path": "/readyz"}}}]}});
        let bad = bad_template(&template, &FaultSettings::default()).unwrap_or_default();
        assert_eq!(bad["spec"]["containers"][0]["readinessProbe"]["tcpSocket"]["port"], 1);
        assert_eq!(bad["spec"]["containers"][0]["image"], "x");
        let merge = json!({"metadata": {"labels": null}, "spec": {"hostNetwork": true}});
        let settings = FaultSettings { template: Some(merge), ..FaultSettings::default() };
        let merged = bad_template(&template, &settings).unwrap_or_default();
        assert_eq!(merged["metadata"], json!({}));
        assert_eq!(merged["spec"]["hostNetwork"], true);
        assert_ne!(restarted_template(&template, jiff::Timestamp::UNIX_EPOCH), template);
    }

    #[test]
    fn a_release_that_errs_listens_where_the_good_one_did() {
        let settings = FaultSettings { status: Some(500), ..FaultSettings::default() };
        let template = json!({"spec": {"containers": [
            {"name": "helper"},
            {"name": "a", "image": "x", "args": ["-v"], "ports": [{"containerPort": 8080}],
             "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}},
             "livenessProbe": {"exec": {"command": ["ask"]}}, "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}}}]}});
        let bad = bad_template(&template, &settings).unwrap_or_default();
        let container = &bad["spec"]["containers"][1];
        assert_eq!(container["command"][5], "0.0.0.0:8080");
        assert_eq!((container["image"].as_str(), &container["args"]), (Some(IMAGE), &Value::Null));
        assert!(container["readinessProbe"].is_object() && container["livenessProbe"].is_null());
        assert!(container["lifecycle"].is_null() && bad["spec"]["containers"][0] == json!({"name": "helper"}));
        let silent = json!({"spec": {"containers": [{"name": "a"}]}});
        assert!(bad_template(&silent, &settings).is_err_and(|reason| reason.contains("listens")));
    }
}
