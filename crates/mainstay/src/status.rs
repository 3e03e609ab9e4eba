//! `mainstay status`: what runs, what does not, and why, on one screen.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{Api, Client};
use serde_json::json;

use crate::cli::{Output, StatusArgs};
use crate::client::{self, ClientError};
use crate::instance::{Instance, InstanceError};
use crate::progress::{self, Standing};
use crate::tuning::Tuning;
use crate::up::processes;

/// How long the API may take to answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// Why the status could not be told.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The API.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// The client.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Runs `mainstay status`; answers whether all is well.
///
/// # Errors
/// When there is no instance.
pub async fn run(args: &StatusArgs) -> Result<bool, StatusError> {
    let instance = Instance::load(&args.data.data_dir)?;
    let processes = process_standings(&instance);
    let objects = match client::when_ready(&instance, PATIENCE).await {
        Ok(client) => object_standings(&client).await?,
        Err(error) => vec![Standing { what: "API".to_owned(), node: None, waits_for: Some(error.to_string()) }],
    };
    let well = processes.iter().chain(&objects).all(Standing::is_well);
    if args.output == Output::Json {
        let text = json!({
            "api": instance.api, "well": well, "settings": instance.tuning.in_force(),
            "processes": processes, "objects": objects,
        });
        println!("{}", serde_json::to_string_pretty(&text).unwrap_or_default());
    } else {
        print_text(&instance, &processes, &objects);
    }
    Ok(well)
}

fn process_standings(instance: &Instance) -> Vec<Standing> {
    let roles = ["supervisor".to_owned(), "server".to_owned()].into_iter().chain(instance.node_names().map(|(_, n)| n));
    roles
        .map(|role| {
            let waits_for = if processes::find(instance, &role).is_some() {
                None
            } else if instance.fault_file(&role).exists() {
                let target = if role == "server" { "control-plane".to_owned() } else { format!("node/{role}") };
                Some(format!("a fault is in force; undo it with `mainstay fault heal {target}`"))
            } else {
                Some("does not run; start it with `mainstay up`".to_owned())
            };
            Standing { what: format!("process/{role}"), node: None, waits_for }
        })
        .collect()
}

async fn object_standings(client: &Client) -> Result<Vec<Standing>, StatusError> {
    let everything = kube::api::ListParams::default();
    let nodes = Api::<Node>::all(client.clone()).list(&everything).await?;
    let deployments = Api::<Deployment>::all(client.clone()).list(&everything).await?;
    let pods = Api::<Pod>::all(client.clone()).list(&everything).await?;
    let services = Api::<Service>::all(client.clone()).list(&everything).await?;
    let mut all: Vec<Standing> = nodes.iter().map(progress::node).collect();
    all.extend(deployments.iter().map(progress::deployment));
    all.extend(pods.iter().map(progress::pod));
    all.extend(services.iter().filter_map(progress::service));
    Ok(all)
}

fn print_text(instance: &Instance, processes: &[Standing], objects: &[Standing]) {
    println!("mainstay in {}, API https://{}", instance.data_dir.display(), instance.api);
    for (title, prefix) in
        [("nodes", "node/"), ("deployments", "deployment/"), ("pods", "pod/"), ("services", "service/")]
    {
        let of_kind: Vec<&Standing> = objects.iter().filter(|standing| standing.what.starts_with(prefix)).collect();
        let well = of_kind.iter().filter(|standing| standing.is_well()).count();
        if !of_kind.is_empty() {
            println!("  {title:<12} {well} of {} well", of_kind.len());
        }
    }
    if instance.tuning.in_force() != Tuning::default().in_force() {
        println!("  {:<12} {}", "settings", instance.tuning);
    }
    let troubled: Vec<&Standing> = processes.iter().chain(objects).filter(|standing| !standing.is_well()).collect();
    if troubled.is_empty() {
        println!("all is well");
        return;
    }
    println!("not well");
    for standing in troubled {
        let node = standing.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        println!("  {}{node}: {}", standing.what, standing.waits_for.as_deref().unwrap_or_default());
    }
}
