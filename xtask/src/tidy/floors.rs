//! The floors: a crate imports only from lower ones, and never a sibling.
//!
//! `floors.txt` says who stands where. Tests may reach sideways and up (`[dev-dependencies]`), because a test often
//! needs the part it is to work with; what is shipped may not.

use std::collections::BTreeMap;

use crate::process::{Outcome, at};
use crate::workspace::Workspace;

/// Our packages are named `mainstay-NAME`, but for the binary.
const PREFIX: &str = "mainstay-";

/// One line per import that goes the wrong way, and per crate that stands nowhere.
pub(crate) fn check(workspace: &Workspace) -> Outcome<Vec<String>> {
    let file = workspace.root.join("xtask/floors.txt");
    let table = std::fs::read_to_string(&file).map_err(at(&file))?;
    let floors = parse(&table);
    let imports = workspace.members().filter(|package| package.name != "xtask").map(|package| {
        let shipped = package.dependencies.iter().filter(|it| it.kind.as_deref() != Some("dev"));
        let ours = shipped.map(|it| it.name.as_str()).filter(|it| *it == "mainstay" || it.starts_with(PREFIX));
        (short(&package.name), ours.map(short).collect())
    });
    Ok(violations(&floors, imports))
}

fn violations<'a>(floors: &BTreeMap<&str, u8>, imports: impl Iterator<Item = (&'a str, Vec<&'a str>)>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, imported) in imports {
        let Some(floor) = floors.get(name) else {
            found.push(format!("crate {name} stands on no floor; add it to xtask/floors.txt"));
            continue;
        };
        for other in imported {
            match floors.get(other) {
                Some(below) if below < floor => {}
                Some(below) => found.push(format!(
                    "crate {name} (floor {floor}) imports {other} (floor {below}); only lower floors may be imported"
                )),
                None => found.push(format!("crate {name} imports {other}, which stands on no floor")),
            }
        }
    }
    found
}

/// `FLOOR CRATE what it is`, with `#` comments.
fn parse(table: &str) -> BTreeMap<&str, u8> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let floor = words.next()?.parse().ok()?;
            Some((words.next()?, floor))
        })
        .collect()
}

fn short(package: &str) -> &str {
    package.strip_prefix(PREFIX).unwrap_or(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_go_down_only() {
        let floors = parse("# floor crate\n0 model the words\n2 node\n2 scheduler\n4 mainstay\n");
        let refused = |name: &'static str, other| violations(&floors, [(name, vec![other])].into_iter()).len();
        assert_eq!(refused("node", "model"), 0);
        assert_eq!(refused("mainstay", "node"), 0);
        assert_eq!(refused("node", "scheduler"), 1);
        assert_eq!(refused("model", "node"), 1);
        assert_eq!(refused("attic", "model"), 1);
        assert_eq!(refused("node", "attic"), 1);
    }
}
