//! A bulkhead: how many requests run at once, and how many may wait for a place.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::gradient::Gradient;
use crate::api::policy::Priority;
use crate::table::settings::ConcurrencySettings;

/// A gate, shared by cores and by all rules that one policy covers.
#[derive(Debug)]
pub(crate) struct Gate {
    settings: ConcurrencySettings,
    places: Option<Arc<Semaphore>>,
    waiting: AtomicU32,
    in_flight: AtomicU32,
    adaptive: Option<Mutex<Gradient>>,
    limit: AtomicU32,
}

/// No place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overload;

/// A place, until dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    since: Instant,
    _place: Option<OwnedSemaphorePermit>,
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
    /// There is none. Of the adaptive limit, the lower priorities may use less: they are shed first.
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
        if running >= share.max(1) {
            return Err(Overload);
        }
        let place = match &self.places {
            None => None,
            Some(places) => Some(self.place(places).await?),
        };
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Pass { gate: self.clone(), since: Instant::now(), _place: place })
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
        self.gate.in_flight.fetch_sub(1, Ordering::Relaxed);
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
