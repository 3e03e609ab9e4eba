//! Server-side tables: what `kubectl get` shows.
//!
//! Role: for a kind its columns, for an object its cells. `kubectl` asks for `Table` of `meta.k8s.io/v1` and prints the
//! cells as they come; columns of priority 1 appear with `-o wide` only, but their cells are always sent.
//!
//! Guarantees: a row has exactly as many cells as the kind has columns, whatever the object holds. Time is an argument.
//! Deliberately absent: printer columns of custom resources, which their definitions carry.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables>; the cells follow
//! what kube-apiserver answers.

mod admin;
mod cells;
mod columns;
mod config;
mod network;
mod node;
mod pod;
mod storage;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

pub use columns::columns;

use crate::meta;

/// One column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Heading, for example `Ready`; kubectl prints it in capitals.
    pub name: &'static str,
    /// OpenAPI type of the cells: `string` or `integer`.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the column with the object's name.
    pub format: &'static str,
    /// A sentence for people.
    pub description: &'static str,
    /// 0 always shown, 1 only with `-o wide`.
    pub priority: i32,
}

/// The cells of one object at `now`, one for each of [`columns`].
pub fn row(kind: &str, object: &Value, now: Timestamp) -> Vec<Value> {
    let row = cells::Row { object, now };
    match kind {
        "Pod" => pod::cells(&row),
        "Node" => node::cells(&row),
        "Deployment" => workloads::deployment(&row),
        "ReplicaSet" | "ReplicationController" => workloads::replica_set(&row),
        "StatefulSet" => workloads::stateful_set(&row),
        "DaemonSet" => workloads::daemon_set(&row),
        "Job" => workloads::job(&row),
        "CronJob" => workloads::cron_job(&row),
        "HorizontalPodAutoscaler" => workloads::autoscaler(&row),
        "PodDisruptionBudget" => workloads::disruption_budget(&row),
        "Service" => network::service(&row),
        "EndpointSlice" => network::endpoint_slice(&row),
        "Ingress" => network::ingress(&row),
        "IngressClass" => network::ingress_class(&row),
        "NetworkPolicy" => network::policy(&row),
        "PersistentVolume" => storage::volume(&row),
        "PersistentVolumeClaim" => storage::claim(&row),
        "StorageClass" => storage::class(&row),
        "NodeMetrics" | "PodMetrics" => node::metrics(&row),
        _ => config::cells(kind, &row),
    }
}

/// The `columnDefinitions` of a kind's table.
pub fn column_definitions(kind: &str) -> Value {
    let definition = |column: &Column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    };
    columns(kind).iter().map(definition).collect()
}

/// Which part of each object a table carries, from the query parameter `includeObject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, as `PartialObjectMetadata`: the default.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// From the query parameter; `None` when it is not one of the three words.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "None" => Some(Self::None),
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// A whole table of objects of one kind. `metadata` is the list's own (`resourceVersion`, `continue`).
pub fn table<'a>(
    kind: &str,
    objects: impl IntoIterator<Item = &'a Value>,
    metadata: &Value,
    include: IncludeObject,
    now: Timestamp,
) -> Value {
    let rows = objects.into_iter().map(|object| {
        let mut entry = json!({"cells": row(kind, object, now)});
        match include {
            IncludeObject::None => entry["object"] = Value::Null,
            IncludeObject::Metadata => {
                let part = meta::at(object, "metadata").cloned().unwrap_or_else(|| json!({}));
                entry["object"] =
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": part});
            }
            IncludeObject::Object => entry["object"] = object.clone(),
        }
        entry
    });
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": column_definitions(kind), "rows": rows.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
