//! Carries out what a pod's machine asks for: the thin side of pod life.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use mainstay_model::fencing;
use mainstay_runtime::cgroup::Cgroups;
use mainstay_runtime::exec::ExecConfig;
use mainstay_runtime::fence::FenceConfig;
use mainstay_runtime::protocol::SandboxConfig;
use mainstay_runtime::sandbox::{Sandbox, SandboxError, clean_up};
use nix::sys::signal::Signal as Number;
use serde_json::json;

use crate::context::Context;
use crate::pod::dir::PodDir;
use crate::pod::files;
use crate::pod::io::{Action, Hook, Input, Instance, Signal, StartFailure};
use crate::pod::prepare::Preparation;
use crate::pod::probe::ProbeKind;
use crate::pod::prober::Check;
use crate::pod::qos::{self, Resources};
use crate::pod::resize::{Refused, fits};
use crate::pod::start::{Start, container_id, limits_of};
use crate::pod::worker::{News, Worker};
use crate::report;
use crate::static_pods;
use crate::volumes;

/// The wait between attempts to take something down, or to tell the API server of it.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// One request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl Worker {
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::CreateSandbox => self.create_sandbox(),
            Action::Start(instance) => self.start(instance),
            Action::Hook(instance, hook, limit) => self.hook(instance, hook, limit),
            Action::Probe(instance, kind, limit) => self.probe(instance, kind, limit),
            Action::Signal(instance, signal) => self.signal(&instance, &signal),
            Action::Resize(instance, resources) => self.resize(instance, resources.as_deref()),
            Action::StopSandbox => self.stop_sandbox(),
            // One from a file is not the API's to delete.
            Action::DeletePod if static_pods::is_static(self.machine.pod()) => self.forget(),
            Action::DeletePod => self.delete(),
            Action::Forget => self.forget(),
            Action::Event(event) => self.context.events.tell(self.machine.pod(), event),
        }
    }

    fn sandbox_config(&self) -> SandboxConfig {
        let spec = self.machine.pod().spec.as_ref();
        let security = spec.and_then(|spec| spec.security_context.as_ref());
        let sysctls = security.and_then(|security| security.sysctls.as_ref()).into_iter().flatten();
        let config = &self.context.config;
        SandboxConfig {
            dir: self.dir.root().to_owned(),
            uid: self.dir.uid(),
            hostname: files::hostname(self.machine.pod()),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            host_pid: spec.and_then(|spec| spec.host_pid).unwrap_or(false),
            host_ipc: spec.and_then(|spec| spec.host_ipc).unwrap_or(false),
            share_pid: spec.and_then(|spec| spec.share_process_namespace).unwrap_or(false),
            instance: config.instance.clone(),
            node: config.name.clone(),
            exe: config.exe.clone(),
            hidden: config.hidden.clone(),
            sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
            memory_volumes: volumes::in_memory(self.machine.pod(), &self.dir.volumes()),
            fence: fencing::runs_once(&json!(**self.machine.pod())).then(|| config.fence()),
        }
    }

    fn create_sandbox(&mut self) {
        let config = self.sandbox_config();
        let (context, dir, pod) = (self.context.clone(), self.dir.clone(), self.machine.pod().clone());
        self.spawn(async move {
            match make_sandbox(&context, &dir, &pod, &config).await {
                Ok((sandbox, ip)) => News::Sandbox(Arc::new(sandbox), ip),
                Err(message) => {
                    context.with_addresses(|addresses| addresses.release(&config.uid));
                    News::Input(Input::SandboxFailed(message))
                }
            }
        });
    }

    fn start(&mut self, instance: Instance) {
        let spec = self.machine.spec_of(&instance.container).cloned();
        let (Some(sandbox), Some(spec)) = (self.sandbox.clone(), spec) else {
            let failure = StartFailure::Config("the pod's sandbox is gone".to_owned());
            self.spawn(async move { News::Input(Input::StartFailed(instance, failure)) });
            return;
        };
        let target = match self.target(&instance) {
            Ok(target) => target,
            Err(name) => {
                let failure = StartFailure::Config(format!("unable to find target container \"{name}\""));
                self.spawn(async move { News::Input(Input::StartFailed(instance, failure)) });
                return;
            }
        };
        self.ids.insert(container_id(&self.dir.uid(), &instance), instance.clone());
        let start = Start { preparation: self.preparation(), sandbox, instance: instance.clone(), target };
        self.spawn(async move {
            match start.run(&spec).await {
                Ok(status) => News::Container(instance, status),
                Err(failure) => News::Input(Input::StartFailed(instance, failure)),
            }
        });
    }

    pub(super) fn preparation(&self) -> Preparation {
        Preparation {
            context: self.context.clone(),
            pod: self.machine.pod().clone(),
            dir: self.dir.clone(),
            pod_ip: Some(self.host()),
            prepared: self.prepared.clone(),
        }
    }

    /// The container whose processes an ephemeral one is to see, by id; its name if it does not run.
    fn target(&self, instance: &Instance) -> Result<Option<String>, String> {
        let spec = self.machine.pod().spec.as_ref();
        let mut ephemeral = spec.into_iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
        let own = ephemeral.find(|own| own.name == instance.container);
        let Some(name) = own.and_then(|own| own.target_container_name.clone()).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let running = self.machine.running(&name).map(|(_, running)| running.id.clone());
        running.map(Some).ok_or(name)
    }

    /// Changes what a running container may use, if the node has it.
    fn resize(&mut self, instance: Instance, resources: Option<&core::ResourceRequirements>) {
        let config = &self.context.config;
        let own = self.machine.pod().metadata.uid.clone();
        let sum = |pod: &core::Pod| pod.spec.as_ref().map_or((0, 0), qos::requests);
        let pods = self.context.pods.list();
        let others = pods.iter().filter(|pod| pod.metadata.uid != own && !is_over(pod)).map(|pod| sum(pod));
        let others = others.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        let node = self.context.capacity();
        let allowed = fits(sum(self.machine.pod()), others, node);
        let pod = Cgroups::detect().map(|cgroups| cgroups.node(&config.instance, &config.name).pod(&self.dir.uid()));
        let id = container_id(&self.dir.uid(), &instance);
        let limits = limits_of(Resources::of(resources));
        self.spawn(async move {
            let result = allowed.and_then(|()| {
                let failed = |error: &dyn std::error::Error| Refused::Failed(with_sources(error));
                pod.map_err(|error| failed(&error))?.resize(&id, limits).map_err(|error| failed(&error))
            });
            News::Input(Input::Resized(instance, result))
        });
    }

    /// The address at which the pod's programs answer.
    fn host(&self) -> String {
        self.machine.ip().map_or_else(|| self.context.config.address.to_string(), |ip| ip.to_string())
    }

    fn exec_config(&self, instance: &Instance) -> impl Fn(Vec<String>) -> ExecConfig {
        let (dir, exe) = (self.dir.root().to_owned(), self.context.config.exe.clone());
        let container_id = container_id(&self.dir.uid(), instance);
        move |command| ExecConfig {
            dir: dir.clone(),
            exe: exe.clone(),
            container_id: container_id.clone(),
            command,
            env: Vec::new(),
            tty: false,
            stdin: false,
        }
    }

    fn container_spec(&self, instance: &Instance) -> Option<&core::Container> {
        self.machine.spec_of(&instance.container)
    }

    fn hook(&mut self, instance: Instance, hook: Hook, limit: Duration) {
        let host = self.host();
        let spec = self.container_spec(&instance);
        let handler = spec.and_then(|spec| spec.lifecycle.as_ref()).and_then(|lifecycle| match hook {
            Hook::PostStart => lifecycle.post_start.as_ref(),
            Hook::PreStop => lifecycle.pre_stop.as_ref(),
        });
        let check =
            spec.zip(handler).map(|(spec, handler)| Check::of_hook(handler, spec, &host, self.exec_config(&instance)));
        self.spawn(async move {
            let result = match check {
                Some(check) => check.run(limit).await,
                None => Ok(()),
            };
            News::Input(Input::HookDone(instance, hook, result.err()))
        });
    }

    fn probe(&mut self, instance: Instance, kind: ProbeKind, limit: Duration) {
        let host = self.host();
        let spec = self.container_spec(&instance);
        let probe = spec.and_then(|spec| match kind {
            ProbeKind::Startup => spec.startup_probe.as_ref(),
            ProbeKind::Liveness => spec.liveness_probe.as_ref(),
            ProbeKind::Readiness => spec.readiness_probe.as_ref(),
        });
        let check =
            spec.zip(probe).map(|(spec, probe)| Check::of_probe(probe, spec, &host, self.exec_config(&instance)));
        self.spawn(async move {
            let result = match check {
                Some(check) => check.run(limit).await,
                None => Ok(()),
            };
            News::Input(Input::Probed(instance, kind, result.err()))
        });
    }

    fn signal(&mut self, instance: &Instance, signal: &Signal) {
        let number = match signal {
            Signal::Kill => Number::SIGKILL,
            Signal::Stop(name) => {
                let image = self.container_spec(instance).and_then(|spec| spec.image.as_deref());
                let of_image = || self.context.images.stop_signal(image?);
                let name = name.clone().or_else(of_image);
                name.as_deref().and_then(signal_of).unwrap_or(Number::SIGTERM)
            }
        };
        let Some(sandbox) = self.sandbox.clone() else { return };
        let id = container_id(&self.dir.uid(), instance);
        self.spawn_quietly(async move {
            if let Err(error) = sandbox.signal(&id, number as i32).await {
                tracing::debug!(id, %error, "signal not sent");
            }
        });
    }

    fn stop_sandbox(&mut self) {
        let (sandbox, config) = (self.sandbox.clone(), self.sandbox_config());
        self.spawn(async move {
            let mut wait = RETRY_FIRST;
            loop {
                let stopped = match &sandbox {
                    Some(sandbox) => sandbox.stop().await,
                    None => blocking_clean_up(config.clone()).await,
                };
                let detached = detach(&config).await;
                match (stopped, detached) {
                    (Ok(()), Ok(())) => return News::Input(Input::SandboxStopped),
                    (Err(error), _) => tracing::warn!(pod = config.uid, %error, "sandbox not stopped; trying again"),
                    (_, Err(error)) => tracing::warn!(pod = config.uid, error, "pod link not removed; trying again"),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        });
    }

    /// Takes away what a sandbox that vanished has left.
    pub(super) async fn clean_up_sandbox(&mut self) {
        let config = self.sandbox_config();
        if let Err(error) = blocking_clean_up(config.clone()).await {
            tracing::warn!(pod = config.uid, %error, "what a lost sandbox left is not cleaned up");
        }
        if let Err(error) = detach(&config).await {
            tracing::warn!(pod = config.uid, error, "the link of a lost sandbox is not removed");
        }
        self.context.with_addresses(|addresses| addresses.release(&config.uid));
    }

    /// Writes the final status, deletes the pod in the API and then here.
    fn delete(&mut self) {
        let (api, name) = self.api();
        let (pod, dir, context) = (self.machine.pod().clone(), self.dir.clone(), self.context.clone());
        let final_patch = report::patch(&pod, &self.status());
        self.spawn(async move {
            let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..DeleteParams::default() };
            let gone = |error: &kube::Error| matches!(error, kube::Error::Api(answer) if answer.code == 404 || answer.code == 409);
            let mut wait = RETRY_FIRST;
            loop {
                let attempt = async {
                    if let Some(patch) = &final_patch {
                        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                    }
                    api.delete(&name, &params).await.map(drop)
                };
                match tokio::time::timeout(REQUEST_TIMEOUT, attempt).await {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) if gone(&error) => break,
                    Ok(Err(error)) => tracing::debug!(pod = dir.uid(), %error, "pod not deleted yet"),
                    Err(_) => {}
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
            remove(&context, dir).await
        });
    }

    fn forget(&mut self) {
        let (dir, context) = (self.dir.clone(), self.context.clone());
        self.spawn(async move { remove(&context, dir).await });
    }
}

/// A signal by its name, with or without `SIG`, or by its number.
fn signal_of(name: &str) -> Option<Number> {
    let number = name.parse().ok().and_then(|number: i32| Number::try_from(number).ok());
    number.or_else(|| format!("SIG{}", name.trim_start_matches("SIG")).parse().ok())
}

/// Whether a pod takes nothing any more.
fn is_over(pod: &core::Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

async fn make_sandbox(
    context: &Context,
    dir: &PodDir,
    pod: &core::Pod,
    config: &SandboxConfig,
) -> Result<(Sandbox, Option<std::net::Ipv4Addr>), String> {
    if config.fence.as_ref().is_some_and(FenceConfig::is_over) {
        return Err("the node has not been acknowledged lately, and the pod must not run twice".to_owned());
    }
    let ip = if config.host_network {
        None
    } else {
        let ip = context.with_addresses(|addresses| addresses.take(&config.uid));
        Some(ip.ok_or("no address is left in the node's pod range")?)
    };
    let shown = ip.unwrap_or(context.config.address).to_string();
    let dns = context.config.network.dns_service_address().to_string();
    let of_node = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let write = || -> std::io::Result<()> {
        dir.create()?;
        dir.save_pod(pod)?;
        std::fs::write(dir.etc("hosts"), files::hosts(pod, Some(&shown)))?;
        std::fs::write(dir.etc("hostname"), format!("{}\n", files::hostname(pod)))?;
        std::fs::write(dir.etc("resolv.conf"), files::resolv_conf(pod, &dns, &of_node))
    };
    write().map_err(|error| format!("cannot write to {}: {error}", dir.root().display()))?;
    let sandbox = Sandbox::create(config).await.map_err(|error| error.to_string())?;
    if let Some(ip) = ip {
        let (pid, uid) = (sandbox.pid(), config.uid.clone());
        let attached = tokio::task::spawn_blocking(move || mainstay_net::pod::attach(pid, &uid, ip)).await;
        let error = match attached {
            Ok(Ok(())) => return Ok((sandbox, Some(ip))),
            Ok(Err(error)) => with_sources(&error),
            Err(error) => error.to_string(),
        };
        let _ = sandbox.stop().await;
        let _ = detach(config).await;
        return Err(format!("cannot give the pod its network: {error}"));
    }
    Ok((sandbox, None))
}

pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

async fn blocking_clean_up(config: SandboxConfig) -> Result<(), SandboxError> {
    tokio::task::spawn_blocking(move || clean_up(&config)).await.unwrap_or(Err(SandboxError::Gone))
}

async fn detach(config: &SandboxConfig) -> Result<(), String> {
    if config.host_network {
        return Ok(());
    }
    let uid = config.uid.clone();
    let detached = tokio::task::spawn_blocking(move || mainstay_net::pod::detach(&uid)).await;
    match detached {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(with_sources(&error)),
        Err(error) => Err(error.to_string()),
    }
}

/// Removes a pod's directory and gives its address back.
async fn remove(context: &Context, dir: PodDir) -> News {
    let uid = dir.uid();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || dir.remove()).await {
        tracing::warn!(pod = uid, %error, "directory not removed");
    }
    context.with_addresses(|addresses| addresses.release(&uid));
    context.images.release(&uid);
    News::Removed
}
