//! How available every service will be, with what that assumes.
//!
//! Two parts are added up for each service:
//!
//! - *Switching*: each single failure, as often as it comes, times the seconds the service is down until it has healed by
//!   itself.
//! - *Standing*: states in which parts are away at the same time and the service is down for as long as they are. Nodes,
//!   zones and volumes fail independently of each other, so the probability of a state is a product. States with up to two
//!   parts away are counted exactly, and all states when there are few parts; the rest is drawn with a seed, weighted by
//!   the exact probability that so many parts are away (stratified sampling), and comes with a 95 % interval.
//!
//! What needs a person counts as down for the time a person needs, or until the part is repaired, whichever is longer.
//!
//! # Deliberately absent
//! Bad releases, mistakes, overload, attacks, the network outside, failures that come together for reasons that zones do not
//! show. In practice these cause most outages: the figure is an upper bound.

mod rates;

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

pub use rates::{Rate, RateError, Rates, YEAR_H};

use crate::model::Model;
use crate::survive::{Failure, Lost, Outcome, Row, State, aftermath};

/// Parts up to which every state is counted.
const EXACT_PARTS_MAX: usize = 10;
/// Pairs up to which all states with two parts away are counted.
const EXACT_PAIRS_MAX: usize = 3_000;

/// How the estimate is made.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Seed of what is drawn.
    pub seed: u64,
    /// States that are drawn where not all can be counted.
    pub samples: usize,
}

impl Default for Method {
    fn default() -> Self {
        Self { seed: 1, samples: 400 }
    }
}

/// One service's availability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// `namespace/name`.
    pub service: String,
    /// Share of time it answers, 0 to 1.
    pub availability: f64,
    /// 95 % interval of what was drawn; equal where all was counted.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// Minutes per year it does not answer.
    pub down_minutes_per_year: f64,
    /// What contributes most: kind of part and minutes per year.
    pub from: Vec<(String, f64)>,
    /// How it was computed.
    pub method: String,
}

/// A part that is away or not.
#[derive(Debug, Clone, Copy)]
struct Part {
    failure: Failure,
    /// Share of time it is away.
    away: f64,
}

/// Adds it up. `rows` is what each single failure comes to.
pub fn estimate(model: &Model, rows: &[Row], rates: &Rates, method: Method) -> Vec<Estimate> {
    let parts = parts(model, rates);
    let standing = Standing::of(model, rows, &parts, method);
    let each = model.services.iter().enumerate().map(|(at, service)| {
        let switching = switching(rows, rates, at);
        let minutes = |share: f64| share * YEAR_H * 60.0;
        let mut from: Vec<(String, f64)> = switching.clone();
        let standing_share = standing.mean(at);
        from.push(("parts away at the same time, or until a person acts".to_owned(), minutes(standing_share)));
        from.retain(|(_, minutes)| *minutes > 1e-6);
        from.sort_by(|a, b| b.1.total_cmp(&a.1));
        let switching_share = switching.iter().map(|(_, minutes)| minutes).sum::<f64>() / (YEAR_H * 60.0);
        let (low, high) = standing.interval(at);
        let share = |standing: f64| (1.0 - standing - switching_share).clamp(0.0, 1.0);
        Estimate {
            service: service.key(),
            availability: share(standing_share),
            low: share(high),
            high: share(low),
            down_minutes_per_year: minutes((standing_share + switching_share).min(1.0)),
            from,
            method: standing.method.clone(),
        }
    });
    each.collect()
}

fn parts(model: &Model, rates: &Rates) -> Vec<Part> {
    let person = |rate: &Rate| {
        // A failure that nobody heals lasts until the part is back or a person acted, whichever is later.
        let hours = rate.repair_hours.max(rates.person_hours);
        Rate { repair_hours: hours, ..rate.clone() }.unavailability()
    };
    let nodes =
        (0..model.topology.nodes.len()).map(|at| Part { failure: Failure::Node(at), away: person(&rates.node) });
    let zones = (0..model.topology.zones.len()).filter(|_| model.topology.zone_count() > 0);
    let zones = zones.map(|at| Part { failure: Failure::Zone(at), away: person(&rates.zone) });
    let volumes = (0..model.volumes.len()).map(|at| Part { failure: Failure::Volume(at), away: person(&rates.volume) });
    nodes.chain(zones).chain(volumes).collect()
}

/// Minutes per year by kind of failure, in which a service is down until it has healed by itself.
fn switching(rows: &[Row], rates: &Rates, service: usize) -> Vec<(String, f64)> {
    let mut sums = [0.0; 4];
    for row in rows {
        let (slot, rate) = match row.failure {
            Failure::Pod(_) => (0, &rates.pod),
            Failure::Node(_) => (1, &rates.node),
            Failure::Zone(_) => (2, &rates.zone),
            Failure::Volume(_) => (3, &rates.volume),
            Failure::Server(_) | Failure::TwoNodes(..) => continue,
        };
        let cell = &row.cells[service];
        let seconds = match (cell.outcome, cell.seconds) {
            (Outcome::Down, Some(seconds)) => seconds,
            // A pod is no part that is away for long; what is not healed after its crash waits for a person.
            (Outcome::Down, None) if slot == 0 => rates.person_hours * 3_600.0,
            _ => 0.0,
        };
        sums[slot] += rate.failures_per_year * seconds / 60.0;
    }
    let names =
        ["crashes of pods", "losses of nodes, until healed", "losses of zones, until healed", "losses of volumes"];
    names.iter().map(|name| (*name).to_owned()).zip(sums).collect()
}

/// The states in which a service is down as long as parts are away.
struct Standing {
    /// Per service: the share that was counted exactly.
    counted: Vec<f64>,
    /// Per stratum that was drawn: its probability, how many states, and per service how many were down.
    drawn: Vec<(f64, usize, Vec<usize>)>,
    method: String,
}

impl Standing {
    fn of(model: &Model, rows: &[Row], parts: &[Part], method: Method) -> Self {
        let mut known = known(rows, parts);
        let mut down = |away: &BTreeSet<usize>| -> Vec<bool> {
            if let Some(known) = known.get(away) {
                return known.clone();
            }
            let answer = is_down(model, parts, away);
            known.insert(away.clone(), answer.clone());
            answer
        };
        let services = model.services.len();
        let mut counted = vec![0.0; services];
        let mut count = |away: &BTreeSet<usize>, chance: f64| {
            for (sum, is_down) in counted.iter_mut().zip(down(away)) {
                *sum += if is_down { chance } else { 0.0 };
            }
        };
        let all_up: f64 = parts.iter().map(|part| 1.0 - part.away).product();
        let chance = |away: &BTreeSet<usize>| {
            away.iter().map(|at| parts[*at].away / (1.0 - parts[*at].away)).product::<f64>() * all_up
        };
        if parts.len() <= EXACT_PARTS_MAX {
            for mask in 0_u32..1 << parts.len() {
                let away = (0..parts.len()).filter(|at| mask >> at & 1 == 1).collect();
                count(&away, chance(&away));
            }
            let method = format!("exact over all {} states of {} independent parts", 1_u32 << parts.len(), parts.len());
            return Self { counted, drawn: Vec::new(), method };
        }
        let pairs = parts.len() * (parts.len() - 1) / 2;
        let counted_to = if pairs <= EXACT_PAIRS_MAX { 2 } else { 1 };
        let none = BTreeSet::new();
        count(&none, chance(&none));
        for a in 0..parts.len() {
            let one = BTreeSet::from([a]);
            count(&one, chance(&one));
            for b in (a + 1..parts.len()).filter(|_| counted_to == 2) {
                let two = BTreeSet::from([a, b]);
                count(&two, chance(&two));
            }
        }
        let mut random = fastrand::Rng::with_seed(method.seed);
        let strata = number_away(parts);
        let mut drawn = Vec::new();
        for away in counted_to + 1..=(counted_to + 2).min(parts.len()) {
            // The last stratum stands for all beyond it, too.
            let is_last = away == (counted_to + 2).min(parts.len());
            let probability = if is_last { strata[away..].iter().sum() } else { strata[away] };
            let mut hits = vec![0; services];
            let samples = method.samples / 2;
            for _ in 0..samples {
                let state = draw(parts, away, &mut random);
                for (hit, is_down) in hits.iter_mut().zip(down(&state)) {
                    *hit += usize::from(is_down);
                }
            }
            drawn.push((probability, samples, hits));
        }
        let method = format!(
            "exact for up to {counted_to} of {} independent parts away; beyond that {} states drawn, seed {}",
            parts.len(),
            method.samples / 2 * 2,
            method.seed
        );
        Self { counted, drawn, method }
    }

    fn mean(&self, service: usize) -> f64 {
        let share = |(chance, samples, hits): &(f64, usize, Vec<usize>)| {
            chance * hits[service] as f64 / (*samples).max(1) as f64
        };
        self.counted[service] + self.drawn.iter().map(share).sum::<f64>()
    }

    /// The Wilson interval of each stratum, weighted and added: wider than needed, never narrower.
    fn interval(&self, service: usize) -> (f64, f64) {
        let mut bounds = (self.counted[service], self.counted[service]);
        for (chance, samples, hits) in &self.drawn {
            let (low, high) = wilson(hits[service], *samples);
            bounds.0 += chance * low;
            bounds.1 += chance * high;
        }
        bounds
    }
}

/// The 95 % interval of a share. Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927).
fn wilson(hits: usize, samples: usize) -> (f64, f64) {
    const Z: f64 = 1.96;
    if samples == 0 {
        return (0.0, 1.0);
    }
    let (n, p) = (samples as f64, hits as f64 / samples as f64);
    let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

/// Per number of parts away: how likely that is (Poisson binomial, by convolution).
fn number_away(parts: &[Part]) -> Vec<f64> {
    let mut chances = vec![1.0];
    for part in parts {
        let mut next = vec![0.0; chances.len() + 1];
        for (away, chance) in chances.iter().enumerate() {
            next[away] += chance * (1.0 - part.away);
            next[away + 1] += chance * part.away;
        }
        chances = next;
    }
    chances
}

/// A state with so many parts away, as likely as it is among those: draws by odds, one after the other.
fn draw(parts: &[Part], away: usize, random: &mut fastrand::Rng) -> BTreeSet<usize> {
    let odds: Vec<f64> = parts.iter().map(|part| part.away / (1.0 - part.away)).collect();
    // Elementary symmetric sums from the end: how likely `k` more are chosen among the parts from `at` on.
    let mut sums = vec![vec![0.0; away + 1]; parts.len() + 1];
    sums[parts.len()][0] = 1.0;
    for at in (0..parts.len()).rev() {
        for k in 0..=away {
            let with = if k == 0 { 0.0 } else { odds[at] * sums[at + 1][k - 1] };
            sums[at][k] = sums[at + 1][k] + with;
        }
    }
    let mut chosen = BTreeSet::new();
    let mut left = away;
    for (at, odd) in odds.iter().enumerate() {
        if left == 0 {
            break;
        }
        let with = odd * sums[at + 1][left - 1] / sums[at][left];
        if random.f64() < with {
            chosen.insert(at);
            left -= 1;
        }
    }
    chosen
}

/// The states that were tried already: each single part, and pairs of nodes.
fn known(rows: &[Row], parts: &[Part]) -> HashMap<BTreeSet<usize>, Vec<bool>> {
    let place = |failure: Failure| parts.iter().position(|part| part.failure == failure);
    let state = |row: &Row| match row.failure {
        Failure::TwoNodes(a, b) => Some(BTreeSet::from([place(Failure::Node(a))?, place(Failure::Node(b))?])),
        failure => place(failure).map(|at| BTreeSet::from([at])),
    };
    let stays_down =
        |row: &Row| row.cells.iter().map(|cell| cell.outcome == Outcome::Down && cell.seconds.is_none()).collect();
    rows.iter().filter_map(|row| Some((state(row)?, stays_down(row)))).collect()
}

/// Per service: whether it stays down while these parts are away.
fn is_down(model: &Model, parts: &[Part], away: &BTreeSet<usize>) -> Vec<bool> {
    let mut lost = Lost::default();
    for at in away {
        let one = parts[*at].failure.lost(model);
        lost.nodes.extend(one.nodes);
        lost.volumes.extend(one.volumes);
    }
    aftermath(model, &lost).fates.iter().map(|fate| fate.timeline.last() == State::Down).collect()
}

/// `99.95 %`: with as many nines as there are, and one more figure.
pub fn percent_shown(share: f64) -> String {
    let missing = (1.0 - share) * 100.0;
    let digits = if missing <= 0.0 { 6 } else { (1.0 - missing.log10()).ceil().clamp(1.0, 6.0) as usize };
    // Rounded down: a figure that promises must not promise more.
    let scale = 10_f64.powi(digits as i32);
    format!("{:.digits$} %", (share * 100.0 * scale).floor() / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_parts(away: &[f64]) -> Vec<Part> {
        away.iter().enumerate().map(|(at, away)| Part { failure: Failure::Node(at), away: *away }).collect()
    }

    #[test]
    fn states_are_drawn_as_likely_as_they_are() {
        let parts = some_parts(&[0.1, 0.2, 0.4]);
        assert!((number_away(&parts).iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let mut random = fastrand::Rng::with_seed(7);
        let mut hits = 0;
        for _ in 0..20_000 {
            hits += usize::from(draw(&parts, 1, &mut random).contains(&2));
        }
        let odds = [0.1 / 0.9, 0.2 / 0.8, 0.4 / 0.6];
        let expected = odds[2] / odds.iter().sum::<f64>();
        assert!((hits as f64 / 20_000.0 - expected).abs() < 0.02);
    }

    #[test]
    fn figures_promise_no_more_than_they_keep() {
        for (share, shown) in [(0.9995, "99.95 %"), (0.99999, "99.9990 %"), (0.5, "50.0 %"), (1.0, "100.000000 %")] {
            assert!(percent_shown(share).starts_with(&shown[..4]), "{} {shown}", percent_shown(share));
        }
        let (low, high) = wilson(0, 100);
        assert!(low < 1e-9 && (0.03..0.05).contains(&high));
    }
}
