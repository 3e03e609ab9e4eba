//! Changes written as files: one strategic merge patch for each object, and one file for each new object.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mainstay_model::meta;
use serde_json::Value;

use crate::finding::Finding;

/// Why a change could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FixError {
    /// The directory or file.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A change as YAML.
    #[error("a change cannot be written as YAML: {0}")]
    Yaml(String),
}

/// A file to write.
#[derive(Debug, Clone, PartialEq)]
pub struct FixFile {
    /// Its name.
    pub name: String,
    /// The patch, or the new object.
    pub content: Value,
    /// The rules it satisfies.
    pub rules: Vec<&'static str>,
    /// Whether the object is new.
    pub is_new: bool,
}

/// All changes, merged by object, in the order of their names.
pub fn files(findings: &[Finding]) -> Vec<FixFile> {
    let mut files: BTreeMap<String, FixFile> = BTreeMap::new();
    for finding in findings {
        let Some(fix) = &finding.fix else { continue };
        let (kind, name) = (meta::kind(&fix.content).to_lowercase(), meta::name(&fix.content));
        let name = format!("{kind}-{}-{name}.yaml", meta::namespace(&fix.content).unwrap_or("default"));
        let fresh = || FixFile { name: name.clone(), content: Value::Null, rules: Vec::new(), is_new: fix.is_new };
        let file = files.entry(name.clone()).or_insert_with(fresh);
        merge(&mut file.content, &fix.content);
        if !file.rules.contains(&finding.rule.id) {
            file.rules.push(finding.rule.id);
        }
    }
    files.into_values().collect()
}

/// The first of two changes to one field stays; lists of named things are merged by name.
fn merge(all: &mut Value, more: &Value) {
    match (all, more) {
        (Value::Object(all), Value::Object(more)) => {
            for (key, value) in more {
                match all.get_mut(key) {
                    Some(own) => merge(own, value),
                    None => drop(all.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(all), Value::Array(more)) => {
            for item in more {
                let same = all.iter_mut().find(|own| !item["name"].is_null() && own["name"] == item["name"]);
                match same {
                    Some(own) => merge(own, item),
                    None if item["name"].is_null() => {}
                    None => all.push(item.clone()),
                }
            }
        }
        (all @ Value::Null, more) => *all = more.clone(),
        _ => {}
    }
}

/// Writes the changes into a directory, each with the command that applies it; answers how many there are.
///
/// # Errors
/// When the directory or a file cannot be written.
pub fn write(directory: &Path, findings: &[Finding]) -> Result<usize, FixError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| FixError::Write { path, source }
    };
    let files = files(findings);
    fs::create_dir_all(directory).map_err(failed(directory))?;
    for file in &files {
        let path = directory.join(&file.name);
        let text = text(file, &path.display().to_string())?;
        fs::write(&path, text).map_err(failed(&path))?;
    }
    Ok(files.len())
}

fn text(file: &FixFile, path: &str) -> Result<String, FixError> {
    let body = serde_saphyr::to_string(&file.content).map_err(|error| FixError::Yaml(error.to_string()))?;
    let (kind, name) = (meta::kind(&file.content).to_lowercase(), meta::name(&file.content));
    let namespace = meta::namespace(&file.content).unwrap_or("default");
    let command = if file.is_new {
        format!("kubectl apply -f {path}")
    } else {
        format!("kubectl patch -n {namespace} {kind} {name} --patch-file {path}, or as a patch of a kustomization")
    };
    Ok(format!("# For {}.\n# {command}\n{body}", file.rules.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_to_one_object_are_one_patch() {
        let mut all = json!({"spec": {"replicas": 3, "containers": [{"name": "a", "x": 1}]}});
        merge(&mut all, &json!({"spec": {"replicas": 2, "containers": [{"name": "a", "y": 2}, {"name": "b"}]}}));
        assert_eq!(all, json!({"spec": {"replicas": 3, "containers": [{"name": "a", "x": 1, "y": 2}, {"name": "b"}]}}));
    }
}
