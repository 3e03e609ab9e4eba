//! What cargo knows about the workspace: its packages, their licences and what they depend on.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::process::{Failure, Outcome, cargo, output};

/// The part of `cargo metadata` (format version 1) used here.
/// <https://doc.rust-lang.org/cargo/commands/cargo-metadata.html>
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    #[serde(rename = "workspace_members")]
    member_ids: Vec<String>,
    #[serde(rename = "target_directory")]
    pub(crate) target: PathBuf,
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
}

/// One package: one of ours, or one from a registry.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    id: String,
    pub(crate) license: Option<String>,
    /// Relative to the package.
    pub(crate) license_file: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
    pub(crate) manifest_path: PathBuf,
}

/// One line of a package's `[dependencies]`.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// None for an ordinary dependency, otherwise `dev` or `build`.
    pub(crate) kind: Option<String>,
}

/// One thing a package builds.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// Whether `cargo test` runs it without being asked.
    pub(crate) test: bool,
}

impl Workspace {
    /// Our own packages with their direct dependencies; asks no registry.
    pub(crate) fn load() -> Outcome<Self> {
        Self::from_metadata(&["--no-deps"])
    }

    /// All packages built for this platform.
    pub(crate) fn load_with_dependencies() -> Outcome<Self> {
        let rustc = output(std::process::Command::new("rustc").arg("-vV"))?;
        let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or("x86_64-unknown-linux-gnu");
        Self::from_metadata(&["--locked", "--filter-platform", host])
    }

    fn from_metadata(flags: &[&str]) -> Outcome<Self> {
        let text = output(cargo().args(["metadata", "--format-version", "1"]).args(flags))?;
        serde_json::from_str(&text).map_err(|source| Failure::Json { what: "cargo metadata".into(), source })
    }

    /// Our own packages.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.member_ids.contains(&package.id))
    }

    /// A path as people write it: relative to the workspace.
    pub(crate) fn shown<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

impl Package {
    /// The folder of the package.
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}
