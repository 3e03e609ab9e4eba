//! `cargo xtask test`: what continuous integration runs, and what to run before committing.
//!
//! # Flow
//! The steps of [`Step`] in order, each with its time; the first that fails ends the run. A table closes it.
//!
//! # Assumptions
//! Root, a Rust toolchain and a C compiler. The first run needs the network, later ones do not.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::leaks::Snapshot;
use crate::process::{Failure, Outcome, cargo, run as run_command};
use crate::tidy::{self, TidyArgs};
use crate::workspace::Workspace;
use crate::{install, licences};

/// Flags of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Run only this step (repeatable)
    #[arg(long, value_enum)]
    only: Vec<Step>,
    /// Do not look for missing packages and tools
    #[arg(long)]
    skip_install: bool,
    /// Run the tests marked as slow as well (#[ignore]), with `MAINSTAY_NIGHTLY=1` in their environment
    #[arg(long)]
    nightly: bool,
}

/// The steps, in the order in which they run: cheap ones first.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Debian packages and kubectl, where they are missing
    Install,
    /// cargo fmt --check
    Fmt,
    /// The rules of the house
    Tidy,
    /// Licences against deny.toml
    Licences,
    /// cargo clippy, warnings are errors
    Clippy,
    /// Unit tests, property tests, golden files, and each crate's own tests on the real kernel
    Unit,
    /// The real binary, real pods, real kubectl
    E2e,
    /// Nothing may be left on the machine
    Leaks,
}

/// Runs the steps asked for.
pub(crate) fn run(args: &TestArgs) -> Outcome {
    let began = Instant::now();
    let steps: Vec<Step> = Step::value_variants().iter().copied().filter(|step| wanted(*step, args)).collect();
    let workspace = Workspace::load()?;
    let mut before = None;
    let mut times: Vec<(Step, Duration)> = Vec::new();
    for step in steps {
        println!("==> {}", name(step));
        // Listed once the programs that do the listing are installed, and before the first test.
        if before.is_none() && step != Step::Install {
            before = Some(Snapshot::take()?);
        }
        let step_began = Instant::now();
        let outcome = perform(step, args, &workspace, before.as_ref());
        times.push((step, step_began.elapsed()));
        println!("<== {} {:.1} s", name(step), step_began.elapsed().as_secs_f64());
        if let Err(failure) = outcome {
            summary(&times, Some(step), began.elapsed());
            return Err(Failure::Found(format!("step {} failed: {failure}", name(step))));
        }
    }
    summary(&times, None, began.elapsed());
    Ok(())
}

fn wanted(step: Step, args: &TestArgs) -> bool {
    let chosen = args.only.is_empty() || args.only.contains(&step);
    chosen && !(step == Step::Install && args.skip_install)
}

fn perform(step: Step, args: &TestArgs, workspace: &Workspace, before: Option<&Snapshot>) -> Outcome {
    match step {
        Step::Install => install::install(&workspace.target),
        Step::Fmt => run_command(cargo().args(["fmt", "--all", "--check"])),
        Step::Tidy => tidy::run(&TidyArgs::default()),
        Step::Licences => licences::check(),
        Step::Clippy => run_command(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])),
        Step::Unit => unit_tests(args, workspace),
        Step::E2e => end_to_end_tests(args, workspace),
        Step::Leaks => before.map_or(Ok(()), Snapshot::check),
    }
}

fn unit_tests(args: &TestArgs, workspace: &Workspace) -> Outcome {
    // The end-to-end tests share ports and the machine's links; they must not run among the others.
    let runs_along =
        |package: &&crate::workspace::Package| package.targets.iter().any(|it| it.name == "e2e" && it.test);
    if let Some(package) = workspace.members().find(runs_along) {
        return Err(Failure::Found(format!("{}: [[test]] e2e needs `test = false` in Cargo.toml", package.name)));
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--locked", "--quiet"]);
    if args.nightly {
        command.env("MAINSTAY_NIGHTLY", "1").args(["--", "--include-ignored"]);
    }
    run_command(&mut command)
}

fn end_to_end_tests(args: &TestArgs, workspace: &Workspace) -> Outcome {
    if !workspace.members().any(|package| package.targets.iter().any(|target| target.name == "e2e")) {
        println!("no end-to-end tests yet");
        return Ok(());
    }
    let kubectl = install::kubectl(&workspace.target)
        .ok_or_else(|| Failure::Found("kubectl is missing; run `cargo xtask test --only install`".into()))?;
    // --workspace although only one package has them: the same packages selected means the same features, and nothing
    // is compiled a second time.
    let mut command = cargo();
    command.args(["test", "--workspace", "--locked", "--quiet", "--test", "e2e"]).env("MAINSTAY_KUBECTL", kubectl);
    command.args(["--", "--test-threads=1"]);
    if args.nightly {
        command.env("MAINSTAY_NIGHTLY", "1").arg("--include-ignored");
    }
    run_command(&mut command)
}

fn summary(times: &[(Step, Duration)], failed: Option<Step>, whole: Duration) {
    println!("\n{:<10} {:>8}", "step", "seconds");
    for (step, time) in times {
        let verdict = if failed == Some(*step) { "  FAILED" } else { "" };
        println!("{:<10} {:>8.1}{verdict}", name(*step), time.as_secs_f64());
    }
    println!("{:<10} {:>8.1}", "all", whole.as_secs_f64());
}

/// The step's name as `--only` takes it.
fn name(step: Step) -> String {
    step.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default()
}
