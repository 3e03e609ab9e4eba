//! Who is alive: a verdict per node from the changes of its Lease, judged by our own monotonic clock.
//!
//! A node renews its Lease every 250 ms. What counts is how long *we* have not seen it change; times written by others are
//! compared for equality only, never with a clock.
//!
//! Silence can be ours: the controllers were stopped, or cut off from the API server. So nobody is judged while no node at
//! all is heard, and when hearing returns, or this judge was not asked for a while, every count starts anew:
//!
//! ```text
//!            silent > suspect_after          silent > dead_after
//!   Alive ──────────────────────▶ Suspected ────────────────────▶ Dead
//!     ▲                               │                             │
//!     └───────────── heard ───────────┴──────────── heard ──────────┘
//! ```
//!
//! The bound that makes this safe: hearing counts as lost after half of `suspect_after` without any renewal, so when all
//! nodes fall silent at once, none can reach `suspect_after` first as long as the renewal interval is below a quarter of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::settings::HeartbeatSettings;

/// What is held of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Heard lately.
    Alive,
    /// Silent for a moment: no new connections to it, but nothing irreversible.
    Suspected,
    /// Silent for long: its pods are replaced.
    Dead,
}

/// Why every count was started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grace {
    /// The judge had not been asked for too long.
    Stalled,
    /// No node was heard at all; now one is again.
    DeafBefore,
}

/// What one question to the judge brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// Nodes whose verdict changed.
    pub(crate) changed: Vec<String>,
    /// Set when all counts were started anew.
    pub(crate) grace: Option<Grace>,
    /// Set when, with this question, no node is heard any more.
    pub(crate) deafened: bool,
}

struct Seen {
    /// The Lease's last content that was seen.
    renewal: Option<String>,
    /// Since when the node has been silent, as far as we can tell.
    since: Duration,
    verdict: Verdict,
}

/// The judge of all nodes.
pub(crate) struct Judge {
    settings: HeartbeatSettings,
    nodes: BTreeMap<String, Seen>,
    asked: Option<Duration>,
    /// When any node was last heard.
    heard: Duration,
    deaf: bool,
}

impl Judge {
    pub(crate) fn new(settings: HeartbeatSettings) -> Self {
        Self { settings, nodes: BTreeMap::new(), asked: None, heard: Duration::ZERO, deaf: false }
    }

    /// How often it must be asked.
    pub(crate) fn interval(&self) -> Duration {
        self.settings.suspect_after / 10
    }

    /// What is held of a node; one never seen is alive.
    pub(crate) fn verdict(&self, node: &str) -> Verdict {
        self.nodes.get(node).map_or(Verdict::Alive, |seen| seen.verdict)
    }

    /// How long a node has not been heard, and what its Lease said last.
    pub(crate) fn silence(&self, node: &str, now: Duration) -> Option<(Duration, Option<&str>)> {
        let seen = self.nodes.get(node)?;
        Some((now.saturating_sub(seen.since), seen.renewal.as_deref()))
    }

    /// Takes in every node with what its Lease says now (`None` without one), and judges.
    pub(crate) fn judge(&mut self, now: Duration, leases: &BTreeMap<String, Option<String>>) -> Ruling {
        let mut ruling = Ruling::default();
        self.nodes.retain(|node, _| leases.contains_key(node));
        let stalled = self.asked.is_some_and(|asked| now.saturating_sub(asked) > self.hearing_limit());
        self.asked = Some(now);
        // Nothing to hear is not silence, and a node that has just come was heard.
        let mut anyone = leases.keys().any(|node| !self.nodes.contains_key(node));
        if leases.is_empty() {
            self.heard = now;
        }
        for (node, renewal) in leases {
            let fresh = || Seen { renewal: renewal.clone(), since: now, verdict: Verdict::Alive };
            let seen = self.nodes.entry(node.clone()).or_insert_with(fresh);
            if seen.renewal != *renewal {
                anyone = true;
                seen.renewal.clone_from(renewal);
                seen.since = now;
                if seen.verdict != Verdict::Alive {
                    seen.verdict = Verdict::Alive;
                    ruling.changed.push(node.clone());
                }
            }
        }
        if anyone {
            self.heard = now;
        }
        ruling.grace = match (stalled, self.deaf && anyone) {
            (true, _) => Some(Grace::Stalled),
            (false, true) => Some(Grace::DeafBefore),
            (false, false) => None,
        };
        if ruling.grace.is_some() {
            self.heard = now;
            self.nodes.values_mut().for_each(|seen| seen.since = now);
        }
        let was_deaf = self.deaf;
        self.deaf = now.saturating_sub(self.heard) > self.hearing_limit();
        ruling.deafened = self.deaf && !was_deaf;
        if !self.deaf {
            self.condemn(now, &mut ruling);
        }
        ruling
    }

    fn hearing_limit(&self) -> Duration {
        self.settings.suspect_after / 2
    }

    fn condemn(&mut self, now: Duration, ruling: &mut Ruling) {
        for (node, seen) in &mut self.nodes {
            let silent = now.saturating_sub(seen.since);
            let verdict = if silent >= self.settings.dead_after {
                Verdict::Dead
            } else if silent >= self.settings.suspect_after {
                Verdict::Suspected
            } else {
                Verdict::Alive
            };
            // Only a renewal takes a verdict back.
            if verdict > seen.verdict {
                seen.verdict = verdict;
                ruling.changed.push(node.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 50;
    const RENEWAL: u64 = 250;

    /// Time in ms, node, verdict.
    type Told = (u64, u64, Verdict);

    /// A cluster whose nodes renew every 250 ms, each at its own phase, while `lives` says so; the judge is asked every
    /// 50 ms while `asks` says so. Returns every change: (time in ms, node, verdict).
    fn run(
        nodes: u64,
        until: u64,
        lives: impl Fn(u64, u64) -> bool,
        asks: impl Fn(u64) -> bool,
    ) -> (Vec<Told>, Vec<(u64, Grace)>) {
        let mut judge = Judge::new(HeartbeatSettings::default());
        let (mut leases, mut changes, mut graces) = (BTreeMap::new(), Vec::new(), Vec::new());
        for node in 0..nodes {
            leases.insert(node.to_string(), None);
        }
        for now in (0..until).step_by(STEP as usize) {
            for node in 0..nodes {
                let phase = node * 70 / STEP * STEP % RENEWAL;
                if now % RENEWAL == phase && lives(node, now) {
                    leases.insert(node.to_string(), Some(now.to_string()));
                }
            }
            if !asks(now) {
                continue;
            }
            let ruling = judge.judge(Duration::from_millis(now), &leases);
            graces.extend(ruling.grace.map(|grace| (now, grace)));
            changes.extend(ruling.changed.iter().map(|n| (now, n.parse().unwrap_or(99), judge.verdict(n))));
        }
        (changes, graces)
    }

    fn about(changes: &[Told], node: u64) -> Vec<(u64, Verdict)> {
        changes.iter().filter(|(_, n, _)| *n == node).map(|(at, _, verdict)| (*at, *verdict)).collect()
    }

    #[test]
    fn a_silent_node_is_suspected_then_dead_and_comes_back() {
        let (changes, graces) = run(3, 10_000, |node, now| node != 1 || !(3_000..8_000).contains(&now), |_| true);
        let told = about(&changes, 1);
        assert_eq!(
            told.iter().map(|(_, v)| *v).collect::<Vec<_>>(),
            [Verdict::Suspected, Verdict::Dead, Verdict::Alive]
        );
        assert!((3_750..=4_000).contains(&told[0].0), "suspected {told:?}");
        assert!((5_250..=5_500).contains(&told[1].0), "dead {told:?}");
        assert!((8_000..=8_250).contains(&told[2].0), "back {told:?}");
        assert_eq!(changes.len(), 3, "nobody else");
        assert!(graces.is_empty());
    }

    #[test]
    fn two_of_three_die_at_once() {
        let (changes, _) = run(3, 8_000, |node, now| node == 0 || now < 3_000, |_| true);
        for node in [1, 2] {
            assert_eq!(about(&changes, node).last().map(|(_, v)| *v), Some(Verdict::Dead));
        }
        assert!(about(&changes, 0).is_empty());
    }

    #[test]
    fn when_all_fall_silent_nobody_is_judged_and_hearing_starts_anew() {
        for phase in 0..RENEWAL / STEP {
            let gap = 3_000 + phase * STEP..9_000;
            let (changes, graces) = run(3, 12_000, |_, now| !gap.contains(&now), |_| true);
            assert!(changes.is_empty(), "{changes:?}");
            assert_eq!(graces.iter().map(|(_, g)| *g).collect::<Vec<_>>(), [Grace::DeafBefore]);
        }
    }

    #[test]
    fn after_a_common_silence_those_who_stay_silent_get_the_full_time() {
        let lives = |node, now| now < 3_000 || (node == 0 && now >= 5_000);
        let (changes, _) = run(3, 9_000, lives, |_| true);
        let told = about(&changes, 2);
        assert_eq!(told.first().map(|(at, v)| (*at >= 6_000, *v)), Some((true, Verdict::Suspected)));
        assert!(about(&changes, 0).is_empty());
    }

    #[test]
    fn with_one_of_three_dead_for_long_the_others_are_still_judged() {
        let lives = |node, now| match node {
            0 => true,
            1 => now < 2_000,
            _ => now < 10_000,
        };
        let (changes, _) = run(3, 15_000, lives, |_| true);
        assert_eq!(about(&changes, 1).len(), 2);
        assert_eq!(about(&changes, 2).last().map(|(_, v)| *v), Some(Verdict::Dead));
        // The survivors of a dead node falling silent together is a common silence too.
        let lives = |node, now| if node == 1 { now < 2_000 } else { now < 10_000 };
        let (changes, _) = run(3, 15_000, lives, |_| true);
        assert!(about(&changes, 0).is_empty() && about(&changes, 2).is_empty(), "{changes:?}");
        assert_eq!(about(&changes, 1).last().map(|(_, v)| *v), Some(Verdict::Dead), "the verdict stays");
    }

    #[test]
    fn a_stalled_judge_condemns_nobody() {
        let (changes, graces) = run(3, 10_000, |_, _| true, |now| !(3_000..7_000).contains(&now));
        assert!(changes.is_empty(), "{changes:?}");
        assert_eq!(graces, [(7_000, Grace::Stalled)]);
        // A node that died meanwhile gets the full time from then on.
        let lives = |node, now| node != 1 || now < 4_000;
        let (changes, _) = run(3, 12_000, lives, |now| !(3_000..7_000).contains(&now));
        let told = about(&changes, 1);
        assert!(told.first().is_some_and(|(at, _)| (8_000..8_500).contains(at)), "{told:?}");
    }

    #[test]
    fn a_node_without_a_lease_is_given_up_in_the_end() {
        let (changes, _) = run(2, 5_000, |node, _| node == 0, |_| true);
        assert_eq!(about(&changes, 1).iter().map(|(_, v)| *v).collect::<Vec<_>>(), [Verdict::Suspected, Verdict::Dead]);
    }
}
