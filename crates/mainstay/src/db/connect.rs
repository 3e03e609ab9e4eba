//! `mainstay db connect`: the database's own shell, with the password of its superuser.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use k8s_openapi::api::core::v1::{Secret, Service};
use kube::{Api, Client};
use mainstay_failover::database::names::PASSWORD;
use mainstay_failover::database::{Database, EngineName};

use crate::AnyError;

/// Becomes the shell; answers only when that fails.
pub async fn run(client: &Client, namespace: &str, database: &Database, more: &[String]) -> Result<bool, AnyError> {
    let name = database.metadata.name.as_deref().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let data = secrets.get(name).await?.data.unwrap_or_default();
    let password = data.get(PASSWORD).ok_or_else(|| format!("Secret {name} has no {PASSWORD}"))?;
    let password = String::from_utf8(password.0.clone())?;
    // On the machine that runs the cluster, services are reached by their address; elsewhere, forward the port.
    let service = services.get(&format!("{name}-primary")).await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
    let port = database.spec.engine.port().to_string();
    let mut shell = match database.spec.engine {
        EngineName::Postgres => {
            let mut shell = Command::new("psql");
            shell.args(["-h", &address, "-p", &port, "-U", "postgres", "-d", "postgres"]).env("PGPASSWORD", password);
            shell
        }
        EngineName::Redis => {
            let mut shell = Command::new("redis-cli");
            shell.args(["-h", &address, "-p", &port]).env("REDISCLI_AUTH", password);
            shell
        }
        EngineName::Mysql => {
            let mut shell = Command::new("mariadb");
            shell.args(["-h", &address, "-P", &port, "-u", "root"]).env("MYSQL_PWD", password);
            shell
        }
    };
    let error = shell.args(more).exec();
    Err(format!("cannot run {}: {error}; install the database's client", shell.get_program().to_string_lossy()).into())
}
