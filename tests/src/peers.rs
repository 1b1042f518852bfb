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

/// Says that something cannot be tested, and which command helps.
pub(crate) fn absent(what: &str, helps: &str, variable: &str) -> Absent {
    let variables = |name: &str| std::env::var(name).ok();
    match missing(what, helps, variable, &variables) {
        Ok(sentence) => say(&sentence),
        Err(sentence) => panic!("{sentence}"),
    }
    Absent
}

/// What is said of something that is not here; an error where it must be.
fn missing(
    what: &str,
    helps: &str,
    variable: &str,
    variables: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let set = |name: &str, value: &str| variables(name).is_some_and(|found| found == value);
    let sentence = format!("{what}: `{helps}` helps");
    if set("CI", "true") || set(variable, "1") {
        return Err(format!("CANNOT BE TESTED: {sentence}"));
    }
    Ok(format!(
        "*** NOT TESTED: {sentence}. {variable}=1 makes this a failure. ***"
    ))
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

/// That this user may mount a file system where it alone sees it.
///
/// # Errors
/// When it may not, and the environment does not say that it must be so.
pub fn may_mount() -> Result<(), Absent> {
    let mut mount = Command::new("unshare");
    mount.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs -o size=1m tmpfs /mnt",
    ]);
    if mount.output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    Err(absent(
        "this user may not mount a file system",
        "sudo -E cargo test",
        "HOOKSIEVE_NEED_MOUNT",
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_tested_is_said_and_fails_where_it_must_be_tested() {
        let with = |set: &'static [(&str, &str)]| {
            missing(
                "there is no disk",
                "mount",
                "HOOKSIEVE_NEED_MOUNT",
                &|name| {
                    let found = set.iter().find(|(known, _)| *known == name);
                    found.map(|(_, value)| (*value).to_owned())
                },
            )
        };
        for needed in [&[("CI", "true")], &[("HOOKSIEVE_NEED_MOUNT", "1")]] {
            let sentence = with(needed).unwrap_err();
            assert_eq!(
                sentence,
                "CANNOT BE TESTED: there is no disk: `mount` helps"
            );
        }
        let sentence = with(&[("CI", "false")]).unwrap();
        assert!(sentence.contains("HOOKSIEVE_NEED_MOUNT=1 makes this a failure"));
    }
}
