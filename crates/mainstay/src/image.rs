//! `mainstay image`: the images that this machine's nodes share.

use std::fs::File;
use std::io::{self, Read, Write};

use mainstay_image::archive::{self, ArchiveError};
use mainstay_image::pull::{Progress, PullError};
use mainstay_image::reference::InvalidName;
use mainstay_image::registry::Registry;
use mainstay_image::store::StoreError;
use mainstay_image::{Image, Keychain, Reference, Store, pull};

use crate::cli::{ImageArgs, ImageVerb};
use crate::instance::{Instance, InstanceError};

/// Why an image command failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageCommandError {
    /// The instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// A name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An archive's file.
    #[error("cannot open {0}")]
    Open(String, #[source] io::Error),
    /// Importing or exporting.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Pulling.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The machine's certificates.
    #[error("cannot read the machine's certificates")]
    Certificates(#[source] io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such image.
    #[error("there is no image {0} here; `mainstay image ls` shows those there are")]
    NotFound(Reference),
    /// Somebody pulls.
    #[error("images are being pulled or started; try again")]
    Busy,
}

/// Runs `mainstay image`.
///
/// # Errors
/// See [`ImageCommandError`].
pub async fn run(args: &ImageArgs) -> Result<(), ImageCommandError> {
    let instance = Instance::load(&args.data_dir)?;
    let store = Store::new(instance.images());
    match &args.verb {
        ImageVerb::Ls => list(&store.list()),
        ImageVerb::Import { file, name } => {
            let name = name.as_deref().map(str::parse).transpose()?;
            for name in archive::import(&store, open(file)?, name.as_ref())? {
                println!("{name} imported");
            }
        }
        ImageVerb::Export { image, file } => {
            let found = find(&store, image)?;
            let to: Box<dyn Write> = match file.as_str() {
                "-" => Box::new(io::stdout().lock()),
                path => Box::new(File::create(path).map_err(|error| ImageCommandError::Open(path.to_owned(), error))?),
            };
            archive::export(&store, &found, io::BufWriter::new(to))?;
        }
        ImageVerb::Pull { image } => {
            let name: Reference = image.parse()?;
            let mut keychain = Keychain::default();
            mainstay_node::images::add_own(&mut keychain, store.root());
            let registry = Registry::new(keychain).map_err(ImageCommandError::Certificates)?;
            let found = pull::pull(&store, &registry, &name, &tell).await?;
            println!("{} pulled, {}", found.record.name, found.record.repo_digest);
        }
        ImageVerb::Rm { images } => {
            let found = images.iter().map(|image| find(&store, image)).collect::<Result<Vec<_>, _>>()?;
            let _lock = store.own()?.ok_or(ImageCommandError::Busy)?;
            for image in found {
                store.remove(&image)?;
                println!("{} removed", image.record.name);
            }
        }
    }
    Ok(())
}

fn find(store: &Store, name: &str) -> Result<Image, ImageCommandError> {
    let name: Reference = name.parse()?;
    store.find(&name).ok_or(ImageCommandError::NotFound(name))
}

fn open(path: &str) -> Result<Box<dyn Read>, ImageCommandError> {
    match path {
        "-" => Ok(Box::new(io::stdin())),
        path => Ok(Box::new(File::open(path).map_err(|error| ImageCommandError::Open(path.to_owned(), error))?)),
    }
}

fn tell(progress: Progress) {
    match progress {
        Progress::Begins { layers, bytes } => eprintln!("{layers} layers to fetch, {}", megabytes(bytes)),
        Progress::Layer { digest, bytes } => eprintln!("{} {}", &digest.hex()[..12], megabytes(bytes)),
    }
}

fn list(images: &[Image]) {
    let width = images.iter().map(|image| image.record.name.len()).max().unwrap_or(0).max(5);
    println!("{:width$}  {:12}  {:>10}", "IMAGE", "ID", "SIZE");
    for image in images {
        let record = &image.record;
        println!("{:width$}  {}  {:>10}", record.name, &record.config.hex()[..12], megabytes(record.size));
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
