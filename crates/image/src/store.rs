//! The store: layers unpacked, content by digest, and which names mean what.
//!
//! ```text
//! blobs/HEX            manifests, configurations and layers as they came, named by their SHA-256
//! layers/HEX           layers unpacked, named by the first 24 digits of their archive's SHA-256
//! names/HEX.json       one record per name ([`Record`]), named by the name's SHA-256
//! pins/HEX/OWNER       an empty file for every user of an image, by the digest of its configuration
//! tmp/                 what is not complete yet
//! lock                 held shared by whoever adds or uses, alone by whoever removes
//! ```
//!
//! Guarantees: everything is made under another name and then renamed, so that what has its name is whole. Several processes
//! may use one store at a time.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layer::{self, LayerError};
use crate::manifest::{Document, ImageConfig, ManifestError, RunConfig};
use crate::reference::Reference;

/// Digits of a layer's directory: short, because the overlay's options have to fit one page; 96 bits leave no room for
/// two layers with the same ones.
const LAYER_DIGITS: usize = 24;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error("cannot {step} {path} in the image store")]
    Disk {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A manifest or configuration.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Content that is not what it is called.
    #[error("the content is {found} and not {wanted}: it was damaged on its way")]
    Digest {
        /// What it is.
        found: Digest,
        /// What it should be.
        wanted: Digest,
    },
    /// Somebody runs it.
    #[error("image {name} is in use by {users} containers; delete their pods first")]
    InUse {
        /// The image.
        name: String,
        /// By how many.
        users: usize,
    },
}

fn disk(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Disk { step, path: path.to_owned(), source }
}

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name, in full.
    pub name: String,
    /// The manifest.
    pub manifest: Digest,
    /// What the registry calls it: the digest of the manifest, or of the index that lists it.
    pub repo_digest: Digest,
    /// The configuration.
    pub config: Digest,
    /// Bytes of the compressed layers.
    pub size: u64,
}

/// An image that is here, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What its name means.
    pub record: Record,
    /// How its containers are run.
    pub run: RunConfig,
    /// The directories of its layers in the store, lowest first.
    pub layers: Vec<String>,
    /// When it was last used.
    pub used: SystemTime,
}

impl Image {
    /// How statuses name it: repository and digest.
    pub fn id(&self) -> String {
        let name = self.record.name.split_once('@').map_or(self.record.name.as_str(), |(name, _)| name);
        let name = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(name, _)| name);
        format!("{name}@{}", self.record.repo_digest)
    }
}

/// A store of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// The right to add and to use, or to remove; it ends when dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl Store {
    /// The store in a directory, which is made when something is added.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where layers are, for mounting.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// Of the disk.
    pub fn prepare(&self) -> Result<(), StoreError> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        for name in ["blobs", "layers", "names", "pins", "tmp"] {
            let path = self.root.join(name);
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(disk("make", &path))?;
        }
        // Layers hold setuid programs: nobody but root may reach them here.
        let layers = self.layers();
        fs::set_permissions(&layers, fs::Permissions::from_mode(0o700)).map_err(disk("protect", &layers))
    }

    fn lock_file(&self) -> Result<File, StoreError> {
        self.prepare()?;
        let path = self.root.join("lock");
        File::options().create(true).append(true).open(&path).map_err(disk("open", &path))
    }

    /// Keeps everything from being removed. Blocking, while somebody removes.
    ///
    /// # Errors
    /// Of the disk.
    pub fn share(&self) -> Result<Lock, StoreError> {
        let file = self.lock_file()?;
        file.lock_shared().map_err(disk("lock", &self.root))?;
        Ok(Lock(file))
    }

    /// Keeps everybody else out; `None` while somebody adds.
    ///
    /// # Errors
    /// Of the disk.
    pub fn own(&self) -> Result<Option<Lock>, StoreError> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(disk("lock", &self.root)(error)),
        }
    }

    /// Keeps others from pulling the same image meanwhile. Blocking, while somebody does.
    ///
    /// # Errors
    /// Of the disk.
    pub fn hold(&self, image: &Reference) -> Result<Lock, StoreError> {
        self.prepare()?;
        let path = self.root.join("names").join(format!("{}.lock", Digest::of(image.to_string().as_bytes()).hex()));
        let file = File::options().create(true).append(true).open(&path).map_err(disk("open", &path))?;
        file.lock().map_err(disk("lock", &path))?;
        Ok(Lock(file))
    }

    /// A new name in the store's place for what is not complete.
    pub fn temporary(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{number}", std::process::id()))
    }

    /// Where content lies, or would.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// Adds content.
    ///
    /// # Errors
    /// Of the disk.
    pub fn add_blob(&self, content: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(content);
        self.write(&self.blob(&digest), content)?;
        Ok(digest)
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let draft = self.temporary();
        let write = || -> io::Result<()> {
            let mut file = File::create(&draft)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().and_then(|()| fs::rename(&draft, path)).map_err(disk("write", path))
    }

    /// The directory of a layer, by its name in [`Image::layers`].
    pub fn layer_name(diff: &Digest) -> String {
        diff.hex()[..LAYER_DIGITS].to_owned()
    }

    /// Whether a layer is here, unpacked.
    pub fn has_layer(&self, diff: &Digest) -> bool {
        self.layers().join(Self::layer_name(diff)).is_dir()
    }

    /// Unpacks a layer whose blob is here. Blocking.
    ///
    /// # Errors
    /// Of the layer or the disk; nothing stays of it then.
    pub fn unpack(&self, blob: &Path, wanted: Option<&Digest>) -> Result<Digest, StoreError> {
        let draft = self.temporary();
        fs::create_dir(&draft).map_err(disk("make", &draft))?;
        let unpack = || -> Result<Digest, StoreError> {
            layer::open_to_all(&draft).map_err(disk("open", &draft))?;
            let file = File::open(blob).map_err(disk("open", blob))?;
            Ok(layer::unpack(file, &draft, wanted)?)
        };
        let found = unpack();
        if let Ok(diff) = &found {
            let place = self.layers().join(Self::layer_name(diff));
            // Somebody else may have been faster: his is as good.
            if fs::rename(&draft, &place).is_ok() || place.is_dir() {
                let _ = fs::remove_dir_all(&draft);
                return found;
            }
        }
        let _ = fs::remove_dir_all(&draft);
        found
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.root.join("names").join(format!("{}.json", Digest::of(name.as_bytes()).hex()))
    }

    /// Says what a name means from now on.
    ///
    /// # Errors
    /// Of the disk.
    pub fn name(&self, record: &Record) -> Result<(), StoreError> {
        self.write(&self.record_path(&record.name), &serde_json::to_vec(record).unwrap_or_default())
    }

    /// Reads a manifest or configuration.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob(digest);
        fs::read(&path).map_err(disk("read", &path))
    }

    /// The image of a name, if all of it is here.
    pub fn find(&self, name: &Reference) -> Option<Image> {
        self.load(&self.record_path(&name.to_string()))
    }

    fn load(&self, path: &Path) -> Option<Image> {
        let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let used = fs::metadata(path).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let manifest = Document::read(&self.read(&record.manifest).ok()?).ok()?;
        let config = self.read(&record.config).ok()?;
        let config = ImageConfig::read(&config, manifest.layers.len(), crate::manifest::architecture()).ok()?;
        let whole = config.rootfs.diff_ids.iter().all(|diff| self.has_layer(diff));
        let layers = config.rootfs.diff_ids.iter().map(Self::layer_name).collect();
        whole.then_some(Image { record, run: config.config, layers, used })
    }

    /// All images, by name.
    pub fn list(&self) -> Vec<Image> {
        let records = fs::read_dir(self.root.join("names")).into_iter().flatten().flatten();
        let mut images: Vec<_> = records.filter_map(|entry| self.load(&entry.path())).collect();
        images.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        images
    }

    fn pins_of(&self, config: &Digest) -> PathBuf {
        self.root.join("pins").join(config.hex())
    }

    /// Keeps an image as long as its user, such as a pod on a node, does not let go; notes that it is used now. Hold
    /// [`Store::share`] meanwhile.
    ///
    /// # Errors
    /// Of the disk.
    pub fn pin(&self, image: &Image, owner: &str) -> Result<(), StoreError> {
        let path = self.pins_of(&image.record.config).join(owner);
        let parent = self.pins_of(&image.record.config);
        fs::create_dir_all(&parent).and_then(|()| fs::write(&path, "")).map_err(disk("write", &path))?;
        let record = self.record_path(&image.record.name);
        let touched = File::options().append(true).open(&record).and_then(|file| file.set_modified(SystemTime::now()));
        touched.map_err(disk("touch", &record))
    }

    /// Lets go of all images whose user's name satisfies the condition.
    pub fn unpin(&self, is_gone: impl Fn(&str) -> bool) {
        for image in fs::read_dir(self.root.join("pins")).into_iter().flatten().flatten() {
            for pin in fs::read_dir(image.path()).into_iter().flatten().flatten() {
                if pin.file_name().to_str().is_none_or(&is_gone) {
                    let _ = fs::remove_file(pin.path());
                }
            }
        }
    }

    /// By how many an image is used.
    pub fn users(&self, config: &Digest) -> usize {
        fs::read_dir(self.pins_of(config)).into_iter().flatten().flatten().count()
    }

    /// Removes a name, and what no other name needs. Hold [`Store::own`].
    ///
    /// # Errors
    /// When it is in use, or of the disk.
    pub fn remove(&self, image: &Image) -> Result<(), StoreError> {
        let shared = self
            .list()
            .iter()
            .any(|other| other.record.config == image.record.config && other.record.name != image.record.name);
        let users = self.users(&image.record.config);
        if users > 0 && !shared {
            return Err(StoreError::InUse { name: image.record.name.clone(), users });
        }
        let path = self.record_path(&image.record.name);
        fs::remove_file(&path).map_err(disk("remove", &path))?;
        self.sweep()
    }

    /// Removes what no name needs. Hold [`Store::own`].
    ///
    /// # Errors
    /// Of the disk.
    pub fn sweep(&self) -> Result<(), StoreError> {
        let (mut blobs, mut layers) = (Vec::new(), Vec::new());
        for image in self.list() {
            let manifest = self.read(&image.record.manifest).ok().and_then(|text| Document::read(&text).ok());
            blobs.extend(
                manifest.iter().flat_map(|manifest| &manifest.layers).map(|layer| layer.digest.hex().to_owned()),
            );
            blobs.extend([&image.record.manifest, &image.record.config].map(|digest| digest.hex().to_owned()));
            layers.extend(image.layers);
        }
        for (place, needed) in [("blobs", &blobs), ("layers", &layers), ("tmp", &Vec::new())] {
            for entry in fs::read_dir(self.root.join(place)).into_iter().flatten().flatten() {
                if entry.file_name().to_str().is_some_and(|name| needed.iter().any(|one| one == name)) {
                    continue;
                }
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(disk("remove", &path))?;
            }
        }
        Ok(())
    }
}
