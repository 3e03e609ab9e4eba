//! Golden conversations: a script is played in a [`World`], and what was said is compared with the file.
//!
//! A file holds blocks: what is done, a line `----`, what came of it, an empty line. `MAINSTAY_GOLDEN=write` writes the
//! second part anew, to be reviewed as a difference.
//!
//! | line | what it does |
//! |---|---|
//! | `apply`, then YAML | writes objects: the spec is replaced, the status stays |
//! | `KIND NAME` | the controller of the kind looks once: what it does, and why ([`super::looks`]) |
//! | `KIND NAME settle` | it looks until nothing is left to do |
//! | `start POD`, `fail POD`, `stop POD`, `end POD CODE` | the agent: ready, not ready, stopped, ended |
//! | `schedule POD NODE` | the scheduler |
//! | `silence NODE`, `hear NODE` | the node renews its Lease no more, or again |
//! | `delete KIND NAME`, `evict POD` | a user |
//! | `patch KIND NAME JSON` | a user's merge patch |
//! | `measure NAME 150m 90m` | the metrics of an autoscaler's pods, by name |
//! | `pass 90s` | time goes by |
//! | `jump 1h`, `jump -1h` | somebody sets the wall clock |
//! | `refuse TEXT`, `refuse` | the API server refuses pods with this message, or no more |
//! | `hold KIND`, `release KIND` | the watch of a kind falls behind, and catches up |
//! | `meanwhile LINE` | what another does after the next plan is made, before it is carried out |
//! | `dies 1` | the process dies after so many actions of the next plan, and comes up again |
//! | `restart` | the process is killed and comes up again |
//! | `second LINE` | the line is about a second process of controllers, started by mistake |
//! | `pods`, `show KIND NAME POINTER` | prints pods, or a part of an object |
//! | `# ...` | a remark |
//!
//! In any line `web-@2` is the name of the second ReplicaSet that was made for `web`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::looks::Process;
use super::*;

/// How often renewals are written, and judged.
const BEAT: Duration = Duration::from_millis(100);

/// Plays every file of a directory below `testdata`.
pub(crate) fn play(directory: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(directory);
    let mut files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut differing = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let played = conversation(&text, &file);
        if std::env::var_os("MAINSTAY_GOLDEN").is_some() {
            std::fs::write(&file, played).unwrap();
        } else if played != text {
            let differs = played.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or(0);
            differing.push(format!("{} differs from line {}:\n{played}", file.display(), differs + 1));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

fn conversation(text: &str, file: &Path) -> String {
    let mut player = Player::new();
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
    processes: Vec<Process>,
    /// Nodes that renew nothing.
    silent: BTreeSet<String>,
}

impl Player {
    fn new() -> Self {
        Self { world: World::new(), processes: vec![Process::default()], silent: BTreeSet::new() }
    }

    fn play(&mut self, script: &[&str]) -> String {
        let mut said = String::new();
        let mut lines = script.iter();
        while let Some(line) = lines.next() {
            if *line == "apply" {
                let rest: Vec<&str> = lines.by_ref().copied().collect();
                for document in rest.join("\n").split("\n---\n") {
                    self.world.apply(serde_saphyr::from_str(document).unwrap());
                }
            } else if let Some(line) = line.strip_prefix("second ") {
                if self.processes.len() == 1 {
                    self.processes.push(Process::default());
                    self.world.restart(1);
                }
                said += &self.command(1, line);
            } else if !line.is_empty() && !line.starts_with('#') {
                said += &self.command(0, line);
            }
        }
        said
    }

    fn command(&mut self, process: usize, line: &str) -> String {
        let line = &self.named(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["pass", time] => self.pass(span(time)),
            ["restart"] => self.restart(process),
            ["silence", node] => drop(self.silent.insert((*node).to_owned())),
            ["hear", node] => drop(self.silent.remove(*node)),
            ["hold", kind] => self.world.hold(process, kind, true),
            ["release", kind] => self.world.hold(process, kind, false),
            ["dies", after] => self.world.dies_after = Some(after.parse().unwrap()),
            ["meanwhile", ..] => {
                let action = self.action(line.strip_prefix("meanwhile ").unwrap()).unwrap();
                self.world.meanwhile.push(action);
            }
            ["measure", name, figures @ ..] => self.processes[process].measure(&self.world, name, figures),
            ["garbage", kind, name] => return self.look(process, &["garbage", kind, name]).0,
            ["show", kind, name, pointer] => {
                let all = self.world.store.all(kind);
                let found = all.filter(|one| one["metadata"]["name"].as_str().is_some_and(|own| own.starts_with(name)));
                let exact = |one: &&Value| one["metadata"]["name"] != *name;
                let found = found.min_by_key(exact).and_then(|one| one.pointer(pointer).cloned());
                return format!("{}\n", found.unwrap_or(Value::Null));
            }
            ["pods"] => return format!("{}\n", self.world.shown()),
            _ => {
                if let Some(action) = self.action(line) {
                    self.world.act(&action).unwrap();
                } else if !self.agent(&words, line) {
                    return self.settle(process, &words, line);
                }
            }
        }
        String::new()
    }

    /// The line with `web-@2` as the name of the second ReplicaSet that was made for `web`.
    fn named(&self, line: &str) -> String {
        let Some((before, after)) = line.split_once("-@") else { return line.to_owned() };
        let prefix = format!("{}-", before.rsplit(' ').next().unwrap());
        let (number, rest) = after.split_at(1);
        let sets = self.world.store.all("ReplicaSet").map(|set| &set["metadata"]);
        let mut sets: Vec<(u64, &str)> = sets
            .filter_map(|meta| {
                Some((meta["uid"].as_str()?.strip_prefix("uid-")?.parse().ok()?, meta["name"].as_str()?))
            })
            .filter(|(_, name)| name.starts_with(&prefix))
            .collect();
        sets.sort_unstable();
        let name = sets[number.parse::<usize>().unwrap() - 1].1;
        line.replacen(&format!("{prefix}@{number}{rest}"), &format!("{name}{rest}"), 1)
    }

    /// What a user does.
    fn action(&self, line: &str) -> Option<Action> {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["delete", kind, name] => Some(Action::delete(target(&self.world, kind, name))),
            ["patch", kind, name, patch] => {
                Some(Action::Patch(target(&self.world, kind, name), serde_json::from_str(patch).unwrap()))
            }
            _ => None,
        }
    }

    /// What happens on nodes and at the API server; whether the line was about that.
    fn agent(&mut self, words: &[&str], line: &str) -> bool {
        let world = &mut self.world;
        match words {
            ["jump", time] => match time.strip_prefix('-') {
                Some(back) => world.now -= span(back),
                None => world.now += span(time),
            },
            ["refuse", ..] => world.refuse_pods = line.strip_prefix("refuse ").map(str::to_owned),
            ["evict", pod] => {
                let key = ObjectKey::of(&*find(world, pod));
                world.evict(&key);
            }
            ["start", pod] => world.start_pod(&find(world, pod)),
            ["fail", pod] => world.change_pod(&find(world, pod), |pod| {
                pod["status"]["conditions"][0]["status"] = json!("False");
            }),
            ["stop", pod] => world.stop_pod(&find(world, pod)),
            ["end", pod, code] => world.end_pod(&find(world, pod), code.parse().unwrap()),
            ["schedule", pod, node] => world.change_pod(&find(world, pod), |pod| pod["spec"]["nodeName"] = json!(node)),
            _ => return false,
        }
        true
    }

    /// Time goes by; nodes that are not silent renew their Leases, and every process judges.
    fn pass(&mut self, time: Duration) {
        if self.world.store.all("Lease").next().is_none() {
            return self.world.pass(time);
        }
        let until = self.world.monotonic + time;
        while self.world.monotonic < until {
            self.world.pass(BEAT.min(until.saturating_sub(self.world.monotonic)));
            self.world.renew_leases(&self.silent);
            for (process, sight) in self.processes.iter().zip(&self.world.sights) {
                process.judge(self.world.monotonic, &sight.caches);
            }
        }
    }

    fn restart(&mut self, process: usize) {
        self.processes[process] = Process::default();
        self.world.restart(process);
    }

    fn settle(&mut self, process: usize, words: &[&str], line: &str) -> String {
        let Some((&"settle", words)) = words.split_last() else { return self.look(process, words).0 };
        let mut said = String::new();
        for _ in 0..100 {
            let (more, done) = self.look(process, words);
            said += &more;
            if done {
                return said;
            }
        }
        panic!("{line}: no rest\n{said}");
    }

    /// One look: its actions and why; whether there was nothing to do.
    fn look(&mut self, process: usize, words: &[&str]) -> (String, bool) {
        let Look { plan, done, stopped } = self.processes[process].look(&mut self.world, process, words);
        let mut said = String::new();
        for (index, action) in plan.actions.iter().enumerate() {
            writeln!(said, "{}{action}", if index < done { "" } else { "not done: " }).unwrap();
        }
        match &stopped {
            Some(Stopped::Refused(error)) => writeln!(said, "refused: {error}").unwrap(),
            Some(Stopped::Conflict(target)) => writeln!(said, "conflict: {target} has changed meanwhile").unwrap(),
            Some(Stopped::Died) => {
                self.restart(process);
                said += "the process dies, and comes up again\n";
            }
            None => {}
        }
        let again = plan.requeue_after.map_or_else(String::new, |after| format!("; again in {after:?}"));
        writeln!(said, "({}{again})", plan.why).unwrap();
        let idle = plan.actions.iter().all(|action| matches!(action, Action::Note(_)));
        (said, idle || matches!(stopped, Some(Stopped::Refused(_))))
    }
}

fn span(text: &str) -> Duration {
    let number = text.trim_end_matches(char::is_alphabetic);
    let millis = match text.strip_prefix(number).unwrap() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => panic!("no time: {text}"),
    };
    Duration::from_millis(number.parse::<u64>().unwrap() * millis)
}

/// An object by kind and name; the beginning of a name will do.
pub(super) fn target(world: &World, kind: &str, name: &str) -> Target {
    let resource = mainstay_model::resource::known(kind);
    let namespace = if resource.namespaced { "shop" } else { "" };
    let key = ObjectKey::new(namespace, name);
    let mut target = Target { resource, key, uid: None };
    if world.get(&target).is_none() {
        let mut alike = world.store.objects.keys().filter(|(own, key)| own == kind && key.name.starts_with(name));
        target.key = alike.next().unwrap_or_else(|| panic!("no {kind} {name}")).1.clone();
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
