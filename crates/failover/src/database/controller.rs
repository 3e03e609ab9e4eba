//! The loop: a Database or one of its pods changed → its objects are applied, its status is written.
//!
//! One key at a time: what a Database needs are a dozen requests, and they are made only when its generation changed or now
//! and then, in case somebody changed what is applied.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client, Resource as _};
use mainstay_informer::leader::{self, LeaderSettings};
use mainstay_informer::{Cache, ObjectKey, Scope};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use super::events::events;
use super::kind::Database;
use super::kind::names::{DATABASE, PAUSED, SWITCHOVER};
use super::objects::{Wanted, wanted};
use super::status::status;

/// Who owns the fields that the controller applies.
const MANAGER: &str = "mainstay-database-controller";
/// How often everything is applied although nothing changed.
const RESYNC: Duration = Duration::from_secs(60);
/// Changes within this time are looked at together: positions change all the time.
const GATHER: Duration = Duration::from_millis(200);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Characters of a password: of 32 letters and digits that nobody confuses, so five bits each.
const PASSWORD_LENGTH: usize = 26;
const PASSWORD_LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Why something about Databases did not work.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// There is no randomness for passwords.
    #[error("this machine gives no random bytes for passwords")]
    Random,
    /// The API refused an object.
    #[error("cannot write {what}: {source}")]
    Write {
        /// Kind and name.
        what: String,
        /// What the API said.
        source: kube::Error,
    },
}

/// Looks after all Databases, for ever, as soon as their definition is there; of several with `leader`, one does.
pub async fn run(client: Client, leader: Option<LeaderSettings>) {
    match leader {
        Some(settings) => leader::lead(client.clone(), settings, || work(client.clone())).await,
        None => work(client).await,
    }
}

async fn work(client: Client) {
    let (databases, pods) = (Cache::<Database>::new(), Cache::<Pod>::new());
    let members = Scope { labels: Some(DATABASE.to_owned()), ..Scope::default() };
    let reporter = Reporter { controller: "mainstay.dev/database".to_owned(), instance: None };
    let controller = Controller {
        client: client.clone(),
        databases: databases.clone(),
        pods: pods.clone(),
        recorder: Recorder::new(client.clone(), reporter),
    };
    tokio::select! {
        () = databases.run(client.clone(), Scope::default()) => {}
        () = pods.run(client, members) => {}
        () = controller.run() => {}
    }
}

struct Controller {
    client: Client,
    databases: Cache<Database>,
    pods: Cache<Pod>,
    recorder: Recorder,
}

impl Controller {
    async fn run(self) {
        let (mut databases, mut pods) = (self.databases.subscribe(), self.pods.subscribe());
        self.databases.synced().await;
        self.pods.synced().await;
        // Which generation was applied, and when.
        let mut applied: HashMap<ObjectKey, (Option<i64>, Instant)> = HashMap::new();
        let mut again = BTreeSet::new();
        loop {
            let mut keys = std::mem::take(&mut again);
            tokio::select! {
                changes = databases.changed() => keys.extend(changes.into_iter().map(|change| change.key)),
                changes = pods.changed() => keys.extend(changes.iter().filter_map(|change| database_of(change.versions().next()?))),
                () = tokio::time::sleep(if keys.is_empty() { RESYNC } else { RETRY }) => {
                    keys.extend(self.databases.list().iter().map(|database| ObjectKey::of(&**database)));
                }
            }
            tokio::time::sleep(GATHER).await;
            for key in keys {
                if let Err(error) = self.reconcile(&key, &mut applied).await {
                    tracing::warn!(database = %key, %error, "trying again");
                    again.insert(key);
                }
            }
        }
    }

    async fn reconcile(
        &self,
        key: &ObjectKey,
        applied: &mut HashMap<ObjectKey, (Option<i64>, Instant)>,
    ) -> Result<(), DatabaseError> {
        let Some(database) = self.databases.get_key(key) else {
            applied.remove(key);
            return Ok(());
        };
        let fresh = |(generation, at): &(Option<i64>, Instant)| {
            *generation == database.metadata.generation && at.elapsed() < RESYNC
        };
        if database.metadata.deletion_timestamp.is_none() && !applied.get(key).is_some_and(fresh) {
            let (random, mut failed) = (SystemRandom::new(), false);
            let all = wanted(&database, &mut || password(&random).inspect_err(|_| failed = true).unwrap_or_default());
            if failed {
                return Err(DatabaseError::Random);
            }
            for wanted in all {
                self.bring_about(&key.namespace, &wanted).await?;
            }
            applied.insert(key.clone(), (database.metadata.generation, Instant::now()));
        }
        let mine = |pod: &Pod| database_of(pod).as_ref() == Some(key);
        let pods = self.pods.filter(mine);
        let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
        let lease = self.lease(key, &database).await?;
        self.pass_on(key, &database).await?;
        let new = status(&database, &pods, lease.as_ref(), Timestamp::now());
        if includes(&database.status, &new) {
            return Ok(());
        }
        let body = json!({
            "apiVersion": "mainstay.dev/v1alpha1", "kind": "Database",
            "metadata": {"name": key.name, "namespace": key.namespace}, "status": new,
        });
        let api: Api<Database> = Api::namespaced(self.client.clone(), &key.namespace);
        let options = PatchParams::apply(MANAGER).force();
        let written = api.patch_status(&key.name, &options, &Patch::Apply(&body)).await;
        let failed = |source| DatabaseError::Write { what: format!("the status of {key}"), source };
        self.databases.observe(written.map_err(failed)?);
        self.tell(&database, &new).await;
        Ok(())
    }

    /// Tells what has changed. An Event that cannot be written is not worth another try.
    async fn tell(&self, database: &Database, status: &Value) {
        for event in events(&database.status, status) {
            if let Err(error) = self.recorder.publish(&event, &database.object_ref(&())).await {
                tracing::debug!(%error, reason = event.reason, "an Event of a Database was not taken");
            }
        }
    }

    /// The Lease that the members agree upon; that elections are suspended is said there.
    async fn lease(&self, key: &ObjectKey, database: &Database) -> Result<Option<Lease>, DatabaseError> {
        let failed = |source| DatabaseError::Write { what: format!("Lease {key}"), source };
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &key.namespace);
        let lease = api.get_opt(&key.name).await.map_err(failed)?;
        let paused =
            lease.as_ref().map(|lease| lease.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(PAUSED)));
        if paused.is_some_and(|paused| paused != database.spec.paused) {
            let value = database.spec.paused.then_some("true");
            let patch = json!({"metadata": {"annotations": {PAUSED: value}}});
            api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(failed)?;
        }
        Ok(lease)
    }

    /// A switchover that is asked for at the Database is passed on to the members, at the Lease, and then not asked for any more.
    async fn pass_on(&self, key: &ObjectKey, database: &Database) -> Result<(), DatabaseError> {
        let Some(to) = database.metadata.annotations.as_ref().and_then(|all| all.get(SWITCHOVER)) else {
            return Ok(());
        };
        let asked = |value: Option<&str>| json!({"metadata": {"annotations": {SWITCHOVER: value}}});
        let failed = |source| DatabaseError::Write { what: format!("the switchover of {key}"), source };
        let params = PatchParams::default();
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &key.namespace);
        leases.patch(&key.name, &params, &Patch::Merge(asked(Some(to)))).await.map_err(failed)?;
        let databases: Api<Database> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = databases.patch(&key.name, &params, &Patch::Merge(asked(None))).await.map_err(failed)?;
        self.databases.observe(written);
        Ok(())
    }

    async fn bring_about(&self, namespace: &str, wanted: &Wanted) -> Result<(), DatabaseError> {
        let object = wanted.object();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind, name) =
            (text(&object["apiVersion"]), text(&object["kind"]), text(&object["metadata"]["name"]));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource(&version, &kind));
        let failed = |source| DatabaseError::Write { what: format!("{kind} {name}"), source };
        match wanted {
            Wanted::Applied(object) => {
                let options = PatchParams::apply(MANAGER).force();
                api.patch(&name, &options, &Patch::Apply(object)).await.map_err(failed)?;
            }
            Wanted::Once(object) => {
                if api.get_metadata_opt(&name).await.map_err(failed)?.is_some() {
                    return Ok(());
                }
                let object: DynamicObject =
                    serde_json::from_value(object.clone()).map_err(|error| failed(kube::Error::SerdeError(error)))?;
                match api.create(&PostParams::default(), &object).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    other => drop(other.map_err(failed)?),
                }
            }
        }
        Ok(())
    }
}

/// Which Database a pod belongs to.
fn database_of(pod: &Pod) -> Option<ObjectKey> {
    let name = pod.metadata.labels.as_ref()?.get(DATABASE)?;
    Some(ObjectKey::new(pod.metadata.namespace.clone()?, name))
}

/// Whether applying `new` would change nothing: every field of it is there already, lists member by member.
fn includes(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            new.iter().all(|(key, new)| old.get(key).is_some_and(|old| includes(old, new)))
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| includes(old, new))
        }
        _ => old == new,
    }
}

fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(group, version, kind))
}

fn password(random: &SystemRandom) -> Result<String, ring::error::Unspecified> {
    let mut bytes = [0_u8; PASSWORD_LENGTH];
    random.fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| char::from(PASSWORD_LETTERS[usize::from(*byte) % PASSWORD_LETTERS.len()])).collect())
}
