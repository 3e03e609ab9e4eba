//! The shop and its fragile variants: what is predicted, as golden files. `MAINSTAY_BLESS=1 cargo test -p mainstay-check`
//! writes them anew; the difference is then read like code.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mainstay_check::engine::Engine;
use mainstay_check::topology::{NodeSize, Topology};
use mainstay_check::{FailureKind, Outcome, Report, Settings, check, fix, manifest, output, rules};
use mainstay_model::patch::{PatchType, apply};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The report of an example, with places relative to the repository.
fn report(example: &str, settings: &Settings) -> Report {
    let path = root().join("examples").join(example);
    let mut files = vec![path.clone()];
    if path.is_dir() {
        files = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
    }
    let shown = |file: &Path| file.strip_prefix(root()).unwrap().display().to_string();
    let parse = |file: &PathBuf| manifest::parse(&shown(file), &std::fs::read_to_string(file).unwrap()).unwrap();
    let objects = files.iter().flat_map(parse).collect();
    let topology = Topology::grid(3, 3, &NodeSize::default(), 1).unwrap();
    check(objects, topology, settings).unwrap()
}

fn golden(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("MAINSTAY_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; MAINSTAY_BLESS=1 writes it anew");
}

const FRAGILE: [&str; 5] = ["single-replica", "no-spread", "bad-budget", "liveness-on-dependency", "two-member-quorum"];

#[test]
fn the_shop_and_its_fragile_variants() {
    golden("shop.txt", &output::text(&report("shop", &Settings::default()), true));
    for name in FRAGILE {
        let report = report(&format!("fragile/{name}.yaml"), &Settings::default());
        golden(&format!("{name}.txt"), &output::text(&report, false));
    }
}

#[test]
fn the_same_shop_on_kubernetes_heals_more_slowly() {
    let settings = Settings { engine: Engine::kubernetes(), ..Settings::default() };
    golden("shop-kubernetes.txt", &output::text(&report("shop", &settings), false));
}

/// Every variant is found out by the rule it was made for.
#[test]
fn each_variant_breaks_its_rule() {
    for (name, rule) in FRAGILE.iter().zip([
        "single-replica",
        "one-node-takes-it-down",
        "budget-blocks-drain",
        "liveness-asks-dependency",
        "quorum-of-two",
    ]) {
        let report = report(&format!("fragile/{name}.yaml"), &Settings::default());
        let found = report.findings.iter().find(|finding| finding.rule.id == rule);
        assert!(found.is_some_and(|finding| finding.place.line > 0), "{name}: {rule}");
    }
}

#[test]
fn the_shop_survives_every_single_loss() {
    let report = report("shop", &Settings::default());
    for kind in [FailureKind::Pod, FailureKind::Node, FailureKind::Zone, FailureKind::Server] {
        assert!(report.not_survived(kind, 0.0).is_empty(), "{kind}");
    }
    assert!(report.findings.iter().all(|finding| finding.rule.severity != mainstay_check::finding::Severity::Error));
}

#[test]
fn sarif_and_html_are_whole() {
    let report = report("fragile/single-replica.yaml", &Settings::default());
    let log = output::sarif(&report, "0");
    assert_eq!((&log["version"], log["runs"].as_array().map(Vec::len)), (&Value::from("2.1.0"), Some(1)));
    let run = &log["runs"][0];
    for result in run["results"].as_array().unwrap() {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(run["tool"]["driver"]["rules"][index]["id"], result["ruleId"]);
        assert!(result["locations"][0]["physicalLocation"]["region"]["startLine"].as_u64().unwrap() > 0);
    }
    golden("single-replica.svg", &output::picture(&report));
    let page = output::html(&report);
    assert_eq!(page.matches("<svg").count(), 1);
    assert!(
        page.contains("viewBox") && !page.contains("src=") && !page.contains("href=") && page.ends_with("</html>\n")
    );
    for tag in ["table", "tr", "td", "th", "g", "svg", "div", "text"] {
        let (open, close) = (
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count(),
            page.matches(&format!("</{tag}>")).count(),
        );
        assert_eq!(open, close, "{tag}");
    }
}

/// Predictions survive being written and read: another program holds them against what it measures.
#[test]
fn predictions_are_read_back() {
    let report = report("fragile/no-spread.yaml", &Settings::default());
    for prediction in report.predictions() {
        let text = serde_json::to_string(prediction).unwrap();
        assert_eq!(&serde_json::from_str::<mainstay_check::Prediction>(&text).unwrap(), prediction);
    }
}

/// The patches apply, and what they were written for is gone afterwards.
#[test]
fn fixes_mend() {
    let before = report("fragile/single-replica.yaml", &Settings::default());
    let files = fix::files(&before.findings);
    let mut objects: Vec<Value> = before.model.objects.iter().map(|object| object.written.clone()).collect();
    for file in &files {
        if file.is_new {
            objects.push(file.content.clone());
            continue;
        }
        let is_it = |object: &&mut Value| {
            object["kind"] == file.content["kind"] && object["metadata"]["name"] == file.content["metadata"]["name"]
        };
        let object = objects.iter_mut().find(is_it).unwrap();
        let kind = object["kind"].as_str().unwrap().to_owned();
        *object = apply(PatchType::Strategic, &kind, object, &file.content).unwrap();
    }
    let texts: Vec<String> = objects.iter().map(|object| serde_json::to_string(object).unwrap()).collect();
    let objects = manifest::parse("mended.yaml", &texts.join("\n---\n")).unwrap();
    let after = check(objects, Topology::grid(3, 3, &NodeSize::default(), 1).unwrap(), &Settings::default()).unwrap();
    let mended: Vec<&str> = files.iter().flat_map(|file| file.rules.clone()).collect();
    assert!(mended.contains(&"single-replica"));
    for finding in &after.findings {
        assert!(!mended.contains(&finding.rule.id), "{} is still there: {}", finding.rule.id, finding.message);
    }
    assert!(after.not_survived(FailureKind::Node, 0.0).is_empty());
    assert!(before.predictions().any(|cell| cell.outcome == Outcome::Down));
}

/// The guide's table names every rule.
#[test]
fn the_guide_knows_every_rule() {
    let guide = std::fs::read_to_string(root().join("docs/guide/find-what-would-take-it-down.md")).unwrap();
    for rule in rules::rules() {
        assert!(guide.contains(&format!("`{}`", rule.id)), "{} is not in the guide", rule.id);
        for peer in rule.peers {
            let id = peer.split_once(' ').map_or(*peer, |(_, id)| id);
            assert!(guide.contains(id), "{peer} is not in the guide");
        }
    }
}
