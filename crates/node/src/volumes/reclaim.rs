//! Takes away the directories of volumes that the built-in provisioner made, when the volumes are deleted.
//!
//! Flow: PersistentVolumes are cached; one that is being deleted and still carries [`FINALIZER`] loses its directory, then the
//! finalizer, and so the object goes after the data. Level-triggered: whatever fails is tried again at the next look.
//!
//! Guarantees: only directories directly below the provisioner's own are ever removed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mainstay_informer::{Cache, Scope};
use serde_json::json;

/// Holds a volume until its directory is gone.
const FINALIZER: &str = "mainstay.dev/volume-data";
/// How often all volumes are looked at again.
const LOOK: Duration = Duration::from_secs(10);

/// Does it for the volumes below `directory`, for ever.
pub async fn reclaim_volumes(client: Client, directory: PathBuf) {
    let volumes = Cache::<PersistentVolume>::new();
    let run = volumes.clone().run(client.clone(), Scope::default());
    let api: Api<PersistentVolume> = Api::all(client);
    let work = async {
        let mut changes = volumes.subscribe();
        loop {
            for volume in volumes.filter(|volume| data_of(volume, &directory).is_some()) {
                let Some(place) = data_of(&volume, &directory) else { continue };
                if let Err(error) = take_back(&api, &volume, &place).await {
                    tracing::warn!(volume = volume.metadata.name, error, "volume not taken back yet");
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    };
    tokio::select! {
        () = run => {}
        () = work => {}
    }
}

/// The directory of a volume that is to be taken back.
fn data_of(volume: &PersistentVolume, directory: &Path) -> Option<PathBuf> {
    let meta = &volume.metadata;
    meta.deletion_timestamp.as_ref()?;
    let finalizers = meta.finalizers.as_deref()?;
    // Others first: as long as somebody protects the volume, its data is in use.
    if finalizers != [FINALIZER] {
        return None;
    }
    let path = PathBuf::from(&volume.spec.as_ref()?.host_path.as_ref()?.path);
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    (plain && path.parent() == Some(directory) && path.file_name().is_some()).then_some(path)
}

async fn take_back(api: &Api<PersistentVolume>, volume: &PersistentVolume, place: &Path) -> Result<(), String> {
    match tokio::fs::remove_dir_all(place).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("cannot remove {}: {error}", place.display()));
        }
        _ => {}
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let meta =
        json!({"uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version, "finalizers": null});
    let patch = Patch::Merge(json!({ "metadata": meta }));
    match api.patch(name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        other => other.map(drop).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_provisioners_own_directories_are_taken_back() {
        let of = |path: &str, finalizers: serde_json::Value, deleted: bool| {
            let time = deleted.then_some("2026-01-01T00:00:00Z");
            let volume = json!({"metadata": {"name": "v", "finalizers": finalizers, "deletionTimestamp": time},
                "spec": {"hostPath": {"path": path}}});
            data_of(&serde_json::from_value(volume).unwrap(), Path::new("/data/volumes"))
        };
        let own = json!([FINALIZER]);
        assert_eq!(of("/data/volumes/a", own.clone(), true), Some(PathBuf::from("/data/volumes/a")));
        assert_eq!(of("/data/volumes/a", own.clone(), false), None);
        assert_eq!(of("/data/volumes/a", json!(["kubernetes.io/pv-protection", FINALIZER]), true), None);
        for path in ["/data/volumes", "/etc", "/data/volumes/../x", "/data/volumes/a/b"] {
            assert_eq!(of(path, own.clone(), true), None, "{path}");
        }
    }
}
