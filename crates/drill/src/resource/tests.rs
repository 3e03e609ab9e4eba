//! Drills that are read, refused, and made ready.
#![allow(clippy::unwrap_used)]

use super::standard::Entry;
use super::*;

const GOOD: &str = "\
apiVersion: mainstay.dev/v1alpha1
kind: Drill
metadata: {name: shop}
spec:
  load:
    target: {service: shop/front}
    rate: 500
    requests:
    - {path: /, weight: 3}
    - {method: POST, path: '/add?item=1'}
    sessions: {requests: 5, think: 500ms}
  ledgers:
  - {name: keys, kind: http-keys, target: {addresses: ['127.0.0.1:9']}}
  faults:
  - {fault: kill, target: {pod: {service: shop/front}}}
  - {fault: delay, target: {node: any}, hold: 3s, settings: {delayMs: 50}}
  - {fault: kill, target: controlPlane}
  objective: {availabilityPercent: 99.9}
";

#[test]
fn a_drill_is_read_with_its_defaults() {
    let drill = Drill::parse("drill.yaml", GOOD).unwrap();
    assert_eq!(drill.spec.faults.len(), 3);
    assert_eq!(drill.spec.faults[0].hold, Duration::from_secs(5));
    assert_eq!(drill.spec.faults[1].settings.delay_ms, Some(50));
    assert_eq!(drill.spec.load.sessions.as_ref().unwrap().think, Duration::from_millis(500));
    assert_eq!((drill.spec.ledgers[0].clients, drill.spec.objective.days), (4, 30));
    // What is written is read again.
    let written = serde_json::to_string(&drill).unwrap();
    assert_eq!(serde_json::from_str::<Drill>(&written).unwrap(), drill);
}

#[test]
fn what_is_wrong_is_refused_with_its_line() {
    let refused = |from: &str, to: &str| {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD);
        Drill::parse("drill.yaml", &text).unwrap_err().to_string()
    };
    for (from, to, says) in [
        ("rate: 500", "rate: 500\n    rat: 5", "line 8"),
        ("fault: kill", "fault: kil", "line 15"),
        ("v1alpha1", "v1", "line 1"),
        ("500ms", "soon", "line 11"),
        ("service: shop/front", "service: shop/front, url: 'http://a'", "line 6"),
    ] {
        let said = refused(from, to);
        assert!(said.starts_with("drill.yaml") && said.contains(says), "{to}: {said}");
    }
    assert!(refused("rate: 500", "rate: 0").contains("spec.load.rate"));
    assert!(refused("delayMs: 50", "lossPercent: 5").contains("spec.faults[1]: delay needs settings.delayMs"));
    assert!(refused("hold: 3s", "hold: 5h").contains("are possible"));
}

#[test]
fn random_faults_are_the_same_for_the_same_seed() {
    let drill = |seed: u64| {
        let mut drill = Drill::parse("drill.yaml", GOOD).unwrap();
        drill.spec.random = Some(RandomSpec { count: 20 });
        drill.spec.seed = seed;
        drill.sequence()
    };
    assert_eq!(drill(3).len(), 20);
    assert_eq!(drill(3), drill(3));
    assert_ne!(drill(3), drill(4));
}

#[test]
fn the_standard_set_makes_sense_and_takes_less_than_three_minutes_if_all_heals_at_once() {
    let entry = Entry {
        target: LoadTarget::Service("shop/front".to_owned()),
        service: "shop/front".to_owned(),
        deployment: "shop/front".to_owned(),
    };
    let drill = standard::drill("shop", &entry);
    drill.check().unwrap();
    let busy: Duration = drill.spec.faults.iter().map(|fault| fault.after + fault.hold).sum();
    assert!(busy < Duration::from_secs(120), "{busy:?}");
}

#[test]
fn the_examples_are_drills() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/drills");
    let files = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let read =
        files.map(|file| Drill::parse(&file.display().to_string(), &std::fs::read_to_string(&file).unwrap()).unwrap());
    assert!(read.count() > 0);
}
