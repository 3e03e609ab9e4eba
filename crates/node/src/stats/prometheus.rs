//! The same, and the agent itself, as Prometheus text.
//!
//! Source: <https://kubernetes.io/docs/reference/instrumentation/metrics/>,
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.

use std::fmt::{Display, Write as _};

use crate::context::{Context, PodView};

/// Prometheus text, family by family.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a family.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample of it.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let escape = |text: &str| text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// A family of one sample.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// `/metrics/resource`: what the node, its pods and their containers use.
pub fn resource_metrics(context: &Context) -> String {
    let readings = context.stats.now();
    let views: Vec<PodView> = context.with_views(|views| views.values().cloned().collect());
    let mut text = Text::default();
    if let Some(node) = &readings.node {
        let used = seconds(node.usage.cpu_usage_ns);
        text.single("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node", used);
        let used = node.usage.memory_bytes;
        text.single("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes", used);
    }
    let mut rows = Vec::new();
    for view in &views {
        let meta = &view.pod.metadata;
        let (pod, namespace) = (meta.name.clone().unwrap_or_default(), meta.namespace.clone().unwrap_or_default());
        for (name, container) in &view.containers {
            if let Some(reading) = container.running.as_ref().and_then(|id| readings.containers.get(id)) {
                rows.push((name.clone(), namespace.clone(), pod.clone(), container.since, reading.usage));
            }
        }
    }
    rows.sort_by(|a, b| (&a.1, &a.2, &a.0).cmp(&(&b.1, &b.2, &b.0)));
    text.family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container");
    for (container, namespace, pod, _, usage) in &rows {
        let labels = [("container", container.as_str()), ("namespace", namespace), ("pod", pod)];
        text.sample("container_cpu_usage_seconds_total", &labels, seconds(usage.cpu_usage_ns));
    }
    text.family("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes");
    for (container, namespace, pod, _, usage) in &rows {
        let labels = [("container", container.as_str()), ("namespace", namespace), ("pod", pod)];
        text.sample("container_memory_working_set_bytes", &labels, usage.memory_bytes);
    }
    text.family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds");
    for (container, namespace, pod, since, _) in &rows {
        let labels = [("container", container.as_str()), ("namespace", namespace), ("pod", pod)];
        let since = since.map_or(0.0, |since| since.as_millisecond() as f64 / 1e3);
        text.sample("container_start_time_seconds", &labels, since);
    }
    let mut pods: Vec<(&str, &str, u64, u64)> = Vec::new();
    for (_, namespace, pod, _, usage) in &rows {
        match pods.last_mut() {
            Some(last) if (last.0, last.1) == (namespace, pod) => {
                (last.2, last.3) = (last.2 + usage.cpu_usage_ns, last.3 + usage.memory_bytes);
            }
            _ => pods.push((namespace, pod, usage.cpu_usage_ns, usage.memory_bytes)),
        }
    }
    text.family("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod");
    for (namespace, pod, cpu, _) in &pods {
        text.sample("pod_cpu_usage_seconds_total", &[("namespace", namespace), ("pod", pod)], seconds(*cpu));
    }
    text.family("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes");
    for (namespace, pod, _, memory) in &pods {
        text.sample("pod_memory_working_set_bytes", &[("namespace", namespace), ("pod", pod)], memory);
    }
    let missing = i32::from(readings.node.is_none());
    text.single("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics", missing);
    text.0
}

/// `/metrics`: the agent itself.
pub fn agent_metrics(context: &Context) -> String {
    let views: Vec<PodView> = context.with_views(|views| views.values().cloned().collect());
    let mut text = Text::default();
    text.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    text.sample("kubelet_node_name", &[("node", &context.config.name)], 1);
    let running = |view: &&PodView| view.containers.values().any(|container| container.running.is_some());
    let help = "Number of pods that have a running pod sandbox";
    text.single("kubelet_running_pods", "gauge", help, views.iter().filter(running).count());
    let containers = || views.iter().flat_map(|view| view.containers.values());
    text.family("kubelet_running_containers", "gauge", "Number of containers by their state");
    for (state, is_it) in [("running", true), ("created", false)] {
        let count = containers().filter(|container| container.running.is_some() == is_it).count();
        text.sample("kubelet_running_containers", &[("container_state", state)], count);
    }
    let restarts: u64 = containers().map(|container| u64::from(container.attempt)).sum();
    let help = "Restarts of the containers that are here";
    text.single("mainstay_node_container_restarts", "gauge", help, restarts);
    process(&mut text);
    text.0
}

/// What every Prometheus client tells of its process. Source: proc(5), getrusage(2).
fn process(text: &mut Text) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    text.single("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", kib.unwrap_or(0) * 1024);
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    let cpu = usage.map_or(0.0, |usage| {
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    });
    text.single("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", cpu);
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    text.single("process_open_fds", "gauge", "Number of open file descriptors.", files);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.family("a", "gauge", "Help.");
        text.sample("a", &[("x", "q\"\\\n"), ("y", "z")], 1.5);
        assert_eq!(text.0, "# HELP a Help.\n# TYPE a gauge\na{x=\"q\\\"\\\\\\n\",y=\"z\"} 1.5\n");
        process(&mut text);
        assert!(text.0.contains("\nprocess_resident_memory_bytes "));
    }
}
