//! How many connections there may be: in all, and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Open connections.
const ALL_MAX: usize = 10_000;
/// Open connections of one address: others always find a place.
const ADDRESS_MAX: usize = 5_000;

/// The places for connections.
pub(crate) struct Connections {
    places: Arc<Semaphore>,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(ALL_MAX)), by_address: Arc::default() }
    }
}

/// A place; given back when dropped.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    address: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Connections {
    /// Waits until there is a place at all.
    pub(crate) async fn vacancy(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// The place for a connection from `address`; `None` when it has too many.
    pub(crate) fn take(&self, permit: OwnedSemaphorePermit, address: IpAddr) -> Option<Place> {
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Place { _permit: permit, address, by_address: self.by_address.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn one_address_cannot_have_all() {
        let connections = Connections::default();
        let mut held = Vec::new();
        for _ in 0..ADDRESS_MAX {
            held.push(connections.take(connections.vacancy().await.unwrap(), [127, 0, 0, 1].into()).unwrap());
        }
        assert!(connections.take(connections.vacancy().await.unwrap(), [127, 0, 0, 1].into()).is_none());
        assert!(connections.take(connections.vacancy().await.unwrap(), [127, 0, 0, 2].into()).is_some());
        held.clear();
        assert!(connections.by_address.lock().unwrap().is_empty());
    }
}
