//! Speaking to the API of an instance, as its administrator or as one of its nodes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use crate::instance::Instance;

/// Between two tries to reach an API that is starting.
const RETRY: Duration = Duration::from_millis(5);

/// Why the API could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig is not there or not usable.
    #[error("cannot use {path}: {reason}; `mainstay up` writes it")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The API does not answer.
    #[error("the API at {address} does not answer after {seconds} s: {reason}")]
    Silent {
        /// Where.
        address: String,
        /// How long it was tried.
        seconds: u64,
        /// The last answer.
        reason: String,
    },
}

/// A client by a kubeconfig file.
///
/// # Errors
/// When the file is not usable.
pub async fn from_file(path: &Path) -> Result<Client, ClientError> {
    named(path, "mainstay").await
}

/// A client by a kubeconfig file, which calls itself `program`: the name under which it owns what it writes.
///
/// # Errors
/// When the file is not usable.
pub async fn named(path: &Path, program: &'static str) -> Result<Client, ClientError> {
    let failed = |reason: String| ClientError::Kubeconfig { path: path.to_owned(), reason };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(error.to_string()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| failed(error.to_string()))?;
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(program)));
    Client::try_from(config).map_err(|error| failed(error.to_string()))
}

/// The administrator's client, as soon as the API is ready.
///
/// # Errors
/// When it is not ready in time.
pub async fn when_ready(instance: &Instance, patience: Duration) -> Result<Client, ClientError> {
    let since = Instant::now();
    loop {
        // A starting instance writes its kubeconfig anew.
        let reason = match from_file(&instance.kubeconfig()).await {
            Ok(client) => match is_ready(&client).await {
                Ok(()) => return Ok(client),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if since.elapsed() > patience {
            let (address, seconds) = (instance.api.to_string(), patience.as_secs());
            return Err(ClientError::Silent { address, seconds, reason });
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn is_ready(client: &Client) -> Result<(), kube::Error> {
    let request = http::Request::get("/readyz").body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request_text(request).await.map(drop)
}
