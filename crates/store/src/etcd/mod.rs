//! The store in etcd v3, for several servers: <https://etcd.io/docs/v3.5/learning/api/>.
//!
//! # Flow
//!
//! Reads and writes are calls to whichever endpoint answers ([`channel`]); every write is one transaction with its condition.
//! Watches are served from one feed of all changes ([`feed`]), through the same fan-out as the embedded store's.
//!
//! # Guarantees
//!
//! Those of [`crate`], and the writes of other servers are seen by the watchers of this one. A write is answered when the
//! feed has brought it; if the feed is interrupted, after [`FEED_PATIENCE`] at the latest. Every write is durable at once:
//! [`Durability::Relaxed`] makes no difference.
//!
//! While etcd cannot be reached, everything answers with an error, watches are silent, and both go on by themselves.
//! Whether a write that got no answer was made is unknown, as always.
//!
//! # Assumptions
//!
//! Nobody else writes under the root, and no transaction of others changes two of our keys at once. Keys begin with `/`.
//!
//! # Deliberately absent
//!
//! Users and passwords of etcd: a client certificate says who we are. Discovery of endpoints: name them all.

pub(crate) mod bench;
mod calls;
mod channel;
mod compaction;
mod errors;
mod feed;
mod grpc;
mod messages;
mod place;
mod recent;
mod restore;
mod settings;
mod watcher;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use self::channel::Channel;
use self::errors::explain;
use self::place::Place;
use self::recent::{EVENTS_MAX, Recent};
pub(crate) use self::restore::restore;
pub use self::settings::{EtcdSettings, TlsFiles};
use crate::hub::Hub;
use crate::{Error, Event, Result, Revision};

/// How many writes may wait for etcd before more are refused as [`Error::Busy`].
const WRITES_MAX: usize = 4096;
/// How long a write that etcd has acknowledged waits for the feed to bring it.
const FEED_PATIENCE: Duration = Duration::from_secs(5);

/// What the store, its feed and its watchers share.
pub(crate) struct Core {
    place: Place,
    hub: Arc<Hub>,
    recent: Mutex<Recent>,
    /// Who waits for the feed to come to a revision.
    waiting: Mutex<BTreeMap<Revision, oneshot::Sender<()>>>,
}

impl Core {
    /// Wakes those who waited for what has been published.
    fn arrived(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = waiting.first_entry()
            && *first.key() <= self.hub.published()
        {
            // Who went away does not want to know.
            let _ = first.remove().send(());
        }
    }

    /// The changes of `prefix` after `from`, up to `through`.
    fn past(&self, prefix: &str, from: Revision, through: Revision) -> Result<VecDeque<Arc<Event>>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.after(prefix, from, through).map_err(|oldest| Error::Compacted { oldest })
    }

    /// Gives up the changes up to `revision`.
    fn forget(&self, revision: Revision) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).forget(revision);
    }

    /// Waits until the feed has come to `revision`.
    async fn seen(&self, revision: Revision) {
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if self.hub.published() >= revision {
                return;
            }
            waiting.insert(revision, sender);
        }
        if tokio::time::timeout(FEED_PATIENCE, receiver).await.is_err() {
            tracing::warn!(revision, "etcd acknowledged a write that its watch does not show; answering without");
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&revision);
        }
    }
}

/// A [`Store`] under a root of an etcd.
pub struct EtcdStore {
    core: Arc<Core>,
    channel: Arc<Channel>,
    settings: EtcdSettings,
    writes: Semaphore,
    tasks: Vec<JoinHandle<()>>,
}

impl EtcdStore {
    /// Connects. Must be called on a tokio runtime, which the store then needs for as long as it lives.
    ///
    /// Errors: [`Error::Settings`], [`Error::Storage`] when no endpoint answers, [`Error::HalfRestored`].
    pub async fn open(settings: EtcdSettings) -> Result<Self> {
        let channel = Arc::new(Channel::new(settings.endpoints()?, settings.tls()?));
        let (record, revision) = place::read_record(&channel, &Place::new(&settings.root, 0)).await?;
        if record.restoring {
            return Err(Error::HalfRestored { root: settings.root });
        }
        let place = Place::new(&settings.root, record.revision_offset);
        // A little in the past, so that watches can go on that another process of ours has served before.
        let oldest = compaction::compacted(&place, &channel).await.map_err(explain("ask how far back it reaches"))?;
        let from = oldest.max(place.to_ours((revision - EVENTS_MAX as i64).max(0)));
        Ok(Self::start(channel, settings, place, from))
    }

    /// A store whose feed begins after `from`.
    fn start(channel: Arc<Channel>, settings: EtcdSettings, place: Place, from: Revision) -> Self {
        let mut recent = Recent::default();
        recent.reset(from);
        let hub = Arc::new(Hub::default());
        hub.advance(from);
        let core = Arc::new(Core { place, hub, recent: Mutex::new(recent), waiting: Mutex::default() });
        let feed = tokio::spawn(feed::run(Arc::clone(&core), Arc::clone(&channel), from));
        let keeper = tokio::spawn(compaction::run(Arc::clone(&core), Arc::clone(&channel), settings.clone()));
        Self { core, channel, settings, writes: Semaphore::new(WRITES_MAX), tasks: vec![feed, keeper] }
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.core.hub.close();
    }
}
