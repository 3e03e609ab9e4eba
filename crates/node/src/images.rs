//! The images that a node's containers run on: found here, or fetched as the pull policy says.
//!
//! Flow: [`Images::ensure`] answers what a container needs to know of its image, and tells people whether it was pulled;
//! [`collect`] removes unused images when the disk fills.
//!
//! Guarantees: an image in use by a pod of this machine is never removed; one image is pulled by one node at a time, the others
//! find it here; pulls are few at a time.
//!
//! Source: <https://kubernetes.io/docs/concepts/containers/images/>.

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1 as core;
use kube::Api;
use mainstay_image::manifest::RunConfig;
use mainstay_image::registry::Registry;
use mainstay_image::user::Accounts;
use mainstay_image::{Image, Keychain, Reference, Store, gc, pull};
use mainstay_runtime::image::{HOST_IMAGE, ImageRef, is_host};
use nix::sched::{CloneFlags, setns};
use tokio::sync::{Semaphore, oneshot};

use crate::config::NodeConfig;
use crate::context::Context;
use crate::pod::dir::PodDir;
use crate::pod::io::{PodEvent, StartFailure};

/// Pulls at a time; others wait for their turn.
const PULLS_MAX: usize = 3;
/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// How often one looks whether images came or went.
const NOTICE: Duration = Duration::from_secs(2);
/// Images in the Node's status, as the kubelet's `nodeStatusMaxImages`.
const LISTED_MAX: usize = 50;
/// Where people keep logins to registries; the first in the directory of images is the machine's own.
const CONFIG_FILES: [&str; 2] = ["config.json", "/root/.docker/config.json"];

/// What a container needs to know of its image.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Where its layers are.
    pub place: ImageRef,
    /// How it wants to be run.
    pub run: RunConfig,
    /// Its accounts.
    pub accounts: Accounts,
}

impl Found {
    /// The machine's own root file system: no program of its own, run by root.
    pub fn host() -> Self {
        Self::default()
    }
}

/// The images of a node.
pub struct Images {
    store: Store,
    node: String,
    turns: Semaphore,
    outside: Option<Arc<File>>,
}

impl Images {
    /// Lets go of what pods that are gone have held.
    pub fn new(config: &NodeConfig) -> Self {
        let store = Store::new(config.images.clone());
        let own = format!("{}.", config.name);
        let here: Vec<String> = PodDir::list(&config.data_dir).iter().map(PodDir::uid).collect();
        store.unpin(|pin| pin.strip_prefix(&own).is_some_and(|uid| !here.iter().any(|one| one == uid)));
        Self { store, node: config.name.clone(), turns: Semaphore::new(PULLS_MAX), outside: config.outside.clone() }
    }

    /// How statuses name an image that is here.
    pub fn id(&self, name: &str) -> String {
        if is_host(name) {
            return HOST_IMAGE.to_owned();
        }
        name.parse().ok().and_then(|name: Reference| self.store.find(&name)).map(|image| image.id()).unwrap_or_default()
    }

    /// The signal that asks programs of an image to end, if it names one.
    pub fn stop_signal(&self, name: &str) -> Option<String> {
        let name: Reference = name.parse().ok().filter(|_| !is_host(name))?;
        self.store.find(&name).map(|image| image.run.stop_signal).filter(|signal| !signal.is_empty())
    }

    /// A pod is gone.
    pub fn release(&self, uid: &str) {
        let own = format!("{}.{uid}", self.node);
        self.store.unpin(|pin| pin == own);
    }

    /// The image of a container, pulled if need be.
    ///
    /// # Errors
    /// Why it is not here, in the classes that statuses tell apart.
    pub async fn ensure(
        &self,
        context: &Context,
        pod: &core::Pod,
        spec: &core::Container,
    ) -> Result<Found, StartFailure> {
        let name = spec.image.as_deref().unwrap_or_default();
        let tell = |reason, message: String| context.events.tell(pod, PodEvent::normal(reason, &spec.name, message));
        if is_host(name) {
            tell("Pulled", format!("Container image \"{name}\" already present on machine"));
            return Ok(Found::host());
        }
        let invalid = |error: mainstay_image::reference::InvalidName| {
            StartFailure::NoImage("InvalidImageName", format!("Failed to apply default image tag \"{name}\": {error}"))
        };
        let reference: Reference = name.parse().map_err(invalid)?;
        let default = if reference.is_latest() { "Always" } else { "IfNotPresent" };
        let policy = spec.image_pull_policy.as_deref().unwrap_or(default);
        let here = self.store.find(&reference);
        let image = match (here, policy) {
            (Some(image), "IfNotPresent" | "Never") => {
                tell("Pulled", format!("Container image \"{name}\" already present on machine"));
                image
            }
            (None, "Never") => {
                let message = format!("Container image \"{name}\" is not present with pull policy of Never");
                return Err(StartFailure::NoImage("ErrImageNeverPull", message));
            }
            _ => {
                tell("Pulling", format!("Pulling image \"{name}\""));
                let keychain = self.keychain(context, pod).await;
                let asked = Instant::now();
                let _turn = self.turns.acquire().await;
                let began = Instant::now();
                let image = self.pull(reference, keychain).await.map_err(StartFailure::Image)?;
                let (took, waited) = (began.elapsed(), asked.elapsed());
                let size = image.record.size;
                tell(
                    "Pulled",
                    format!(
                        "Successfully pulled image \"{name}\" in {took:.3?} ({waited:.3?} including waiting). Image size: {size} bytes."
                    ),
                );
                image
            }
        };
        let owner = format!("{}.{}", self.node, pod.metadata.uid.as_deref().unwrap_or_default());
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || hold(&store, &image, &owner)).await;
        found.map_err(|error| StartFailure::Image(error.to_string()))?.map_err(StartFailure::Image)
    }

    /// Fetches an image, or finds that the registry has no newer one.
    async fn pull(&self, name: Reference, keychain: Keychain) -> Result<Image, String> {
        let (store, outside) = (self.store.clone(), self.outside.clone());
        beside(outside, move || async move { fetch(&store, &name, keychain).await }).await?
    }

    /// The logins of a pod's pull secrets, and the machine's own.
    async fn keychain(&self, context: &Context, pod: &core::Pod) -> Keychain {
        let mut keychain = Keychain::default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let secrets: Api<core::Secret> = Api::namespaced(context.config.client.clone(), namespace);
        for secret in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
            let warn = |why: String| {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed: {why}",
                    secret.name
                );
                let event =
                    PodEvent { warning: true, reason: "FailedToRetrieveImagePullSecret", message, container: None };
                context.events.tell(pod, event);
            };
            let data = match secrets.get_opt(&secret.name).await {
                Ok(Some(found)) => found.data.unwrap_or_default(),
                Ok(None) => {
                    warn("not found".to_owned());
                    continue;
                }
                Err(error) => {
                    warn(error.to_string());
                    continue;
                }
            };
            let config = data.get(".dockerconfigjson").map(|text| keychain.add_config(&text.0));
            let old = data.get(".dockercfg").map(|text| keychain.add_dockercfg(&text.0));
            if let Some(Err(error)) = config.or(old) {
                warn(error.to_string());
            }
        }
        add_own(&mut keychain, self.store.root());
        keychain
    }
}

/// The logins and settings that the machine has for registries: Docker's `config.json`, in the directory of images or
/// root's own.
pub fn add_own(keychain: &mut Keychain, directory: &Path) {
    for file in CONFIG_FILES {
        let path = directory.join(file);
        if let Ok(text) = std::fs::read(&path)
            && let Err(error) = keychain.add_config(&text)
        {
            tracing::warn!(path = %path.display(), %error, "logins to registries not read");
        }
    }
}

async fn fetch(store: &Store, name: &Reference, keychain: Keychain) -> Result<Image, String> {
    let words = |error: &dyn std::error::Error| crate::pod::doing::with_sources(error);
    // Whoever else wants it waits, and finds it.
    let (lock_of, lock_name) = (store.clone(), name.clone());
    let held = tokio::task::spawn_blocking(move || lock_of.hold(&lock_name)).await;
    let _held = held.map_err(|error| error.to_string())?.map_err(|error| words(&error))?;
    let registry = Registry::new(keychain).map_err(|error| words(&error))?;
    if let Some(image) = store.find(name) {
        let digest = registry.digest(name).await.map_err(|error| words(&error))?;
        if digest.is_some_and(|digest| digest == image.record.repo_digest) {
            return Ok(image);
        }
    }
    pull::pull(store, &registry, name, &|_| {}).await.map_err(|error| words(&error))
}

/// Keeps an image for a pod, and reads what its container has to know.
fn hold(store: &Store, image: &Image, owner: &str) -> Result<Found, String> {
    let words = |error: mainstay_image::store::StoreError| crate::pod::doing::with_sources(&error);
    let _lock = store.share().map_err(words)?;
    store.pin(image, owner).map_err(words)?;
    let layers: Vec<PathBuf> = image.layers.iter().map(|layer| store.layers().join(layer)).collect();
    let place = ImageRef::Layers { store: store.layers(), layers: image.layers.clone() };
    Ok(Found { place, run: image.run.clone(), accounts: Accounts::read(&layers) })
}

/// Runs work on a thread of its own, in the given network namespace, from which registries are reached.
async fn beside<T, F>(outside: Option<Arc<File>>, work: impl FnOnce() -> F + Send + 'static) -> Result<T, String>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (sender, receiver) = oneshot::channel();
    let run = move || -> Result<T, String> {
        if let Some(outside) = outside {
            setns(&*outside, CloneFlags::CLONE_NEWNET)
                .map_err(|error| format!("cannot enter the machine's network: {error}"))?;
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        Ok(runtime.block_on(work()))
    };
    let spawned = std::thread::Builder::new().name("pull".to_owned()).spawn(move || drop(sender.send(run())));
    spawned.map_err(|error| error.to_string())?;
    receiver.await.map_err(|_| "the pull was given up".to_owned())?
}

/// Removes unused images when the disk fills, for ever, and notes for the Node's status which there are.
pub async fn collect(context: Arc<Context>) {
    let mut noted = None;
    let mut looked = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(NOTICE).await;
        let store = context.images.store.clone();
        // An image that comes or goes changes this directory.
        let changed = std::fs::metadata(store.root().join("names")).and_then(|meta| meta.modified()).ok();
        if changed != noted {
            noted = changed;
            let list = tokio::task::spawn_blocking(move || listing(&store)).await.unwrap_or_default();
            context.vitals.send_if_modified(|known| {
                let news = known.images != list;
                known.images = list;
                news
            });
        }
        if looked.elapsed() >= LOOK {
            looked = tokio::time::Instant::now();
            remove(&context, gc::Disk::to_free).await;
        }
    }
}

/// Removes all images that nobody uses; whether there were any.
pub async fn remove_unused(context: &Context) -> bool {
    remove(context, |_| u64::MAX).await
}

/// Removes unused images until so many bytes are free; whether there were any.
async fn remove(context: &Context, to_free: fn(gc::Disk) -> u64) -> bool {
    let store = context.images.store.clone();
    if !store.root().exists() {
        return false;
    }
    let work = move || {
        let disk = gc::Disk::of(store.root()).map_err(|error| error.to_string())?;
        gc::collect(&store, to_free(disk)).map_err(|error| error.to_string())
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(removed)) if removed.is_empty() => return false,
        Ok(Ok(removed)) => {
            tracing::info!(?removed, "unused images removed, the disk is filling");
            return true;
        }
        Ok(Err(error)) => tracing::warn!(error, "unused images not removed"),
        Err(error) => tracing::warn!(%error, "unused images not removed"),
    }
    false
}

/// The images as the Node's status names them, the largest first.
fn listing(store: &Store) -> Vec<core::ContainerImage> {
    let mut all: Vec<_> = store.list();
    all.sort_by_key(|image| std::cmp::Reverse(image.record.size));
    all.truncate(LISTED_MAX);
    let shown = |image: &Image| core::ContainerImage {
        names: Some(vec![image.id(), image.record.name.clone()]),
        size_bytes: i64::try_from(image.record.size).ok(),
    };
    all.iter().map(shown).collect()
}
