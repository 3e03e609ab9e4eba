//! `mainstay db`: what people do with their databases, over the Database resource.
//!
//! Every verb is a few requests to the API: annotations that the stewards act upon, pods that are deleted in order, the status
//! that is written. So whatever this command does, `kubectl` does, too, and access is controlled in one place.

mod connect;
mod show;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use mainstay_failover::database::Database;
use mainstay_failover::database::names::{DATABASE, SWITCHOVER};
use serde_json::{Value, json};

use crate::AnyError;
use crate::cli::Output;

/// Between two looks while waiting.
const LOOK: Duration = Duration::from_millis(50);
/// How long a verb waits for what it asked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// `mainstay db`.
#[derive(Debug, Args)]
pub struct DbArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Namespace (default: that of the kubeconfig)
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text", global = true)]
    pub output: Output,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// All databases of the namespace
    #[command(after_help = "Example:\n  mainstay db ls -o json")]
    Ls,
    /// One database, member by member, and why each could not be elected
    #[command(after_help = "Example:\n  mainstay db status shop")]
    Status {
        /// The Database
        name: String,
    },
    /// Move the primary in order: nothing is lost, writes wait for a moment
    #[command(after_help = "Examples:\n  mainstay db switchover shop\n  mainstay db switchover shop --to shop-2")]
    Switchover {
        /// The Database
        name: String,
        /// The member that becomes primary (default: the best)
        #[arg(long, value_name = "MEMBER")]
        to: Option<String>,
    },
    /// Kill the primary and have the others elect one; for a primary that cannot hand over
    #[command(after_help = "Example:\n  mainstay db failover shop")]
    Failover {
        /// The Database
        name: String,
    },
    /// Throw a replica's volume away and copy the primary's data
    #[command(after_help = "Example:\n  mainstay db reinit shop shop-2")]
    Reinit {
        /// The Database
        name: String,
        /// The member
        member: String,
    },
    /// Restart members one after the other, the primary last; without a member, all
    #[command(after_help = "Examples:\n  mainstay db restart shop\n  mainstay db restart shop shop-0")]
    Restart {
        /// The Database
        name: String,
        /// The member
        member: Option<String>,
    },
    /// Suspend elections: the primary goes on, and nobody takes its place
    #[command(after_help = "Example:\n  mainstay db pause shop")]
    Pause {
        /// The Database
        name: String,
    },
    /// End a pause
    #[command(after_help = "Example:\n  mainstay db resume shop")]
    Resume {
        /// The Database
        name: String,
    },
    /// The last primaries
    #[command(after_help = "Example:\n  mainstay db history shop")]
    History {
        /// The Database
        name: String,
    },
    /// Open the database's own shell on the primary
    #[command(after_help = "Examples:\n  mainstay db connect shop\n  mainstay db connect shop -- -c 'select 1'")]
    Connect {
        /// The Database
        name: String,
        /// Arguments for the shell
        #[arg(last = true)]
        more: Vec<String>,
    },
}

/// Does it; answers whether all is well.
pub fn run(args: &DbArgs) -> Result<bool, AnyError> {
    crate::small_runtime()?.block_on(async {
        let config = crate::lead::config().await?;
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)?;
        Session { client, namespace, output: args.output }.run(&args.verb).await
    })
}

struct Session {
    client: Client,
    namespace: String,
    output: Output,
}

impl Session {
    async fn run(&self, verb: &Verb) -> Result<bool, AnyError> {
        match verb {
            Verb::Ls => show::list(&self.databases().list(&ListParams::default()).await?.items, self.output)?,
            Verb::Status { name } => return show::status(&self.get(name).await?, self.output),
            Verb::History { name } => show::history(&self.get(name).await?, self.output)?,
            Verb::Switchover { name, to } => return self.switchover(name, to.as_deref()).await,
            Verb::Failover { name } => return self.failover(name).await,
            Verb::Reinit { name, member } => self.reinit(name, member).await?,
            Verb::Restart { name, member } => self.restart(name, member.as_deref()).await?,
            Verb::Pause { name } => self.pause(name, true).await?,
            Verb::Resume { name } => self.pause(name, false).await?,
            Verb::Connect { name, more } => {
                let database = self.get(name).await?;
                return connect::run(&self.client, &self.namespace, &database, more).await;
            }
        }
        Ok(true)
    }

    fn databases(&self) -> Api<Database> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn get(&self, name: &str) -> Result<Database, AnyError> {
        let found = self.databases().get_opt(name).await?;
        found.ok_or_else(|| {
            format!("there is no Database {name} in namespace {}; see mainstay db ls", self.namespace).into()
        })
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Asks for another primary, and waits for it.
    async fn switchover(&self, name: &str, to: Option<&str>) -> Result<bool, AnyError> {
        let before = self.get(name).await?;
        if let Some(to) = to {
            self.member(name, to).await?;
            if before.status["primary"] == to {
                return Err(format!("{to} is the primary already").into());
            }
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let patch = json!({"metadata": {"annotations": {SWITCHOVER: to.unwrap_or_default()}}});
        leases.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        self.moved("switchover", name, &before).await
    }

    /// Kills the primary, steward and server, without giving it time to hand over.
    async fn failover(&self, name: &str) -> Result<bool, AnyError> {
        let before = self.get(name).await?;
        let primary = before.status["primary"].as_str().ok_or_else(|| message(&before))?;
        self.pods().delete(primary, &DeleteParams::default().grace_period(1)).await?;
        self.moved("failover", name, &before).await
    }

    /// Waits until another is primary.
    async fn moved(&self, what: &str, name: &str, before: &Database) -> Result<bool, AnyError> {
        let old = &before.status["primary"];
        let since = Instant::now();
        loop {
            let now = self.get(name).await?;
            let primary = &now.status["primary"];
            if primary != old && primary.is_string() {
                let milliseconds = u64::try_from(since.elapsed().as_millis())?;
                let fields = json!({"database": name, "from": old, "to": primary, "milliseconds": milliseconds});
                self.say(what, &fields);
                return Ok(true);
            }
            if since.elapsed() > PATIENCE {
                return Err(
                    format!("{old} is still the primary after {} s: {}", PATIENCE.as_secs(), message(&now)).into()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The pod of a member.
    async fn member(&self, database: &str, member: &str) -> Result<Pod, AnyError> {
        let pod = self.pods().get_opt(member).await?;
        let label = |pod: &Pod| pod.metadata.labels.as_ref().and_then(|all| all.get(DATABASE).cloned());
        let found = pod.filter(|pod| label(pod).as_deref() == Some(database));
        found.ok_or_else(|| format!("{database} has no member {member}; see mainstay db status {database}").into())
    }

    async fn reinit(&self, name: &str, member: &str) -> Result<(), AnyError> {
        self.member(name, member).await?;
        if self.get(name).await?.status["primary"] == member {
            return Err(format!("{member} is the primary; move it first: mainstay db switchover {name}").into());
        }
        // The claim goes when the pod does; the StatefulSet makes both anew.
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        claims.delete(&format!("data-{member}"), &DeleteParams::default()).await?;
        self.pods().delete(member, &DeleteParams::default()).await?;
        self.say("reinit", &json!({"database": name, "member": member}));
        Ok(())
    }

    /// The primary last, and each only when the one before is back.
    async fn restart(&self, name: &str, member: Option<&str>) -> Result<(), AnyError> {
        let database = self.get(name).await?;
        let primary = database.status["primary"].as_str().unwrap_or_default().to_owned();
        let all = database.status["members"].as_array().into_iter().flatten();
        let mut members: Vec<String> = match member {
            Some(member) => vec![member.to_owned()],
            None => all.filter_map(|it| it["name"].as_str().map(str::to_owned)).collect(),
        };
        members.sort_by_key(|it| *it == primary);
        for member in members {
            let old = self.member(name, &member).await?.metadata.uid;
            self.pods().delete(&member, &DeleteParams::default()).await?;
            self.say("restart", &json!({"database": name, "member": member}));
            let since = Instant::now();
            while self.pods().get_opt(&member).await?.is_none_or(|pod| pod.metadata.uid == old) {
                if since.elapsed() > PATIENCE {
                    return Err(format!("{member} does not stop within {} s", PATIENCE.as_secs()).into());
                }
                tokio::time::sleep(LOOK).await;
            }
            self.when_healthy(name, &member).await?;
        }
        Ok(())
    }

    /// Waits until a member that was begun anew is Ready, and there is a primary.
    async fn when_healthy(&self, name: &str, member: &str) -> Result<(), AnyError> {
        let since = Instant::now();
        loop {
            let now = self.get(name).await?;
            let ready = |it: &Value| it["name"] == member && it["state"] == "Ready";
            let members = now.status["members"].as_array();
            let up = matches!(now.status["state"].as_str(), Some("Healthy" | "Paused" | "Degraded"));
            if up && members.is_some_and(|all| all.iter().any(ready)) {
                return Ok(());
            }
            if since.elapsed() > PATIENCE {
                return Err(format!("{member} is not well after {} s: {}", PATIENCE.as_secs(), message(&now)).into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn pause(&self, name: &str, paused: bool) -> Result<(), AnyError> {
        self.get(name).await?;
        let patch = json!({"spec": {"paused": paused}});
        self.databases().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        self.say(if paused { "pause" } else { "resume" }, &json!({"database": name}));
        Ok(())
    }

    /// What was done, for people or programs.
    fn say(&self, what: &str, fields: &Value) {
        if self.output == Output::Json {
            let mut line = fields.clone();
            line["done"] = json!(what);
            println!("{line}");
            return;
        }
        let text = |key: &str| fields[key].as_str().unwrap_or_default();
        let subject = if fields["member"].is_string() { text("member") } else { text("database") };
        match what {
            "switchover" | "failover" => {
                println!(
                    "{subject}: {} is primary now, after {} ms (was {})",
                    text("to"),
                    fields["milliseconds"],
                    text("from")
                );
            }
            "pause" => println!("{subject}: nobody is elected until mainstay db resume {subject}"),
            "resume" => println!("{subject}: elections as usual"),
            _ => println!("{subject}: {what} asked for"),
        }
    }
}

/// Why a Database is as it is.
fn message(database: &Database) -> String {
    let conditions = database.status["conditions"].as_array().into_iter().flatten();
    let available = conditions.into_iter().find(|it| it["type"] == "Available");
    available.and_then(|it| it["message"].as_str()).unwrap_or("no controller looked at it yet").to_owned()
}
