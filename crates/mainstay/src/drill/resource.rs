//! A Drill that is an object of the cluster (`kubectl apply -f drill.yaml`): run once when it is there, and what came of it
//! stands in its status.
//!
//! # Flow
//! The server watches Drills ([`run`]) and starts `mainstay drill --resource NAMESPACE/NAME` for the oldest that has no status,
//! one after the other: a process of its own, since a drill may well kill the server. That process ([`Told`]) reads the
//! object, notes `Running`, drills, and writes the verdict, as soon as the API answers again.
//!
//! # Guarantees
//! - A Drill runs at most once: who wants another makes another, or uses `generateName`.
//! - A drill whose process died is noted as `Error`, and what it had broken is undone.

use std::ops::Deref;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use kube::{Api, Client, ResourceExt as _};
use mainstay_drill::report::Report;
use mainstay_drill::resource::Drill;
use mainstay_informer::{Cache, Scope};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::DrillError;
use crate::instance::Instance;
use crate::up::processes;

/// The role of the process that drills.
pub const ROLE: &str = "drill";
/// How long the API may be away when the verdict is there.
const API_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the process, and between two tries.
const LOOK: Duration = Duration::from_secs(1);

/// A Drill, as far as it decides what is to be done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Wanted {
    metadata: ObjectMeta,
    #[serde(default)]
    status: Value,
}

mainstay_informer::namespaced_kind!(Wanted, "mainstay.dev", "v1alpha1", "Drill", "drills");

/// What is to be done about the Drills that there are, while none runs.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// This one said that it runs, and nobody runs it.
    Broken(String, String),
    /// This one waits.
    Start(String, String),
    /// None.
    Nothing,
}

fn next<D: Deref<Target = Wanted>>(drills: &[D]) -> Next {
    let key = |drill: &Wanted| (drill.namespace().unwrap_or_default(), drill.name_any());
    let in_phase = |phase: Option<&'static str>| {
        let all = drills.iter().map(D::deref).filter(|drill| drill.status["phase"].as_str() == phase);
        let live = all.filter(|drill| drill.metadata.deletion_timestamp.is_none());
        live.min_by_key(|drill| (drill.creation_timestamp(), key(drill))).map(key)
    };
    if let Some((namespace, name)) = in_phase(Some("Running")) {
        return Next::Broken(namespace, name);
    }
    in_phase(None).map_or(Next::Nothing, |(namespace, name)| Next::Start(namespace, name))
}

/// Has every Drill run, for ever.
pub async fn run(client: Client, instance: Instance) {
    let drills = Cache::<Wanted>::new();
    let mut news = drills.subscribe();
    let work = async {
        drills.synced().await;
        loop {
            let is_busy = processes::find(&instance, ROLE).is_some_and(processes::is_alive);
            let next = if is_busy { Next::Nothing } else { next(&drills.list()) };
            match next {
                Next::Start(namespace, name) => start(&instance, &client, &namespace, &name).await,
                Next::Broken(namespace, name) => clean_up(&instance, &client, &namespace, &name).await,
                Next::Nothing => {}
            }
            // A process that ends is no news of the API.
            let busy = processes::find(&instance, ROLE).is_some_and(processes::is_alive);
            tokio::select! {
                _ = news.changed() => {}
                () = tokio::time::sleep(LOOK), if busy => {}
            }
        }
    };
    tokio::join!(drills.clone().run(client.clone(), Scope::default()), work);
}

async fn start(instance: &Instance, client: &Client, namespace: &str, name: &str) {
    let key = format!("{namespace}/{name}");
    let report = instance.data_dir.join("drills").join(namespace).join(name);
    let report = report.to_string_lossy().into_owned();
    match processes::start(instance, ROLE, &["drill", "--quiet", "--resource", &key, "--report", &report]) {
        Ok(mut child) => {
            tracing::info!(drill = key, "started");
            // Waited for, so that it does not stay as a zombie.
            tokio::spawn(async move { child.wait().await });
        }
        Err(error) => {
            let status = json!({"phase": "Error", "message": error.to_string()});
            set_status(client, namespace, name, status).await;
        }
    }
}

/// Undoes what a drill has left that ended before its end, and says so in its status.
async fn clean_up(instance: &Instance, client: &Client, namespace: &str, name: &str) {
    if let Ok(mut child) = processes::start(instance, "drill-undo", &["drill", "undo"]) {
        let _ = child.wait().await;
    }
    let message = "the process that ran it ended before its end; what it had broken has been undone";
    set_status(client, namespace, name, json!({"phase": "Error", "message": message})).await;
}

fn api(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("mainstay.dev", "v1alpha1", "Drill");
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk_with_plural(&kind, "drills"))
}

/// Writes the status; tries again while the API is away.
async fn set_status(client: &Client, namespace: &str, name: &str, status: Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    let since = Instant::now();
    loop {
        match api(client, namespace).patch_status(name, &PatchParams::default(), &patch).await {
            Ok(_) => return,
            // Deleted meanwhile, or refused: trying again changes nothing.
            Err(error @ kube::Error::Api(_)) => return tracing::warn!(drill = name, %error, "no status"),
            Err(error) if since.elapsed() > API_PATIENCE => return tracing::warn!(drill = name, %error, "no status"),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The object that told a drill to run, and is told what came of it.
pub struct Told {
    client: Client,
    namespace: String,
    name: String,
}

impl Told {
    /// By `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// When the name is none.
    pub fn new(client: Client, key: &str) -> Result<Self, DrillError> {
        let (namespace, name) = key.split_once('/').ok_or_else(|| DrillError::Key(key.to_owned()))?;
        Ok(Self { client, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// What it says, checked.
    ///
    /// # Errors
    /// When there is no such Drill, or it makes no sense; the status says so, too.
    pub async fn read(&self) -> Result<Drill, DrillError> {
        let object = api(&self.client, &self.namespace).get(&self.name).await;
        let object = object.map_err(|source| DrillError::Object { key: self.key(), source: Box::new(source) })?;
        let text = json!({
            "apiVersion": "mainstay.dev/v1alpha1",
            "kind": "Drill",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": object.data["spec"],
        });
        let drill = Drill::parse(&format!("drill {}", self.key()), &text.to_string());
        if let Err(error) = &drill {
            self.failed(&error.to_string()).await;
        }
        Ok(drill?)
    }

    /// Notes that it runs.
    pub async fn running(&self) {
        self.set(json!({"phase": "Running", "startTime": jiff::Timestamp::now().to_string()})).await;
    }

    /// Notes that there is no verdict.
    pub async fn failed(&self, reason: &str) {
        self.set(json!({"phase": "Error", "message": reason})).await;
    }

    /// Notes the verdict.
    pub async fn ended(&self, report: &Report, page: &std::path::Path) {
        let verdict = &report.verdict;
        self.set(json!({
            "phase": if verdict.passed() { "Passed" } else { "Failed" },
            "completionTime": jiff::Timestamp::now().to_string(),
            "asked": verdict.asked,
            "failed": verdict.asked - verdict.answered,
            "availability": format!("{:.3} %", verdict.availability_percent()),
            "longestGapMilliseconds": verdict.longest_gap_ms,
            "objections": verdict.objections,
            "leftOut": report.left_out,
            "report": page.display().to_string(),
        }))
        .await;
    }

    fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    async fn set(&self, status: Value) {
        set_status(&self.client, &self.namespace, &self.name, status).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn drill(name: &str, second: i64, phase: Option<&str>) -> Wanted {
        let created = jiff::Timestamp::from_second(second).unwrap().to_string();
        let mut object = json!({"metadata": {"name": name, "namespace": "shop", "creationTimestamp": created}});
        if let Some(phase) = phase {
            object["status"] = json!({ "phase": phase });
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn one_after_the_other_the_oldest_first() {
        let named = |name: &str| ("shop".to_owned(), name.to_owned());
        let start = |name: &str| Next::Start(named(name).0, named(name).1);
        let mut all = vec![drill("done", 1, Some("Passed")), drill("new", 3, None), drill("old", 2, None)];
        assert_eq!(next(&all.iter().collect::<Vec<_>>()), start("old"));
        all.push(drill("left", 9, Some("Running")));
        assert_eq!(next(&all.iter().collect::<Vec<_>>()), Next::Broken(named("left").0, named("left").1));
        assert_eq!(next(&[&all[0]]), Next::Nothing);
    }
}
