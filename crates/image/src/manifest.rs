//! Manifests, indexes and configurations: what an image says it is made of. Pure.
//!
//! Source: <https://github.com/opencontainers/image-spec/blob/main/manifest.md>, `image-index.md`, `config.md`; Docker's
//! older media types have the same shape.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The media types that are asked for: indexes and manifests, of OCI and of Docker.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The media type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an image's configuration.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// The media type of a layer that is not compressed.
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Most layers an image may have: what the kernel can stack, with room to spare.
pub const LAYERS_MAX: usize = 127;

/// Some content elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// For which machines it is, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Further words about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As Go names it: `amd64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Of the processor: `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A manifest, or an index of manifests: whichever fields are there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Of a manifest: the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    /// Of a manifest: the layers, lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Descriptor>,
    /// Of an index: the manifests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of this shape.
    #[error("the {0} cannot be read")]
    Read(&'static str, #[source] serde_json::Error),
    /// The first, long abandoned format.
    #[error("the manifest is of schema version {0}; only 2 is supported")]
    Schema(u32),
    /// None for this machine.
    #[error("no match for platform in manifest: the image is for {found}, this machine is {wanted}")]
    Platform {
        /// What there is.
        found: String,
        /// What is needed.
        wanted: String,
    },
    /// Not a container image.
    #[error("the manifest has no configuration: it is not a container image")]
    NotAnImage,
    /// Configuration and manifest disagree.
    #[error("the manifest has {layers} layers, the configuration {diffs}; at most {LAYERS_MAX} are supported")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diffs: usize,
    },
}

impl Document {
    /// Reads a manifest or index.
    ///
    /// # Errors
    /// [`ManifestError::Read`], [`ManifestError::Schema`].
    pub fn read(text: &[u8]) -> Result<Self, ManifestError> {
        let found: Self = serde_json::from_slice(text).map_err(|error| ManifestError::Read("manifest", error))?;
        if found.schema_version == 2 { Ok(found) } else { Err(ManifestError::Schema(found.schema_version)) }
    }

    /// The manifest for a machine, if this is an index.
    ///
    /// # Errors
    /// [`ManifestError::Platform`].
    pub fn choose(&self, architecture: &str) -> Result<Option<&Descriptor>, ManifestError> {
        if self.config.is_some() {
            return Ok(None);
        }
        let fits = |entry: &&Descriptor| {
            entry
                .platform
                .as_ref()
                .is_none_or(|platform| platform.os == "linux" && platform.architecture == architecture)
        };
        let name = |entry: &Descriptor| {
            entry.platform.as_ref().map(|platform| format!("{}/{}", platform.os, platform.architecture))
        };
        self.manifests.iter().find(fits).map(Some).ok_or_else(|| ManifestError::Platform {
            found: self.manifests.iter().filter_map(name).collect::<Vec<_>>().join(", "),
            wanted: format!("linux/{architecture}"),
        })
    }
}

/// An image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// For which machine it is.
    #[serde(default)]
    pub architecture: String,
    /// For which system.
    #[serde(default)]
    pub os: String,
    /// How its containers are run.
    #[serde(default)]
    pub config: RunConfig,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// How containers of an image are run unless the pod says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User and group, as names or numbers: `nginx`, `1000:1000`.
    #[serde(deserialize_with = "null")]
    pub user: String,
    /// Environment, `NAME=VALUE`.
    #[serde(deserialize_with = "null")]
    pub env: Vec<String>,
    /// The program.
    #[serde(deserialize_with = "null")]
    pub entrypoint: Vec<String>,
    /// Its arguments.
    #[serde(deserialize_with = "null")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(deserialize_with = "null")]
    pub working_dir: String,
    /// The signal that asks it to end.
    #[serde(deserialize_with = "null")]
    pub stop_signal: String,
}

/// The layers of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests of the unpacked archives, lowest first.
    #[serde(deserialize_with = "null")]
    pub diff_ids: Vec<Digest>,
}

/// Go writes an absent list as `null`.
fn null<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ImageConfig {
    /// Reads a configuration and checks it against the manifest's number of layers.
    ///
    /// # Errors
    /// [`ManifestError::Read`], [`ManifestError::Platform`], [`ManifestError::Layers`].
    pub fn read(text: &[u8], layers: usize, architecture: &str) -> Result<Self, ManifestError> {
        let found: Self =
            serde_json::from_slice(text).map_err(|error| ManifestError::Read("image configuration", error))?;
        let diffs = found.rootfs.diff_ids.len();
        if diffs != layers || layers > LAYERS_MAX {
            return Err(ManifestError::Layers { layers, diffs });
        }
        if !found.architecture.is_empty() && (found.architecture != architecture || found.os != "linux") {
            let found = format!("{}/{}", found.os, found.architecture);
            return Err(ManifestError::Platform { found, wanted: format!("linux/{architecture}") });
        }
        Ok(found)
    }
}

/// Go's name of this processor architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_manifest_for_this_machine_is_chosen() {
        let entry = |os: &str, architecture: &str, content: &str| {
            json!({"mediaType": MANIFEST_TYPE, "digest": Digest::of(content.as_bytes()), "size": 1,
                "platform": {"os": os, "architecture": architecture}})
        };
        let index = json!({"schemaVersion": 2, "manifests": [entry("windows", "amd64", "w"), entry("linux", "arm64", "a"), entry("linux", "amd64", "x")]});
        let index = Document::read(index.to_string().as_bytes()).unwrap();
        assert_eq!(index.choose("amd64").unwrap().unwrap().digest, Digest::of(b"x"));
        assert!(index.choose("riscv64").unwrap_err().to_string().contains("windows/amd64, linux/arm64, linux/amd64"));
        assert!(Document::read(br#"{"schemaVersion": 1}"#).unwrap_err().to_string().contains('1'));
    }

    #[test]
    fn configurations_with_nulls_are_read() {
        let text = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": null, "Entrypoint": ["/run"], "Env": null, "User": "web"},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"l")]}}).to_string();
        let config = ImageConfig::read(text.as_bytes(), 1, "amd64").unwrap();
        assert_eq!(
            (config.config.user.as_str(), config.config.entrypoint.len(), config.config.cmd.len()),
            ("web", 1, 0)
        );
        assert!(matches!(ImageConfig::read(text.as_bytes(), 2, "amd64"), Err(ManifestError::Layers { .. })));
        assert!(matches!(ImageConfig::read(text.as_bytes(), 1, "arm64"), Err(ManifestError::Platform { .. })));
    }
}
