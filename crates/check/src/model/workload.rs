//! What makes pods: each workload with its template, its number, and what decides how fast its pods come back.

use std::collections::BTreeMap;

use mainstay_model::fencing;
use mainstay_model::meta::{self, list_at};
use serde_json::{Value, json};

use super::quorum::{self, Known, Quorum, Rule};
use crate::engine::{self, Engine};
use crate::manifest::Object;

/// The annotation of a workload: seconds its program needs from start until its probes can succeed.
pub const START: &str = "check.mainstay.dev/start-seconds";
/// The annotation of a workload: `true` when it keeps data nobody else has.
pub const DATA: &str = "check.mainstay.dev/data";
/// Most pods of one workload, and of all.
pub(crate) const PODS_MAX: usize = 20_000;

/// The kinds that make pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Replaced anywhere, in any order.
    Deployment,
    /// As a Deployment, without updates; ReplicationControllers too.
    ReplicaSet,
    /// With names and volumes of their own.
    StatefulSet,
    /// One on every node.
    DaemonSet,
    /// Until it is done.
    Job,
    /// Now and then.
    CronJob,
    /// By itself: nobody replaces it.
    Pod,
}

impl Kind {
    fn of(kind: &str) -> Option<(Self, &'static str)> {
        Some(match kind {
            "Deployment" => (Self::Deployment, "spec.template"),
            "ReplicaSet" | "ReplicationController" => (Self::ReplicaSet, "spec.template"),
            "StatefulSet" => (Self::StatefulSet, "spec.template"),
            "DaemonSet" => (Self::DaemonSet, "spec.template"),
            "Job" => (Self::Job, "spec.template"),
            "CronJob" => (Self::CronJob, "spec.jobTemplate.spec.template"),
            "Pod" => (Self::Pod, ""),
            _ => return None,
        })
    }

    /// Whether it serves until it is told to stop.
    pub fn serves(self) -> bool {
        !matches!(self, Self::Job | Self::CronJob)
    }
}

/// What makes pods.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // facts that have nothing to do with each other
pub struct Workload {
    /// Its object.
    pub object: usize,
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How many pods it should have; of an autoscaled one the fewest.
    pub replicas: usize,
    /// Where the template stands in the object, `spec.template`.
    pub template_path: &'static str,
    /// The template: metadata and spec, defaulted.
    pub template: Value,
    /// Its pods.
    pub pods: Vec<usize>,
    /// From the containers' start to Ready, seconds.
    pub ready_s: f64,
    /// How long its pods stay on a dead node after it was given up; `None`: for ever.
    pub stay_s: Option<f64>,
    /// Whether two of the same name must never run.
    pub runs_once: bool,
    /// Whether a container that ends is started again.
    pub restarts: bool,
    /// The program, if it is known.
    pub known: Option<&'static Known>,
    /// How many must live.
    pub quorum: Option<Quorum>,
    /// Whether it keeps data.
    pub keeps_data: bool,
    /// Whether somebody makes new pods for those that are gone.
    pub is_replaced: bool,
}

impl Workload {
    /// From the object; `None` when it makes no pods, or is itself made by another.
    pub(crate) fn of(at: usize, object: &Object, engine: &Engine, program_s: f64) -> Option<Self> {
        let (kind, template_path) = Kind::of(object.kind())?;
        if meta::controller_of(&object.written).is_some() {
            return None;
        }
        let template = if template_path.is_empty() {
            json!({"metadata": object.value["metadata"], "spec": object.value["spec"]})
        } else {
            meta::at(&object.value, template_path).cloned().unwrap_or(Value::Null)
        };
        let spec = &template["spec"];
        let number = |key: &str| object.annotation(key).and_then(|text| text.parse::<f64>().ok());
        let known = quorum::known_program(spec);
        let quorum = quorum_of(object, kind, known, number(quorum::FAILOVER));
        let as_pod = json!({"metadata": template["metadata"], "spec": spec});
        let has_claims = object.value["spec"]["volumeClaimTemplates"].as_array().is_some_and(|all| !all.is_empty())
            || list_at(spec, "volumes").iter().any(|volume| volume["persistentVolumeClaim"].is_object());
        let keeps_data = match object.annotation(DATA) {
            Some(text) => text == "true",
            None => has_claims || known.is_some_and(|known| known.keeps),
        };
        let stated = meta::annotation(&as_pod, fencing::POD_ANNOTATION);
        let runs_once = stated.map_or(kind == Kind::StatefulSet || has_claims, |text| text == "true");
        Some(Self {
            object: at,
            kind,
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            replicas: replicas(object, kind),
            template_path,
            ready_s: engine::ready_after_s(spec, number(START).unwrap_or(program_s), engine.quick_probe_s),
            stay_s: stay_s(spec, kind, engine),
            runs_once,
            restarts: !matches!(spec["restartPolicy"].as_str(), Some("Never")),
            known,
            quorum,
            keeps_data,
            is_replaced: kind != Kind::Pod,
            template,
            pods: Vec::new(),
        })
    }

    /// `shop/cart`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Labels of its pods.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.template["metadata"]["labels"].as_object().into_iter().flatten();
        labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// The spec of its pods.
    pub fn spec(&self) -> &Value {
        &self.template["spec"]
    }

    /// A path in the object for one in the pod's spec: `spec.template.spec.containers[0]`.
    pub fn path(&self, in_spec: &str) -> String {
        let mut path = if self.template_path.is_empty() { String::new() } else { format!("{}.", self.template_path) };
        path.push_str("spec");
        if !in_spec.is_empty() {
            path.push('.');
            path.push_str(in_spec);
        }
        path
    }

    /// Its pods as the scheduler gets them. `node` is that of a DaemonSet's pod, or where a pod runs already.
    pub(crate) fn pod(&self, name: &str, priority: (i64, &str)) -> Value {
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": self.template["metadata"], "spec": self.spec()});
        meta::set_metadata(&mut pod, "name", json!(name));
        meta::set_metadata(&mut pod, "namespace", json!(self.namespace));
        let owner = json!([{"apiVersion": "v1", "kind": "Owner", "name": self.name, "controller": true,
            "uid": format!("{:?} {}", self.kind, self.key())}]);
        meta::set_metadata(&mut pod, "ownerReferences", owner);
        pod["spec"]["priority"] = json!(priority.0);
        pod["spec"]["preemptionPolicy"] = json!(priority.1);
        pod
    }
}

fn replicas(object: &Object, kind: Kind) -> usize {
    let spec = &object.value["spec"];
    let number = match kind {
        Kind::Deployment | Kind::ReplicaSet | Kind::StatefulSet => spec["replicas"].as_u64().unwrap_or(1),
        Kind::Job => spec["parallelism"].as_u64().unwrap_or(1),
        Kind::CronJob => spec["jobTemplate"]["spec"]["parallelism"].as_u64().unwrap_or(1),
        Kind::DaemonSet | Kind::Pod => 1,
    };
    usize::try_from(number).unwrap_or(PODS_MAX).min(PODS_MAX)
}

fn quorum_of(object: &Object, kind: Kind, known: Option<&Known>, failover_s: Option<f64>) -> Option<Quorum> {
    if let Some(text) = object.annotation(quorum::QUORUM) {
        let rule = Rule::parse(text, failover_s)?;
        return Some(Quorum { rule, source: format!("annotation {} says {text}", quorum::QUORUM) });
    }
    // Members have names of their own; what a Deployment makes are copies that know nothing of each other.
    let known = known.filter(|_| kind == Kind::StatefulSet)?;
    let rule = match known.rule {
        Rule::Primary(_) => Rule::Primary(failover_s),
        rule => rule,
    };
    Some(Quorum { rule, source: format!("it runs {}", known.name) })
}

/// How long pods stay on a node with the taint `node.kubernetes.io/unreachable`.
fn stay_s(spec: &Value, kind: Kind, engine: &Engine) -> Option<f64> {
    const KEY: &str = "node.kubernetes.io/unreachable";
    let covers = |toleration: &&Value| {
        let text = |field: &str| toleration[field].as_str().unwrap_or_default();
        let of_key = text("key") == KEY || text("key").is_empty() && text("operator") == "Exists";
        of_key && matches!(text("effect"), "" | "NoExecute")
    };
    let covering: Vec<&Value> = list_at(spec, "tolerations").iter().filter(covers).collect();
    if kind == Kind::DaemonSet {
        return None;
    }
    if covering.is_empty() {
        return Some(engine.toleration_s);
    }
    covering.iter().filter_map(|toleration| toleration["tolerationSeconds"].as_f64()).reduce(f64::min)
}
