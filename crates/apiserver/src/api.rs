//! The state all requests share.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use http::{HeaderValue, Request, Response, header};
use jiff::Timestamp;
use mainstay_store::Store;
use tower::util::service_fn;

use crate::admission::{Bundles, Policies};
use crate::audit::Audit;
use crate::authn::{TokenKeys, Tokens, User};
use crate::authz::Authoriser;
use crate::custom::Cleanups;
use crate::follow::Followed;
use crate::limits::Limits;
use crate::maintenance::Maintenance;
use crate::metrics::{Metrics, Timed};
use crate::registry::Registry;
use crate::reply::{Body, BodyError};
use crate::seen::Seen;
use crate::service_ip::ServiceAddresses;
use crate::usage::Summaries;

/// What the API server is told at start.
#[derive(Clone)]
pub struct Settings {
    /// First address of the range for ClusterIPs; the first usable one is the `kubernetes` service's.
    pub service_range: Ipv4Addr,
    /// Prefix length of that range.
    pub service_prefix: u8,
    /// First addresses of the range that are kept for fixed services (such as DNS) and never allocated by themselves.
    pub service_reserved: u32,
    /// Where the nodes' pods reach this server: the endpoint of the `kubernetes` service.
    pub advertise: std::net::SocketAddrV4,
    /// How this server calls the agents' HTTPS servers (logs, exec); without it those subresources answer 503.
    pub agents: Option<Arc<rustls::ClientConfig>>,
    /// How ServiceAccount tokens are signed and verified; without it there are none.
    pub tokens: Option<Arc<TokenKeys>>,
    /// The certificate of the authority that signed this server's, in PEM: what pods verify it by.
    pub authority: Option<String>,
    /// Whether pods get a volume with a token of their account; their node must be able to fill it.
    pub mount_tokens: bool,
    /// How long pods that do not say tolerate a node that does not answer, in seconds; `None`: not at all.
    pub toleration_seconds: Option<i64>,
    /// Where it is written who did what; without it, nowhere.
    pub audit: Option<Arc<Audit>>,
}

/// The API server: cheap to clone, shared by every connection and by the parts inside the server process.
pub struct Api {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) settings: Settings,
    pub(crate) addresses: ServiceAddresses,
    pub(crate) limits: Limits,
    pub(crate) registry: Registry,
    pub(crate) cleanups: Cleanups,
    pub(crate) policies: Policies,
    pub(crate) tokens: Option<Tokens>,
    pub(crate) authoriser: Authoriser,
    pub(crate) followed: Followed,
    pub(crate) seen: Seen,
    pub(crate) maintenance: OnceLock<Maintenance>,
    pub(crate) summaries: Summaries,
    pub(crate) bundles: Bundles,
    pub(crate) metrics: Arc<Metrics>,
    /// When this server began.
    pub(crate) started: Timestamp,
}

impl Api {
    /// A server over `store`.
    pub fn new(store: Arc<dyn Store>, settings: Settings) -> Arc<Self> {
        let addresses =
            ServiceAddresses::new(settings.service_range, settings.service_prefix, settings.service_reserved);
        let metrics = Arc::<Metrics>::default();
        let store: Arc<dyn Store> = Arc::new(Timed::new(store, metrics.clone()));
        Arc::new(Self {
            tokens: settings.tokens.clone().map(Tokens::new),
            authoriser: Authoriser::new(&store),
            followed: Followed::new(&store),
            seen: Seen::default(),
            bundles: Bundles::default(),
            registry: Registry::new(&store),
            cleanups: Cleanups::default(),
            policies: Policies::new(&store),
            metrics,
            store,
            settings,
            addresses,
            limits: Limits::default(),
            maintenance: OnceLock::new(),
            summaries: Summaries::default(),
            started: Timestamp::now(),
        })
    }

    /// Answers `/maintenance/*` from now on; only the first call counts.
    pub fn allow_maintenance(&self, maintenance: Maintenance) {
        let _ = self.maintenance.set(maintenance);
    }

    /// A `kube::Client` for a part inside this process: the same code path as a remote call, without a socket.
    pub fn client(self: &Arc<Self>, user: User) -> kube::Client {
        let api = self.clone();
        // The part's name in `managedFields`: `kube-scheduler` of `system:kube-scheduler`.
        let agent = HeaderValue::from_str(user.name.rsplit(':').next().unwrap_or_default()).ok();
        let service = service_fn(move |mut request: Request<kube::client::Body>| {
            let (api, user) = (api.clone(), user.clone());
            if let Some(agent) = &agent {
                request.headers_mut().insert(header::USER_AGENT, agent.clone());
            }
            async move { Ok::<Response<Body>, BodyError>(api.handle(request, Some(user)).await) }
        });
        kube::Client::new(service, "default")
    }

    /// The time written into objects.
    #[allow(clippy::unused_self)]
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
