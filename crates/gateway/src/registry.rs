//! What outlives a configuration: counters, limits, gates, breakers, bans, caches, switches.
//!
//! Everything is found by a name that stays the same over reloads; what the new configuration does not name any more is
//! forgotten by [`Shared::retain`].

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::access::Bans;
use crate::breaker::{Breaker, SharedBreaker};
use crate::cache::Store;
use crate::limit::{Gate, Limiter};
use crate::metrics::{HostMetrics, RuleMetrics};
use crate::table::Table;
use crate::table::settings::{BreakerSettings, CacheSettings, ConcurrencySettings, LimitSettings};
use crate::upstream::HostShared;

/// Shared by all cores.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    pub(crate) bans: Bans,
    /// Told to stop: connections are closed after their request.
    pub(crate) draining: AtomicBool,
    /// Some switch is on: a request need not look at all of them.
    pub(crate) any_switch: AtomicBool,
    /// Connections open now.
    pub(crate) connections: AtomicU32,
    /// When this process started; times of limits count from here.
    pub(crate) origin: Instant,
    clients: Mutex<HashMap<IpAddr, u32>>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) hosts: HashMap<(String, SocketAddr), HostEntry>,
    /// By rule name, one for each core.
    pub(crate) rules: HashMap<String, Vec<Arc<RuleMetrics>>>,
    limiters: HashMap<String, Arc<Limiter>>,
    gates: HashMap<String, Arc<Gate>>,
    pub(crate) breakers: HashMap<String, SharedBreaker>,
    caches: HashMap<String, (CacheSettings, Arc<Store>)>,
    pub(crate) switches: HashSet<String>,
}

/// An endpoint.
#[derive(Debug, Default)]
pub(crate) struct HostEntry {
    pub(crate) upstream: String,
    pub(crate) shared: Arc<HostShared>,
    pub(crate) metrics: Vec<Arc<HostMetrics>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            bans: Bans::default(),
            draining: AtomicBool::new(false),
            any_switch: AtomicBool::new(false),
            connections: AtomicU32::new(0),
            origin: Instant::now(),
            clients: Mutex::default(),
        }
    }
}

impl Shared {
    /// The maps; held for moments only, never on the path of a request.
    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of an endpoint on all cores.
    pub(crate) fn host(&self, upstream_key: &str, address: SocketAddr) -> Arc<HostShared> {
        self.inner().hosts.entry((upstream_key.to_owned(), address)).or_default().shared.clone()
    }

    /// The rate limit of these settings; a new one if they have changed.
    pub(crate) fn limiter(&self, settings: &LimitSettings) -> Arc<Limiter> {
        let mut inner = self.inner();
        match inner.limiters.get(&settings.key) {
            Some(known) if known.settings() == settings => known.clone(),
            _ => {
                let new = Arc::new(Limiter::new(settings.clone()));
                inner.limiters.insert(settings.key.clone(), new.clone());
                new
            }
        }
    }

    /// The gate of these settings; a new one if they have changed.
    pub(crate) fn gate(&self, settings: &ConcurrencySettings) -> Arc<Gate> {
        let mut inner = self.inner();
        match inner.gates.get(&settings.key) {
            Some(known) if known.settings() == settings => known.clone(),
            _ => {
                let new = Arc::new(Gate::new(settings.clone()));
                inner.gates.insert(settings.key.clone(), new.clone());
                new
            }
        }
    }

    /// The circuit of an upstream or endpoint.
    pub(crate) fn breaker(&self, key: &str, settings: &BreakerSettings) -> SharedBreaker {
        let mut inner = self.inner();
        let lock =
            |breaker: &SharedBreaker| breaker.lock().unwrap_or_else(PoisonError::into_inner).settings() == settings;
        match inner.breakers.get(key) {
            Some(known) if lock(known) => known.clone(),
            _ => {
                let new = Arc::new(Mutex::new(Breaker::new(settings.clone())));
                inner.breakers.insert(key.to_owned(), new.clone());
                new
            }
        }
    }

    /// The cache of a rule.
    pub(crate) fn cache(&self, key: &str, settings: CacheSettings) -> Arc<Store> {
        let mut inner = self.inner();
        match inner.caches.get(key) {
            Some((known, store)) if *known == settings => store.clone(),
            _ => {
                let store = Arc::new(Store::new(settings));
                inner.caches.insert(key.to_owned(), (settings, store.clone()));
                store
            }
        }
    }

    /// Drops from every cache what `matches`; answers how much that was.
    pub(crate) fn purge(&self, matches: impl Fn(&str) -> bool) -> usize {
        self.inner().caches.values().map(|(_, store)| store.purge(&matches)).sum()
    }

    /// Whether a switch is on.
    pub(crate) fn switched_on(&self, name: &str) -> bool {
        self.any_switch.load(Ordering::Relaxed) && self.inner().switches.contains(name)
    }

    /// Turns a switch.
    pub(crate) fn switch(&self, name: &str, on: bool) {
        let mut inner = self.inner();
        if on {
            inner.switches.insert(name.to_owned());
        } else {
            inner.switches.remove(name);
        }
        self.any_switch.store(!inner.switches.is_empty(), Ordering::Relaxed);
    }

    /// Turns on these switches and no others.
    pub(crate) fn switch_all(&self, on: Vec<String>) {
        let mut inner = self.inner();
        inner.switches = on.into_iter().collect();
        self.any_switch.store(!inner.switches.is_empty(), Ordering::Relaxed);
    }

    /// A client opens a connection; answers how many it has now.
    pub(crate) fn client_opens(&self, client: IpAddr) -> u32 {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_insert(0);
        *count += 1;
        *count
    }

    /// A client's connection ends.
    pub(crate) fn client_closes(&self, client: IpAddr) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&client);
            }
        }
    }

    /// Forgets what a configuration does not name.
    pub(crate) fn retain(&self, table: &Table) {
        let endpoints: HashSet<(String, SocketAddr)> =
            table.upstreams.iter().flat_map(|it| it.endpoints.iter().map(|e| (it.key.clone(), e.address))).collect();
        let rules: HashSet<&str> = table.rules.iter().map(|it| it.name.as_str()).collect();
        let limits: HashSet<&str> =
            table.rules.iter().flat_map(|it| &it.settings.limits).map(|it| it.key.as_str()).collect();
        let gates: HashSet<&str> =
            table.rules.iter().filter_map(|it| Some(it.settings.concurrency.as_ref()?.key.as_str())).collect();
        let upstreams: HashSet<&str> = table.upstreams.iter().map(|it| it.key.as_str()).collect();
        let mut inner = self.inner();
        inner.hosts.retain(|key, _| endpoints.contains(key));
        inner.rules.retain(|name, _| rules.contains(name.as_str()));
        inner.limiters.retain(|key, _| limits.contains(key.as_str()));
        inner.gates.retain(|key, _| gates.contains(key.as_str()));
        inner.breakers.retain(|key, _| upstreams.contains(key.split('|').next().unwrap_or_default()));
        inner.caches.retain(|key, _| rules.contains(key.as_str()));
    }
}

/// The registry as one core uses it.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    pub(crate) shared: Arc<Shared>,
    pub(crate) core: usize,
}

impl Registry {
    /// An endpoint's state and this core's counters of it. An endpoint that is new under this key is as healthy as it was
    /// `before`, under other settings.
    pub(crate) fn host(
        &self,
        upstream_key: &str,
        upstream: &str,
        address: SocketAddr,
        before: Option<&HostShared>,
    ) -> (Arc<HostShared>, Arc<HostMetrics>) {
        let mut inner = self.shared.inner();
        let entry = inner.hosts.entry((upstream_key.to_owned(), address)).or_insert_with(|| {
            let entry = HostEntry::default();
            if let Some(before) = before {
                entry.shared.healthy.store(before.healthy.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            entry
        });
        upstream.clone_into(&mut entry.upstream);
        (entry.shared.clone(), of_core(&mut entry.metrics, self.core))
    }

    /// This core's counters of a rule.
    pub(crate) fn rule(&self, name: &str) -> Arc<RuleMetrics> {
        of_core(self.shared.inner().rules.entry(name.to_owned()).or_default(), self.core)
    }
}

fn of_core<T: Default>(all: &mut Vec<Arc<T>>, core: usize) -> Arc<T> {
    while all.len() <= core {
        all.push(Arc::default());
    }
    all[core].clone()
}
