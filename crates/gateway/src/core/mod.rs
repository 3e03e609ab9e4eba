//! The data plane: one of these on each core, with nothing shared on the path of a request but what must be exact.
//!
//! # Flow
//! `accept` takes connections → `serve` is the journey of a request → `forward` and `race` ask endpoints → `tunnel` carries
//! what is no HTTP any more. `live` is the configuration; a request holds the one it began with, and the next one on the same
//! connection sees the new.

mod accept;
mod cached;
mod convert;
mod forward;
pub(crate) mod headers;
mod keys;
mod live;
mod proxy_protocol;
mod race;
mod reply;
mod route;
mod serve;
mod session;
mod sni;
mod transcoded;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

pub(crate) use live::Live;
pub(crate) use proxy_protocol::fuzz as fuzz_proxy_protocol;
pub(crate) use sni::fuzz as fuzz_sni;

use crate::access_log::AccessLog;
use crate::registry::Registry;
use crate::server::{Common, Watches};
use crate::sockets::Sockets;
use crate::table::Port;
use crate::trace::Tracer;
use crate::upstream::Group;
use accept::Listening;
use live::CoreTable;

/// How often waiting attempts are looked through, while there are any.
const TICK: Duration = Duration::from_millis(5);
/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// Clients' connections are looked at a few times within their shortest limit, and this often at least and at most.
const LOOK_MAX: Duration = Duration::from_millis(500);
const LOOK_MIN: Duration = Duration::from_millis(10);

/// One core's data plane.
pub(crate) struct Core {
    pub(crate) registry: Registry,
    table: RefCell<Rc<CoreTable>>,
    /// Groups that the present table does not have, while requests wait in them.
    retired: RefCell<Vec<Rc<Group>>>,
    ticking: Cell<bool>,
    wake: Notify,
    zone: Option<Arc<str>>,
    log: Option<AccessLog>,
    tracer: Option<Arc<Tracer>>,
    listening: RefCell<Vec<Listening>>,
    /// What connections of clients share, and who looks after them.
    common: Common,
    watches: Watches,
}

/// What a core is started with.
pub(crate) struct CoreOptions {
    pub(crate) registry: Registry,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) log: Option<AccessLog>,
    pub(crate) tracer: Option<Arc<Tracer>>,
}

impl Core {
    /// Runs until told to stop and every connection has ended, or `drain` is over.
    pub(crate) async fn run(options: CoreOptions, mut configurations: watch::Receiver<Arc<Live>>, drain: Duration) {
        let CoreOptions { registry, sockets, zone, log, tracer } = options;
        let empty = CoreTable::new(Arc::default(), None, &registry, None, Instant::now());
        let core = Rc::new(Self {
            registry,
            table: RefCell::new(Rc::new(empty)),
            retired: RefCell::default(),
            ticking: Cell::new(false),
            wake: Notify::new(),
            zone,
            log,
            tracer,
            listening: RefCell::default(),
            common: Common::default(),
            watches: Watches::default(),
        });
        tokio::task::spawn_local(core.clone().tick());
        tokio::task::spawn_local(core.clone().watch());
        tokio::task::spawn_local(core.clone().sweep());
        loop {
            let live = configurations.borrow_and_update().clone();
            if core.shared().draining.load(Ordering::Relaxed) {
                break;
            }
            core.take_over(&live, &sockets);
            if configurations.changed().await.is_err() {
                break;
            }
        }
        core.listening.borrow_mut().clear();
        let end = Instant::now() + drain;
        while core.shared().connections.load(Ordering::Relaxed) > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn shared(&self) -> &crate::registry::Shared {
        &self.registry.shared
    }

    /// The configuration for a request that begins now.
    pub(super) fn table(&self) -> Rc<CoreTable> {
        self.table.borrow().clone()
    }

    fn take_over(self: &Rc<Self>, live: &Arc<Live>, sockets: &Sockets) {
        let before = self.table();
        let table = CoreTable::new(live.clone(), Some(&before), &self.registry, self.zone.as_ref(), Instant::now());
        let kept: HashSet<*const Group> = table.groups.iter().map(Rc::as_ptr).collect();
        let gone = before.groups.iter().filter(|it| !kept.contains(&Rc::as_ptr(it)));
        self.retired.borrow_mut().extend(gone.cloned());
        *self.table.borrow_mut() = Rc::new(table);
        let mut listening = self.listening.borrow_mut();
        let wanted: Vec<(SocketAddr, usize)> = live
            .table
            .ports
            .iter()
            .enumerate()
            .flat_map(|(index, port)| port.addresses.iter().map(move |address| (*address, index)))
            .collect();
        listening.retain(|it| wanted.iter().any(|(address, _)| *address == it.address));
        for (address, index) in wanted {
            let port = live.table.ports[index].clone();
            match listening.iter().find(|it| it.address == address) {
                Some(known) => known.set(port),
                None => {
                    // This core's own sockets, and those it inherited from cores that are no more.
                    for socket in sockets.of(address, self.registry.core) {
                        listening.extend(Listening::start(self.clone(), address, socket, port.clone()));
                    }
                }
            }
        }
        live.taken.fetch_add(1, Ordering::Release);
    }

    /// Someone begins to wait for an endpoint.
    pub(super) fn wake(&self) {
        if !self.ticking.replace(true) {
            self.wake.notify_one();
        }
    }

    async fn tick(self: Rc<Self>) {
        loop {
            self.wake.notified().await;
            loop {
                tokio::time::sleep(TICK).await;
                let now = Instant::now();
                let table = self.table();
                let mut waits = false;
                for group in &table.groups {
                    waits |= group.tick(now);
                }
                self.retired.borrow_mut().retain(|group| {
                    waits |= group.tick(now);
                    group.active.get() > 0
                });
                if !waits {
                    break;
                }
            }
            self.ticking.set(false);
        }
    }

    /// Looks after clients' connections, and after the clock of their answers.
    async fn watch(self: Rc<Self>) {
        loop {
            let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now());
            *self.common.date.borrow_mut() = date.unwrap_or_default();
            let limits = |port: &Arc<Port>| port.settings.client_header.min(port.settings.client_idle);
            let shortest = self.table().live.table.ports.iter().map(limits).min().unwrap_or(LOOK_MAX);
            tokio::time::sleep((shortest / 4).clamp(LOOK_MIN, LOOK_MAX)).await;
            self.watches.sweep(Instant::now(), self.shared().draining.load(Ordering::Relaxed));
        }
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let now = Instant::now();
            for group in &self.table().groups {
                for host in &group.hosts {
                    host.sweep(now, group.spec.settings.idle_timeout);
                }
            }
        }
    }
}
