//! `/metrics`: what the server does, in Prometheus' text format and, where there is one, under kube-apiserver's name.
//!
//! Guarantees: the number of series has a limit; beyond it requests are counted together.
//!
//! Source: <https://kubernetes.io/docs/reference/instrumentation/metrics/>,
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

mod histogram;
mod process;
mod store;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use histogram::{Histogram, REQUEST_SECONDS, STORE_SECONDS};
pub(crate) use store::Timed;

use crate::api::Api;
use crate::request::Call;

/// The media type of the text format.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Series of requests; there are a few for each kind that is used.
const SERIES_MAX: usize = 10_000;

/// All figures.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<String, u64>>,
    durations: Mutex<BTreeMap<String, Histogram>>,
    store: Mutex<BTreeMap<&'static str, Histogram>>,
}

/// What is counted of a request.
pub(crate) struct Observed<'a> {
    pub(crate) call: Option<&'a Call>,
    /// The verb of a request that is not about a resource.
    pub(crate) verb: &'a str,
    pub(crate) code: u16,
    pub(crate) duration: Duration,
    /// Watches and streams: only that they began is counted.
    pub(crate) is_long: bool,
}

impl Metrics {
    /// Counts an answered request.
    pub(crate) fn request(&self, observed: &Observed<'_>) {
        let labels = labels(observed);
        let full = format!("{labels},code=\"{}\"", observed.code);
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let known = requests.len() < SERIES_MAX || requests.contains_key(&full);
        *requests.entry(if known { full } else { "overflow=\"true\"".to_owned() }).or_insert(0) += 1;
        drop(requests);
        if !observed.is_long {
            let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
            if durations.len() < SERIES_MAX || durations.contains_key(&labels) {
                let histogram = durations.entry(labels).or_insert_with(|| Histogram::new(REQUEST_SECONDS));
                histogram.observe(observed.duration);
            }
        }
    }

    fn store(&self, operation: &'static str, duration: Duration) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.entry(operation).or_insert_with(|| Histogram::new(STORE_SECONDS)).observe(duration);
    }
}

fn labels(observed: &Observed<'_>) -> String {
    let Some(call) = observed.call else {
        // Paths and methods are the caller's choice; only known words become labels.
        let verb = match observed.verb {
            verb @ ("get" | "post" | "put" | "patch" | "delete" | "head") => verb.to_uppercase(),
            _ => "other".to_owned(),
        };
        let nothing = "dry_run=\"\",group=\"\",resource=\"\",scope=\"\",subresource=\"\"";
        return format!("component=\"apiserver\",{nothing},verb=\"{verb}\",version=\"\"");
    };
    let scope = match (&call.name, &call.namespace) {
        (Some(_), _) => "resource",
        (None, Some(_)) => "namespace",
        _ => "cluster",
    };
    let verb = match call.verb.word() {
        "create" => "POST".to_owned(),
        "update" => "PUT".to_owned(),
        word => word.to_uppercase(),
    };
    let dry_run = if call.query.get("dryRun").is_some() { "All" } else { "" };
    let resource = &call.resource;
    format!(
        "component=\"apiserver\",dry_run=\"{dry_run}\",group=\"{}\",resource=\"{}\",scope=\"{scope}\",subresource=\"{}\",verb=\"{verb}\",version=\"{}\"",
        resource.group,
        resource.plural,
        call.subresource.as_deref().unwrap_or_default(),
        resource.version
    )
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a text cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Everything as text.
pub(crate) async fn text(api: &Api) -> String {
    let mut out = String::new();
    let metrics = &api.metrics;
    let name = "apiserver_request_total";
    head(
        &mut out,
        name,
        "counter",
        "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
    );
    for (labels, count) in &*metrics.requests.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = writeln!(out, "{name}{{{labels}}} {count}");
    }
    let name = "apiserver_request_duration_seconds";
    head(
        &mut out,
        name,
        "histogram",
        "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
    );
    for (labels, histogram) in &*metrics.durations.lock().unwrap_or_else(PoisonError::into_inner) {
        histogram.write(&mut out, name, labels);
    }
    let name = "etcd_request_duration_seconds";
    head(&mut out, name, "histogram", "Store request latency in seconds for each operation.");
    for (operation, histogram) in &*metrics.store.lock().unwrap_or_else(PoisonError::into_inner) {
        histogram.write(&mut out, name, &format!("operation=\"{operation}\""));
    }
    let [reads, writes, watches, streams] = api.limits.in_flight();
    let name = "apiserver_current_inflight_requests";
    head(
        &mut out,
        name,
        "gauge",
        "Number of currently used inflight request limit of this apiserver per request kind.",
    );
    let _ = writeln!(out, "{name}{{request_kind=\"mutating\"}} {writes}\n{name}{{request_kind=\"readOnly\"}} {reads}");
    let name = "apiserver_longrunning_requests";
    head(&mut out, name, "gauge", "Number of all active long-running apiserver requests.");
    let _ = writeln!(out, "{name}{{verb=\"WATCH\"}} {watches}\n{name}{{verb=\"CONNECT\"}} {streams}");
    objects(api, &mut out).await;
    if let Some(audit) = &api.settings.audit {
        let name = "apiserver_audit_error_total";
        head(&mut out, name, "counter", "Counter of audit events that failed to be audited properly.");
        let _ = writeln!(out, "{name}{{plugin=\"log\"}} {}", audit.dropped());
    }
    process::write(&mut out);
    out
}

async fn objects(api: &Api, out: &mut String) {
    let name = "apiserver_storage_objects";
    head(out, name, "gauge", "Number of stored objects at the time of last check split by kind.");
    let Ok(catalogue) = api.registry.now().await else { return };
    for resource in catalogue.all().iter().filter(|r| r.has_verb("list") && r.group != "events.k8s.io") {
        let Ok(count) = api.store.count(&resource.key_prefix()).await else { continue };
        let group = if resource.group.is_empty() { String::new() } else { format!(".{}", resource.group) };
        let _ = writeln!(out, "{name}{{resource=\"{}{group}\"}} {count}", resource.plural);
    }
    if let Ok(revision) = api.store.revision().await {
        let name = "mainstay_store_revision";
        head(out, name, "gauge", "Revision of the last write.");
        let _ = writeln!(out, "{name} {revision}");
    }
}
