//! What a pod refers to, and the volumes made of it: before its containers start, and again while they run.
//!
//! Flow: ConfigMaps, Secrets, claims and tokens are fetched through the node's [`Objects`]; the volumes are made or, for files
//! made from objects, brought up to date in one step that programs see as a whole ([`crate::volumes::atomic`]).
//!
//! Guarantees: an API server that cannot be reached leaves what was fetched before; a token is renewed when four fifths of its
//! life are over, as by the kubelet; an object that many pods refer to is asked for at most once a [`FRESH`], one that calls
//! itself immutable only once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::Mutex;

use crate::context::Context;
use crate::env::{self, Claim, Data, Sources, TokenKey};
use crate::pod::clock::later;
use crate::pod::dir::PodDir;
use crate::pod::io::StartFailure;
use crate::volumes::{self, Volumes};

/// How often the files of running pods are brought up to date.
pub const REFRESH: Duration = Duration::from_secs(10);
/// How long an object is good without asking again.
const FRESH: Duration = Duration::from_secs(5);
/// Objects that nobody asked for as long as this are forgotten.
const FORGET: Duration = Duration::from_secs(300);
/// One request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A token is renewed after a day even if it lives longer, as by the kubelet.
const RENEW_MAX: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    ConfigMap,
    Secret,
}

struct Slot {
    data: Option<Data>,
    fetched: Instant,
    used: Instant,
    immutable: bool,
}

/// The ConfigMaps and Secrets that the node's pods refer to, as last read.
#[derive(Default)]
pub struct Objects(StdMutex<HashMap<(Kind, String, String), Slot>>);

impl Objects {
    async fn get(&self, context: &Context, kind: Kind, namespace: &str, name: &str) -> kube::Result<Option<Data>> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = lock().get_mut(&key)
            && (slot.immutable || slot.fetched.elapsed() < FRESH)
        {
            slot.used = Instant::now();
            return Ok(slot.data.clone());
        }
        let client = context.config.client.clone();
        let (data, immutable) = match kind {
            Kind::ConfigMap => {
                let object = Api::<core::ConfigMap>::namespaced(client, namespace).get_opt(name).await?;
                let immutable = object.as_ref().is_some_and(|object| object.immutable == Some(true));
                (object.map(config_map_data), immutable)
            }
            Kind::Secret => {
                let object = Api::<core::Secret>::namespaced(client, namespace).get_opt(name).await?;
                let immutable = object.as_ref().is_some_and(|object| object.immutable == Some(true));
                (object.map(secret_data), immutable)
            }
        };
        let now = Instant::now();
        let mut slots = lock();
        slots.retain(|_, slot| slot.used.elapsed() < FORGET);
        slots.insert(key, Slot { data: data.clone(), fetched: now, used: now, immutable });
        Ok(data)
    }
}

fn config_map_data(object: core::ConfigMap) -> Data {
    let texts = object.data.into_iter().flatten().map(|(key, text)| (key, text.into_bytes()));
    texts.chain(object.binary_data.into_iter().flatten().map(|(key, bytes)| (key, bytes.0))).collect()
}

fn secret_data(object: core::Secret) -> Data {
    object.data.into_iter().flatten().map(|(key, bytes)| (key, bytes.0)).collect()
}

/// What a pod's starts share: the objects fetched and the volumes made.
#[derive(Default)]
pub struct Prepared {
    sources: Sources,
    volumes: Option<Volumes>,
    /// When each token is to be renewed.
    renewals: BTreeMap<TokenKey, Timestamp>,
}

/// One pod to prepare.
#[derive(Clone)]
pub struct Preparation {
    /// The agent.
    pub context: Arc<Context>,
    /// The pod.
    pub pod: Arc<core::Pod>,
    /// Its directory.
    pub dir: PodDir,
    /// Its address.
    pub pod_ip: Option<String>,
    /// What its starts share.
    pub prepared: Arc<Mutex<Prepared>>,
}

impl Preparation {
    /// Everything that a container of the pod needs.
    ///
    /// # Errors
    /// What is missing.
    pub async fn complete(&self) -> Result<(Sources, Volumes), StartFailure> {
        let mut prepared = self.prepared.lock().await;
        self.fetch(&mut prepared).await?;
        if let Some(volumes) = &prepared.volumes {
            return Ok((prepared.sources.clone(), volumes.clone()));
        }
        let (sources, prepare) = (prepared.sources.clone(), volumes::prepare);
        let volumes = self.make(sources, prepare).await.map_err(StartFailure::Volume)?;
        prepared.volumes = Some(volumes.clone());
        Ok((prepared.sources.clone(), volumes))
    }

    /// Brings the files that are made from objects up to date.
    ///
    /// # Errors
    /// Why not; what was there stays.
    pub async fn refresh(&self) -> Result<(), String> {
        let mut prepared = self.prepared.lock().await;
        self.fetch(&mut prepared).await.map_err(|failure| failure.to_string())?;
        self.make(prepared.sources.clone(), volumes::refresh).await
    }

    async fn make<T: Send + 'static>(
        &self,
        sources: Sources,
        make: fn(&core::Pod, &std::path::Path, &Sources, &env::PodFacts, &str) -> Result<T, volumes::VolumeError>,
    ) -> Result<T, String> {
        let (pod, place, facts) = (self.pod.clone(), self.dir.volumes(), self.context.facts(self.pod_ip.clone()));
        let version = format!("{:x}", self.context.clock.now().as_microsecond());
        let made = tokio::task::spawn_blocking(move || make(&pod, &place, &sources, &facts, &version));
        made.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    async fn fetch(&self, prepared: &mut Prepared) -> Result<(), StartFailure> {
        let wanted = env::references(&self.pod);
        let sources = &mut prepared.sources;
        for (kind, names, known) in [
            (Kind::ConfigMap, wanted.config_maps, &mut sources.config_maps),
            (Kind::Secret, wanted.secrets, &mut sources.secrets),
        ] {
            for name in names {
                let objects = &self.context.objects;
                match in_time(objects.get(&self.context, kind, self.namespace(), &name)).await {
                    Ok(data) => drop(known.insert(name, data)),
                    Err(_) if known.contains_key(&name) => {}
                    Err(error) => return Err(StartFailure::Config(error)),
                }
            }
        }
        for name in wanted.claims {
            // A claim is bound once and for all; until then it is looked at again.
            if !matches!(sources.claims.get(&name), Some(Claim::Bound(_))) {
                let claim = in_time(self.claim(&name)).await.map_err(StartFailure::Volume)?;
                sources.claims.insert(name, claim);
            }
        }
        for key in wanted.tokens {
            let now = self.context.clock.now();
            if prepared.renewals.get(&key).is_some_and(|at| *at > now) {
                continue;
            }
            match in_time(self.token(&key)).await {
                Ok((token, renew_at)) => {
                    prepared.renewals.insert(key.clone(), renew_at);
                    sources.tokens.insert(key, token);
                }
                // The one at hand is still good for a fifth of its life.
                Err(error) if sources.tokens.contains_key(&key) => tracing::debug!(error, "token not renewed yet"),
                Err(error) => return Err(StartFailure::Volume(error)),
            }
        }
        Ok(())
    }

    /// A token of the pod's ServiceAccount, bound to the pod, and when to renew it.
    async fn token(&self, key: &TokenKey) -> kube::Result<(String, Timestamp)> {
        let spec = self.pod.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let meta = &self.pod.metadata;
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(key.audience.iter().cloned().collect()),
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let api: Api<core::ServiceAccount> = Api::namespaced(self.context.config.client.clone(), self.namespace());
        let asked = Timestamp::now();
        let status = api.create_token_request(account, &PostParams::default(), &request).await?.status;
        let status = status.unwrap_or_default();
        let expires = status.expiration_timestamp.map_or(asked, |time| time.0);
        let life = expires.duration_since(asked).max(SignedDuration::ZERO);
        Ok((status.token.unwrap_or_default(), later(self.context.clock.now(), (life * 4 / 5).min(RENEW_MAX))))
    }

    /// The volume that a claim is bound to.
    async fn claim(&self, name: &str) -> kube::Result<Claim> {
        let client = &self.context.config.client;
        let claims: Api<core::PersistentVolumeClaim> = Api::namespaced(client.clone(), self.namespace());
        let Some(claim) = claims.get_opt(name).await? else { return Ok(Claim::Missing) };
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let Some(volume) = claim.spec.and_then(|spec| spec.volume_name).filter(|_| bound) else {
            return Ok(Claim::Unbound);
        };
        let volume = Api::<core::PersistentVolume>::all(client.clone()).get_opt(&volume).await?;
        Ok(volume.and_then(|volume| volume.spec).map_or(Claim::Unbound, |spec| Claim::Bound(Box::new(spec))))
    }
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => result.map_err(|error| match error {
            kube::Error::Api(status) => status.message.clone(),
            other => format!("cannot read from the API server: {other}"),
        }),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}
