//! Fields that others own and an apply would change, in the words of Kubernetes.

use std::collections::BTreeMap;
use std::fmt;

use super::fields::FieldSet;
use super::managers::{Entry, Operation};
use crate::status::{ApiError, Cause};

/// One field that another manager owns and this apply would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as messages name it: `"kubectl" with subresource "scale" using apps/v1`.
    pub manager: String,
    /// The field, for example `.spec.replicas`.
    pub path: String,
}

/// All conflicts of one apply; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl Conflicts {
    pub(super) fn of<'a>(owners: impl Iterator<Item = (&'a Entry, FieldSet)>) -> Self {
        let of_one = |(entry, fields): (&Entry, FieldSet)| {
            let manager = shown(entry);
            fields.paths().into_iter().map(move |path| Conflict { manager: manager.clone(), path })
        };
        let mut conflicts: Vec<Conflict> = owners.flat_map(of_one).collect();
        conflicts.sort_by(|a, b| a.manager.cmp(&b.manager));
        Self(conflicts)
    }
}

fn shown(entry: &Entry) -> String {
    let subresource = match entry.subresource.as_str() {
        "" => String::new(),
        name => format!(" with subresource {name:?}"),
    };
    let version = match entry.operation {
        Operation::Apply => String::new(),
        Operation::Update => format!(" using {}", entry.api_version),
    };
    format!("{:?}{subresource}{version}", entry.manager)
}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0.as_slice() {
            return write!(f, "Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.path);
        }
        let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for conflict in &self.0 {
            by_manager.entry(&conflict.manager).or_default().push(&conflict.path);
        }
        let mut lines = Vec::new();
        for (manager, paths) in by_manager {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(paths.into_iter().map(|path| format!("- {path}")));
        }
        write!(f, "Apply failed with {} conflicts: {}", self.0.len(), lines.join("\n"))
    }
}

impl From<&Conflicts> for ApiError {
    fn from(conflicts: &Conflicts) -> Self {
        let mut error = Self::new(409, "Conflict", conflicts.to_string());
        let cause = |conflict: &Conflict| Cause {
            reason: "FieldManagerConflict",
            message: format!("conflict with {}", conflict.manager),
            field: conflict.path.clone(),
        };
        error.other_causes = conflicts.0.iter().map(cause).collect();
        error
    }
}
