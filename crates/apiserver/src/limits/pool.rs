//! Places that users take turns for.
//!
//! Flow: a request takes a free place at once. When there is none, it waits behind the other requests of its user; whenever
//! a place becomes free, the next *user* in the ring gets it for his oldest request. So a user with a thousand requests
//! delays one with a single request by one place, not by a thousand.
//!
//! Guarantees: nobody waits longer than the pool allows; the number of waiting requests has a limit for each user and for all.
//!
//! This is round-robin fair queueing (Nagle, RFC 970) over requests, as kube-apiserver's priority and fairness is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_model::status::ApiError;
use tokio::sync::oneshot;

/// Requests that may wait, of all users together.
const WAITING_MAX: usize = 5_000;

pub(super) struct Pool {
    seats: usize,
    /// Places one user may have.
    share: usize,
    /// Requests of one user that may wait.
    waiting: usize,
    wait_max: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: usize,
    waiting: usize,
    users: HashMap<Arc<str>, UserState>,
    /// Users with waiting requests, the next first.
    ring: VecDeque<Arc<str>>,
}

#[derive(Default)]
struct UserState {
    taken: usize,
    queue: VecDeque<oneshot::Sender<Seat>>,
}

/// A place; it becomes free when this is dropped.
pub(crate) struct Seat {
    pool: Arc<Pool>,
    user: Arc<str>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.pool.release(&self.user);
    }
}

impl Pool {
    pub(super) fn new(seats: usize, share: usize, waiting: usize, wait_max: Duration) -> Self {
        Self { seats, share, waiting, wait_max, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places taken now.
    pub(super) fn taken(&self) -> usize {
        self.state().taken
    }

    /// A place for a request of `user`.
    ///
    /// # Errors
    /// 429 when too many wait already, or there was no place in time.
    pub(super) async fn enter(self: &Arc<Self>, user: &str) -> Result<Seat, ApiError> {
        let turn = {
            let mut state = self.state();
            let name: Arc<str> = state.users.get_key_value(user).map_or_else(|| user.into(), |(name, _)| name.clone());
            let State { waiting, users, ring, taken } = &mut *state;
            let own = users.entry(name.clone()).or_default();
            // With places free, those who wait all have their share.
            if *taken < self.seats && own.taken < self.share && own.queue.is_empty() {
                own.taken += 1;
                *taken += 1;
                return Ok(Seat { pool: self.clone(), user: name });
            }
            if own.queue.len() >= self.waiting || *waiting >= WAITING_MAX {
                if own.taken == 0 && own.queue.is_empty() {
                    users.remove(&name);
                }
                return Err(full());
            }
            let (sender, turn) = oneshot::channel();
            if own.queue.is_empty() {
                ring.push_back(name);
            }
            own.queue.push_back(sender);
            *waiting += 1;
            turn
        };
        // A place that is given at the very end of the wait comes back by being dropped with the channel.
        match tokio::time::timeout(self.wait_max, turn).await {
            Ok(Ok(seat)) => Ok(seat),
            _ => Err(full()),
        }
    }

    fn release(self: &Arc<Self>, user: &Arc<str>) {
        let mut given = Vec::new();
        let mut state = self.state();
        state.taken -= 1;
        if let Some(own) = state.users.get_mut(user) {
            own.taken -= 1;
            if own.taken == 0 && own.queue.is_empty() {
                state.users.remove(user);
            }
        }
        // Users who have their share already stay in the ring until a place of their own becomes free.
        let mut passed_over = 0;
        while state.taken < self.seats && passed_over < state.ring.len() {
            let Some(next) = state.ring.pop_front() else { break };
            let Some(own) = state.users.get_mut(&next) else { continue };
            if own.taken >= self.share {
                passed_over += 1;
                state.ring.push_back(next);
                continue;
            }
            let sender = own.queue.pop_front();
            let more = !own.queue.is_empty();
            let waits = sender.as_ref().is_some_and(|sender| !sender.is_closed());
            own.taken += usize::from(waits);
            if own.taken == 0 && !more {
                state.users.remove(&next);
            }
            state.waiting = state.waiting.saturating_sub(usize::from(sender.is_some()));
            state.taken += usize::from(waits);
            if more {
                state.ring.push_back(next.clone());
            }
            passed_over = 0;
            if let Some(sender) = sender.filter(|_| waits) {
                given.push((sender, Seat { pool: self.clone(), user: next }));
            }
        }
        drop(state);
        // Whoever gave up between the look and now lets the place go again, without the lock held.
        for (sender, seat) in given {
            drop(sender.send(seat));
        }
    }
}

fn full() -> ApiError {
    ApiError::too_many_requests("too many requests, please try again later.", 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::FutureExt as _;

    const LONG: Duration = Duration::from_secs(60);

    async fn turn(waiting: impl Future<Output = Result<Seat, ApiError>>) -> Seat {
        waiting.await.unwrap_or_else(|error| panic!("{}", error.message))
    }

    #[tokio::test]
    async fn users_take_turns() {
        let pool = Arc::new(Pool::new(2, 2, 10, LONG));
        let (first, second) = (turn(pool.enter("greedy")).await, turn(pool.enter("greedy")).await);
        let mut greedy: Vec<_> = (0..5).map(|_| Box::pin(pool.enter("greedy"))).collect();
        for waiting in &mut greedy {
            assert!(waiting.now_or_never().is_none());
        }
        let mut modest = Box::pin(pool.enter("modest"));
        assert!((&mut modest).now_or_never().is_none());
        // The ring: greedy, modest. One place goes to each, whatever the greedy one has queued.
        drop(first);
        drop(second);
        let got = (&mut modest).now_or_never().unwrap();
        assert!(got.is_ok());
        assert!((&mut greedy[1]).now_or_never().is_none());
        assert!((&mut greedy[0]).now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_user_leaves_places_for_others() {
        let pool = Arc::new(Pool::new(4, 3, 1, LONG));
        let held: Vec<_> = futures::future::join_all((0..3).map(|_| turn(pool.enter("a")))).await;
        let mut fourth = Box::pin(pool.enter("a"));
        assert!((&mut fourth).now_or_never().is_none());
        assert_eq!(pool.enter("a").await.err().map(|error| error.code), Some(429));
        let other = turn(pool.enter("b")).await;
        drop(held);
        assert!(fourth.await.is_ok());
        drop(other);
        assert_eq!(pool.taken(), 0);
        assert!(pool.state().users.is_empty());
    }

    #[tokio::test]
    async fn who_waits_too_long_is_sent_away() {
        let pool = Arc::new(Pool::new(1, 1, 10, Duration::from_millis(20)));
        let held = turn(pool.enter("a")).await;
        assert_eq!(pool.enter("b").await.err().and_then(|error| error.retry_after_seconds), Some(1));
        drop(held);
        {
            let state = pool.state();
            assert_eq!((state.taken, state.ring.len(), state.waiting), (0, 0, 0));
        }
        turn(pool.enter("b")).await;
    }
}
