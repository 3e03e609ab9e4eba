//! `/stats/summary`: what the node, its pods and their containers use, as the kubelet tells it.
//!
//! Source: <https://kubernetes.io/docs/reference/instrumentation/node-metrics/#summary-api-source>,
//! `k8s.io/kubelet/pkg/apis/stats/v1alpha1`.

use jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};

use crate::context::{Context, PodView};
use crate::pod::qos::Resources;
use crate::stats::{Reading, Readings};

/// The summary as it is now.
pub fn summary(context: &Context) -> Value {
    let readings = context.stats.now();
    let views: Vec<PodView> = context.with_views(|views| views.values().cloned().collect());
    let pods: Vec<Value> = views.iter().filter_map(|view| pod(view, &readings)).collect();
    let mut node = json!({"nodeName": context.config.name, "startTime": context.clock.started()});
    if let Some(reading) = &readings.node {
        node["cpu"] = cpu(reading);
        node["memory"] = memory(reading, Some(context.capacity().1.max(0) as u64));
    }
    if let Ok(disk) = statvfs(&context.config.data_dir) {
        let unit = disk.fragment_size();
        node["fs"] = json!({
            "time": Timestamp::now(),
            "availableBytes": disk.blocks_available() * unit, "capacityBytes": disk.blocks() * unit,
            "usedBytes": (disk.blocks() - disk.blocks_free()) * unit,
            "inodesFree": disk.files_free(), "inodes": disk.files(), "inodesUsed": disk.files() - disk.files_free(),
        });
    }
    json!({"node": node, "pods": pods})
}

fn cpu(reading: &Reading) -> Value {
    json!({"time": reading.at, "usageNanoCores": reading.nano_cores.unwrap_or(0), "usageCoreNanoSeconds": reading.usage.cpu_usage_ns})
}

fn memory(reading: &Reading, limit: Option<u64>) -> Value {
    let usage = &reading.usage;
    let mut memory = json!({
        "time": reading.at, "usageBytes": usage.memory_usage_bytes, "workingSetBytes": usage.memory_bytes,
        "rssBytes": usage.memory_rss_bytes, "pageFaults": usage.page_faults.0, "majorPageFaults": usage.page_faults.1,
    });
    if let Some(limit) = limit {
        memory["availableBytes"] = json!(limit.saturating_sub(usage.memory_bytes));
    }
    memory
}

/// A pod whose containers have been read; none for one that does not run.
fn pod(view: &PodView, readings: &Readings) -> Option<Value> {
    let mut containers = Vec::new();
    let (mut nano_cores, mut nanoseconds, mut working_set, mut used, mut rss) = (0, 0, 0, 0, 0);
    let mut newest: Option<Timestamp> = None;
    for (name, container) in &view.containers {
        let Some(reading) = container.running.as_ref().and_then(|id| readings.containers.get(id)) else { continue };
        let spec = view.pod.spec.iter().flat_map(|spec| &spec.containers).find(|spec| spec.name == *name);
        let limit = spec.and_then(|spec| Resources::of(spec.resources.as_ref()).memory_limit_bytes);
        containers.push(json!({
            "name": name, "startTime": container.since, "cpu": cpu(reading),
            "memory": memory(reading, limit.and_then(|limit| u64::try_from(limit).ok())),
        }));
        nano_cores += reading.nano_cores.unwrap_or(0);
        nanoseconds += reading.usage.cpu_usage_ns;
        working_set += reading.usage.memory_bytes;
        used += reading.usage.memory_usage_bytes;
        rss += reading.usage.memory_rss_bytes;
        newest = newest.max(Some(reading.at));
    }
    let at = newest?;
    let meta = &view.pod.metadata;
    let uid = meta.uid.clone().unwrap_or_default();
    let traffic = readings.traffic.get(&uid).copied().unwrap_or_default();
    let link = json!({
        "name": "eth0", "rxBytes": traffic.received.0, "rxErrors": traffic.received.1,
        "txBytes": traffic.sent.0, "txErrors": traffic.sent.1,
    });
    let mut network = link.clone();
    network["time"] = json!(at);
    network["interfaces"] = json!([link]);
    Some(json!({
        "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": uid},
        "startTime": view.pod.status.as_ref().and_then(|status| status.start_time.clone()),
        "containers": containers,
        "cpu": {"time": at, "usageNanoCores": nano_cores, "usageCoreNanoSeconds": nanoseconds},
        "memory": {"time": at, "usageBytes": used, "workingSetBytes": working_set, "rssBytes": rss},
        "network": network,
    }))
}
