//! `mainstay degrade`: switches degradations of a cluster's gateways on and off, all gateways at once.
//!
//! The switches are the keys of the ConfigMap `mainstay-degraded` in `kube-system`, which every gateway watches: they hold when
//! gateways are replaced, `kubectl` shows them, and who may turn them is a matter of permissions. A gateway that runs alone is
//! switched by `mainstay gateway degrade`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mainstay_gateway::DEGRADED;
use serde_json::{Value, json};

use crate::AnyError;
use crate::cli::DataDir;
use crate::instance::Instance;

/// Where the gateways and their switches are.
const NAMESPACE: &str = "kube-system";
/// What is always there: it switches off every route whose priority is NonCore.
const NON_CORE: &str = "noncore";

/// `mainstay degrade`.
#[derive(Debug, Args)]
pub struct DegradeArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: DegradeVerb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum DegradeVerb {
    /// What can be switched, and what is on
    Ls {
        #[command(flatten)]
        data: DataDir,
    },
    /// Switch on: answer in the degraded way until it is switched off
    On {
        /// The name of a TrafficPolicy's degradation, or noncore
        name: String,
        #[command(flatten)]
        data: DataDir,
    },
    /// Switch off
    Off {
        /// The name
        name: String,
        #[command(flatten)]
        data: DataDir,
    },
}

/// Runs the command.
///
/// # Errors
/// When the API cannot be asked, or there is nothing of that name.
pub async fn run(args: &DegradeArgs) -> Result<(), AnyError> {
    let (DegradeVerb::Ls { data } | DegradeVerb::On { data, .. } | DegradeVerb::Off { data, .. }) = &args.verb;
    let client = crate::client::from_file(&Instance::load(&data.data_dir)?.kubeconfig()).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let on = maps.get_opt(DEGRADED).await?.and_then(|map| map.data).unwrap_or_default();
    match &args.verb {
        DegradeVerb::Ls { .. } => print!("{}", table(&known(&client).await?, &on)),
        DegradeVerb::On { name, .. } => {
            let known = known(&client).await?;
            if !known.contains_key(name) {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                return Err(format!("no degradation is named {name}; there are {}", names.join(", ")).into());
            }
            set(&maps, name, Some(&Timestamp::now().to_string())).await?;
            println!("{name} is on");
        }
        DegradeVerb::Off { name, .. } if on.contains_key(name) => {
            set(&maps, name, None).await?;
            println!("{name} is off");
        }
        DegradeVerb::Off { name, .. } => println!("{name} was not on"),
    }
    Ok(())
}

/// The names that can be switched, each with the policies that have it.
async fn known(client: &Client) -> Result<BTreeMap<String, Vec<String>>, AnyError> {
    let request = http::Request::get("/apis/mainstay.dev/v1alpha1/trafficpolicies").body(Vec::new())?;
    let policies: Value = client.request(request).await?;
    let mut known = BTreeMap::from([(NON_CORE.to_owned(), vec!["every route of priority NonCore".to_owned()])]);
    for policy in policies["items"].as_array().into_iter().flatten() {
        let Some(degradation) = policy["spec"].get("degradation") else { continue };
        let text = |field: &str| policy["metadata"][field].as_str().unwrap_or_default();
        let name = degradation["name"].as_str().unwrap_or(text("name"));
        known.entry(name.to_owned()).or_default().push(format!("{}/{}", text("namespace"), text("name")));
    }
    Ok(known)
}

/// A line for each name; what is on but not known any more is shown, too.
fn table(known: &BTreeMap<String, Vec<String>>, on: &BTreeMap<String, String>) -> String {
    let mut names: Vec<&String> = known.keys().chain(on.keys()).collect();
    names.sort();
    names.dedup();
    let wide = names.iter().map(|name| name.len()).max().unwrap_or(0).max("NAME".len());
    let mut lines = vec![format!("{:wide$}  {:27}  POLICIES", "NAME", "ON SINCE")];
    for name in names {
        let since = on.get(name).map_or("-", String::as_str);
        let policies = known.get(name).map_or_else(String::new, |all| all.join(", "));
        lines.push(format!("{name:wide$}  {since:27}  {policies}").trim_end().to_owned());
    }
    lines.join("\n") + "\n"
}

async fn set(maps: &Api<ConfigMap>, name: &str, value: Option<&str>) -> kube::Result<()> {
    let patch = Patch::Merge(json!({"data": {name: value}}));
    match maps.patch(DEGRADED, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let mut map = ConfigMap::default();
            map.metadata.name = Some(DEGRADED.to_owned());
            map.data = value.map(|value| BTreeMap::from([(name.to_owned(), value.to_owned())]));
            maps.create(&PostParams::default(), &map).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_is_shown_even_if_no_policy_has_it_any_more() {
        let known = BTreeMap::from([("noncore".to_owned(), vec!["all".to_owned()])]);
        let on = BTreeMap::from([("sale".to_owned(), "2026-01-01T00:00:00Z".to_owned())]);
        let shown = table(&known, &on);
        assert_eq!(
            shown,
            "NAME     ON SINCE                     POLICIES\nnoncore  -                            all\nsale     2026-01-01T00:00:00Z\n"
        );
    }
}
