//! Verdicts of small made-up drills, worked out by hand.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::load::sample::Failure;

fn sample(due_ms: u64, latency_ms: u32, failure: Option<Failure>) -> Sample {
    Sample { due_us: due_ms * 1000, latency_us: latency_ms * 1000, lag_us: 50, tries: 1, failure }
}

/// 10 seconds at 100 requests a second; from 4.0 to 5.0 s every second request fails.
fn samples() -> Vec<Sample> {
    let failure = |at_ms: u64| (at_ms.is_multiple_of(20) && (4000..5000).contains(&at_ms)).then_some(Failure::Timeout);
    (0..1000).map(|number| sample(number * 10, 2, failure(number * 10))).collect()
}

fn step() -> Step {
    Step {
        name: "node kill".to_owned(),
        target: "node/node-2".to_owned(),
        from_us: 4_000_000,
        undone_us: 6_000_000,
        healed_us: Some(7_000_000),
        api_back_us: None,
        until_us: 10_000_000,
        evidence: Ok("no process left".to_owned()),
    }
}

fn endpoints() -> Vec<Endpoints> {
    let at = |at_us, ready| Endpoints { at_us, service: "shop/front".to_owned(), ready };
    vec![at(0, 3), at(4_900_000, 2), at(6_800_000, 3)]
}

fn judged(steps: &[Step], require: &Require) -> Verdict {
    let (samples, endpoints) = (samples(), endpoints());
    let marks = [Mark { at_us: 5_100_000, tone: Tone::Worse, what: "node/node-2 is not ready".to_owned() }];
    let evidence = Evidence {
        samples: &samples,
        steps,
        marks: &marks,
        endpoints: &endpoints,
        ledgers: &[],
        length: Duration::from_secs(10),
        rate: 100.0,
    };
    judge(&evidence, &Objective::default(), require)
}

#[test]
fn a_fault_is_timed_from_its_beginning() {
    let verdict = judged(&[step()], &Require::default());
    let of = &verdict.steps[0];
    assert_eq!((of.detected_ms, of.routed_around_ms, of.healed_ms), (Some(900), 980, Some(2800)));
    assert_eq!((of.failed, of.failures.get("no answer in time")), (50, Some(&50)));
    assert_eq!((of.before.count, of.after.count), (400, 300));
    assert_eq!(of.longest_gap_ms, 20);
}

#[test]
fn the_whole_is_counted_and_the_cost_is_set_against_the_promise() {
    let verdict = judged(&[step()], &Require::default());
    assert_eq!((verdict.asked, verdict.answered, verdict.seconds, verdict.bad_seconds), (1000, 950, 10, 1));
    assert!((verdict.availability_percent() - 95.0).abs() < 1e-9);
    // 99.95 % over 30 days are 21.6 minutes; 50 failures at 100 a second are half a second of outage.
    assert!((verdict.budget.allowed_minutes - 21.6).abs() < 1e-6);
    assert!((verdict.budget.cost_minutes - 0.5 / 60.0).abs() < 1e-9);
}

#[test]
fn it_passes_only_if_everything_required_holds() {
    let lenient = Require { availability_percent: 95.0, longest_gap_ms: Some(100), p99_ms: Some(100) };
    assert_eq!(judged(&[step()], &lenient).objections, [""; 0]);
    let strict = judged(&[step()], &Require::default());
    assert!(strict.objections[0].contains("50 failed"), "{:?}", strict.objections);
    let never = Step { evidence: Err("no such node".to_owned()), healed_us: None, ..step() };
    assert_eq!(judged(&[never], &lenient).objections.len(), 2);
    let gap = Require { longest_gap_ms: Some(10), ..lenient };
    assert_eq!(judged(&[step()], &gap).objections.len(), 1);
}
