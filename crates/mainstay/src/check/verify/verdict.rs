//! What was seen of a service while something was broken, and whether that is what was predicted. Pure.
//!
//! | seen | is |
//! |---|---|
//! | down | no question was answered for [`DOWN_S`] or longer; without an address: fewer ready pods than are needed |
//! | degraded | a question was not answered, or fewer pods were ready than have to be |
//! | until | the end of the last such time; for ever, if that was still so when the looking ended |
//!
//! A prediction holds when the outcome is the same and its end differs by no more than [`SLACK_S`] or half of what was
//! predicted, whichever is more. What was predicted to last less than [`DOWN_S`] may not be seen at all.

use mainstay_check::{Outcome, Prediction};
use serde::Serialize;

use super::probe::{Need, PERIOD, Record};

/// Shortest time without an answer that counts as down, in seconds.
pub(super) const DOWN_S: f64 = 0.5;
/// How much earlier or later than predicted something may end, in seconds.
pub(super) const SLACK_S: f64 = 2.0;
/// Questions later than this tell more of the machine than of the service, in seconds.
const LATE_S: f64 = 0.5;
/// What was still wrong so shortly before the end of the looking is taken to last, in seconds.
const LASTS_S: f64 = 1.0;

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Seen {
    /// The worst it came to.
    pub outcome: Outcome,
    /// Until when, in seconds after the failure; `None` with an outcome that is not fine: as long as was looked.
    pub seconds: Option<f64>,
    /// Questions asked.
    pub asked: usize,
    /// Of these, not answered.
    pub failed: usize,
    /// How much later than due a question was asked at most, in seconds: the time that this machine had none for it.
    pub late_seconds: f64,
}

impl Seen {
    /// As a prediction is shown: `fine`, `degraded ~1 s`, `down as long as was looked`.
    pub fn shown(&self) -> String {
        let how = match self.outcome {
            Outcome::Fine => return "fine".to_owned(),
            Outcome::Degraded => "degraded",
            Outcome::Down => "down",
        };
        match self.seconds {
            Some(seconds) => format!("{how} ~{}", mainstay_check::survive::seconds_shown(seconds)),
            None => format!("{how} as long as was looked"),
        }
    }
}

/// Whether a prediction holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Agreement {
    /// It does.
    Holds,
    /// It does not.
    Differs,
    /// Nothing that can be seen from outside was predicted: answers that lack something.
    Unseen,
}

/// One prediction and what was seen.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Comparison {
    /// What was said.
    pub predicted: Prediction,
    /// What was seen.
    pub measured: Seen,
    /// Whether that is the same.
    pub agreement: Agreement,
}

impl Comparison {
    /// Compares.
    pub fn of(predicted: Prediction, measured: Seen) -> Self {
        let agreement = agreement(&predicted, &measured);
        Self { predicted, measured, agreement }
    }
}

/// What a difference may come from, and what to do about it.
pub(super) fn hint(one: &Comparison) -> String {
    let (said, was) = (&one.predicted, &one.measured);
    if was.late_seconds > LATE_S {
        return format!(
            "this machine was too busy for its times to count: questions were asked up to {:.1} s late; try again when it is quiet",
            was.late_seconds
        );
    }
    let end = |seconds: Option<f64>| seconds.unwrap_or(f64::INFINITY);
    let hint = if (was.outcome, end(was.seconds)) < (said.outcome, end(said.seconds)) {
        "it was back sooner: its program may need less time to start (check.mainstay.dev/start-seconds), or its callers try \
         again (check.mainstay.dev/retried)"
    } else if said.outcome == Outcome::Fine {
        "something that it needs is not known (check.mainstay.dev/depends-on), or its callers do not try again \
         (check.mainstay.dev/retried)"
    } else {
        "it was back later: its program may need longer to start (check.mainstay.dev/start-seconds) or to take over \
         (check.mainstay.dev/failover-seconds)"
    };
    hint.to_owned()
}

fn agreement(predicted: &Prediction, measured: &Seen) -> Agreement {
    let is_close = |said: f64, was: f64| (said - was).abs() <= SLACK_S.max(said / 2.0);
    let holds = match (predicted.outcome, measured.outcome) {
        (Outcome::Fine, Outcome::Fine) => true,
        (said, was) if said == was => match (predicted.seconds, measured.seconds) {
            (Some(said), Some(was)) => is_close(said, was),
            (said, was) => said.is_none() && was.is_none(),
        },
        (Outcome::Degraded, Outcome::Fine) if predicted.is_felt() => return Agreement::Unseen,
        (said, was) => said > was && predicted.seconds.is_some_and(|seconds| seconds < DOWN_S),
    };
    if holds { Agreement::Holds } else { Agreement::Differs }
}

/// What was seen between two times.
pub(super) fn seen(record: &Record, has_address: bool, need: Need, from_s: f64, until_s: f64) -> Seen {
    let mut answers: Vec<(f64, bool)> =
        record.answers.iter().filter(|(due, _)| (from_s..until_s).contains(due)).copied().collect();
    answers.sort_by(|a, b| a.0.total_cmp(&b.0));
    let failures: Vec<(f64, f64)> =
        spans(&answers, until_s, |ok| !ok).map(|(from, to)| (from, to.max(from + PERIOD.as_secs_f64()))).collect();
    let ready = within(&record.ready, from_s, until_s);
    let too_few = |least: usize| spans(&ready, until_s, move |count| count < least);
    let down: Vec<(f64, f64)> = if has_address {
        failures.iter().filter(|(from, to)| to - from >= DOWN_S).copied().collect()
    } else {
        too_few(need.least).collect()
    };
    let degraded = failures.iter().copied().chain(too_few(need.minimum));
    let end = |spans: &mut dyn Iterator<Item = (f64, f64)>| spans.map(|(_, to)| to).max_by(f64::total_cmp);
    let (outcome, end) = match (end(&mut down.into_iter()), end(&mut { degraded })) {
        (Some(end), _) => (Outcome::Down, end),
        (None, Some(end)) => (Outcome::Degraded, end),
        (None, None) => (Outcome::Fine, from_s),
    };
    let lasts = outcome != Outcome::Fine && end > until_s - LASTS_S;
    let failed = answers.iter().filter(|(_, ok)| !ok).count();
    let gaps = answers.windows(2).map(|pair| pair[1].0 - pair[0].0 - PERIOD.as_secs_f64());
    let late_seconds = gaps.fold(0.0, f64::max);
    Seen { outcome, seconds: (!lasts).then_some(end - from_s), asked: answers.len(), failed, late_seconds }
}

/// The steps of a function from a time on, its value at that time first.
fn within(steps: &[(f64, usize)], from_s: f64, until_s: f64) -> Vec<(f64, usize)> {
    let before = steps.iter().rev().find(|(at, _)| *at <= from_s).map(|(_, value)| (from_s, *value));
    before.into_iter().chain(steps.iter().filter(|(at, _)| *at > from_s && *at < until_s).copied()).collect()
}

/// The times over which something holds, each until the next step at which it does not.
fn spans<T: Copy>(steps: &[(f64, T)], until_s: f64, holds: impl Fn(T) -> bool) -> impl Iterator<Item = (f64, f64)> {
    let mut all: Vec<(f64, f64)> = Vec::new();
    let mut open: Option<f64> = None;
    for (at, value) in steps {
        match (holds(*value), open) {
            (true, None) => open = Some(*at),
            (false, Some(from)) => {
                all.push((from, *at));
                open = None;
            }
            _ => {}
        }
    }
    all.extend(open.map(|from| (from, until_s)));
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use mainstay_check::FailureKind;

    use super::*;

    const NEED: Need = Need { least: 1, minimum: 2 };

    /// Asked every 20 ms for ten seconds from second 1 on; not answered where `bad` says so.
    fn asked(bad: impl Fn(f64) -> bool) -> Record {
        let answers = (0..500).map(|tick| f64::from(tick) * 0.02).map(|at| (at + 1.0, !bad(at))).collect();
        Record { answers, ready: vec![(0.0, 3)] }
    }

    fn predicted(outcome: Outcome, seconds: Option<f64>, why: &str) -> Prediction {
        Prediction {
            failure: "node/node-1".to_owned(),
            kind: FailureKind::Node,
            service: "shop/cart".to_owned(),
            outcome,
            seconds,
            healed_seconds: None,
            data_lost: false,
            why: why.to_owned(),
        }
    }

    #[test]
    fn what_is_seen_is_the_worst_and_its_end() {
        let of = |record: &Record| {
            let seen = seen(record, true, NEED, 1.0, 11.0);
            (seen.outcome, seen.seconds.map(|seconds| (seconds * 100.0).round() / 100.0))
        };
        assert_eq!(of(&asked(|_| false)), (Outcome::Fine, Some(0.0)));
        assert_eq!(of(&asked(|at| at < 1.0)), (Outcome::Down, Some(1.0)));
        // One in three goes astray for a second: degraded, never down.
        assert_eq!(of(&asked(|at| at < 1.0 && ((at * 50.0) as u64).is_multiple_of(3))).0, Outcome::Degraded);
        assert_eq!(of(&asked(|at| at >= 2.0)), (Outcome::Down, None));
        let few = Record { ready: vec![(0.0, 3), (1.1, 1), (3.0, 2)], ..asked(|_| false) };
        assert_eq!(of(&few), (Outcome::Degraded, Some(2.0)));
        let unasked = Record { answers: Vec::new(), ready: vec![(0.0, 1), (2.0, 0), (4.0, 1)] };
        let seen = seen(&unasked, false, Need { least: 1, minimum: 1 }, 1.0, 11.0);
        assert_eq!((seen.outcome, seen.seconds), (Outcome::Down, Some(3.0)));
    }

    #[test]
    fn a_prediction_holds_within_its_slack() {
        use Agreement::{Differs, Holds, Unseen};
        use Outcome::{Degraded, Down, Fine};

        let seen = |outcome, seconds| Seen { outcome, seconds, asked: 1, failed: 0, late_seconds: 0.0 };
        for (said, was, agrees) in [
            ((Fine, Some(0.0)), (Fine, Some(0.0)), Holds),
            ((Fine, Some(0.0)), (Degraded, Some(0.1)), Differs),
            ((Degraded, Some(0.1)), (Fine, Some(0.0)), Holds),
            ((Degraded, Some(1.0)), (Fine, Some(0.0)), Differs),
            ((Degraded, Some(1.0)), (Degraded, Some(2.9)), Holds),
            ((Degraded, Some(1.0)), (Down, Some(1.0)), Differs),
            ((Down, Some(10.0)), (Down, Some(14.9)), Holds),
            ((Down, Some(10.0)), (Down, Some(15.1)), Differs),
            ((Down, None), (Down, None), Holds),
            ((Down, None), (Down, Some(3.0)), Differs),
        ] {
            let got = agreement(&predicted(said.0, said.1, ""), &seen(was.0, was.1));
            assert_eq!(got, agrees, "{said:?} {was:?}");
        }
        let differs = |said: (Outcome, Option<f64>), measured: Seen| {
            hint(&Comparison::of(predicted(said.0, said.1, ""), measured))
        };
        assert!(differs((Down, Some(9.0)), seen(Degraded, Some(0.3))).contains("sooner"));
        assert!(differs((Degraded, Some(1.0)), seen(Degraded, Some(9.0))).contains("later"));
        assert!(differs((Fine, Some(0.0)), seen(Down, None)).contains("depends-on"));
        assert!(differs((Fine, Some(0.0)), Seen { late_seconds: 2.0, ..seen(Down, None) }).contains("busy"));
        let felt = predicted(Degraded, Some(5.0), "it needs shop/cart: all are away");
        assert_eq!(agreement(&felt, &seen(Fine, Some(0.0))), Unseen);
    }
}
