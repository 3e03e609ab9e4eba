//! The end of a definition: its objects are deleted first, then it may go itself.
//!
//! Flow, one task per definition that is being deleted: delete all objects → wait until the last has gone, as finalizers
//! may hold some → take the finalizer away → names that other definitions were refused may be free now.
//!
//! Guarantees: a task that fails begins anew; after a restart of the server it is started again. Two servers doing the
//! same do no harm.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#delete-a-customresourcedefinition>.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mainstay_custom::definition::{self, CLEANUP_FINALIZER};
use mainstay_model::meta;
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::Value;

use super::DEFINITION;
use crate::api::Api;
use crate::guard;
use crate::registry::Served;
use crate::request::{Call, Verb};
use crate::rest;

/// Longest wait for a sign that an object has gone, before everything is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two tries after a failure.
const RETRY: Duration = Duration::from_millis(200);

/// The definitions whose end is being looked after.
#[derive(Default)]
pub(crate) struct Cleanups(Mutex<HashSet<String>>);

impl Cleanups {
    fn begin(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned())
    }

    fn end(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// Starts to look after the end of every definition that is being deleted.
///
/// # Errors
/// 500 when the definitions cannot be read.
pub(crate) async fn clean_up(api: &Arc<Api>) -> Result<(), ApiError> {
    let ending = |object: &&Value| meta::is_being_deleted(object) && meta::has_finalizer(object, CLEANUP_FINALIZER);
    let names = api.registry.definitions(|definitions| {
        definitions.objects().filter(ending).map(|object| meta::name(object).to_owned()).collect::<Vec<_>>()
    });
    for name in names.await? {
        if !api.cleanups.begin(&name) {
            continue;
        }
        let api = Arc::downgrade(api);
        guard::spawn(async move {
            // The server may end before the objects do.
            while let Some(api) = api.upgrade() {
                match finish(&api, &name).await {
                    Ok(true) => {
                        api.cleanups.end(&name);
                        return;
                    }
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(definition = name, error = %error.message, "cannot end a definition yet");
                        drop(api);
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        });
    }
    Ok(())
}

/// One try; true when the definition needs no more looking after.
async fn finish(api: &Arc<Api>, name: &str) -> Result<bool, ApiError> {
    let Some(object) = rest::find(api, DEFINITION, None, name).await? else { return Ok(true) };
    if !meta::has_finalizer(&object, CLEANUP_FINALIZER) {
        return Ok(true);
    }
    if let Some(custom) = api.registry.definitions(|definitions| definitions.served(name)).await? {
        let served = Served::from(&custom);
        let prefix = served.key(None, "");
        let all = Call::internal(Verb::DeleteCollection, served, None);
        rest::delete_collection(api, &all, "application/json", &Bytes::new()).await?;
        let left = api.store.range(&prefix, None, Some(1), None).await.map_err(ApiError::internal)?;
        if !left.entries.is_empty() {
            let mut watcher = api.store.watch(&prefix, left.revision).await.map_err(ApiError::internal)?;
            // A change or the time: both lead to another look.
            let _ = tokio::time::timeout(LOOK_AGAIN, watcher.next()).await;
            return Ok(false);
        }
    }
    let call = on(name);
    let now = api.now();
    rest::change(api, &Call { subresource: Some("status".to_owned()), ..call.clone() }, |old| {
        let mut new = old.clone();
        definition::set_condition(
            &mut new,
            "Terminating",
            false,
            "InstanceDeletionCompleted",
            "removed all instances",
            now,
        );
        Ok(new)
    })
    .await?;
    rest::change(api, &call, |old| {
        let mut new = old.clone();
        meta::remove_finalizer(&mut new, CLEANUP_FINALIZER);
        Ok(new)
    })
    .await?;
    reconsider(api, &object).await?;
    Ok(true)
}

fn on(name: &str) -> Call {
    let definitions = Served::from(known(DEFINITION));
    Call { name: Some(name.to_owned()), ..Call::internal(Verb::Update, definitions, None) }
}

/// Gives definitions of the same group the names that have become free.
async fn reconsider(api: &Arc<Api>, gone: &Value) -> Result<(), ApiError> {
    let group = &gone["spec"]["group"];
    let refused = |object: &&Value| {
        object["spec"]["group"] == *group
            && !meta::is_condition_true(object, "NamesAccepted")
            && meta::name(object) != meta::name(gone)
    };
    let names = api.registry.definitions(|definitions| {
        definitions.objects().filter(refused).map(|object| meta::name(object).to_owned()).collect::<Vec<_>>()
    });
    for name in names.await? {
        // An update without a change judges it anew.
        match rest::change(api, &on(&name), |old| Ok(old.clone())).await {
            Err(error) if error.code != 404 => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
