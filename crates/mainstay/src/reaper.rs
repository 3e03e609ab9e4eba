//! Takes away the directories of deleted volumes of the built-in provisioner.
//!
//! A volume that was made by it carries a finalizer until its directory is gone. The directories lie on this machine, below one
//! directory; nothing outside it is ever removed.
//!
//! Deliberately absent: directories on other machines; their volumes stay until somebody there removes directory and finalizer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use mainstay_informer::{Cache, Scope};
use serde_json::json;

/// Held until the directory is gone.
const FINALIZER: &str = "mainstay.dev/volume-data";
/// The wait before another attempt.
const RETRY: Duration = Duration::from_secs(5);

/// Removes directories below `root` as their volumes are deleted, for ever.
pub async fn run(client: Client, root: PathBuf) {
    let volumes = Cache::<PersistentVolume>::new();
    let mut changes = volumes.subscribe();
    let watch = volumes.clone().run(client.clone(), Scope::default());
    let work = async {
        loop {
            let mut failed = false;
            for volume in volumes.filter(is_due) {
                if let Err(error) = take_away(&client, &root, &volume).await {
                    tracing::warn!(volume = volume.name_any(), %error, "the volume's directory could not be removed");
                    failed = true;
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    };
    tokio::join!(watch, work);
}

/// Whether a volume only waits for its directory to go.
fn is_due(volume: &PersistentVolume) -> bool {
    let finalizers = volume.finalizers();
    volume.metadata.deletion_timestamp.is_some() && finalizers.len() == 1 && finalizers[0] == FINALIZER
}

async fn take_away(client: &Client, root: &Path, volume: &PersistentVolume) -> Result<(), Box<dyn std::error::Error>> {
    let source = volume.spec.as_ref().and_then(|spec| spec.host_path.as_ref());
    if let Some(path) = source.map(|source| PathBuf::from(&source.path)).filter(|path| is_ours(root, path)) {
        match tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await? {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    let meta = json!({"resourceVersion": volume.metadata.resource_version, "finalizers": []});
    let patch = Patch::Merge(json!({"metadata": meta}));
    Api::<PersistentVolume>::all(client.clone()).patch(&volume.name_any(), &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Whether a path is a directory directly below `root`, written plainly.
fn is_ours(root: &Path, path: &Path) -> bool {
    path.parent() == Some(root) && path.file_name().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_removed() {
        let root = Path::new("/data/volumes");
        assert!(is_ours(root, Path::new("/data/volumes/pvc-1")));
        for path in ["/data/volumes", "/data/volumes/..", "/data/volumes/a/b", "/data/volumes/../x", "/etc", "/"] {
            assert!(!is_ours(root, Path::new(path)), "{path}");
        }
    }
}
