//! The queue of keys a controller has to look at: each key once, never two workers on one key, back-off per key.
//!
//! Guarantees: a key added while it is worked on is handed out again afterwards; memory is bounded by the number of keys.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// First wait after a failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Wait after the given number of failures in a row.
pub(crate) fn backoff(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(LONGEST_WAIT)
}

#[derive(Default)]
struct State {
    queued: bool,
    running: bool,
    /// The earliest timer that is set; a popped timer that is not it is out of date.
    timer: Option<Duration>,
}

/// The queue of one controller. Times are since an arbitrary start.
pub(crate) struct Queue<K> {
    ready: VecDeque<K>,
    states: HashMap<K, State>,
    timers: BinaryHeap<Reverse<(Duration, K)>>,
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    pub(crate) fn new() -> Self {
        Self { ready: VecDeque::new(), states: HashMap::new(), timers: BinaryHeap::new() }
    }

    /// The key needs a look now.
    pub(crate) fn add(&mut self, key: &K) {
        let state = self.states.entry(key.clone()).or_default();
        if !state.queued {
            state.queued = true;
            if !state.running {
                self.ready.push_back(key.clone());
            }
        }
    }

    /// The key needs a look at the given time, unless it gets one sooner.
    pub(crate) fn add_at(&mut self, key: &K, when: Duration) {
        let state = self.states.entry(key.clone()).or_default();
        if state.timer.is_none_or(|set| when < set) {
            state.timer = Some(when);
            self.timers.push(Reverse((when, key.clone())));
        }
    }

    /// The next key to work on; the caller says [`Queue::done`] afterwards.
    pub(crate) fn take(&mut self, now: Duration) -> Option<K> {
        while self.timers.peek().is_some_and(|Reverse((when, _))| *when <= now) {
            let Some(Reverse((when, key))) = self.timers.pop() else { break };
            if self.states.get(&key).is_some_and(|state| state.timer == Some(when)) {
                self.add(&key);
            }
        }
        let key = self.ready.pop_front()?;
        let state = self.states.entry(key.clone()).or_default();
        *state = State { queued: false, running: true, timer: None };
        Some(key)
    }

    /// The work on a key has ended; it may be looked at again after `again_at`.
    pub(crate) fn done(&mut self, key: &K, again_at: Option<Duration>) {
        if let Some(state) = self.states.get_mut(key) {
            state.running = false;
            if state.queued {
                self.ready.push_back(key.clone());
            } else if again_at.is_none() && state.timer.is_none() {
                self.states.remove(key);
            }
        }
        if let Some(when) = again_at {
            self.add_at(key, when);
        }
    }

    /// When the next timer runs out.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((when, _))| *when)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_is_handed_out_once_and_again_if_it_changed_meanwhile() {
        let mut queue = Queue::new();
        queue.add(&"a");
        queue.add(&"a");
        assert_eq!(queue.take(SECOND), Some("a"));
        assert_eq!(queue.take(SECOND), None);
        queue.add(&"a");
        assert_eq!(queue.take(SECOND), None, "it is being worked on");
        queue.done(&"a", None);
        assert_eq!(queue.take(SECOND), Some("a"));
        queue.done(&"a", None);
        assert_eq!(queue.take(SECOND), None);
        assert!(queue.states.is_empty());
    }

    #[test]
    fn the_earliest_timer_counts_and_a_look_clears_it() {
        let mut queue = Queue::new();
        queue.add_at(&"a", SECOND * 5);
        queue.add_at(&"a", SECOND * 2);
        queue.add_at(&"a", SECOND * 3);
        assert_eq!(queue.next_timer(), Some(SECOND * 2));
        assert_eq!(queue.take(SECOND), None);
        assert_eq!(queue.take(SECOND * 2), Some("a"));
        queue.done(&"a", None);
        assert_eq!(queue.take(SECOND * 9), None, "older timers are void");
    }

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        assert_eq!(backoff(1), Duration::from_millis(5));
        assert_eq!(backoff(3), Duration::from_millis(20));
        assert_eq!(backoff(1000), LONGEST_WAIT);
    }
}
