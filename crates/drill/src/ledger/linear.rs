//! Whether a register's history is linearizable: could all its operations have happened one after the other, each at some
//! moment between its call and its end, so that every read answers with the write before it?
//!
//! The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's memo of configurations
//! already seen ("Testing for linearizability", 2017): walk through calls and ends in order of time; at each point try to let
//! one of the called operations happen; undo when an operation ended that has not happened. Keys are independent
//! (linearizability is local: Herlihy and Wing 1990, theorem 1), so each is judged alone.
//!
//! Judging is NP-complete in general, so it has a limit: [`STEPS_MAX`]. Beyond it the answer is [`Linear::Undecided`], not a
//! guess. Writes of unknown end may happen at any moment after their call, or never; reads without an answer prove nothing.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::history::{Action, Ending, Operation, by_key};

/// Steps of the search for one key, at most.
pub const STEPS_MAX: u64 = 20_000_000;
/// Configurations remembered for one key, at most.
const MEMO_MAX: usize = 500_000;

/// What was found about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Linear {
    /// There is such an order.
    Yes,
    /// There is none: proven.
    No {
        /// The operation, by its call, beyond which no order got.
        stuck_at_us: u64,
    },
    /// The search was given up.
    Undecided,
}

/// Judges every key; answers with those that are not linearizable or could not be decided.
pub fn breaches(history: &[Operation]) -> Vec<(u64, Linear)> {
    let keys = by_key(history).into_iter();
    keys.map(|(key, operations)| (key, judge(&operations))).filter(|(_, found)| *found != Linear::Yes).collect()
}

/// A point in time of the history: an operation's call or its end.
#[derive(Clone, Copy)]
struct Event {
    at_us: u64,
    operation: usize,
    is_call: bool,
}

/// The search's state: events as a doubly linked list, from which what has happened is taken out.
struct Search {
    events: Vec<Event>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Of each operation: the position of its end.
    end_of: Vec<usize>,
    happened: Vec<u64>,
    value: Option<u64>,
    /// What has happened, with the value before: to undo.
    stack: Vec<(usize, Option<u64>)>,
    seen: HashSet<(Vec<u64>, Option<u64>)>,
}

/// Judges the operations of one key.
pub fn judge(operations: &[&Operation]) -> Linear {
    let relevant = |operation: &&&Operation| match (operation.action, operation.ending) {
        (_, Ending::Refused) | (Action::Read(_), Ending::Unknown) => false,
        // A write of unknown end that nobody ever read may just as well never have happened.
        (Action::Write(value), Ending::Unknown) => {
            operations.iter().any(|it| it.action == Action::Read(Some(value)) && it.ending == Ending::Done)
        }
        (_, Ending::Done) => true,
    };
    let operations: Vec<&Operation> = operations.iter().filter(relevant).copied().collect();
    Search::new(&operations).run(&operations)
}

impl Search {
    /// The list has one more element than events, its head, at the end of the arrays.
    fn new(operations: &[&Operation]) -> Self {
        let mut events = Vec::with_capacity(operations.len() * 2);
        for (number, operation) in operations.iter().enumerate() {
            let ended_us = if operation.ending == Ending::Done { operation.ended_us } else { u64::MAX };
            events.push(Event { at_us: operation.called_us, operation: number, is_call: true });
            events.push(Event { at_us: ended_us, operation: number, is_call: false });
        }
        // At the same moment calls come first: what touches is taken to overlap, in favour of the store.
        events.sort_by_key(|event| (event.at_us, !event.is_call));
        let (count, head) = (events.len(), events.len());
        let next = (0..=count).map(|at| if at == head { 0 } else { at + 1 }).collect();
        let previous = (0..=count).map(|at| if at == 0 { head } else { at - 1 }).collect();
        let mut end_of = vec![0; operations.len()];
        for (at, event) in events.iter().enumerate().filter(|(_, event)| !event.is_call) {
            end_of[event.operation] = at;
        }
        let happened = vec![0; operations.len().div_ceil(64)];
        Self { events, next, previous, end_of, happened, value: None, stack: Vec::new(), seen: HashSet::new() }
    }

    fn run(mut self, operations: &[&Operation]) -> Linear {
        let head = self.events.len();
        let mut at = self.next[head];
        let mut stuck_at_us = 0;
        for _ in 0..STEPS_MAX {
            if at == head {
                return Linear::Yes;
            }
            let event = self.events[at];
            if event.is_call {
                at = if self.try_now(at, operations) { self.next[head] } else { self.next[at] };
                continue;
            }
            // Ended without having happened. One of unknown end does not have to happen at all.
            if event.at_us == u64::MAX {
                return Linear::Yes;
            }
            stuck_at_us = stuck_at_us.max(operations[event.operation].called_us);
            match self.undo() {
                Some(call) => at = self.next[call],
                None => return Linear::No { stuck_at_us },
            }
        }
        Linear::Undecided
    }

    /// Lets the operation called at `at` happen now, if it can and this has not been tried before.
    fn try_now(&mut self, at: usize, operations: &[&Operation]) -> bool {
        let number = self.events[at].operation;
        let value = match operations[number].action {
            Action::Write(value) => Some(value),
            Action::Read(found) if found == self.value => found,
            Action::Read(_) => return false,
        };
        self.happened[number / 64] |= 1 << (number % 64);
        let is_new = self.seen.len() >= MEMO_MAX || self.seen.insert((self.happened.clone(), value));
        if !is_new {
            self.happened[number / 64] &= !(1 << (number % 64));
            return false;
        }
        self.stack.push((at, self.value));
        self.value = value;
        self.take_out(at);
        self.take_out(self.end_of[number]);
        true
    }

    /// Undoes the last thing that happened; answers with its call.
    fn undo(&mut self) -> Option<usize> {
        let (call, value) = self.stack.pop()?;
        let number = self.events[call].operation;
        self.happened[number / 64] &= !(1 << (number % 64));
        self.value = value;
        self.put_back(self.end_of[number]);
        self.put_back(call);
        Some(call)
    }

    fn take_out(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn put_back(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::tests::{read, write};
    use super::*;
    use proptest::prelude::*;

    fn judged(history: &[Operation]) -> Linear {
        judge(&history.iter().collect::<Vec<_>>())
    }

    #[test]
    fn overlapping_operations_may_happen_in_any_order_but_in_one() {
        let overlapping = [write(1, 0, 100), write(2, 0, 100), read(Some(1), 110, 120), read(Some(1), 130, 140)];
        assert_eq!(judged(&overlapping), Linear::Yes);
        // Both orders at once: two readers that disagree for ever.
        let split = [overlapping[0], overlapping[1], read(Some(1), 110, 120), read(Some(2), 130, 140)];
        assert!(matches!(judged(&split), Linear::No { .. }));
        // During the writes a reader may see first the one, then the other; never back again.
        let during = [write(1, 0, 10), write(2, 20, 100), read(Some(1), 30, 40), read(Some(2), 50, 60)];
        assert_eq!(judged(&during), Linear::Yes);
        let back = [during[0], during[1], read(Some(2), 30, 40), read(Some(1), 50, 60)];
        assert!(matches!(judged(&back), Linear::No { .. }));
    }

    #[test]
    fn a_write_of_unknown_end_may_happen_late_or_never() {
        let unknown = Operation { ending: Ending::Unknown, ..write(1, 0, 10) };
        let late = [unknown, write(2, 20, 30), read(Some(2), 40, 50), read(Some(1), 60, 70)];
        assert_eq!(judged(&late), Linear::Yes);
        assert_eq!(judged(&[unknown, read(None, 40, 50)]), Linear::Yes);
        let twice = [late[0], late[1], late[2], late[3], read(Some(2), 80, 90)];
        assert!(matches!(judged(&twice), Linear::No { .. }));
    }

    /// A history by clients of one true register: each operation happens at a moment of its own.
    fn true_history() -> impl Strategy<Value = Vec<Operation>> {
        proptest::collection::vec((0_u64..1000, 0_u64..60, 0_u64..60, any::<bool>()), 1..40).prop_map(|drawn| {
            let mut moments: Vec<_> = drawn.into_iter().enumerate().collect();
            moments.sort_by_key(|(number, (at, ..))| (*at, *number));
            let mut value = None;
            let happen = |(number, (at, before, after, is_write)): (usize, (u64, u64, u64, bool))| {
                let (called, ended) = (100 + at - before.min(at), 100 + at + after);
                if is_write {
                    value = Some(number as u64);
                    write(number as u64, called, ended)
                } else {
                    read(value, called, ended)
                }
            };
            moments.into_iter().map(happen).collect()
        })
    }

    proptest! {
        #[test]
        fn a_true_register_is_never_accused(history in true_history()) {
            prop_assert_eq!(judged(&history), Linear::Yes);
            prop_assert_eq!(super::super::history::stale(&history), []);
        }

        /// What the simple checker proves, the search proves, too.
        #[test]
        fn what_is_stale_is_not_linearizable(mut history in true_history(), at in any::<prop::sample::Index>(), found in 0_u64..40) {
            let chosen = at.index(history.len());
            if let Action::Read(_) = history[chosen].action {
                history[chosen].action = Action::Read(Some(found).filter(|value| history.iter().any(|it| it.written() == Some(*value))));
            }
            if !super::super::history::stale(&history).is_empty() {
                prop_assert!(judged(&history) != Linear::Yes);
            }
        }
    }
}
