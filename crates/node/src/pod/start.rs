//! From a container's specification to what the runtime is asked to start.
//!
//! Flow: have what it refers to fetched and its volumes made ([`crate::pod::prepare`]), make its files, put the environment
//! together ([`build`] is pure), start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use mainstay_runtime::cgroup::Limits;
use mainstay_runtime::protocol::{ContainerConfig, ContainerStatus, Mount, MountKind};
use mainstay_runtime::sandbox::{Sandbox, SandboxError};
use mainstay_runtime::seccomp::Seccomp;

use crate::env::{self, PodFacts, expand};
use crate::images::Found;
use crate::pod::dir::PodDir;
use crate::pod::files;
use crate::pod::io::{Instance, StartFailure};
use crate::pod::prepare::Preparation;
use crate::pod::qos::{self, Resources};
use crate::volumes::{self, Bind};

/// Programs found without a path, as images set it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where a container leaves its last words unless it says otherwise.
const TERMINATION_PATH: &str = "/dev/termination-log";

/// The annotation of pods whose containers get a first process that forwards signals and reaps orphans.
const INIT: &str = "mainstay.dev/init";

/// Everything a start needs to know.
pub struct Start {
    /// The pod, and what it refers to.
    pub preparation: Preparation,
    /// Its sandbox.
    pub sandbox: Arc<Sandbox>,
    /// What is to be started.
    pub instance: Instance,
    /// The container whose processes it is to see, by id.
    pub target: Option<String>,
}

impl Start {
    /// Starts the container.
    ///
    /// # Errors
    /// Why it does not run, in the classes that statuses tell apart.
    pub async fn run(self, spec: &core::Container) -> Result<ContainerStatus, StartFailure> {
        let Preparation { context, pod, dir, pod_ip, .. } = self.preparation.clone();
        let image = context.images.ensure(&context, &pod, spec).await?;
        let facts = context.facts(pod_ip);
        let (sources, volumes) = self.preparation.complete().await?;
        let services = context.network.services.list();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
        let variables = env::service_variables(services.iter().map(|service| &**service), namespace, links);
        let environment = env::resolve(&pod, spec, &sources, &facts, variables);
        let environment = environment.map_err(|error| StartFailure::Config(error.to_string()))?;
        let environment = complete(environment, &image, &pod);
        let config = {
            let profiles = context.config.data_dir.join("seccomp");
            let (instance, spec, target) = (self.instance.clone(), spec.clone(), self.target.clone());
            let built = tokio::task::spawn_blocking(move || {
                dir.prepare(&instance)
                    .map_err(|error| StartFailure::Config(format!("cannot prepare the pod's directory: {error}")))?;
                let binds = volumes::binds(&spec, &volumes, &environment)
                    .map_err(|error| StartFailure::Config(format!("failed to prepare {error}")))?;
                let config = build(&pod, &spec, &dir, &instance, &image, environment, &binds, &facts, &profiles)?;
                Ok(ContainerConfig { pid_of: target, ..config })
            });
            built.await.map_err(|error| StartFailure::Config(error.to_string()))??
        };
        self.sandbox.start_container(&config).await.map_err(|error| match error {
            SandboxError::Refused(text) => StartFailure::Run(text),
            other => StartFailure::Config(other.to_string()),
        })
    }
}

/// What every container has in its environment unless it says otherwise.
fn complete(environment: BTreeMap<String, String>, image: &Found, pod: &core::Pod) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([("PATH".to_owned(), PATH.to_owned()), ("HOSTNAME".to_owned(), files::hostname(pod))]);
    let of_image = image.run.env.iter().filter_map(|variable| variable.split_once('='));
    all.extend(of_image.map(|(name, value)| (name.to_owned(), value.to_owned())));
    all.extend(environment);
    all
}

/// The id of an instance: the same at every try, so that an agent that restarted knows its containers again.
pub fn container_id(uid: &str, instance: &Instance) -> String {
    let part = |salt: u8| {
        let text = format!("{salt}/{uid}/{instance}");
        format!("{:08x}", mainstay_model::meta::fnv1a_32(text.into_bytes()))
    };
    (0..8).map(part).collect()
}

/// What a container may use, in the kernel's terms.
pub fn limits_of(resources: Resources) -> Limits {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    Limits {
        cpu_request_milli: positive(resources.cpu_request_milli),
        cpu_limit_milli: resources.cpu_limit_milli.and_then(positive),
        memory_limit_bytes: resources.memory_limit_bytes.and_then(positive),
    }
}

/// What the runtime is asked to start. Pure.
#[allow(clippy::too_many_arguments)] // One value with nine fields, used once, would say no more.
fn build(
    pod: &core::Pod,
    spec: &core::Container,
    dir: &PodDir,
    instance: &Instance,
    image: &Found,
    environment: BTreeMap<String, String>,
    binds: &[Bind],
    facts: &PodFacts,
    profiles: &Path,
) -> Result<ContainerConfig, StartFailure> {
    let command = command(spec, image, &environment);
    if command.is_empty() {
        return Err(StartFailure::Config(
            "no command specified: the image has none of its own, set command".to_owned(),
        ));
    }
    let resources = Resources::of(spec.resources.as_ref());
    let class = pod.spec.as_ref().map_or(qos::QosClass::BestEffort, qos::class_of);
    let limits = limits_of(resources);
    let security = spec.security_context.clone().unwrap_or_default();
    let identity = Identity::of(pod, &security, image)?;
    let capabilities = security.capabilities.clone().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    Ok(ContainerConfig {
        id: container_id(uid, instance),
        name: spec.name.clone(),
        image: image.place.clone(),
        command,
        mounts: mounts(spec, dir, instance, binds),
        env: environment.into_iter().collect(),
        working_dir: spec.working_dir.clone().filter(|path| !path.is_empty()).unwrap_or(image.run.working_dir.clone()),
        cpu_request_milli: limits.cpu_request_milli,
        cpu_limit_milli: limits.cpu_limit_milli,
        memory_limit_bytes: limits.memory_limit_bytes,
        pids_limit: Some(facts.pids_max).filter(|most| *most > 0),
        user: identity.user,
        group: identity.group,
        supplementary_groups: identity.further,
        read_only_root: security.read_only_root_filesystem.unwrap_or(false),
        privileged: security.privileged.unwrap_or(false),
        capabilities_add: capabilities.add.unwrap_or_default(),
        capabilities_drop: capabilities.drop.unwrap_or_default(),
        seccomp: seccomp(pod, &security, profiles)?,
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        oom_score_adj: qos::oom_score_adj(class, resources.memory_request_bytes, facts.node_memory_bytes),
        log_path: dir.log(instance),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        init: pod.metadata.annotations.iter().flatten().any(|(name, value)| name == INIT && value == "true"),
        pid_of: None,
    })
}

/// Program and arguments: the pod's, or else the image's.
///
/// Source: <https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/>.
fn command(spec: &core::Container, image: &Found, environment: &BTreeMap<String, String>) -> Vec<String> {
    let given = |words: &Option<Vec<String>>| words.clone().filter(|words| !words.is_empty());
    let (program, arguments) = match (given(&spec.command), given(&spec.args)) {
        (Some(program), arguments) => (program, arguments.unwrap_or_default()),
        (None, Some(arguments)) => (image.run.entrypoint.clone(), arguments),
        (None, None) => return image.run.entrypoint.iter().chain(&image.run.cmd).cloned().collect(),
    };
    program.iter().chain(&arguments).map(|word| expand(word, environment)).collect()
}

/// The system calls that a container may use. Profiles of the node lie in `seccomp` in its directory, as in the kubelet's.
///
/// Source: <https://kubernetes.io/docs/tutorials/security/seccomp/>.
fn seccomp(pod: &core::Pod, own: &core::SecurityContext, profiles: &Path) -> Result<Seccomp, StartFailure> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.seccomp_profile.as_ref());
    let Some(profile) = own.seccomp_profile.as_ref().or(of_pod) else { return Ok(Seccomp::Unconfined) };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            let plain = !name.is_empty()
                && Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
            let path = profiles.join(name);
            let refuse =
                |why: String| StartFailure::Config(format!("cannot load seccomp profile {:?}: {why}", path.display()));
            if !plain {
                return Err(refuse("it must be a relative path without ..".to_owned()));
            }
            std::fs::read_to_string(&path).map(Seccomp::Profile).map_err(|error| refuse(error.to_string()))
        }
        _ => Ok(Seccomp::Unconfined),
    }
}

/// Whom a container runs as.
struct Identity {
    user: u32,
    group: u32,
    further: Vec<u32>,
}

impl Identity {
    /// Source: <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/>; the image's own user, and the
    /// groups that its `/etc/group` gives to whoever it is, count unless `supplementalGroupsPolicy` is `Strict`.
    fn of(pod: &core::Pod, own: &core::SecurityContext, image: &Found) -> Result<Self, StartFailure> {
        let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
        let id = |value: i64| u32::try_from(value).unwrap_or(0);
        let wanted = own.run_as_user.or(of_pod.run_as_user).map(|user| id(user).to_string());
        let non_root = own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true);
        let name = wanted.as_deref().unwrap_or(&image.run.user);
        if non_root
            && wanted.is_none()
            && name.split(':').next().is_some_and(|user| !user.is_empty() && user.parse::<u32>().is_err())
        {
            let text = format!(
                "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
            );
            return Err(StartFailure::Config(text));
        }
        let found = image.accounts.find(name).map_err(|error| StartFailure::Config(error.to_string()))?;
        if non_root && found.uid == 0 {
            let text = "container has runAsNonRoot and image will run as root";
            return Err(StartFailure::Config(text.to_owned()));
        }
        let group = own.run_as_group.or(of_pod.run_as_group).map_or(found.gid, id);
        let strict = of_pod.supplemental_groups_policy.as_deref() == Some("Strict");
        let of_image = found.groups.into_iter().filter(|_| !strict);
        let further = of_image.chain(of_pod.supplemental_groups.into_iter().flatten().chain(of_pod.fs_group).map(id));
        Ok(Self { user: found.uid, group, further: further.collect() })
    }
}

/// The pod's files, the termination message's file and the volumes; a volume that is mounted over a file replaces it.
fn mounts(spec: &core::Container, dir: &PodDir, instance: &Instance, binds: &[Bind]) -> Vec<Mount> {
    let taken = |path: &str| binds.iter().any(|bind| bind.target.trim_end_matches('/') == path);
    let bind = |source: PathBuf, destination: &str, read_only| Mount {
        source,
        destination: Path::new(destination).to_owned(),
        read_only,
        kind: MountKind::Bind,
        propagation: None,
    };
    let termination =
        spec.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(TERMINATION_PATH);
    let mut mounts = Vec::new();
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if !taken(&target) {
            mounts.push(bind(dir.etc(name), &target, false));
        }
    }
    mounts.push(bind(dir.termination(instance), termination, false));
    mounts.extend(
        binds
            .iter()
            .map(|one| Mount { propagation: one.propagation, ..bind(one.source.clone(), &one.target, one.read_only) }),
    );
    mounts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use super::*;
    use serde_json::json;

    fn config(spec: serde_json::Value, context: serde_json::Value) -> Result<ContainerConfig, StartFailure> {
        let spec: core::Container = serde_json::from_value(spec).unwrap();
        let pod = json!({"metadata": {"name": "web", "uid": "u1"}, "spec": {"containers": [spec], "securityContext": context}});
        let pod: core::Pod = serde_json::from_value(pod).unwrap();
        let dir = PodDir::new(Path::new("/data"), "u1");
        let instance = Instance { container: "app".to_owned(), attempt: 2 };
        let environment = complete(BTreeMap::from([("PORT".to_owned(), "80".to_owned())]), &Found::host(), &pod);
        let facts = PodFacts { node_memory_bytes: 1 << 30, ..PodFacts::default() };
        build(&pod, &spec, &dir, &instance, &Found::host(), environment, &[], &facts, Path::new("/none"))
    }

    #[test]
    fn a_container_as_the_runtime_sees_it() {
        let config = config(
            json!({"name": "app", "command": ["serve"], "args": ["--port=$(PORT)", "$(NONE)"],
                "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "64Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}),
            json!({"runAsUser": 1000, "fsGroup": 2000}),
        )
        .unwrap();
        assert_eq!(config.command, ["serve", "--port=80", "$(NONE)"]);
        assert_eq!((config.user, config.group, config.supplementary_groups), (1000, 0, vec![2000]));
        assert_eq!(
            (config.cpu_request_milli, config.cpu_limit_milli, config.memory_limit_bytes),
            (Some(250), None, Some(64 << 20))
        );
        assert_eq!((config.no_new_privileges, config.capabilities_drop), (true, vec!["ALL".to_owned()]));
        assert_eq!(config.oom_score_adj, 938);
        assert_eq!(config.log_path, Path::new("/data/pods/u1/logs/app/2.log"));
        let targets: Vec<_> = config.mounts.iter().map(|mount| mount.destination.to_str().unwrap()).collect();
        assert_eq!(targets, ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"]);
        assert_eq!(config.id.len(), 64);
    }

    #[test]
    fn what_cannot_be_started_says_why() {
        for (spec, context, words) in [
            (json!({"name": "app"}), json!({}), "no command"),
            (json!({"name": "app", "command": ["x"]}), json!({"runAsNonRoot": true}), "runAsNonRoot"),
        ] {
            let Err(StartFailure::Config(text)) = config(spec, context) else { panic!("must fail") };
            assert!(text.contains(words), "{text}");
        }
    }
}
