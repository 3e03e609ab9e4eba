//! What each crate costs in lines, as a table for the README.

use std::collections::BTreeMap;

use super::files::SourceFile;
use super::package_folder;
use crate::workspace::Workspace;

/// Prints one row per package: lines of code with comments, lines of tests.
pub(crate) fn print(workspace: &Workspace, sources: &[SourceFile]) {
    let mut sizes: BTreeMap<_, (usize, usize)> = BTreeMap::new();
    for file in sources {
        let size = sizes.entry(package_folder(&file.path)).or_default();
        let tests = if is_test(&file.path) { file.lines } else { file.test_lines };
        size.0 += file.lines - tests;
        size.1 += tests;
    }
    println!("| crate | lines | of tests |\n|---|---:|---:|");
    let (mut lines, mut tests) = (0, 0);
    for package in workspace.members() {
        let folder = package_folder(&workspace.shown(package.folder()).to_string());
        let size = sizes.get(&folder).copied().unwrap_or_default();
        println!("| {} | {} | {} |", package.name, size.0, size.1);
        lines += size.0;
        tests += size.1;
    }
    println!("| all | {lines} | {tests} |");
}

/// Whole files of tests, by where they are.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs") || path.contains("/benches/")
}
