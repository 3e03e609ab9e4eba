//! How a service is over time after a failure: a step function from seconds to a state.

use serde::Serialize;

/// How a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Every request can be answered, and there are as many ready endpoints as there have to be.
    Fine,
    /// Some requests fail, or there are fewer ready endpoints than there have to be.
    Degraded,
    /// No request is answered.
    Down,
}

/// A step function: from each time on, a state; the last holds for ever.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// Times in seconds, rising, the first 0.
    steps: Vec<(f64, State)>,
}

impl Timeline {
    /// One state for ever.
    pub fn always(state: State) -> Self {
        Self { steps: vec![(0.0, state)] }
    }

    /// By asking for the state at each of these times, which need not be sorted.
    pub fn sampled(mut times: Vec<f64>, state_at: impl Fn(f64) -> State) -> Self {
        times.push(0.0);
        times.retain(|time| time.is_finite());
        times.sort_by(f64::total_cmp);
        times.dedup();
        let steps = times.into_iter().map(|time| (time, state_at(time))).collect();
        Self { steps }.shortened()
    }

    /// The state at a time.
    pub fn at(&self, time: f64) -> State {
        self.steps.iter().rev().find(|(from, _)| *from <= time).map_or(State::Fine, |(_, state)| *state)
    }

    /// The state for ever after.
    pub fn last(&self) -> State {
        self.steps.last().map_or(State::Fine, |(_, state)| *state)
    }

    /// The worst state there is.
    pub fn worst(&self) -> State {
        self.steps.iter().map(|(_, state)| *state).max().unwrap_or(State::Fine)
    }

    /// How bad it is: the worst state, and until when.
    pub fn severity(&self) -> (State, f64) {
        (self.worst(), self.end_of(self.worst()).unwrap_or(f64::INFINITY))
    }

    /// At every time the worse of the two.
    #[must_use]
    pub fn worse(&self, other: &Self) -> Self {
        let times = self.steps.iter().chain(&other.steps).map(|(time, _)| *time).collect();
        Self::sampled(times, |time| self.at(time).max(other.at(time)))
    }

    /// Each state through `f`.
    #[must_use]
    pub fn map(&self, f: impl Fn(State) -> State) -> Self {
        Self { steps: self.steps.iter().map(|(time, state)| (*time, f(*state))).collect() }.shortened()
    }

    /// When it is at least so bad for the last time; `None` when it stays so for ever, 0 when it never is.
    pub fn end_of(&self, state: State) -> Option<f64> {
        if self.last() >= state {
            return None;
        }
        let bad = self.steps.windows(2).rev().find(|pair| pair[0].1 >= state);
        Some(bad.map_or(0.0, |pair| pair[1].0))
    }

    /// Seconds in which it is at least so bad, up to `horizon`.
    pub fn seconds_of(&self, state: State, horizon: f64) -> f64 {
        let ends = self.steps.iter().skip(1).map(|(time, _)| *time).chain([horizon]);
        let spans = self.steps.iter().zip(ends).filter(|((_, own), _)| *own >= state);
        spans.map(|((from, _), to)| (to.min(horizon) - from).max(0.0)).sum()
    }

    fn shortened(mut self) -> Self {
        self.steps.dedup_by(|later, earlier| later.1 == earlier.1);
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps() -> impl Strategy<Value = Timeline> {
        let state = prop_oneof![Just(State::Fine), Just(State::Degraded), Just(State::Down)];
        proptest::collection::vec((0_u32..50, state), 0..6).prop_map(|all| {
            let times = all.iter().map(|(time, _)| f64::from(*time)).collect();
            Timeline::sampled(times, |at| {
                all.iter().rev().find(|(time, _)| f64::from(*time) <= at).map_or(State::Fine, |(_, state)| *state)
            })
        })
    }

    proptest! {
        #[test]
        fn the_worse_is_never_better_than_either(a in steps(), b in steps(), time in 0_u32..60) {
            let time = f64::from(time);
            let both = a.worse(&b);
            prop_assert_eq!(both.at(time), a.at(time).max(b.at(time)));
            for state in [State::Degraded, State::Down] {
                prop_assert!(both.seconds_of(state, 100.0) >= a.seconds_of(state, 100.0));
            }
        }

        #[test]
        fn after_its_end_it_is_better(a in steps()) {
            if let Some(end) = a.end_of(State::Down) {
                prop_assert!(a.at(end) < State::Down);
                prop_assert!(a.seconds_of(State::Down, 1e9) <= end);
            } else {
                prop_assert_eq!(a.last(), State::Down);
            }
        }
    }
}
