//! The verdict: what the users of the service saw, what it cost, and whether that is good enough. Pure.
//!
//! | figure | is |
//! |---|---|
//! | availability | answered / asked; and seconds without a failure / seconds |
//! | longest gap | the longest time without a single answer |
//! | detected | from the fault to the first thing in the API that shows it |
//! | routed around | from the fault to the last failed request that it caused (until the next fault) |
//! | healed | from the fault until every Service had as many ready endpoints as before, and the API answered |
//! | cost | failed requests as time of a whole outage (failed / rate), times how often it is expected, against what the objective allows |

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ledger::Judgement;
use crate::load::sample::{Latency, Sample, longest_gap};
use crate::observe::{Endpoints, Mark, Tone};
use crate::resource::{Objective, Require};

/// A generator later than this in one of 100 requests measures itself.
const LAG_P99_MAX_US: u32 = 20_000;

/// One fault as it went. Times are microseconds after the load's beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What was broken, by name.
    pub target: String,
    /// When it was begun.
    pub from_us: u64,
    /// When its undoing had been done.
    pub undone_us: u64,
    /// When everything was there again; `None`: not in time.
    pub healed_us: Option<u64>,
    /// When the API answered again, if it had not.
    pub api_back_us: Option<u64>,
    /// When the next one began, or the drill ended.
    pub until_us: u64,
    /// What showed that it had taken effect, or why it could not be made.
    pub evidence: Result<String, String>,
}

/// What a fault did to the users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepVerdict {
    /// What was done.
    pub step: Step,
    /// Requests due from its beginning until the next one's.
    pub asked: u64,
    /// Of these, not answered.
    pub failed: u64,
    /// Why, and how many each.
    pub failures: BTreeMap<String, u64>,
    /// The longest time without an answer.
    pub longest_gap_ms: u64,
    /// Latency in the quiet time before.
    pub before: Latency,
    /// Latency from its beginning until all was healed.
    pub during: Latency,
    /// Latency from then on.
    pub after: Latency,
    /// Until the API showed it.
    pub detected_ms: Option<u64>,
    /// Until the last request failed of it; 0 if none did.
    pub routed_around_ms: u64,
    /// Until everything was there again.
    pub healed_ms: Option<u64>,
}

/// What the drill cost of what the objective allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// The promise.
    pub objective: Objective,
    /// Minutes of outage that it allows.
    pub allowed_minutes: f64,
    /// Minutes of outage that the drill's failures amount to, times how often they are expected.
    pub cost_minutes: f64,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Requests due.
    pub asked: u64,
    /// Answered as they should be.
    pub answered: u64,
    /// Answered only at a further try (which the plan must allow).
    pub tried_again: u64,
    /// Why the others were not, and how many each.
    pub failures: BTreeMap<String, u64>,
    /// Whole seconds of load.
    pub seconds: u64,
    /// Of these, with a failure.
    pub bad_seconds: u64,
    /// The longest time without an answer.
    pub longest_gap_ms: u64,
    /// Over everything.
    pub latency: Latency,
    /// How much later than due the generator sent 99 of 100 requests at most, in microseconds.
    pub generator_lag_p99_us: u32,
    /// Each fault.
    pub steps: Vec<StepVerdict>,
    /// The cost.
    pub budget: Budget,
    /// Why it did not pass; empty: it did.
    pub objections: Vec<String>,
}

impl Verdict {
    /// Answered of every hundred requests.
    pub fn availability_percent(&self) -> f64 {
        percent(self.answered, self.asked)
    }

    /// Seconds without a failure, of every hundred.
    pub fn good_seconds_percent(&self) -> f64 {
        percent(self.seconds - self.bad_seconds, self.seconds)
    }

    /// Whether it passed.
    pub fn passed(&self) -> bool {
        self.objections.is_empty()
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// What is known after a drill.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Every request.
    pub samples: &'a [Sample],
    /// Every fault.
    pub steps: &'a [Step],
    /// What the API told.
    pub marks: &'a [Mark],
    /// How the endpoints changed.
    pub endpoints: &'a [Endpoints],
    /// What the ledgers found.
    pub ledgers: &'a [Judgement],
    /// How long the load lasted.
    pub length: Duration,
    /// Requests per second asked for.
    pub rate: f64,
}

/// Judges.
pub fn judge(evidence: &Evidence<'_>, objective: &Objective, require: &Require) -> Verdict {
    let samples = evidence.samples;
    let failed: Vec<&Sample> = samples.iter().filter(|sample| sample.failure.is_some()).collect();
    let length_us = evidence.length.as_micros() as u64;
    let mut bad_seconds: Vec<u64> = failed.iter().map(|sample| sample.due_us / 1_000_000).collect();
    bad_seconds.sort_unstable();
    bad_seconds.dedup();
    let mut lags: Vec<u32> = samples.iter().map(|sample| sample.lag_us).collect();
    lags.sort_unstable();
    let outage_minutes = failed.len() as f64 / evidence.rate / 60.0;
    let mut verdict = Verdict {
        asked: samples.len() as u64,
        answered: (samples.len() - failed.len()) as u64,
        tried_again: samples.iter().filter(|sample| sample.failure.is_none() && sample.tries > 1).count() as u64,
        failures: by_kind(&failed),
        seconds: length_us.div_ceil(1_000_000),
        bad_seconds: bad_seconds.len() as u64,
        longest_gap_ms: longest_gap(samples, 0, length_us).as_millis() as u64,
        latency: Latency::of(samples),
        generator_lag_p99_us: crate::load::sample::quantile(&lags, 0.99),
        steps: evidence.steps.iter().enumerate().map(|(number, _)| step_verdict(evidence, number)).collect(),
        budget: Budget {
            objective: objective.clone(),
            allowed_minutes: (100.0 - objective.availability_percent) / 100.0 * f64::from(objective.days) * 1440.0,
            cost_minutes: outage_minutes * objective.times,
        },
        objections: Vec::new(),
    };
    verdict.objections = objections(&verdict, evidence, require);
    verdict
}

/// Everything that speaks against it.
fn objections(verdict: &Verdict, evidence: &Evidence<'_>, require: &Require) -> Vec<String> {
    let mut all = Vec::new();
    let mut object = |when: bool, what: String| all.extend(when.then_some(what));
    let (available, wanted) = (verdict.availability_percent(), require.availability_percent);
    let failed = verdict.asked - verdict.answered;
    object(
        available < wanted,
        format!("{available:.3} % of the requests were answered ({failed} failed), {wanted} % are required"),
    );
    object(verdict.asked == 0, "no request was sent".to_owned());
    if let Some(most) = require.longest_gap_ms {
        let gap = verdict.longest_gap_ms;
        object(gap > most, format!("the longest gap was {gap} ms, {most} ms are allowed"));
    }
    if let Some(most) = require.p99_ms {
        let p99 = verdict.latency.p99_us / 1000;
        object(u64::from(p99) > most, format!("99 of 100 requests took up to {p99} ms, {most} ms are allowed"));
    }
    for step in evidence.steps {
        if let Err(reason) = &step.evidence {
            object(true, format!("{}: the fault could not be made: {reason}", step.name));
        }
        object(step.healed_us.is_none(), format!("{}: not everything was Ready again in time", step.name));
    }
    for ledger in evidence.ledgers.iter().filter(|ledger| ledger.acknowledged == 0) {
        let name = &ledger.name;
        object(true, format!("ledger {name}: no write was acknowledged; are its target, secret and database right?"));
    }
    for ledger in evidence.ledgers.iter().filter(|ledger| !ledger.is_clean()) {
        let (name, lost, stale) = (&ledger.name, ledger.lost_count, ledger.stale_count);
        let (disorder, unreadable) = (ledger.disorder.len(), ledger.unreadable.len());
        object(
            true,
            format!(
                "ledger {name}: {lost} acknowledged writes lost, {stale} stale reads, {disorder} keys out of order, {unreadable} unreadable"
            ),
        );
    }
    let lag_ms = verdict.generator_lag_p99_us / 1000;
    let late = format!(
        "the generator itself was up to {lag_ms} ms late: the machine is too busy for these figures to be trusted"
    );
    object(verdict.generator_lag_p99_us > LAG_P99_MAX_US, late);
    all
}

fn step_verdict(evidence: &Evidence<'_>, number: usize) -> StepVerdict {
    let step = &evidence.steps[number];
    let healed_us = step.healed_us.unwrap_or(step.until_us);
    let quiet_from = number
        .checked_sub(1)
        .and_then(|before| evidence.steps.get(before))
        .map_or(0, |before| before.healed_us.unwrap_or(before.undone_us));
    let due = |from: u64, until: u64| evidence.samples.iter().filter(move |it| (from..until).contains(&it.due_us));
    // Requests in flight when the fault began are hit by it, too.
    let hit = evidence.samples.iter().filter(|it| it.done_us() >= step.from_us && it.due_us < step.until_us);
    let failed: Vec<&Sample> = hit.clone().filter(|it| it.failure.is_some()).collect();
    let last_failure_us = failed.iter().map(|sample| sample.due_us).max();
    let ms = |until_us: u64| until_us.saturating_sub(step.from_us) / 1000;
    let window = step.from_us..step.until_us;
    let worse = evidence.marks.iter().filter(|mark| mark.tone == Tone::Worse).map(|mark| mark.at_us);
    let withdrawn = withdrawals(evidence.endpoints);
    let detected_us = worse.chain(withdrawn).filter(|at| window.contains(at)).min();
    let hit: Vec<Sample> = hit.copied().collect();
    StepVerdict {
        step: step.clone(),
        asked: hit.len() as u64,
        failed: failed.len() as u64,
        failures: by_kind(&failed),
        longest_gap_ms: longest_gap(&hit, step.from_us, step.until_us).as_millis() as u64,
        before: Latency::of(due(quiet_from, step.from_us)),
        during: Latency::of(due(step.from_us, healed_us)),
        after: Latency::of(due(healed_us, step.until_us)),
        detected_ms: detected_us.map(ms),
        routed_around_ms: last_failure_us.map_or(0, |at| ms(at).max(1)),
        healed_ms: step.healed_us.map(|_| {
            let whole = last_restored(evidence.endpoints, step).max(step.api_back_us);
            whole.map_or(0, ms)
        }),
    }
}

/// The moments at which a Service lost an endpoint.
fn withdrawals(endpoints: &[Endpoints]) -> Vec<u64> {
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    let fell = endpoints.iter().filter(|change| {
        let before = last.insert(&change.service, change.ready);
        before.is_some_and(|before| change.ready < before)
    });
    fell.map(|change| change.at_us).collect()
}

/// When the last Service that had lost endpoints in a step's time had as many as before again.
fn last_restored(endpoints: &[Endpoints], step: &Step) -> Option<u64> {
    let mut at_start: BTreeMap<&str, usize> = BTreeMap::new();
    let mut short: BTreeMap<&str, bool> = BTreeMap::new();
    let mut restored = None;
    for change in endpoints.iter().take_while(|change| change.at_us < step.until_us) {
        if change.at_us < step.from_us {
            at_start.insert(&change.service, change.ready);
            continue;
        }
        let Some(wanted) = at_start.get(change.service.as_str()) else { continue };
        let was_short = short.insert(&change.service, change.ready < *wanted).unwrap_or(false);
        if was_short && change.ready >= *wanted {
            restored = Some(change.at_us);
        }
    }
    restored
}

fn by_kind(failed: &[&Sample]) -> BTreeMap<String, u64> {
    crate::load::sample::count(failed.iter().filter_map(|sample| sample.failure))
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
