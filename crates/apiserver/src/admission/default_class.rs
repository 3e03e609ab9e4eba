//! DefaultStorageClass and DefaultIngressClass: what names no class gets the one that is marked as default.
//!
//! Source: <https://kubernetes.io/docs/concepts/storage/dynamic-provisioning/#defaulting-behavior>,
//! <https://kubernetes.io/docs/concepts/services-networking/ingress/#default-ingress-class>.

use mainstay_model::meta;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use crate::api::Api;

const STORAGE: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const INGRESS: &[&str] = &["ingressclass.kubernetes.io/is-default-class"];

/// A new claim. An empty name is a choice, too: no class.
pub(super) async fn storage(api: &Api, claim: &mut Value) -> Result<(), ApiError> {
    let old_style = meta::annotation(claim, "volume.beta.kubernetes.io/storage-class").is_some();
    if claim["spec"]["storageClassName"].is_null()
        && !old_style
        && let Some(name) = default(api, "StorageClass", STORAGE).await?
    {
        claim["spec"]["storageClassName"] = json!(name);
    }
    Ok(())
}

/// A new Ingress.
pub(super) async fn ingress(api: &Api, ingress: &mut Value) -> Result<(), ApiError> {
    let old_style = meta::annotation(ingress, "kubernetes.io/ingress.class").is_some();
    if ingress["spec"]["ingressClassName"].is_null()
        && !old_style
        && let Some(name) = default(api, "IngressClass", INGRESS).await?
    {
        ingress["spec"]["ingressClassName"] = json!(name);
    }
    Ok(())
}

/// The newest of the classes that are marked.
async fn default(api: &Api, kind: &str, marks: &[&str]) -> Result<Option<String>, ApiError> {
    let all = api.followed.list(kind, None).await?;
    let marked = all.iter().filter(|class| marks.iter().any(|mark| meta::annotation(class, mark) == Some("true")));
    let mut marked: Vec<&Value> = marked.map(|class| &**class).collect();
    marked.sort_by_key(|class| (std::cmp::Reverse(meta::creation_timestamp(class)), meta::name(class)));
    Ok(marked.first().map(|class| meta::name(class).to_owned()))
}
