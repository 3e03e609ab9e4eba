//! The command line of `mainstay image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::instance::DEFAULT_DATA_DIR;

/// `mainstay image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: ImageVerb,
    /// Directory with the instance's state
    #[arg(long, global = true, default_value = DEFAULT_DATA_DIR, env = "MAINSTAY_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// List the images that are here
    Ls,
    /// Add the images of an archive: an OCI image layout, or what `docker save` wrote
    Import {
        /// The archive, or - for standard input
        file: String,
        /// What to call its image (default: as the archive says)
        #[arg(long)]
        name: Option<String>,
    },
    /// Write an image to an archive that `import` and other tools read
    Export {
        /// The image
        image: String,
        /// The archive, or - for standard output
        file: String,
    },
    /// Fetch an image from its registry
    Pull {
        /// The image
        image: String,
    },
    /// Remove images that nobody uses
    Rm {
        /// The images
        #[arg(required = true)]
        images: Vec<String>,
    },
}
