//! Golden conversations: a script is played in a [`World`], and what was said is compared with the file.
//!
//! A file holds blocks: what is done, a line `----`, what came of it, an empty line. `MAINSTAY_GOLDEN=write` writes the
//! second part anew, to be reviewed as a difference.
//!
//! | line | what it does |
//! |---|---|
//! | `apply`, then YAML | writes objects: the spec is replaced, the status stays |
//! | `KIND NAME` | the controller of the kind looks once: its actions, and why |
//! | `KIND NAME settle` | it looks until nothing is left to do |
//! | `start POD`, `fail POD`, `stop POD`, `end POD CODE` | the agent: ready, not ready, stopped, ended |
//! | `schedule POD NODE` | the scheduler |
//! | `delete KIND NAME` | a user |
//! | `patch KIND NAME JSON` | a user's merge patch |
//! | `pass 90s` | time goes by |
//! | `refuse TEXT`, `refuse` | the API server refuses pods with this message, or no more |
//! | `pods`, `show KIND NAME POINTER` | prints pods, or a part of an object |
//! | `# ...` | a remark |

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::deployment::Deployments;
use crate::job::Jobs;
use crate::replica_set::ReplicaSets;

/// Plays every file of a directory below `testdata`.
pub(crate) fn play(directory: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(directory);
    let mut files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let played = conversation(&text, &file);
        if std::env::var_os("MAINSTAY_GOLDEN").is_some() {
            std::fs::write(&file, played).unwrap();
        } else if played != text {
            let differs = played.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or(0);
            panic!("{} differs from line {}:\n{played}", file.display(), differs + 1);
        }
    }
}

fn conversation(text: &str, file: &Path) -> String {
    let mut player = Player { world: World::new(), attempts: BTreeMap::new() };
    let mut played = String::new();
    let mut lines = text.lines().peekable();
    while lines.peek().is_some() {
        let mut script = Vec::new();
        let mut has_output = false;
        for line in lines.by_ref() {
            if line == "----" {
                has_output = true;
                break;
            }
            script.push(line);
        }
        while has_output && lines.next_if(|line| !line.is_empty()).is_some() {}
        let is_empty = script.iter().all(|line| line.is_empty());
        for line in &script {
            writeln!(played, "{line}").unwrap();
        }
        if is_empty {
            continue;
        }
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| player.play(&script)));
        let said = said.unwrap_or_else(|_| panic!("{}: {script:?}", file.display()));
        write!(played, "----\n{said}").unwrap();
    }
    played
}

struct Player {
    world: World,
    attempts: BTreeMap<String, Attempt>,
}

impl Player {
    fn play(&mut self, script: &[&str]) -> String {
        let mut said = String::new();
        let mut lines = script.iter();
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                ["apply"] => {
                    let rest: Vec<&str> = lines.by_ref().copied().collect();
                    for document in rest.join("\n").split("\n---\n") {
                        self.world.apply(serde_saphyr::from_str(document).unwrap());
                    }
                }
                words => said += &self.command(words, line),
            }
        }
        said
    }

    fn command(&mut self, words: &[&str], line: &str) -> String {
        let world = &mut self.world;
        match words {
            ["pass", time] => world.pass(span(time)),
            ["refuse", ..] => world.refuse_pods = line.strip_prefix("refuse ").map(str::to_owned),
            ["start", pod] => world.start_pod(&find(world, pod)),
            ["fail", pod] => world.change_pod(&find(world, pod), |pod| {
                pod["status"]["conditions"][0]["status"] = json!("False");
            }),
            ["stop", pod] => world.stop_pod(&find(world, pod)),
            ["end", pod, code] => world.end_pod(&find(world, pod), code.parse().unwrap()),
            ["schedule", pod, node] => world.change_pod(&find(world, pod), |pod| pod["spec"]["nodeName"] = json!(node)),
            ["pods"] => return format!("{}\n", world.shown()),
            ["delete", kind, name] => {
                let target = target(world, kind, name);
                world.act(&Action::delete(target)).unwrap();
            }
            ["patch", kind, name, ..] => {
                let patch = serde_json::from_str(line.splitn(4, ' ').nth(3).unwrap()).unwrap();
                let target = target(world, kind, name);
                world.act(&Action::Patch(target, patch)).unwrap();
            }
            ["show", kind, name, pointer] => {
                let target = target(world, kind, name);
                let found = world.get(&target).and_then(|value| value.pointer(pointer).cloned());
                return format!("{}\n", found.unwrap_or(Value::Null));
            }
            [kind, name] => return self.look(kind, name).0,
            [kind, name, "settle"] => {
                let mut said = String::new();
                for _ in 0..100 {
                    let (more, done) = self.look(kind, name);
                    if done {
                        return said + &more;
                    }
                    said += &more;
                }
                panic!("{line}: no rest\n{said}");
            }
            other => panic!("not a command: {other:?}"),
        }
        String::new()
    }

    /// One look: its actions and why; whether there was nothing to do.
    fn look(&mut self, kind: &str, name: &str) -> (String, bool) {
        let key = ObjectKey::new("shop", name);
        let attempt = self.attempts.entry(format!("{kind}/{name}")).or_default();
        let world = &mut self.world;
        let plan = match kind {
            "Deployment" => world.look(&Deployments, &key, attempt),
            "ReplicaSet" => world.look(&ReplicaSets, &key, attempt),
            "StatefulSet" => world.look(&crate::stateful_set::StatefulSets, &key, attempt),
            "DaemonSet" => world.look(&crate::daemon_set::DaemonSets, &key, attempt),
            "Job" => world.look(&Jobs, &key, attempt),
            "CronJob" => world.look(&crate::cron_job::CronJobs, &key, attempt),
            "Claim" => world.look(&crate::storage::claim::Claims::new(Some("/volumes".into())), &key, attempt),
            "Volume" => world.look(&crate::storage::volume::Volumes, &ObjectKey::new("", name), attempt),
            "Protect" => world.look(&crate::storage::protection::ClaimProtection, &key, attempt),
            "Ttl" => world.look(&crate::ttl::TtlAfterFinished, &key, attempt),
            other => panic!("no controller of {other}"),
        };
        let mut said = String::new();
        for action in &plan.actions {
            writeln!(said, "{action}").unwrap();
        }
        if let Some(error) = &attempt.error {
            writeln!(said, "refused: {error}").unwrap();
        }
        let again = plan.requeue_after.map_or_else(String::new, |after| format!("; again in {after:?}"));
        writeln!(said, "({}{again})", plan.why).unwrap();
        let idle = plan.actions.iter().all(|action| matches!(action, Action::Note(_)));
        (said, idle || attempt.error.is_some())
    }
}

fn span(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => panic!("no time: {text}"),
    };
    Duration::from_secs(number.parse::<u64>().unwrap() * factor)
}

fn target(world: &World, kind: &str, name: &str) -> Target {
    let resource = mainstay_model::resource::known(kind);
    let namespace = if resource.namespaced { "shop" } else { "" };
    let key = ObjectKey::new(namespace, name);
    let mut target = Target { resource, key, uid: None };
    if world.get(&target).is_none() && kind == "Pod" {
        target.key.name = find(world, name).metadata.name.clone().unwrap();
    }
    target
}

/// A pod by its name, or by a beginning of it that only one has.
fn find(world: &World, name: &str) -> Arc<Pod> {
    let pods = world.pods();
    let exact = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
    let mut alike = pods.iter().filter(|pod| pod.metadata.name.as_deref().unwrap().starts_with(name));
    exact.or_else(|| alike.next()).unwrap_or_else(|| panic!("no pod {name}: {}", world.shown())).clone()
}
