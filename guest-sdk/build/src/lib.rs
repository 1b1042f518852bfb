//! Compiles rule crates of this workspace to WebAssembly from a build script, so that a plain
//! `cargo build` is all a person runs. Adds the compilation target where it is missing.
#![allow(
    clippy::print_stdout,
    reason = "build scripts speak to cargo on standard output"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// What reactors are compiled for.
const REACTOR: &str = "wasm32-unknown-unknown";
/// What WASI programs are compiled for.
const COMMAND: &str = "wasm32-wasip1";
const PROFILE: &str = "guest";
/// A rule's own stack. Rust's default of 1 MiB would be memory for every rule, and a page of 64 KiB has
/// room for this one, the statics and an event of 30 kB. The deepest use that was measured, a payload
/// of 64 levels read as a type of the rule's own and printed, takes between 12 and 16 KiB. The linker
/// puts it below the statics, so that what goes deeper leaves memory, which traps, and overwrites
/// nothing.
const STACK_BYTES: u32 = 32_768;

/// Compiles the packages and copies each module to `$OUT_DIR/<package>.wasm`, with `-` as `_`.
///
/// # Panics
/// When a package does not compile, or the target is missing and cannot be added; the message says
/// what to run. A panic is how a build script fails.
pub fn build(packages: &[&str], sources: &[&str]) {
    for source in sources {
        println!("cargo::rerun-if-changed={source}");
    }
    let mut arguments = Vec::new();
    for package in packages {
        arguments.extend(["--package", package]);
    }
    compile(packages, &arguments, REACTOR, "");
}

/// As [`build`], for an example of a package that is a WASI program: `$OUT_DIR/<example>.wasm`. An
/// example, because a second program in a workspace makes a plain `cargo run` ambiguous.
///
/// # Panics
/// As [`build`].
pub fn build_program(package: &str, example: &str, sources: &[&str]) {
    for source in sources {
        println!("cargo::rerun-if-changed={source}");
    }
    let arguments = ["--package", package, "--example", example];
    compile(&[example], &arguments, COMMAND, "examples");
}

/// Compiles what the arguments name, for a target, and takes the modules of these names out of a
/// folder of the profile's.
fn compile(names: &[&str], arguments: &[&str], target: &str, folder: &str) {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    add_target(target);
    // A folder of its own: the outer cargo holds the lock of the usual one.
    let target_dir = out.join("guests");
    let cargo = std::env::var_os("CARGO").expect("cargo sets CARGO");
    let mut build = Command::new(cargo);
    build
        .args([
            "build",
            "--locked",
            "--target",
            target,
            "--profile",
            PROFILE,
        ])
        .arg("--target-dir")
        .arg(&target_dir);
    build.args(arguments);
    // What the outer cargo set for the host is not meant for the guest.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let outer = [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
        ];
        if outer.contains(&name.as_str())
            || name.starts_with("RUSTC_WORKSPACE_WRAPPER")
            || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_CFG_")
        {
            build.env_remove(&name);
        }
    }
    build.env("CARGO_ENCODED_RUSTFLAGS", flags());
    let output = build.output().expect("cargo starts");
    assert!(
        output.status.success(),
        "the rules {names:?} do not compile for {target}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for name in names {
        let file = format!("{}.wasm", name.replace('-', "_"));
        let built = target_dir.join(target).join(PROFILE).join(folder);
        let built = built.join(&file);
        std::fs::copy(&built, out.join(&file))
            .unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    }
}

/// The compiler's flags: a small stack, numbers in the code as short as they can be (the linker leaves
/// five bytes for each otherwise, a tenth of a module), and no path of the building machine in panic
/// messages.
fn flags() -> String {
    let mut flags = vec![
        format!("-Clink-arg=-zstack-size={STACK_BYTES}"),
        "-Clink-arg=--compress-relocations".to_owned(),
    ];
    if let Some(home) = cargo_home() {
        flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
    }
    flags.join("\x1f")
}

fn cargo_home() -> Option<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(home) => Some(home.into()),
        None => Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")),
    }
}

fn add_target(target: &str) {
    if has_target(target) {
        return;
    }
    let added = Command::new("rustup")
        .args(["target", "add", target])
        .output();
    if has_target(target) {
        return;
    }
    let why = match added {
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("rustup: {error}"),
    };
    panic!(
        "rules are compiled for {target}, and this Rust has no standard library for it. \
         Run `rustup target add {target}` (or install your distribution's package, such as \
         libstd-rust-dev-wasm32) and build again. What was tried said: {why}"
    );
}

/// Whether the compiler in use has a standard library for the target.
fn has_target(target: &str) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let Ok(output) = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", target])
        .output()
    else {
        return false;
    };
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success()
        && std::fs::read_dir(libdir).is_ok_and(|files| {
            files
                .flatten()
                .any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
        })
}
