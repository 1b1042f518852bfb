//! `hooksieve build`: a rule's crate as a module, small and checked.

use super::{Failure, check, environment, style};
use hooksieve::config::Config;
use hooksieve::sandbox::strip;
use serde::Deserialize;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The rule's folder, where its Cargo.toml is
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// A configuration file, for limits that differ from the defaults
    #[arg(long, value_name = "FILE", env = "HOOKSIEVE_CONFIG")]
    config: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

const TARGET: &str = "wasm32-unknown-unknown";

/// As much of what cargo tells as is wanted.
#[derive(Deserialize)]
struct Told {
    reason: String,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), &environment())?;
    let module = module(&args.folder)?;
    check::examine(&module, config, args.json)
}

/// Whether a folder is a rule's: its crate makes a module, with the SDK.
pub(super) fn is_rule(folder: &Path) -> bool {
    let text = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let manifest = toml::from_str::<toml::Table>(&text).unwrap_or_default();
    let under = |section: &str, key: &str| manifest.get(section)?.get(key);
    let kinds = under("lib", "crate-type").and_then(toml::Value::as_array);
    let module = kinds.is_some_and(|it| it.iter().any(|kind| kind.as_str() == Some("cdylib")));
    module && under("dependencies", "hooksieve-sdk").is_some()
}

/// Compiles the crate; gives where its module is put.
pub(super) fn module(folder: &Path) -> Result<PathBuf, Failure> {
    let manifest = folder.join("Cargo.toml");
    if !manifest.exists() {
        return Err(Failure::Input(format!(
            "there is no Cargo.toml in {}; `hooksieve new NAME` makes a rule",
            folder.display()
        )));
    }
    add_target()?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release", "--lib", "--target", TARGET])
        // The names are for profiles and for where a rule failed; they are not uploaded.
        .args(["--config", "profile.release.strip=\"debuginfo\""])
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        // Cargo reads `.cargo/config.toml` from where it runs.
        .current_dir(folder)
        .stdout(Stdio::piped());
    let mut running = cargo
        .spawn()
        .map_err(|error| Failure::Input(format!("cargo does not start: {error}; install Rust")))?;
    let mut built = None;
    for line in running
        .stdout
        .take()
        .into_iter()
        .flat_map(|it| BufReader::new(it).lines())
    {
        let told = serde_json::from_str::<Told>(&line?).ok();
        let artifact = told.filter(|it| it.reason == "compiler-artifact");
        let wasm = artifact.and_then(|it| {
            let mut files = it.filenames.into_iter();
            files.find(|file| file.extension().is_some_and(|it| it == "wasm"))
        });
        built = wasm.or(built);
    }
    if !running.wait()?.success() {
        return Err(Failure::Outcome(Some(
            "the rule does not compile; what is wrong stands above".to_owned(),
        )));
    }
    let built = built.ok_or_else(|| {
        Failure::Input(
            "the crate gives no module: its Cargo.toml needs crate-type = [\"cdylib\"] in [lib]"
                .to_owned(),
        )
    })?;
    let name = built.file_name().unwrap_or_default();
    let module = folder.join(MODULES).join(name);
    let failed = |error: String| Failure::input(format!("{}: {error}", module.display()));
    let read = std::fs::read(&built).map_err(|error| failed(error.to_string()))?;
    let stripped = strip(&read).map_err(failed)?;
    let named = folder.join(MODULES).join(NAMES);
    let kept = std::fs::create_dir_all(&named)
        .and_then(|()| std::fs::write(named.join(name), read))
        .and_then(|()| std::fs::write(&module, stripped));
    kept.map_err(|error| failed(error.to_string()))?;
    Ok(module)
}

/// Where the same module is with the names of its functions, from a module on.
const NAMES: &str = "names";

/// Where the names of a module would be, if it was built here.
pub(super) fn names_beside(module: &Path) -> Option<PathBuf> {
    Some(module.parent()?.join(NAMES).join(module.file_name()?))
}

/// Where modules are put, from the rule's folder on.
const MODULES: &str = "target/hooksieve";

/// The module that was built here last, where there is one.
pub(super) fn last(folder: &Path) -> Option<PathBuf> {
    let modules = std::fs::read_dir(folder.join(MODULES)).ok()?;
    let modules = modules.filter_map(|it| Some(it.ok()?.path()));
    let modules = modules.filter(|it| it.extension().is_some_and(|it| it == "wasm"));
    modules.max_by_key(|it| std::fs::metadata(it).and_then(|it| it.modified()).ok())
}

/// Adds what rules are compiled for, where this Rust does not have it.
fn add_target() -> Result<(), Failure> {
    if has_target() {
        return Ok(());
    }
    let dim = style::DIM;
    anstream::eprintln!("{dim}adding the target {TARGET}{dim:#}");
    let added = Command::new("rustup")
        .args(["target", "add", TARGET])
        .output();
    if has_target() {
        return Ok(());
    }
    let why = match added {
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("rustup: {error}"),
    };
    Err(Failure::Input(format!(
        "this Rust has no standard library for {TARGET}: run `rustup target add {TARGET}`, or install your distribution's package of it ({})",
        style::clean(&why)
    )))
}

fn has_target() -> bool {
    let asked = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .output();
    asked.is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout);
        output.status.success() && Path::new(folder.trim()).exists()
    })
}
