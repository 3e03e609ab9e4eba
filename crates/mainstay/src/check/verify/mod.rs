//! `mainstay check --verify`: makes each predicted single failure happen on an instance of its own, and holds what was seen
//! against what was predicted.
//!
//! # Flow
//! an instance with the manifests → for each pod, the control plane, each node, each zone: predict from what runs where now →
//! [`probe`] every service while it is broken → undo, wait until all is there again → [`verdict`] → [`table`].
//!
//! # Guarantees
//! Only an instance that this command has started is broken, and it is taken down at the end. A failure that did not take
//! effect is an error, never an agreement.
//!
//! # Deliberately absent
//! Volumes (what is gone cannot be given back) and pairs of nodes (too many to be tried while somebody waits). Whether data
//! is lost: a drill's ledgers tell.

mod probe;
mod table;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use mainstay_check::model::Model;
use mainstay_check::model::quorum::Rule;
use mainstay_check::survive::{self, Failure, FailureKind, Row};
use mainstay_check::topology::{Server, Topology};
use mainstay_drill::fault::breaker::Breaker;
use mainstay_drill::fault::{Fault, FaultKind, Target};
use mainstay_drill::observe::Observer;
use mainstay_drill::resource::FaultSettings;
use mainstay_model::meta::list_at;
use mainstay_model::selector::LabelSelector;
use serde_json::Value;

use super::{CheckArgs, Format, Settings};
use crate::AnyError;
use crate::drill::{Hands, Own};
use crate::instance::Instance;
use probe::{Need, Place, Probes};
use verdict::{Agreement, Comparison};

/// How the server of an own instance is called in predictions.
const SERVER: &str = "server-1";
/// Shortest and longest time that something stays broken.
const HOLD: (f64, f64) = (5.0, 40.0);
/// How long is looked beyond the time by which all should be over, in seconds.
const LOOK_BEYOND_S: f64 = 4.0;
/// How long a failure that needs a person is looked at, in seconds.
const LOOK_FOREVER_S: f64 = 12.0;
/// How long all may take to be there again.
const HEAL_PATIENCE: Duration = Duration::from_secs(90);
/// Quiet time before each failure.
const QUIET: Duration = Duration::from_secs(2);

/// Runs it; answers whether every prediction holds.
///
/// # Errors
/// When there is no instance to be had, or something could not be broken or undone.
pub async fn run(args: &CheckArgs, settings: &Settings) -> Result<bool, AnyError> {
    let own = Own::place();
    let (nodes, zones) = (args.nodes.to_string(), args.zones.to_string());
    eprintln!("starting an instance of {nodes} nodes in {zones} zones in {}", own.directory().display());
    own.start(&args.files, &["--nodes", &nodes, "--zones", &zones])?;
    let instance = Instance::load(own.directory())?;
    let journal = instance.data_dir.join("run/drill.journal");
    let client = crate::client::named(&instance.kubeconfig(), "mainstay-check").await?;
    let breaker = Breaker::new(client.clone(), Some(Arc::new(Hands::new(instance))), &journal)?;
    let observer = Observer::start(&client, Instant::now()).await;
    let mut stage = Stage { client, breaker, observer, settings };
    let told = stage.all().await;
    let undone = stage.breaker.undo_all().await;
    drop(own);
    let all = told?;
    undone?;
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&table::json(&all))?),
        _ => print!("{}", table::text(&all)),
    }
    Ok(all.iter().all(|one| one.agreement != Agreement::Differs))
}

struct Stage<'a> {
    client: Client,
    breaker: Breaker,
    observer: Observer,
    settings: &'a Settings,
}

impl Stage<'_> {
    async fn all(&mut self) -> Result<Vec<Comparison>, AnyError> {
        let model = self.model().await?;
        let targets: Vec<(Failure, String)> = singles(&model);
        let mut all = Vec::new();
        for (number, (_, name)) in targets.iter().enumerate() {
            eprintln!("{:>3} of {}  {name}", number + 1, targets.len());
            // What runs where has changed with the failure before.
            let model = self.model().await?;
            let Some((failure, _)) = singles(&model).into_iter().find(|(_, other)| other == name) else {
                return Err(format!("{name} is gone, although everything was healed").into());
            };
            all.extend(self.one(&model, failure).await?);
        }
        Ok(all)
    }

    /// The model of what runs now.
    async fn model(&self) -> Result<Model, AnyError> {
        let (objects, _) = super::live(&self.client).await?;
        let nodes: Vec<Value> =
            objects.iter().filter(|object| object.kind() == "Node").map(|node| node.written.clone()).collect();
        let mut topology = Topology::of_nodes(&nodes)?;
        topology.servers = vec![Server { name: SERVER.to_owned(), on: None }];
        Ok(Model::build(objects, topology, self.settings.engine.clone(), self.settings.program_s)?)
    }

    /// One failure, from broken to healed.
    async fn one(&mut self, model: &Model, failure: Failure) -> Result<Vec<Comparison>, AnyError> {
        let row = survive::row(model, failure);
        let places = self.places(model).await?;
        let (wanted, well) = (self.observer.ready_now(), self.observer.ready_nodes());
        let probes = Probes::start(places, &self.observer.pods);
        tokio::time::sleep(QUIET).await;
        let from_s = probes.now_s();
        let fault =
            Fault { kind: FaultKind::Kill, target: target(model, failure)?, settings: FaultSettings::default() };
        self.breaker.make(&fault).await?;
        tokio::time::sleep(hold(&row)).await;
        // What was to be over by now and is not is looked at for as long again: how much later it ends is worth knowing.
        let lasts = |now_s: f64| {
            let seen = probes.seen(from_s, now_s);
            row.cells.iter().zip(seen).any(|(cell, seen)| cell.seconds.is_some() && seen.seconds.is_none())
        };
        let until = Instant::now() + hold(&row);
        while Instant::now() < until && lasts(probes.now_s()) {
            tokio::time::sleep(QUIET / 2).await;
        }
        let until_s = probes.now_s();
        let undone = self.breaker.undo_all().await;
        let seen = probes.end(from_s, until_s).await;
        undone?;
        self.observer.until_api_answers(HEAL_PATIENCE).await;
        if !self.observer.until_healed(&wanted, &well, HEAL_PATIENCE).await {
            return Err(format!("{} was undone, and not all is Ready again", fault.target).into());
        }
        Ok(row.cells.into_iter().zip(seen).map(|(cell, seen)| Comparison::of(cell, seen)).collect())
    }

    /// Every service of the model with how it is asked.
    async fn places(&self, model: &Model) -> Result<Vec<Place>, AnyError> {
        let mut all = Vec::new();
        for service in &model.services {
            let object = &model.objects[service.object].value;
            let selector = match (service.is_service, object["spec"].get("selector")) {
                (true, selector) => LabelSelector::from_map(selector.unwrap_or(&Value::Null))?,
                (false, Some(selector)) => LabelSelector::from_object(selector)?,
                // A bare Pod: whatever has its labels.
                (false, None) => LabelSelector::from_map(&object["metadata"]["labels"])?,
            };
            let key = service.key();
            let address = match object["spec"]["clusterIP"].as_str() {
                Some(ip) if service.is_service && ip != "None" => {
                    Some(mainstay_drill::target::service(&self.client, &key).await?)
                }
                _ => None,
            };
            let specs = service.workloads.iter().map(|at| model.workloads[*at].spec());
            let speaks_http = specs.flat_map(|spec| list_at(spec, "containers")).any(|container| {
                ["readinessProbe", "livenessProbe", "startupProbe"]
                    .iter()
                    .any(|it| container[it]["httpGet"].is_object())
            });
            let quorum = service.workloads.iter().find_map(|at| {
                let workload = &model.workloads[*at];
                let rule = workload.quorum.as_ref()?.rule;
                (!matches!(rule, Rule::Primary(_))).then(|| rule.needed(workload.pods.len()))
            });
            all.push(Place {
                namespace: service.namespace.clone(),
                host: key.replace('/', "."),
                address,
                speaks_http,
                is_retried: service.is_retried,
                selector,
                need: Need { least: quorum.unwrap_or(1), minimum: service.minimum },
            });
        }
        Ok(all)
    }
}

/// Every single failure that can be undone, in the order in which they are made: the mildest first.
fn singles(model: &Model) -> Vec<(Failure, String)> {
    let order = [FailureKind::Pod, FailureKind::Server, FailureKind::Node, FailureKind::Zone];
    let (failures, _) = survive::all(model);
    let place = |failure: &Failure| order.iter().position(|kind| *kind == failure.kind());
    let mut singles: Vec<_> = failures.into_iter().filter_map(|failure| Some((place(&failure)?, failure))).collect();
    singles.sort_by_key(|(place, _)| *place);
    singles.into_iter().map(|(_, failure)| (failure, failure.target(model))).collect()
}

fn target(model: &Model, failure: Failure) -> Result<Target, AnyError> {
    let pair =
        |key: &str| key.split_once('/').map(|(namespace, name)| Target::Pod(namespace.to_owned(), name.to_owned()));
    Ok(match failure {
        Failure::Pod(at) => pair(&model.pods[at].key).ok_or("a pod without a namespace")?,
        Failure::Node(at) => Target::Node(model.topology.nodes[at].name.clone()),
        Failure::Zone(at) => Target::Zone(model.topology.zones[at].clone()),
        Failure::Server(_) => Target::ControlPlane,
        Failure::Volume(_) | Failure::TwoNodes(..) => return Err("not a failure that is verified".into()),
    })
}

/// How long it stays broken: until everything that ends by itself should be over, and a little longer.
fn hold(row: &Row) -> Duration {
    let ends = row.cells.iter().map(|cell| match (cell.seconds, cell.healed_seconds) {
        (Some(seconds), healed) => healed.unwrap_or(seconds).max(seconds) + LOOK_BEYOND_S,
        (None, _) => LOOK_FOREVER_S,
    });
    Duration::from_secs_f64(ends.fold(0.0, f64::max).clamp(HOLD.0, HOLD.1))
}
