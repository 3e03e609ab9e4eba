//! One made-up report in all its forms.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::load::sample::Failure;
use crate::observe::Tone;
use crate::resource::standard::{self, Entry};
use crate::resource::{LoadTarget, Objective, Require};
use crate::verdict::{self, Step};

fn report() -> Report {
    let sample = |number: u64| {
        let due_us = number * 10_000;
        let failed = (4_000_000..4_500_000).contains(&due_us);
        let latency_us = 1000 + (number % 17) as u32 * 300;
        Sample { due_us, latency_us, lag_us: 40, tries: 1, failure: failed.then_some(Failure::Refused) }
    };
    let samples: Vec<Sample> = (0..2000).map(sample).collect();
    let step = |name: &str, from_us, until_us| Step {
        name: name.to_owned(),
        target: "node/<2>".to_owned(),
        from_us,
        undone_us: from_us + 2_000_000,
        healed_us: Some(from_us + 3_000_000),
        api_back_us: None,
        until_us,
        evidence: Ok("no process left & link down".to_owned()),
    };
    let steps = [step("node kill", 4_000_000, 11_000_000), step("hang", 11_000_000, 20_000_000)];
    let marks = [
        Mark { at_us: 4_400_000, tone: Tone::Worse, what: "node/node-2 is not ready".to_owned() },
        Mark { at_us: 6_700_000, tone: Tone::Better, what: "node/node-2 is ready".to_owned() },
    ];
    let at = |at_us, ready| Endpoints { at_us, service: "shop/front".to_owned(), ready };
    let endpoints = [at(0, 3), at(4_400_000, 2), at(6_800_000, 3)];
    let evidence = Evidence {
        samples: &samples,
        steps: &steps,
        marks: &marks,
        endpoints: &endpoints,
        ledgers: &[],
        length: Duration::from_secs(20),
        rate: 100.0,
    };
    let verdict = verdict::judge(&evidence, &Objective::default(), &Require::default());
    let target = LoadTarget::Service("shop/front".to_owned());
    let entry = Entry { target, service: "shop/front".to_owned(), deployment: "shop/front".to_owned() };
    let drill = standard::drill("shop", &entry);
    Report::new(&drill, "service shop/front", jiff::Timestamp::UNIX_EPOCH, verdict, &evidence, Vec::new())
}

#[test]
fn it_is_written_in_all_forms_and_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let report = report();
    let page = report.write(directory.path()).unwrap();
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && html.contains("node/&lt;2&gt;") && !html.contains("<script"), "{html}");
    // Nothing is fetched: the only address in it is the name of SVG's language.
    assert_eq!(html.matches("http").count(), html.matches("http://www.w3.org/2000/svg").count());
    let again = Report::read(&directory.path().join("shop.json")).unwrap();
    assert_eq!(again.verdict, report.verdict);
    let junit = fs::read_to_string(directory.path().join("shop.junit.xml")).unwrap();
    assert!(junit.contains("tests=\"3\" failures=\"1\"") && junit.contains("97.500 %"), "{junit}");
    if let Some(kept) = std::env::var_os("MAINSTAY_DRILL_PICTURE") {
        let svg = html.split_once("<svg").unwrap().1.split_once("</svg>").unwrap().0;
        fs::write(kept, format!("<svg{svg}</svg>")).unwrap();
    }
}

#[test]
fn the_terminal_gets_one_table_and_the_reasons() {
    let text = text::render(&report());
    let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_default().to_owned();
    assert_eq!(line("node kill  ").split_whitespace().take(5).collect::<Vec<_>>(), ["node", "kill", "50", "of", "700"]);
    assert!(line("availability").contains("97.500 % of 2000 requests (50 failed)"), "{text}");
    assert!(text.contains("node kill: node/<2>; 50 × connection refused") && text.contains("FAILED"), "{text}");
    assert!(text.contains("--tries 3") && text.lines().take(6).all(|line| line.chars().count() < 100), "{text}");
}

#[test]
fn a_comparison_marks_what_differs() {
    let (before, mut after) = (report(), report());
    after.verdict.answered += 50;
    let text = diff::render(&before, &after);
    let line = |what: &str| text.lines().find(|line| line.trim_start().starts_with(what)).unwrap().to_owned();
    assert!(line("failed").ends_with("50  0  *") || line("failed").ends_with('*'), "{text}");
    assert!(!line("asked").ends_with('*'), "{text}");
}
