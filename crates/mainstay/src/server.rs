//! `mainstay server`: the control plane in one process.
//!
//! Flow: open the state (a file, or etcd; encryption over it) → the API over it → controllers, scheduler and the host's service rules through in-process clients →
//! serve HTTPS to everybody else, until SIGTERM.
//!
//! With `--api` it is a control plane without nodes of its own: no bridge, no service rules, its own certificates.

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use mainstay_apiserver::{
    Api, Audit, AuditError, KeyError, LogFile, ServeError, Settings, TlsFiles, TokenKeys, User, bootstrap,
};
use mainstay_informer::leader::LeaderSettings;
use mainstay_informer::{Cache, Scope};
use mainstay_model::status::ApiError;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{AuditArgs, ServerArgs};
use crate::instance::{AuditSettings, DEFAULT_NETWORK, Instance, InstanceError};
use crate::node_tuning::NodeTuning;
use crate::pki::{self, Pair, PkiError, authority_file};
use crate::state::{self, StateError};

/// Addresses at the beginning of the service range that are for fixed services, such as DNS.
const RESERVED_SERVICES: u32 = 16;
/// Who signs ServiceAccount tokens, as everywhere that nothing else was chosen.
const TOKEN_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Why the control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The certificates of a control plane of its own.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store and its encryption.
    #[error(transparent)]
    State(#[from] StateError),
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}; choose another port with --api")]
    Listen {
        /// Which.
        address: SocketAddrV4,
        /// What the system said.
        source: io::Error,
    },
    /// The first objects could not be written.
    #[error("cannot write the system's own objects: {0}")]
    Bootstrap(#[from] ApiError),
    /// TLS.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The credentials for the agents.
    #[error("cannot use the credentials in {path}: {reason}")]
    Credentials {
        /// Where they lie.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The keys of ServiceAccount tokens.
    #[error(transparent)]
    TokenKeys(#[from] KeyError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The audit policy's file.
    #[error("cannot read the audit policy {path}: {source}")]
    AuditPolicy {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Signals.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

/// The instance to serve: that of the data directory, or with `--api` one without nodes. What is said here about scheduling
/// and silent nodes is kept, as what `up` was told is.
///
/// # Errors
/// When there is none, or it cannot be made.
pub fn instance(args: &ServerArgs) -> Result<Instance, ServerError> {
    let loaded = Instance::load(&args.data.data_dir);
    let Some(api) = args.api else {
        let before = loaded?;
        let instance = Instance { tuning: args.tuning.or(&before.tuning), ..before.clone() };
        if instance != before {
            instance.save()?;
        }
        return Ok(instance);
    };
    let instance = match loaded {
        Ok(before) => Instance { api, tuning: args.tuning.or(&before.tuning), ..before },
        Err(InstanceError::Missing(data_dir)) => Instance {
            data_dir,
            api,
            network: DEFAULT_NETWORK.to_owned(),
            nodes: 0,
            zones: 1,
            hollow_nodes: 0,
            audit: None,
            tuning: args.tuning.clone(),
            node: NodeTuning::default(),
        },
        Err(error) => return Err(error.into()),
    };
    instance.save()?;
    pki::prepare(&instance)?;
    Ok(instance)
}

/// Runs the control plane until SIGTERM.
///
/// # Errors
/// See [`ServerError`].
pub async fn run(instance: Instance, args: &ServerArgs) -> Result<(), ServerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::Signals)?;
    let plan = instance.plan().map_err(InstanceError::from)?;
    let alone = instance.nodes == 0;
    let inner = if alone { instance.api } else { instance.inner_api().map_err(InstanceError::from)? };
    let state = state::open(&instance, args).await?;
    let settings = Settings {
        service_range: plan.service_range().address,
        service_prefix: plan.service_range().prefix,
        service_reserved: RESERVED_SERVICES,
        advertise: inner,
        agents: Some(Arc::new(agent_credentials(&instance)?)),
        tokens: Some(Arc::new(token_keys(&instance)?)),
        authority: std::fs::read_to_string(authority_file(&instance.pki())).ok(),
        mount_tokens: true,
        toleration_seconds: None,
        audit: audit(&instance, &args.audit)?.map(Arc::new),
    };
    let api = Api::new(state.store, settings);
    api.allow_maintenance(state.maintenance);
    bootstrap(&api).await?;
    let mut listeners = vec![listen(inner).await?];
    if instance.api != inner {
        listeners.push(listen(instance.api).await?);
    }
    let pki = instance.pki();
    let own = Pair::of(&pki, "server");
    let tls = TlsFiles { certificate: own.certificate, key: own.key, client_authority: authority_file(&pki) };
    let signer = signer(&pki)?;
    let range = plan.load_balancer_range();
    let (first, size) = (u32::from(range.address), 1u32 << (32 - range.prefix));
    let controllers = mainstay_controllers::Settings {
        load_balancer_range: Some(((first + 1).into(), (first + size - 2).into())),
        root_ca: Some(signer.certificate.clone()),
        signer: Some(signer),
        volumes: Some(instance.data_dir.join("volumes")),
        heartbeat: instance.tuning.heartbeat(),
        ..mainstay_controllers::Settings::default()
    };
    let client = |name: &str| api.client(User::internal(name));
    // Of several servers over one etcd, one acts.
    let leader = |name: &str| {
        let shared = state::etcd(&args.store).is_ok_and(|etcd| etcd.is_some());
        shared.then(|| LeaderSettings::new(name, format!("{}_{}", instance.api, std::process::id())))
    };
    // Pods are what there is most of: they are watched and held once, whoever of these leads.
    let pods = Cache::<Pod>::new();
    let watched = pods.clone().run(client("system:kube-controller-manager"), Scope::default());
    let (leads, schedules) = (leader("kube-controller-manager"), leader("kube-scheduler"));
    let controllers = mainstay_controllers::Settings { leader: leads, pods: pods.clone(), ..controllers };
    let scheduler = mainstay_scheduler::Settings { leader: schedules, pods, ..instance.tuning.scheduler() };
    tokio::select! {
        served = mainstay_apiserver::serve(api.clone(), listeners, &tls) => match served? {},
        () = watched => {}
        () = crate::definitions::run(client("system:mainstay:definitions")) => {}
        () = crate::gateways::run(client("system:mainstay:gateways")), if !alone => {}
        () = crate::drill::resource::run(client("system:mainstay:drills"), instance.clone()), if !alone => {}
        () = crate::reaper::run(client("system:kube-controller-manager"), instance.data_dir.join("volumes")) => {}
        () = crate::hollow::run(client("system:kube-controller-manager"), instance.hollow_nodes), if instance.hollow_nodes > 0 => {}
        () = mainstay_controllers::run(client("system:kube-controller-manager"), controllers) => {}
        () = mainstay_failover::database::run(client("system:mainstay:database-controller"), leader("mainstay-database-controller")) => {}
        () = mainstay_scheduler::run(client("system:kube-scheduler"), scheduler) => {}
        () = mainstay_node::serve_services(client("system:kube-proxy"), instance.id(), plan, mainstay_node::Role::Host), if !alone => {}
        () = mainstay_node::reclaim_volumes(client("system:mainstay:volumes"), instance.data_dir.join("volumes")) => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn listen(address: SocketAddrV4) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}

/// The key that signs ServiceAccount tokens, and the former ones that still verify.
fn token_keys(instance: &Instance) -> Result<TokenKeys, ServerError> {
    let (signer, former) = pki::token_keys(&instance.pki());
    Ok(TokenKeys::load(TOKEN_ISSUER, &signer, &former)?)
}

/// The audit log, where one is wished.
fn audit(instance: &Instance, args: &AuditArgs) -> Result<Option<Audit>, ServerError> {
    let Some(AuditSettings { log, policy }) = args.settings().or_else(|| instance.audit.clone()) else {
        return Ok(None);
    };
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|source| ServerError::AuditPolicy { path: path.clone(), source })
    };
    let policy = policy.as_ref().map(read).transpose()?;
    Ok(Some(Audit::open(LogFile::new(log), policy.as_deref())?))
}

/// The authority that signs nodes' certificates.
fn signer(pki: &Path) -> Result<mainstay_controllers::Signer, ServerError> {
    let pair = Pair::of(pki, "ca");
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| ServerError::Credentials { path: path.display().to_string(), reason: error.to_string() })
    };
    Ok(mainstay_controllers::Signer { certificate: read(&pair.certificate)?, key: read(&pair.key)? })
}

/// How this server shows itself to the agents, and whom it believes.
fn agent_credentials(instance: &Instance) -> Result<rustls::ClientConfig, ServerError> {
    let pki = instance.pki();
    let failed = |reason: &dyn std::fmt::Display| ServerError::Credentials {
        path: pki.display().to_string(),
        reason: reason.to_string(),
    };
    let pair = Pair::of(&pki, "agents-client");
    let authority = CertificateDer::from_pem_file(authority_file(&pki)).map_err(|error| failed(&error))?;
    let certificate = CertificateDer::from_pem_file(pair.certificate).map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::from_pem_file(pair.key).map_err(|error| failed(&error))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).map_err(|error| failed(&error))?;
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    config.with_client_auth_cert(vec![certificate], key).map_err(|error| failed(&error))
}
