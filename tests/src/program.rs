//! The `hooksieve` program: built once, run to its end or kept running.

use crate::tests_folder;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The program, brought up to date once for each run of the tests, so that it is never stale. It
/// stands where cargo puts it: one folder above the tests' own executable.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let own = std::env::current_exe().expect("the tests' executable has a path");
        let folder = own
            .parent()
            .and_then(Path::parent)
            .expect("cargo puts tests into <target>/<profile>/deps");
        let target = folder.parent().expect("a profile is in a target folder");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        // The whole workspace's features, as the tests have: nothing is compiled twice.
        build
            .args(["build", "--quiet", "--locked", "--bin", "hooksieve"])
            .arg("--target-dir")
            .arg(target)
            .current_dir(tests_folder().join(".."));
        // What cargo tells a test of the test's own package. `ring` would be built anew for it, and all
        // that stands on it, and once more when cargo is next called without.
        let told = std::env::vars_os().map(|(name, _)| name);
        for name in told.filter(|name| {
            let name = name.to_string_lossy();
            name == "OUT_DIR"
                || name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
        }) {
            build.env_remove(name);
        }
        if folder.file_name().is_some_and(|name| name != "debug") {
            build.arg("--release");
        }
        let built = build.output().expect("cargo starts");
        assert!(
            built.status.success(),
            "the program does not build:\n{}",
            String::from_utf8_lossy(&built.stderr)
        );
        folder.join("hooksieve")
    })
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Standard output as one JSON value a line.
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let lines = self.stdout.lines();
        let read = |line| match serde_json::from_str(line) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {line}"),
        };
        lines.map(read).collect()
    }
}

/// A command with nothing of the tests' own environment that it could take for its settings.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOOKSIEVE_") {
            command.env_remove(name);
        }
    }
    // Nor what somebody's own `login` has kept.
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command
}

/// Runs a command to its end.
pub fn cli(args: &[&str]) -> Output {
    cli_with(args, &[], b"")
}

/// Runs a command to its end, with variables and something on standard input.
pub fn cli_with(args: &[&str], env: &[(&str, &str)], stdin: &[u8]) -> Output {
    let mut child = command(args)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("standard input is a pipe");
    let stdin = stdin.to_vec();
    // On a thread of its own: the pipe may fill up before the program has read all.
    let writer = std::thread::spawn(move || {
        // A program that does not read closes the pipe, which is its right.
        let _ = input.write_all(&stdin);
    });
    let output = child.wait_with_output().expect("the program ends");
    writer.join().expect("the writer does not panic");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
