//! A bulkhead: how many requests run at once, and how many may wait for a place.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::gradient::Gradient;
use crate::api::policy::Priority;
use crate::table::settings::ConcurrencySettings;

/// Critical requests that wait for a place of the adaptive limit at most.
const LINE_MAX: usize = 256;

/// A gate, shared by cores and by all rules that one policy covers.
#[derive(Debug)]
pub(crate) struct Gate {
    settings: ConcurrencySettings,
    places: Option<Arc<Semaphore>>,
    waiting: AtomicU32,
    in_flight: AtomicU32,
    adaptive: Option<Mutex<Gradient>>,
    limit: AtomicU32,
    /// Critical requests that wait for a place of the adaptive limit, the longest first.
    line: Mutex<VecDeque<oneshot::Sender<Pass>>>,
}

/// No place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overload;

/// A place, until dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    since: Instant,
    #[allow(dead_code, reason = "held for its drop")]
    place: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// An empty gate.
    pub(crate) fn new(settings: ConcurrencySettings) -> Self {
        let adaptive = settings.adaptive.map(|it| Gradient::new(it, Instant::now()));
        Self {
            places: settings.max.map(|max| Arc::new(Semaphore::new(max as usize))),
            waiting: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(adaptive.as_ref().map_or(u32::MAX, Gradient::limit)),
            adaptive: adaptive.map(Mutex::new),
            line: Mutex::default(),
            settings,
        }
    }

    /// Its settings: a gate with the same ones is kept over a reload.
    pub(crate) fn settings(&self) -> &ConcurrencySettings {
        &self.settings
    }

    /// Asks for a place; waits if the gate has room for waiting.
    ///
    /// # Errors
    /// There is none. Of the adaptive limit, the lower priorities may use less: they are shed first. Critical requests wait for
    /// the next place that becomes free, before anybody else has it.
    pub(crate) async fn enter(self: &Arc<Self>, priority: Priority) -> Result<Pass, Overload> {
        let running = self.in_flight.load(Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        // A place at least is kept for who is more important, however small the limit has become.
        let kept = |part: u32| (limit / part).max(u32::from(limit > 1));
        let share = match priority {
            Priority::Critical => limit,
            Priority::Normal => limit - kept(8),
            Priority::NonCore => limit - kept(3),
        };
        let handed_over = if running < share.max(1) {
            None
        } else if priority == Priority::Critical {
            Some(self.wait_in_line().await?)
        } else {
            return Err(Overload);
        };
        let place = match &self.places {
            None => None,
            Some(places) => Some(self.place(places).await?),
        };
        let mut pass = handed_over.unwrap_or_else(|| {
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            Pass { gate: self.clone(), since: Instant::now(), place: None }
        });
        (pass.since, pass.place) = (Instant::now(), place);
        Ok(pass)
    }

    /// Waits until somebody leaves.
    async fn wait_in_line(&self) -> Result<Pass, Overload> {
        let waiting = {
            let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            if self.adaptive.is_none() || line.len() >= LINE_MAX {
                return Err(Overload);
            }
            let (sender, receiver) = oneshot::channel();
            line.push_back(sender);
            receiver
        };
        match tokio::time::timeout(self.settings.pending_timeout, waiting).await {
            Ok(Ok(pass)) => Ok(pass),
            _ => Err(Overload),
        }
    }

    async fn place(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Overload> {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let waiting = Waiting::enter(&self.waiting);
        if waiting.before >= self.settings.pending {
            return Err(Overload);
        }
        match tokio::time::timeout(self.settings.pending_timeout, places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Overload),
        }
    }
}

/// Counts who waits, however the waiting ends.
struct Waiting<'a> {
    count: &'a AtomicU32,
    before: u32,
}

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicU32) -> Self {
        Self { count, before: count.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pass {
    /// The answer's head is there: how long it took tells the adaptive limit what is good.
    pub(crate) fn answered(&self, now: Instant) {
        let Some(adaptive) = &self.gate.adaptive else { return };
        let mut adaptive = adaptive.lock().unwrap_or_else(PoisonError::into_inner);
        let running = self.gate.in_flight.load(Ordering::Relaxed);
        adaptive.note(now.saturating_duration_since(self.since).max(Duration::from_nanos(1)), running, now);
        self.gate.limit.store(adaptive.limit(), Ordering::Relaxed);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let gate = &self.gate;
        let fits = gate.in_flight.load(Ordering::Relaxed) <= gate.limit.load(Ordering::Relaxed);
        let next = if gate.adaptive.is_some() && fits {
            gate.line.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
        } else {
            None
        };
        match next {
            // The place changes hands and is not counted anew. Who has left the line meanwhile drops it, and it goes on.
            Some(next) => drop(next.send(Self { gate: gate.clone(), since: Instant::now(), place: None })),
            None => drop(gate.in_flight.fetch_sub(1, Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn gate(max: u32, pending: u32) -> Arc<Gate> {
        let settings = ConcurrencySettings {
            key: String::new(),
            max: Some(max),
            pending,
            pending_timeout: Duration::from_secs(1),
            adaptive: None,
        };
        Arc::new(Gate::new(settings))
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_run_so_many_wait_and_the_rest_is_refused() {
        let gate = gate(2, 1);
        let first = gate.enter(Priority::Normal).await.unwrap();
        let _second = gate.enter(Priority::Normal).await.unwrap();
        let waiter = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(Priority::Normal).await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert!(gate.enter(Priority::Normal).await.is_err(), "one waits already");
        drop(first);
        assert!(waiter.await.unwrap(), "the one that waited has the place");
        let started = tokio::time::Instant::now();
        let _third = gate.enter(Priority::Normal).await.unwrap();
        assert!(gate.enter(Priority::Normal).await.is_err());
        assert_eq!(started.elapsed(), Duration::from_secs(1), "waiting ends");
    }

    #[tokio::test(start_paused = true)]
    async fn critical_requests_wait_for_the_next_place() {
        let settings = ConcurrencySettings {
            key: String::new(),
            max: None,
            pending: 0,
            pending_timeout: Duration::from_secs(1),
            adaptive: Some(crate::table::settings::AdaptiveSettings { min: 1, max: 1, tolerance_percent: 100 }),
        };
        let gate = Arc::new(Gate::new(settings));
        let first = gate.enter(Priority::Normal).await.unwrap();
        let enter = || {
            let gate = gate.clone();
            tokio::spawn(async move { gate.enter(Priority::Critical).await })
        };
        let (gone, second, third) = (enter(), enter(), enter());
        tokio::task::yield_now().await;
        assert!(gate.enter(Priority::Normal).await.is_err());
        gone.abort();
        tokio::task::yield_now().await;
        drop(first);
        let second = second.await.unwrap().unwrap();
        assert_eq!(gate.in_flight.load(Ordering::Relaxed), 1, "the place of who had left was not lost");
        assert!(gate.enter(Priority::Normal).await.is_err(), "nobody overtakes the line");
        drop(second);
        drop(third.await.unwrap().unwrap());
        assert_eq!(gate.in_flight.load(Ordering::Relaxed), 0);
        let _normal = gate.enter(Priority::Normal).await.unwrap();
        let started = tokio::time::Instant::now();
        assert!(gate.enter(Priority::Critical).await.is_err());
        assert_eq!(started.elapsed(), Duration::from_secs(1), "waiting ends");
    }

    #[tokio::test]
    async fn the_lowest_priority_is_shed_first() {
        let settings = ConcurrencySettings {
            key: String::new(),
            max: None,
            pending: 0,
            pending_timeout: Duration::ZERO,
            adaptive: Some(crate::table::settings::AdaptiveSettings { min: 24, max: 24, tolerance_percent: 100 }),
        };
        let gate = Arc::new(Gate::new(settings));
        let mut passes = Vec::new();
        for (priority, wanted) in [(Priority::NonCore, 16), (Priority::Normal, 21), (Priority::Critical, 24)] {
            while let Ok(pass) = gate.enter(priority).await {
                passes.push(pass);
            }
            assert_eq!(passes.len(), wanted, "{priority:?}");
        }
    }
}
