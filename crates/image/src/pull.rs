//! Pulls an image: manifest, configuration, and the layers that are not here yet, several at a time.
//!
//! Guarantees: every byte is checked against the digest by which it was asked for before it is used; the name is written
//! last, so that an image is here whole or not at all; layers that are here already, of whatever image, are not fetched.

use std::path::Path;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::BodyExt as _;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use crate::digest::{Digest, Hasher};
use crate::manifest::{Descriptor, Document, ImageConfig, ManifestError, architecture};
use crate::reference::Reference;
use crate::registry::{Registry, RegistryError};
use crate::store::{Image, Record, Store, StoreError};

/// Layers fetched at a time, as by the container runtimes.
const PARALLEL: usize = 3;
/// A body that brings nothing for this long is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts to fetch one layer.
const ATTEMPTS: u32 = 3;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry.
    #[error("failed to pull and unpack image \"{image}\"")]
    Registry {
        /// The image.
        image: String,
        /// What it said.
        #[source]
        source: RegistryError,
    },
    /// The manifest.
    #[error("image \"{image}\" cannot be used")]
    Manifest {
        /// The image.
        image: String,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// The body stopped coming.
    #[error("the download of {0} broke off")]
    Broken(Digest, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// More or less than announced.
    #[error("{digest} has {found} bytes instead of {wanted}")]
    Length {
        /// Of what.
        digest: Digest,
        /// What came.
        found: u64,
        /// What was announced.
        wanted: u64,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk.
    #[error("cannot write what is downloaded")]
    Disk(#[source] std::io::Error),
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The image has this many layers to fetch, of so many bytes together.
    Begins {
        /// Layers.
        layers: usize,
        /// Bytes.
        bytes: u64,
    },
    /// One is here and unpacked.
    Layer {
        /// Its digest.
        digest: Digest,
        /// Its bytes.
        bytes: u64,
    },
}

/// Pulls an image into a store.
///
/// # Errors
/// See [`PullError`].
pub async fn pull(
    store: &Store,
    registry: &Registry,
    image: &Reference,
    told: &(dyn Fn(Progress) + Sync),
) -> Result<Image, PullError> {
    let shared = store.clone();
    let lock = tokio::task::spawn_blocking(move || shared.share()).await;
    let _lock = lock.map_err(|error| PullError::Disk(error.into()))??;
    let of_registry = |source| PullError::Registry { image: image.to_string(), source };
    let of_manifest = |source| PullError::Manifest { image: image.to_string(), source };

    // The manifest, by way of the index if there is one.
    let text = registry.manifest(image, &image.version()).await.map_err(of_registry)?;
    let repo_digest = check(&text, image.digest.as_ref())?;
    let mut document = Document::read(&text).map_err(of_manifest)?;
    let mut text = text;
    if let Some(chosen) = document.choose(architecture()).map_err(of_manifest)? {
        text = registry.manifest(image, &chosen.digest.to_string()).await.map_err(of_registry)?;
        check(&text, Some(&chosen.digest))?;
        document = Document::read(&text).map_err(of_manifest)?;
    }
    let config = document.config.as_ref().ok_or(ManifestError::NotAnImage).map_err(of_manifest)?;
    let config_text = registry.document(image, &config.digest).await.map_err(of_registry)?;
    check(&config_text, Some(&config.digest))?;
    let read = ImageConfig::read(&config_text, document.layers.len(), architecture()).map_err(of_manifest)?;

    // The layers that are not here.
    let pairs = document.layers.iter().zip(&read.rootfs.diff_ids);
    let missing: Vec<_> =
        pairs.filter(|(layer, diff)| !store.has_layer(diff) || !store.blob(&layer.digest).exists()).collect();
    told(Progress::Begins { layers: missing.len(), bytes: missing.iter().map(|(layer, _)| layer.size).sum() });
    let fetches = stream::iter(missing).map(|(layer, diff)| async move {
        fetch(store, registry, image, layer, diff).await?;
        told(Progress::Layer { digest: layer.digest.clone(), bytes: layer.size });
        Ok::<_, PullError>(())
    });
    fetches.buffer_unordered(PARALLEL).try_collect::<()>().await?;

    // The name last.
    store.add_blob(&config_text)?;
    let manifest = store.add_blob(&text)?;
    let size = document.layers.iter().map(|layer| layer.size).sum();
    let record = Record { name: image.to_string(), manifest, repo_digest, config: config.digest.clone(), size };
    store.name(&record)?;
    store.find(image).ok_or_else(|| PullError::Disk(std::io::Error::other("the image vanished while it was pulled")))
}

/// The digest of a text, which has to be the one wanted.
fn check(text: &[u8], wanted: Option<&Digest>) -> Result<Digest, StoreError> {
    let found = Digest::of(text);
    match wanted {
        Some(wanted) if *wanted != found => Err(StoreError::Digest { found, wanted: wanted.clone() }),
        _ => Ok(found),
    }
}

async fn fetch(
    store: &Store,
    registry: &Registry,
    image: &Reference,
    layer: &Descriptor,
    diff: &Digest,
) -> Result<(), PullError> {
    let blob = store.blob(&layer.digest);
    if !blob.exists() {
        let draft = store.temporary();
        let mut attempt = 1;
        loop {
            match download(registry, image, layer, &draft).await {
                Ok(()) => break,
                Err(PullError::Broken(digest, error)) if attempt < ATTEMPTS => {
                    tracing::debug!(%digest, error, attempt, "layer asked for again");
                    attempt += 1;
                }
                Err(error) => {
                    let _ = std::fs::remove_file(&draft);
                    return Err(error);
                }
            }
        }
        std::fs::rename(&draft, &blob).map_err(PullError::Disk)?;
    }
    let (store, diff) = (store.clone(), diff.clone());
    let unpacked = tokio::task::spawn_blocking(move || store.unpack(&blob, Some(&diff))).await;
    unpacked.map_err(|error| PullError::Disk(error.into()))??;
    Ok(())
}

async fn download(registry: &Registry, image: &Reference, layer: &Descriptor, draft: &Path) -> Result<(), PullError> {
    let of_registry = |source| PullError::Registry { image: image.to_string(), source };
    let mut body = registry.blob(image, &layer.digest).await.map_err(of_registry)?.into_body();
    let mut file = File::create(draft).await.map_err(PullError::Disk)?;
    let (mut hasher, mut length) = (Hasher::default(), 0);
    loop {
        let broken = |error| PullError::Broken(layer.digest.clone(), error);
        let frame = match tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await {
            Ok(None) => break,
            Ok(Some(frame)) => frame.map_err(|error| broken(error.into()))?,
            Err(error) => return Err(broken(error.into())),
        };
        let Some(data) = frame.data_ref() else { continue };
        length += data.len() as u64;
        if length > layer.size {
            break;
        }
        hasher.update(data);
        file.write_all(data).await.map_err(PullError::Disk)?;
    }
    file.flush().await.map_err(PullError::Disk)?;
    if length != layer.size {
        return Err(PullError::Length { digest: layer.digest.clone(), found: length, wanted: layer.size });
    }
    let found = hasher.finish();
    if found == layer.digest { Ok(()) } else { Err(StoreError::Digest { found, wanted: layer.digest.clone() }.into()) }
}
