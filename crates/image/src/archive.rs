//! Images in files: OCI image layouts and what `docker save` writes, in a tar archive, plain or compressed.
//!
//! Flow of an import: the archive's files go to a directory of their own (nothing but plain files, and no names that lead
//! out of it) → `manifest.json` (Docker) or `index.json` (OCI) says what there is → every image is added to the store as if
//! it had been pulled. An export is an OCI image layout with Docker's `manifest.json` beside it, which both can read.
//!
//! Sources: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>,
//! <https://docs.docker.com/reference/cli/docker/image/save/>.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use crate::digest::{Digest, HashingReader};
use crate::layer;
use crate::manifest::{
    CONFIG_TYPE, Descriptor, Document, ImageConfig, LAYER_TYPE, MANIFEST_TYPE, ManifestError, architecture,
};
use crate::reference::{InvalidName, Reference};
use crate::store::{Image, Record, Store, StoreError};

/// The largest document of an archive, in bytes.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Where image layouts note an image's name; the second is containerd's, with the registry.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Why an archive was not imported or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// An entry that leads elsewhere.
    #[error("the archive's entry {0:?} leads out of it; the archive is refused")]
    Outside(PathBuf),
    /// Neither of the two formats.
    #[error("the archive is neither an OCI image layout (index.json) nor one of `docker save` (manifest.json)")]
    Format,
    /// A part that the archive names but does not have.
    #[error("the archive has no {0}")]
    Missing(String),
    /// A document of it.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The image has no name of its own.
    #[error("the archive does not say what its image is called; give it a name")]
    Nameless,
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Writing an archive.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// Adds the images of an archive, under `name` if given; answers their names. Blocking.
///
/// # Errors
/// See [`ArchiveError`].
pub fn import(store: &Store, archive: impl Read, name: Option<&Reference>) -> Result<Vec<String>, ArchiveError> {
    let _lock = store.share()?;
    let directory = store.temporary();
    fs::create_dir(&directory).map_err(ArchiveError::Read)?;
    let imported = extract(archive, &directory).and_then(|()| add(store, &directory, name));
    let _ = fs::remove_dir_all(&directory);
    imported
}

/// Puts an archive's plain files into a directory.
fn extract(archive: impl Read, directory: &Path) -> Result<(), ArchiveError> {
    let plain = layer::decompress(archive).map_err(ArchiveError::Read)?;
    for entry in tar::Archive::new(plain).entries().map_err(ArchiveError::Read)? {
        let mut entry = entry.map_err(ArchiveError::Read)?;
        let path = entry.path().map_err(ArchiveError::Read)?.into_owned();
        let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !plain {
            return Err(ArchiveError::Outside(path));
        }
        let place = directory.join(&path);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            place.parent().map_or(Ok(()), fs::create_dir_all).map_err(ArchiveError::Read)?;
            let mut file = File::create(&place).map_err(ArchiveError::Read)?;
            io::copy(&mut entry, &mut file).map_err(ArchiveError::Read)?;
        } else if kind.is_hard_link() || kind.is_symlink() {
            // Docker wrote layers that are equal as links; they lead to another file of the archive.
            let target = entry.link_name().map_err(ArchiveError::Read)?.unwrap_or_default().into_owned();
            let target = if kind.is_symlink() { beside(&path, &target) } else { Some(target) };
            let target = target.filter(|target| target.components().all(|part| matches!(part, Component::Normal(_))));
            let target = target.ok_or_else(|| ArchiveError::Outside(path.clone()))?;
            place.parent().map_or(Ok(()), fs::create_dir_all).map_err(ArchiveError::Read)?;
            fs::hard_link(directory.join(target), &place).map_err(ArchiveError::Read)?;
        }
    }
    Ok(())
}

/// Where a relative link in an archive leads; `None` if out of it.
fn beside(link: &Path, target: &Path) -> Option<PathBuf> {
    let mut path = link.parent()?.to_owned();
    for part in target.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(path)
}

fn add(store: &Store, directory: &Path, name: Option<&Reference>) -> Result<Vec<String>, ArchiveError> {
    if directory.join("manifest.json").is_file() {
        return add_docker(store, directory, name);
    }
    if !directory.join("index.json").is_file() {
        return Err(ArchiveError::Format);
    }
    let index = Document::read(&document(directory, "index.json")?)?;
    let mut added = Vec::new();
    for entry in &index.manifests {
        let noted = NAMES.iter().find_map(|key| entry.annotations.get(*key));
        let own = noted.and_then(|text| text.parse::<Reference>().ok());
        let image = name.cloned().or(own).ok_or(ArchiveError::Nameless)?;
        added.push(add_layout(store, directory, entry, &image)?);
    }
    Ok(added)
}

fn document(directory: &Path, name: &str) -> Result<Vec<u8>, ArchiveError> {
    let file = File::open(directory.join(name)).map_err(|_| ArchiveError::Missing(name.to_owned()))?;
    let mut text = Vec::new();
    file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut text).map_err(ArchiveError::Read)?;
    Ok(text)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A document of a layout, checked.
fn checked(directory: &Path, digest: &Digest) -> Result<Vec<u8>, ArchiveError> {
    let text = document(directory, &blob_name(digest))?;
    let found = Digest::of(&text);
    if found == *digest { Ok(text) } else { Err(StoreError::Digest { found, wanted: digest.clone() }.into()) }
}

/// One image of an OCI layout.
fn add_layout(store: &Store, directory: &Path, entry: &Descriptor, name: &Reference) -> Result<String, ArchiveError> {
    let mut text = checked(directory, &entry.digest)?;
    let mut found = Document::read(&text)?;
    if let Some(chosen) = found.choose(architecture())? {
        text = checked(directory, &chosen.digest)?;
        found = Document::read(&text)?;
    }
    let config = found.config.clone().ok_or(ManifestError::NotAnImage)?;
    let config_text = checked(directory, &config.digest)?;
    let read = ImageConfig::read(&config_text, found.layers.len(), architecture())?;
    for (layer, diff) in found.layers.iter().zip(&read.rootfs.diff_ids) {
        let path = directory.join(blob_name(&layer.digest));
        let (digest, _) = take_layer(store, &path, Some(diff))?;
        if digest != layer.digest {
            return Err(StoreError::Digest { found: digest, wanted: layer.digest.clone() }.into());
        }
    }
    finish(store, name, &text, &config_text, entry.digest.clone(), &found)
}

/// Moves a layer's blob into the store and unpacks it; answers its digest and length.
fn take_layer(store: &Store, path: &Path, diff: Option<&Digest>) -> Result<(Digest, u64), ArchiveError> {
    let missing = || ArchiveError::Missing(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let file = File::open(path).map_err(|_| missing())?;
    let length = file.metadata().map_err(ArchiveError::Read)?.len();
    let digest = HashingReader::new(file).finish().map_err(ArchiveError::Read)?;
    let blob = store.blob(&digest);
    if !blob.exists() {
        let draft = store.temporary();
        fs::copy(path, &draft).and_then(|_| fs::rename(&draft, &blob)).map_err(ArchiveError::Read)?;
    }
    if diff.is_none_or(|diff| !store.has_layer(diff)) {
        store.unpack(&blob, diff)?;
    }
    Ok((digest, length))
}

fn finish(
    store: &Store,
    name: &Reference,
    manifest: &[u8],
    config: &[u8],
    repo_digest: Digest,
    found: &Document,
) -> Result<String, ArchiveError> {
    let config = store.add_blob(config)?;
    let manifest = store.add_blob(manifest)?;
    let size = found.layers.iter().map(|layer| layer.size).sum();
    store.name(&Record { name: name.to_string(), manifest, repo_digest, config, size })?;
    Ok(name.to_string())
}

/// One image of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn add_docker(store: &Store, directory: &Path, name: Option<&Reference>) -> Result<Vec<String>, ArchiveError> {
    let text = document(directory, "manifest.json")?;
    let saved: Vec<Saved> =
        serde_json::from_slice(&text).map_err(|error| ManifestError::Read("manifest.json", error))?;
    let inside = |path: &str| {
        let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if plain { Ok(directory.join(path)) } else { Err(ArchiveError::Outside(PathBuf::from(path))) }
    };
    let mut added = Vec::new();
    for image in saved {
        inside(&image.config)?;
        let config = document(directory, &image.config)?;
        let read = ImageConfig::read(&config, image.layers.len(), architecture())?;
        let mut layers = Vec::new();
        for (layer, diff) in image.layers.iter().zip(&read.rootfs.diff_ids) {
            let (digest, size) = take_layer(store, &inside(layer)?, Some(diff))?;
            let media_type = if digest == *diff { LAYER_TYPE.to_owned() } else { format!("{LAYER_TYPE}+gzip") };
            layers.push(Descriptor { media_type, digest, size, platform: None, annotations: BTreeMap::new() });
        }
        let about = |media_type: &str, content: &[u8]| Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(content),
            size: content.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let manifest = Document {
            schema_version: 2,
            media_type: Some(MANIFEST_TYPE.to_owned()),
            config: Some(about(CONFIG_TYPE, &config)),
            layers,
            manifests: Vec::new(),
        };
        let text = serde_json::to_vec(&manifest).map_err(|error| ManifestError::Read("manifest", error))?;
        let tags = image.repo_tags.unwrap_or_default();
        let names: Vec<Reference> = match name {
            Some(name) => vec![name.clone()],
            None => tags.iter().map(|tag| tag.parse()).collect::<Result<_, _>>()?,
        };
        if names.is_empty() {
            return Err(ArchiveError::Nameless);
        }
        for name in names {
            added.push(finish(store, &name, &text, &config, Digest::of(&text), &manifest)?);
        }
    }
    Ok(added)
}

/// Writes an image as an archive that [`import`] and other tools read. Blocking.
///
/// # Errors
/// See [`ArchiveError`].
pub fn export(store: &Store, image: &Image, to: impl Write) -> Result<(), ArchiveError> {
    let _lock = store.share()?;
    let record = &image.record;
    let manifest = store.read(&record.manifest)?;
    let found = Document::read(&manifest)?;
    let mut archive = tar::Builder::new(to);
    let entry = json!({"mediaType": MANIFEST_TYPE, "digest": record.manifest, "size": manifest.len(),
        "annotations": {NAMES[0]: record.name}});
    let layers: Vec<_> = found.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
    let saved = json!([{"Config": blob_name(&record.config), "RepoTags": [record.name], "Layers": layers}]);
    for (name, text) in [
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
        ("index.json", json!({"schemaVersion": 2, "manifests": [entry]})),
        ("manifest.json", saved),
    ] {
        append(&mut archive, name, text.to_string().as_bytes()).map_err(ArchiveError::Write)?;
    }
    let documents = [&record.manifest, &record.config].into_iter();
    for digest in documents.chain(found.layers.iter().map(|layer| &layer.digest)) {
        let mut file = File::open(store.blob(digest)).map_err(|_| ArchiveError::Missing(blob_name(digest)))?;
        archive.append_file(blob_name(digest), &mut file).map_err(ArchiveError::Write)?;
    }
    archive.into_inner().and_then(|mut to| to.flush()).map_err(ArchiveError::Write)
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, text: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, name, text)
}
