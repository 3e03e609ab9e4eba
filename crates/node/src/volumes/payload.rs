//! What the files of configMap, secret, downwardAPI and projected volumes hold. Pure.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1 as core;

use crate::env::{self, Data, EnvError, PodFacts, Sources, TokenKey};

/// The mode of files where nothing else is said.
const MODE_DEFAULT: u32 = 0o644;
/// All files of one volume together, as Kubernetes limits one ConfigMap, times what a projection may combine.
const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// Why a volume's content could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// A ConfigMap or Secret is missing.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A key that `items` asks for is missing.
    #[error("references non-existent config key: {0}")]
    Key(String),
    /// A field or resource of the downward API.
    #[error(transparent)]
    Field(#[from] EnvError),
    /// A path that leaves the volume or collides with its inner layout.
    #[error("path {0:?} is not a relative path inside the volume")]
    Path(String),
    /// A token that was not fetched.
    #[error("the token of the ServiceAccount is not there yet")]
    Token,
    /// A kind of projection that there is not.
    #[error("projected source {0} is not supported")]
    Unsupported(&'static str),
    /// Too much.
    #[error("the volume would hold more than {PAYLOAD_BYTES_MAX} bytes")]
    TooLarge,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// A volume's files by their relative path.
pub type Payload = BTreeMap<String, File>;

/// The files of a volume, if it is one that holds files made from objects.
pub fn payload(
    pod: &core::Pod,
    volume: &core::Volume,
    sources: &Sources,
    facts: &PodFacts,
) -> Result<Option<Payload>, PayloadError> {
    let mut payload = Payload::new();
    if let Some(v) = &volume.config_map {
        let mode = mode_of(v.default_mode, None);
        let data = look_up("configmap", &sources.config_maps, &v.name, v.optional)?;
        keys(&mut payload, data, v.items.as_deref(), mode, v.optional)?;
    } else if let Some(v) = &volume.secret {
        let mode = mode_of(v.default_mode, None);
        let name = v.secret_name.as_deref().unwrap_or_default();
        let data = look_up("secret", &sources.secrets, name, v.optional)?;
        keys(&mut payload, data, v.items.as_deref(), mode, v.optional)?;
    } else if let Some(v) = &volume.downward_api {
        downward(&mut payload, pod, v.items.as_deref(), mode_of(v.default_mode, None), facts)?;
    } else if let Some(v) = &volume.projected {
        let mode = mode_of(v.default_mode, None);
        for source in v.sources.iter().flatten() {
            project(&mut payload, pod, source, mode, sources, facts)?;
        }
    } else {
        return Ok(None);
    }
    if payload.values().map(|file| file.data.len()).sum::<usize>() > PAYLOAD_BYTES_MAX {
        return Err(PayloadError::TooLarge);
    }
    Ok(Some(payload))
}

fn project(
    payload: &mut Payload,
    pod: &core::Pod,
    source: &core::VolumeProjection,
    mode: u32,
    sources: &Sources,
    facts: &PodFacts,
) -> Result<(), PayloadError> {
    if let Some(v) = &source.config_map {
        let data = look_up("configmap", &sources.config_maps, &v.name, v.optional)?;
        keys(payload, data, v.items.as_deref(), mode, v.optional)?;
    }
    if let Some(v) = &source.secret {
        let data = look_up("secret", &sources.secrets, &v.name, v.optional)?;
        keys(payload, data, v.items.as_deref(), mode, v.optional)?;
    }
    if let Some(v) = &source.downward_api {
        downward(payload, pod, v.items.as_deref(), mode, facts)?;
    }
    if let Some(v) = &source.service_account_token {
        let token = sources.tokens.get(&TokenKey::of(v)).ok_or(PayloadError::Token)?;
        add(payload, &v.path, token.clone().into_bytes(), mode)?;
    }
    for (present, name) in [
        (source.cluster_trust_bundle.is_some(), "clusterTrustBundle"),
        (source.pod_certificate.is_some(), "podCertificate"),
    ] {
        if present {
            return Err(PayloadError::Unsupported(name));
        }
    }
    Ok(())
}

fn mode_of(default: Option<i32>, own: Option<i32>) -> u32 {
    own.or(default).and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE_DEFAULT) & 0o777
}

fn look_up<'a>(
    kind: &'static str,
    objects: &'a BTreeMap<String, Option<Data>>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Data>, PayloadError> {
    match objects.get(name) {
        Some(Some(data)) => Ok(Some(data)),
        _ if optional == Some(true) => Ok(None),
        _ => Err(PayloadError::NotFound { kind, name: name.to_owned() }),
    }
}

fn keys(
    payload: &mut Payload,
    data: Option<&Data>,
    items: Option<&[core::KeyToPath]>,
    mode: u32,
    optional: Option<bool>,
) -> Result<(), PayloadError> {
    let Some(data) = data else { return Ok(()) };
    let Some(items) = items else {
        for (key, value) in data {
            add(payload, key, value.clone(), mode)?;
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => add(payload, &item.path, value.clone(), mode_of(Some(mode as i32), item.mode))?,
            None if optional == Some(true) => {}
            None => return Err(PayloadError::Key(item.key.clone())),
        }
    }
    Ok(())
}

fn downward(
    payload: &mut Payload,
    pod: &core::Pod,
    items: Option<&[core::DownwardAPIVolumeFile]>,
    mode: u32,
    facts: &PodFacts,
) -> Result<(), PayloadError> {
    for item in items.unwrap_or_default() {
        let text = if let Some(r) = &item.field_ref {
            env::field(pod, &r.field_path, facts)?
        } else if let Some(r) = &item.resource_field_ref {
            env::resource(pod, &core::Container::default(), r, facts)?
        } else {
            continue;
        };
        add(payload, &item.path, text.into_bytes(), mode_of(Some(mode as i32), item.mode))?;
    }
    Ok(())
}

fn add(payload: &mut Payload, path: &str, data: Vec<u8>, mode: u32) -> Result<(), PayloadError> {
    if !is_inside(path) || path.starts_with("..") {
        return Err(PayloadError::Path(path.to_owned()));
    }
    payload.insert(path.to_owned(), File { data, mode });
    Ok(())
}

/// Whether a path is relative and stays inside where it is applied.
pub fn is_inside(path: &str) -> bool {
    let path = Path::new(path);
    path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn sources() -> Sources {
        let data = Data::from([("a.conf".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let key = TokenKey { audience: None, seconds: 3607 };
        let tokens = [(key, "t0".to_owned())].into();
        Sources { config_maps: [("m".to_owned(), Some(data))].into(), tokens, ..Sources::default() }
    }

    fn of(volume: serde_json::Value) -> Result<Vec<String>, String> {
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "web"}})).unwrap();
        let volume = serde_json::from_value(volume).unwrap();
        let payload = payload(&pod, &volume, &sources(), &PodFacts::default()).map_err(|error| error.to_string())?;
        let show =
            |(path, file): (String, File)| format!("{path} {:o} {}", file.mode, String::from_utf8_lossy(&file.data));
        Ok(payload.unwrap_or_default().into_iter().map(show).collect())
    }

    #[test]
    fn files_come_from_keys_items_fields_and_projections() {
        let ok = |lines: &[&str]| Ok(lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(json!({"name": "v", "configMap": {"name": "m"}})), ok(&["a.conf 644 1", "b 644 2"]));
        let items = json!([{"key": "b", "path": "x/y", "mode": 0o400}]);
        assert_eq!(
            of(json!({"name": "v", "configMap": {"name": "m", "items": items, "defaultMode": 0o600}})),
            ok(&["x/y 400 2"])
        );
        assert_eq!(of(json!({"name": "v", "secret": {"secretName": "s", "optional": true}})), ok(&[]));
        assert_eq!(of(json!({"name": "v", "secret": {"secretName": "s"}})), Err("secret \"s\" not found".to_owned()));
        let projected = json!({"name": "v", "projected": {"sources": [{"configMap": {"name": "m"}},
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}});
        assert_eq!(of(projected), ok(&["a.conf 644 1", "b 644 2", "name 644 web", "token 644 t0"]));
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        for path in ["/etc/passwd", "../x", "a/../../x", "..data", ""] {
            let items = json!([{"key": "b", "path": path}]);
            assert!(of(json!({"name": "v", "configMap": {"name": "m", "items": items}})).is_err(), "{path}");
        }
    }
}
