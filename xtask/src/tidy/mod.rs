//! `cargo xtask tidy`: the rules of the house that clippy does not know.
//!
//! # Flow
//! floors (from cargo metadata) → every source file (size, functions, module docs, `unsafe`) → every file's weight →
//! the ratchet takes out what is known and has not grown → what remains is printed.

mod files;
mod floors;
mod mask;
mod ratchet;
mod sizes;

use std::fs;
use std::path::PathBuf;

use clap::Args;

use crate::process::{Failure, Outcome, at, counted};
use crate::workspace::Workspace;
use files::SourceFile;
use ratchet::Ratchet;

/// Flags of `cargo xtask tidy`.
#[derive(Args, Default)]
pub(crate) struct TidyArgs {
    /// Write the ratchet file anew where sizes have shrunk; never lets anything grow
    #[arg(long)]
    bless: bool,
    /// Print what each crate costs in lines
    #[arg(long)]
    sizes: bool,
}

/// Largest file kept in the repository, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Checks every rule and prints all violations, not just the first.
pub(crate) fn run(args: &TidyArgs) -> Outcome {
    let workspace = Workspace::load()?;
    let sources = sources(&workspace)?;
    if args.sizes {
        sizes::print(&workspace, &sources);
        return Ok(());
    }
    let mut violations = floors::check(&workspace)?;
    violations.extend(sources.iter().flat_map(files::check));
    violations.extend(heavy_files(&workspace)?);

    let file = workspace.root.join("xtask/tidy.ratchet");
    let ratchet = Ratchet::parse(&fs::read_to_string(&file).map_err(at(&file))?);
    let excesses: Vec<_> = sources.iter().flat_map(files::excesses).collect();
    if args.bless {
        fs::write(&file, ratchet.shrunk_to(&excesses).to_string()).map_err(at(&file))?;
    }
    violations.extend(ratchet.refuse(&excesses));
    for entry in ratchet.could_shrink(&excesses) {
        println!("note: {entry} can come down in xtask/tidy.ratchet: cargo xtask tidy --bless");
    }
    for violation in &violations {
        println!("{violation}");
    }
    if violations.is_empty() {
        println!("{} are tidy", counted(sources.len(), "source file"));
        Ok(())
    } else {
        Err(Failure::Found(counted(violations.len(), "rule") + " broken"))
    }
}

/// All Rust files of our packages.
fn sources(workspace: &Workspace) -> Outcome<Vec<SourceFile>> {
    let mut sources = Vec::new();
    for package in workspace.members() {
        for path in files::walk(package.folder())? {
            if path.extension().is_some_and(|it| it == "rs") {
                let text = fs::read_to_string(&path).map_err(at(&path))?;
                sources.push(SourceFile::new(workspace.shown(&path).to_string(), &text));
            }
        }
    }
    Ok(sources)
}

fn heavy_files(workspace: &Workspace) -> Outcome<Vec<String>> {
    let mut heavy = Vec::new();
    for path in files::walk(&workspace.root)? {
        let bytes = fs::symlink_metadata(&path).map_err(at(&path))?.len();
        if bytes > FILE_BYTES_MAX {
            heavy.push(format!("{}: {bytes} bytes; the repository takes files of up to 1 MiB", workspace.shown(&path)));
        }
    }
    Ok(heavy)
}

/// The folder a path is listed under: `crates/model`, `xtask`.
fn package_folder(path: &str) -> PathBuf {
    let parts = if path.starts_with("crates/") { 2 } else { 1 };
    path.split('/').take(parts).collect()
}
