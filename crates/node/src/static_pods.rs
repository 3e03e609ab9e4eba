//! Static pods: pods that run because a file in the node's directory says so, with or without an API server.
//!
//! Flow: [`Files::read`] turns the files of `manifests` in the node's directory (YAML or JSON, one pod each) into pods; the manager
//! runs them like all others. [`mirror`] keeps a copy of each in the API, so that people see it; deleting the copy does nothing to
//! the pod. What the pod's status is to be is written to the copy ([`of_mirror`]).
//!
//! Guarantees: a file that cannot be read leaves the pod that it stood for as it was; a file that changed is another pod, which starts
//! when the former one is down.
//!
//! Deliberately absent: manifests from a URL.
//!
//! Source: <https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use mainstay_model::defaults::apply_defaults;
use mainstay_model::meta::fnv1a_32;
use serde_json::Value;

use crate::context::Context;

/// How often files and copies are looked at; the kubelet takes twenty seconds.
pub const LOOK: Duration = Duration::from_secs(2);
/// The largest manifest that is read, in bytes, as the API takes them.
const FILE_BYTES_MAX: u64 = 3 << 20;
/// Files that are looked at; the rest is left alone.
const FILES_MAX: usize = 100;

/// Where a pod came from; the value is `file` for those that came from one.
const SOURCE: &str = "kubernetes.io/config.source";
/// Which version of the file it was made from.
const HASH: &str = "kubernetes.io/config.hash";
/// On the copy: of which version it is one.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// On the pod, never in the API: the uid of its copy.
const MIRROR_UID: &str = "mainstay.dev/mirror-uid";

/// How the uids of pods from files begin; those that the API gives never do, whatever a pod there says of itself.
const UID: &str = "static-";

/// Whether a pod came from a file.
pub fn is_static(pod: &Pod) -> bool {
    pod.metadata.uid.as_ref().is_some_and(|uid| uid.starts_with(UID))
}

/// Whether a pod of the API is the copy of one from a file.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR).is_some()
}

/// The uid under which the API knows a pod: of one from a file that of its copy, if it has one.
pub fn api_uid(pod: &Pod) -> Option<&str> {
    if is_static(pod) { annotation(pod, MIRROR_UID) } else { pod.metadata.uid.as_deref() }
}

/// A pod from a file with what the API says of its copy: what its status is, and under which uid.
pub fn of_mirror(pod: &Pod, mirror: Option<&Pod>) -> Pod {
    let mut pod = pod.clone();
    let own = mirror.filter(|mirror| annotation(mirror, MIRROR) == annotation(&pod, HASH));
    if let Some(uid) = own.and_then(|mirror| mirror.metadata.uid.clone()) {
        pod.metadata.annotations.get_or_insert_default().insert(MIRROR_UID.to_owned(), uid);
        pod.status = own.and_then(|mirror| mirror.status.clone());
    }
    pod
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The pods of a directory of manifests.
#[derive(Debug, Default)]
pub struct Files {
    /// By path: when it was changed, and the pod it stands for.
    known: BTreeMap<PathBuf, (Option<SystemTime>, Option<Arc<Pod>>)>,
}

impl Files {
    /// Where a node's manifests are.
    pub fn directory(data_dir: &Path) -> PathBuf {
        data_dir.join("manifests")
    }

    /// Looks again; answers all pods.
    pub fn read(&mut self, directory: &Path, node: &str) -> Vec<Arc<Pod>> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_manifest = |path: &PathBuf| {
            let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            let kind = path.extension().and_then(|kind| kind.to_str());
            !hidden && matches!(kind, Some("yaml" | "yml" | "json"))
        };
        let mut paths: Vec<_> = entries.filter(is_manifest).collect();
        paths.sort();
        paths.truncate(FILES_MAX);
        self.known.retain(|path, _| paths.contains(path));
        for path in paths {
            let changed = fs::metadata(&path).and_then(|meta| meta.modified()).ok();
            let before = self.known.get(&path);
            if before.is_some_and(|(known, _)| *known == changed) {
                continue;
            }
            let pod = match load(&path, node) {
                Ok(pod) => Some(Arc::new(pod)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "static pod not read; what runs of it goes on");
                    before.and_then(|(_, pod)| pod.clone())
                }
            };
            self.known.insert(path, (changed, pod));
        }
        self.known.values().filter_map(|(_, pod)| pod.clone()).collect()
    }
}

fn load(path: &Path, node: &str) -> Result<Pod, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("it has {size} bytes, more than {FILE_BYTES_MAX}"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(&text, path, node)
}

/// The pod of a manifest, as this node runs it. Pure.
fn parse(text: &str, path: &Path, node: &str) -> Result<Pod, String> {
    let mut value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if value["kind"] != "Pod" || value["apiVersion"] != "v1" {
        return Err("it holds no v1 Pod".to_owned());
    }
    apply_defaults("Pod", &mut value);
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let part = |salt: u8| fnv1a_32(format!("{salt}/{node}/{}/{text}", path.display()).into_bytes());
    let hash = format!("{:08x}{:08x}{:08x}{:08x}", part(0), part(1), part(2), part(3));
    let meta = &mut pod.metadata;
    let name = meta.name.take().filter(|name| !name.is_empty()).ok_or("the pod has no name")?;
    meta.name = Some(format!("{name}-{node}"));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    meta.uid = Some(format!("{UID}{hash}"));
    let annotations = meta.annotations.get_or_insert_default();
    annotations.remove(MIRROR);
    annotations.extend([(SOURCE.to_owned(), "file".to_owned()), (HASH.to_owned(), hash)]);
    let spec = pod.spec.as_mut().ok_or("the pod has no spec")?;
    spec.node_name = Some(node.to_owned());
    // The node may be in any state: this pod is part of it.
    let tolerates = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    spec.tolerations.get_or_insert_default().push(tolerates);
    pod.status = None;
    Ok(pod)
}

/// Keeps the copies in the API, for ever. A copy whose pod is no more is deleted, one that somebody deleted or that is of another
/// version is made anew.
pub async fn mirror(context: Arc<Context>) {
    context.pods.synced().await;
    loop {
        let wanted = context.static_pods.borrow().clone();
        for pod in context.pods.list().iter().filter(|pod| is_mirror(pod)) {
            let same = |own: &Arc<Pod>| annotation(own, HASH) == annotation(pod, MIRROR);
            let ending = pod.metadata.deletion_timestamp.is_some();
            if (ending || !wanted.iter().any(same))
                && let Err(error) = delete(&context, pod).await
            {
                tracing::debug!(%error, "the copy of a static pod is not deleted");
            }
        }
        for pod in &wanted {
            let meta = &pod.metadata;
            let (namespace, name) =
                (meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or(""));
            if context.pods.get(namespace, name).is_none()
                && let Err(error) = create(&context, pod).await
            {
                tracing::debug!(%error, name, "a static pod has no copy in the API yet");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn create(context: &Context, pod: &Pod) -> kube::Result<()> {
    let node: k8s_openapi::api::core::v1::Node =
        Api::all(context.config.client.clone()).get(&context.config.name).await?;
    let copy = copy_of(pod, &context.config.name, node.metadata.uid.as_deref().unwrap_or_default());
    let namespace = copy.metadata.namespace.clone().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(context.config.client.clone(), &namespace);
    api.create(&PostParams::default(), &copy).await.map(drop)
}

/// The copy of a static pod, owned by its node. Pure.
fn copy_of(pod: &Pod, node: &str, node_uid: &str) -> Pod {
    let mut copy = pod.clone();
    copy.metadata.uid = None;
    let hash = annotation(pod, HASH).unwrap_or_default().to_owned();
    copy.metadata.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash);
    copy.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: node_uid.to_owned(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    copy
}

async fn delete(context: &Context, pod: &Pod) -> kube::Result<()> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(context.config.client.clone(), &namespace);
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &params).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: x}]\n";

    #[test]
    fn a_file_is_a_pod_of_this_node() {
        let pod = parse(MANIFEST, Path::new("/m/web.yaml"), "node-1").unwrap();
        assert_eq!(
            (pod.metadata.name.as_deref(), pod.metadata.namespace.as_deref()),
            (Some("web-node-1"), Some("default"))
        );
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.restart_policy.as_deref()), (Some("node-1"), Some("Always")));
        assert!(is_static(&pod) && !is_mirror(&pod) && api_uid(&pod).is_none());
        let mut mirror = copy_of(&pod, "node-1", "n");
        assert!(is_mirror(&mirror) && !is_static(&mirror) && mirror.metadata.uid.is_none());
        mirror.metadata.uid = Some("m1".to_owned());
        assert_eq!(api_uid(&of_mirror(&pod, Some(&mirror))), Some("m1"));
        let other = parse(&format!("{MANIFEST}# changed\n"), Path::new("/m/web.yaml"), "node-1").unwrap();
        assert_ne!(other.metadata.uid, pod.metadata.uid, "another version is another pod");
        assert_eq!(api_uid(&of_mirror(&other, Some(&mirror))), None, "and a copy of the former one is not its copy");
        assert!(parse("kind: Service\napiVersion: v1", Path::new("/m/x.yaml"), "n").is_err());
    }

    #[test]
    fn what_cannot_be_read_leaves_the_pod_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("web.yaml");
        let touch = |text: &str, seconds: u64| {
            fs::write(&path, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::options().append(true).open(&path).unwrap().set_modified(at).unwrap();
        };
        let mut files = Files::default();
        assert!(files.read(place.path(), "n").is_empty());
        touch(MANIFEST, 1);
        fs::write(place.path().join(".hidden.yaml"), MANIFEST).unwrap();
        fs::write(place.path().join("notes.txt"), MANIFEST).unwrap();
        let first = files.read(place.path(), "n");
        assert_eq!(first.len(), 1);
        touch("kind: [", 2);
        let second = files.read(place.path(), "n");
        assert!(Arc::ptr_eq(&first[0], &second[0]));
        fs::remove_file(&path).unwrap();
        assert!(files.read(place.path(), "n").is_empty());
    }
}
