//! ServiceAccount: every pod runs as an account of its namespace, and gets a token of it to speak to the API.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>.

use std::time::Duration;

use mainstay_model::meta;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::{Review, forbidden};
use crate::api::Api;
use crate::rest;

const DEFAULT: &str = "default";
/// Where programs look for their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How long a token lives before the node asks for a new one.
const TOKEN_SECONDS: u32 = 3607;
/// A new namespace's default account is made a moment later than the namespace: how often and how long to look for it.
const LOOK_EVERY: Duration = Duration::from_millis(25);
const LOOKS: usize = 80;

pub(super) async fn mutate(api: &Api, review: Review<'_>, pod: &mut Value) -> Result<(), ApiError> {
    // A mirror pod stands for one that a node runs by itself, without the API.
    if meta::annotation(pod, MIRROR).is_some() {
        return Ok(());
    }
    let name =
        meta::str_at(pod, "spec.serviceAccountName").filter(|name| !name.is_empty()).unwrap_or(DEFAULT).to_owned();
    let namespace = review.call.namespace.as_deref().unwrap_or_default();
    let Some(account) = find(api, namespace, &name).await? else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(forbidden(review, pod, &why));
    };
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = json!(name);
    spec["serviceAccount"] = json!(name);
    if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty) && account["imagePullSecrets"].is_array() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let wanted = spec["automountServiceAccountToken"].as_bool().or(account["automountServiceAccountToken"].as_bool());
    if api.settings.mount_tokens && wanted != Some(false) {
        // When a webhook added a container, the volume is there already.
        let own = |volume: &&Value| volume["name"].as_str().is_some_and(|name| name.starts_with(VOLUME_PREFIX));
        let known = meta::list_at(spec, "volumes").iter().find(own).and_then(|volume| volume["name"].as_str());
        let name =
            known.map_or_else(|| format!("{VOLUME_PREFIX}{}", meta::random_suffix(fastrand::u64(..))), str::to_owned);
        mount(spec, &name);
    }
    Ok(())
}

async fn find(api: &Api, namespace: &str, name: &str) -> Result<Option<Value>, ApiError> {
    for _ in 0..LOOKS {
        let found = rest::find(api, "ServiceAccount", Some(namespace), name).await?;
        if found.is_some() || name != DEFAULT {
            return Ok(found);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(None)
}

/// Mounts a volume with token, authority and namespace into every container that has nothing there.
fn mount(spec: &mut Value, volume: &str) {
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            let taken = meta::list_at(container, "volumeMounts").iter().any(|mount| mount["mountPath"] == MOUNT_PATH);
            if !taken {
                push(container, "volumeMounts", json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                used = true;
            }
        }
    }
    let there = meta::list_at(spec, "volumes").iter().any(|other| other["name"] == volume);
    if used && !there {
        let sources = json!([
            {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]);
        push(spec, "volumes", json!({"name": volume, "projected": {"defaultMode": 420, "sources": sources}}));
    }
}

fn push(object: &mut Value, field: &str, item: Value) {
    match object[field].as_array_mut() {
        Some(list) => list.push(item),
        None => object[field] = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_where_nothing_is() {
        let mut spec = json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]});
        mount(&mut spec, "v");
        assert_eq!(
            spec["containers"][0]["volumeMounts"][0],
            json!({"name": "v", "readOnly": true, "mountPath": MOUNT_PATH})
        );
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert_eq!(spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
        let mut all_taken = json!({"containers": [spec["containers"][1].clone()]});
        mount(&mut all_taken, "v");
        assert!(all_taken["volumes"].is_null());
    }
}
