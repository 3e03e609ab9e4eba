//! How long a node waits for the successor of a pod that has failed there: a second, doubled with each further failure.
//!
//! Without it a node that refuses a pod, again and again, would keep everybody busy.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>; the figures are kube-controller-manager's.

use std::collections::HashMap;
use std::time::Duration;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// What has failed: the set's uid, the generation of its template, and the node.
pub(super) type Place = (String, i64, String);

/// The waits of all nodes. Times are since an arbitrary start.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// When the last successor was granted, and how long the next must wait from then on.
    granted: HashMap<Place, (Duration, Duration)>,
}

impl Failures {
    /// How long the successor of a failed pod still has to wait; zero grants it, and the next waits longer.
    pub(super) fn wait(&mut self, place: &Place, now: Duration) -> Duration {
        // Who has run well for long begins anew.
        self.granted.retain(|_, (at, wait)| now.saturating_sub(*at) <= *wait + 2 * LONGEST_WAIT);
        let next = match self.granted.get(place) {
            None => FIRST_WAIT,
            Some((at, wait)) => {
                let left = (*at + *wait).saturating_sub(now);
                if !left.is_zero() {
                    return left;
                }
                (*wait * 2).min(LONGEST_WAIT)
            }
        };
        self.granted.insert(place.clone(), (now, next));
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_makes_the_next_successor_wait_longer() {
        let (mut failures, mut now) = (Failures::default(), Duration::from_secs(100));
        let place = ("uid".to_owned(), 1, "node".to_owned());
        for wait in [0, 1, 2, 4, 8] {
            let left = failures.wait(&place, now);
            assert_eq!(left, Duration::from_secs(wait));
            now += left;
            if !left.is_zero() {
                assert_eq!(failures.wait(&place, now), Duration::ZERO, "granted when it is over");
            }
        }
        assert_eq!(failures.wait(&("uid".to_owned(), 2, "node".to_owned()), now), Duration::ZERO, "a new template");
        now += Duration::from_secs(3600);
        assert_eq!(failures.wait(&place, now), Duration::ZERO);
        assert_eq!(failures.wait(&place, now), FIRST_WAIT, "forgotten after a long time");
    }
}
