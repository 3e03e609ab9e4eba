//! Golden transcripts: what the real kubectl prints against this server, command by command.
//!
//! A file in `tests/transcripts` is a conversation: lines that begin with `$ ` are given to a shell (`> ` continues
//! them), what follows is what the shell printed, and `[exit N]` stands for a status other than zero. Each file has a
//! namespace of its own, named like the file. What differs from run to run (times, ages, addresses, uids, random parts
//! of names) is replaced by a word in capitals before comparing.
//!
//! `MAINSTAY_BLESS=1` writes the files anew; the difference is then reviewed like code.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use regex::Regex;

use crate::cluster::Cluster;

/// How long one command may take; `timeout` of coreutils ends it.
const SECONDS_MAX: &str = "60";

/// Patterns of what is different in every run, and what stands for it, in this order.
static VARIABLE: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let rules = [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "TIME"),
        (r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "TIME"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
        (r#"(resourceVersion"?: *"?)\d+"#, "${1}REVISION"),
        (r"\b10\.\d+\.\d+\.\d+\b", "ADDRESS"),
        (r"127\.0\.0\.1:\d+", "SERVER"),
        (r"\bnode-[123]\b", "NODE"),
        (r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", "TOKEN"),
        (r"-([0-9a-z]{8,10})-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "-HASH-RANDOM"),
        (r"X509SHA256=[0-9a-f]{64}", "X509SHA256=HASH"),
        (r"^W\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ", "W "),
        (r"\bmade-[a-z0-9]{5}\b", "made-RANDOM"),
        (r":3[0-2]\d{3}/TCP", ":NODEPORT/TCP"),
        (r"(^|[ (])\d+(\.\d+)?(ms|s|m|h|d)(\d+s)?( ago)?([ )]|$)", "${1}AGE${5}${6}"),
        (r"(\S) {2,}", "${1}  "),
    ];
    rules.into_iter().map(|(pattern, word)| (Regex::new(pattern).unwrap(), word)).collect()
});

fn normal(text: &str) -> String {
    let mut all = String::new();
    for line in text.lines() {
        let mut line = line.trim_end().to_owned();
        for (pattern, word) in VARIABLE.iter() {
            line = pattern.replace_all(&line, *word).into_owned();
        }
        all.push_str(&line);
        all.push('\n');
    }
    all
}

/// One command with what it should print.
struct Step {
    /// The lines before the command: comments.
    remarks: String,
    command: String,
    expected: String,
}

fn read(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut remarks = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            let remarks = std::mem::take(&mut remarks);
            steps.push(Step { remarks, command: command.to_owned(), expected: String::new() });
        } else if let (Some(more), Some(step)) = (line.strip_prefix("> "), steps.last_mut()) {
            step.command = format!("{}\n{more}", step.command);
        } else if line.starts_with("## ") || steps.is_empty() {
            remarks = format!("{remarks}{line}\n");
        } else if let Some(step) = steps.last_mut() {
            step.expected = format!("{}{line}\n", step.expected);
        }
    }
    steps
}

/// Where a conversation takes place: its kubeconfig with its namespace, and a `kubectl` on the path.
struct Shell<'a> {
    cluster: &'a Cluster,
    home: PathBuf,
}

impl<'a> Shell<'a> {
    fn new(cluster: &'a Cluster, namespace: &str) -> Self {
        let home = cluster.dir().join("shell").join(namespace);
        std::fs::create_dir_all(home.join("bin")).unwrap();
        std::fs::copy(cluster.dir().join("kubeconfig"), home.join("kubeconfig")).unwrap();
        let kubectl = cluster.kubectl(&[]).get_program().to_owned();
        std::os::unix::fs::symlink(which(Path::new(&kubectl)), home.join("bin/kubectl")).unwrap();
        let shell = Self { cluster, home };
        shell.run(&format!(
            "kubectl create -f - <<E\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}\nE"
        ));
        shell.run(&format!("kubectl config set-context --current --namespace={namespace}"));
        shell
    }

    fn run(&self, command: &str) -> String {
        let path = format!("{}:{}", self.home.join("bin").display(), std::env::var("PATH").unwrap());
        let output = Command::new("timeout")
            .args([SECONDS_MAX, "bash", "-c", &format!("exec 2>&1\n{command}")])
            .current_dir(&self.home)
            .env("PATH", path)
            .env("HOME", &self.home)
            .env("KUBECONFIG", self.home.join("kubeconfig"))
            .env("KUBECACHEDIR", self.cluster.dir().join("kubectl-cache"))
            .env("EXAMPLES", crate::cluster::example("examples"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let mut text = normal(&String::from_utf8_lossy(&output.stdout));
        if !output.status.success() {
            writeln!(text, "[exit {}]", output.status.code().unwrap_or(-1)).unwrap();
        }
        text
    }
}

fn which(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return std::fs::canonicalize(program).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.exists()).unwrap()
}

/// Plays one file; answers what it should say and what it says.
fn play(cluster: &Cluster, file: &Path) -> (String, String) {
    let namespace = file.file_stem().unwrap().to_str().unwrap();
    let shell = Shell::new(cluster, namespace);
    let text = std::fs::read_to_string(file).unwrap();
    let (mut expected, mut actual) = (String::new(), String::new());
    for step in read(&text) {
        let head = format!("{}$ {}\n", step.remarks, step.command.replace('\n', "\n> "));
        write!(expected, "{head}{}", step.expected).unwrap();
        write!(actual, "{head}{}", shell.run(&step.command)).unwrap();
    }
    shell.run(&format!("kubectl delete namespace {namespace} --wait=false"));
    (expected, actual)
}

#[test]
fn kubectl_hears_what_the_transcripts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let wanted = std::env::var("MAINSTAY_TRANSCRIPT").unwrap_or_default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_stem().is_some_and(|stem| stem.to_string_lossy().contains(&wanted)));
    files.sort();
    let cluster = Cluster::up(&[]);
    let mut different = String::new();
    for file in &files {
        let (expected, actual) = play(&cluster, file);
        if expected == actual {
            continue;
        }
        if std::env::var_os("MAINSTAY_BLESS").is_some() {
            std::fs::write(file, &actual).unwrap();
        } else {
            writeln!(different, "{}\n{}", file.display(), difference(&expected, &actual)).unwrap();
        }
    }
    assert!(different.is_empty(), "transcripts differ (- written, + now):\n{different}");
}

/// The lines that differ, with a few around them, as `diff -u` shows them.
fn difference(expected: &str, actual: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("written"), folder.path().join("now"));
    std::fs::write(&a, expected).unwrap();
    std::fs::write(&b, actual).unwrap();
    let output = Command::new("diff").arg("-u").args([a, b]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}
