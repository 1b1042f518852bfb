//! Other people's programs that the tests talk to: they are asked for, and where they are missing
//! that is said loudly. With `CI=true` it fails, or with the variable that stands in what is said.

use crate::{say, tests_folder};
use std::process::Command;

/// A peer that is not on this machine.
#[derive(Debug)]
pub struct Absent;

/// Node.js with the packages of `tests/js/package.json`.
pub struct Node(());

/// Python with the packages of `tests/py/requirements.txt`.
pub struct Python(());

pub(crate) fn absent(what: &str, install: &str, variable: &str) -> Absent {
    let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let needed = set("CI", "true") || set(variable, "1");
    let sentence = format!("{what}: `{install}` installs it");
    assert!(!needed, "CANNOT BE TESTED: {sentence}");
    say(&format!(
        "*** NOT TESTED: {sentence}. {variable}=1 makes this a failure. ***"
    ));
    Absent
}

/// Node.js, where it is there with its packages.
///
/// # Errors
/// When it is not, and the environment does not say that it must be.
pub fn node() -> Result<Node, Absent> {
    let version = Command::new("node").arg("--version").output();
    let runs = version.is_ok_and(|output| output.status.success());
    let packages = tests_folder().join("js/node_modules");
    let has = |name: &str| packages.join(name).join("package.json").exists();
    if runs
        && has("@octokit/webhooks")
        && has("@octokit/webhooks-examples")
        && has("standardwebhooks")
    {
        return Ok(Node(()));
    }
    Err(absent(
        "node with the packages of tests/js is not here",
        "npm ci --prefix tests/js",
        "HOOKSIEVE_NEED_JS",
    ))
}

/// Node.js that drives a browser, where both are there.
///
/// # Errors
/// When they are not, and the environment does not say that they must be.
pub fn browser() -> Result<Node, Absent> {
    let there = |path: &std::path::Path| path.exists();
    let packages = tests_folder().join("js/node_modules");
    let drives = there(&packages.join("playwright-core")) && there(&packages.join("axe-core"));
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    if drives && there(chromium.as_ref()) {
        return Ok(Node(()));
    }
    Err(absent(
        "chromium, or node with the packages of tests/js, is not here",
        "apt-get install chromium; npm ci --prefix tests/js",
        "HOOKSIEVE_NEED_BROWSER",
    ))
}

/// Python, where it is there with its packages.
///
/// # Errors
/// When it is not, and the environment does not say that it must be.
pub fn python() -> Result<Python, Absent> {
    let import = Command::new("python3")
        .args([
            "-c",
            "import aiosmtpd, dkim, dnslib, nacl, rsa, schemathesis",
        ])
        .output();
    if import.is_ok_and(|output| output.status.success()) {
        return Ok(Python(()));
    }
    Err(absent(
        "python3 with the packages of tests/py is not here",
        "pip install -r tests/py/requirements.txt",
        "HOOKSIEVE_NEED_PY",
    ))
}

/// Whether this user may mount a file system where it alone sees it; said loudly where not.
pub fn may_mount() -> bool {
    let mut mount = Command::new("unshare");
    mount.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs -o size=1m tmpfs /mnt",
    ]);
    let may = mount.output().is_ok_and(|output| output.status.success());
    if !may {
        let needed = std::env::var("HOOKSIEVE_NEED_MOUNT").is_ok_and(|found| found == "1");
        assert!(
            !needed,
            "CANNOT BE TESTED: this user may not mount a file system"
        );
        say(
            "*** NOT TESTED: this user may not mount a file system. HOOKSIEVE_NEED_MOUNT=1 makes this a failure. ***",
        );
    }
    may
}

/// The library that changes a program's clock, where it is there.
///
/// # Errors
/// When it is not, and the environment does not say that it must be.
pub fn faketime() -> Result<String, Absent> {
    let folders = [
        "x86_64-linux-gnu/faketime",
        "aarch64-linux-gnu/faketime",
        "faketime",
    ];
    let found = folders
        .map(|folder| format!("/usr/lib/{folder}/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    found.ok_or_else(|| {
        absent(
            "libfaketime is not here",
            "apt-get install faketime",
            "HOOKSIEVE_NEED_FAKETIME",
        )
    })
}

impl Node {
    /// A script of `tests/js`.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new("node");
        command.arg(tests_folder().join("js").join(name));
        command
    }
}

impl Python {
    /// A script of `tests/py`.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new("python3");
        command.arg("-u").arg(tests_folder().join("py").join(name));
        command
    }

    /// What asks an API for all that its description says, with `tests/py/schemathesis.toml`.
    pub fn schemathesis(&self) -> Command {
        let mut command = Command::new("python3");
        let settings = tests_folder().join("py/schemathesis.toml");
        command
            .args(["-m", "schemathesis.cli", "--config-file"])
            .arg(settings);
        // It keeps notes where it is started.
        command.current_dir(std::env::temp_dir());
        command
    }
}
