//! What every Mainstay cluster knows besides the built-in kinds: the files of `definitions/`, applied when the server starts.
//!
//! They are ordinary manifests (CustomResourceDefinitions, classes, roles), so that `kubectl apply -f definitions/` brings the
//! same to an upstream cluster. To add a kind, add a file and its line below; the order is that of the list.
//!
//! # Guarantees
//! - An object that is there and was not made by Mainstay is left as it is: who has installed the Gateway API's own definitions
//!   keeps them.
//! - One that an older Mainstay has made is brought up to date.
//! - The server does not wait for it: requests are answered meanwhile, and a failure is tried again.

use std::path::Path;
use std::time::Duration;

use kube::Client;

use crate::up::manifest::{self, Manifest, ManifestError};

/// A file of `definitions/`: its name, for messages, and its text.
macro_rules! definitions {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../definitions/", $name)))),+]
    };
}

const FILES: &[(&str, &str)] = definitions![
    "05-ingress-class.yaml",
    "10-gateway-class.yaml",
    "11-gateway.yaml",
    "12-http-route.yaml",
    "13-grpc-route.yaml",
    "14-tls-route.yaml",
    "15-tcp-route.yaml",
    "16-reference-grant.yaml",
    "17-backend-tls-policy.yaml",
    "20-backend.yaml",
    "21-traffic-policy.yaml",
    "30-gateway.yaml",
    "40-database.yaml",
    "41-database-roles.yaml",
    "50-drill.yaml",
];

/// The wait before another attempt.
const RETRY: Duration = Duration::from_secs(1);

/// Applies everything, tries again what fails, and then sleeps for ever.
pub async fn run(client: Client) {
    for (name, text) in FILES {
        let manifests = match read(name, text) {
            Ok(manifests) => manifests,
            Err(error) => {
                tracing::error!(%error, "a definition cannot be read");
                continue;
            }
        };
        for manifest in manifests {
            while let Err(error) = manifest.ensure(&client).await {
                tracing::warn!(%error, "a definition is not taken in yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    std::future::pending::<()>().await;
}

fn read(name: &str, text: &str) -> Result<Vec<Manifest>, ManifestError> {
    let mut manifests = Vec::new();
    manifest::parse(Path::new(name), text, &mut manifests)?;
    Ok(manifests)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_file_is_listed_and_readable() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("definitions");
        let mut there: Vec<String> =
            std::fs::read_dir(directory).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        there.sort();
        let listed: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(there, listed);
        for (name, text) in FILES {
            assert!(!read(name, text).unwrap().is_empty(), "{name}");
        }
    }
}
