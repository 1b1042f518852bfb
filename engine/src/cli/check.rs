//! `hooksieve check`: whether a module is accepted, and if not, why and what to do.

use super::{Failure, environment, style};
use hooksieve::config::Config;
use hooksieve::id::Hash;
use hooksieve::sandbox::{Checked, Refused, Sandbox};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The module
    #[arg(value_name = "FILE.wasm")]
    module: PathBuf,
    /// A configuration file, for limits that differ from the defaults
    #[arg(long, value_name = "FILE", env = "HOOKSIEVE_CONFIG")]
    config: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), &environment())?;
    examine(&args.module, config, args.json)
}

/// Says of a module whether it is accepted.
pub(super) fn examine(module: &Path, config: Config, as_json: bool) -> Result<(), Failure> {
    let wasm = std::fs::read(module)
        .map_err(|error| Failure::Input(format!("{} cannot be read: {error}", module.display())))?;
    let sandbox = Sandbox::new(config.limits).compile_in_child(config.compile);
    let started = Instant::now();
    // The compiler has the last word, so that what is accepted here is accepted by `serve`.
    let checked = sandbox.check(&wasm);
    let outcome = checked.and_then(|checked| sandbox.compile(wasm.as_slice()).map(|_| checked));
    let took = started.elapsed();
    if as_json {
        anstream::println!("{}", json(&wasm, &outcome));
        return outcome.map(|_| ()).map_err(|_| Failure::Outcome(None));
    }
    let file = module.display();
    match outcome {
        Ok(checked) => {
            let (good, dim) = (style::GOOD, style::DIM);
            anstream::println!("{good}accepted{good:#} {file}");
            anstream::println!(
                "  size     {} of {} ({:.0} %)",
                style::bytes(wasm.len() as u64),
                style::bytes(sandbox.limits().module_bytes as u64),
                100.0 * wasm.len() as f64 / sandbox.limits().module_bytes as f64
            );
            anstream::println!(
                "  memory   starts with {} of {}",
                style::bytes(checked.memory_bytes()),
                style::bytes(sandbox.limits().memory_bytes)
            );
            anstream::println!("  sha256   {}", Hash::of(&wasm));
            anstream::println!(
                "  {dim}checked and compiled in {} ms{dim:#}",
                took.as_millis()
            );
            Ok(())
        }
        Err(refused) => {
            let bad = style::BAD;
            anstream::println!("{bad}refused{bad:#}  {file}");
            anstream::println!("  why      {}", style::clean(&refused.to_string()));
            anstream::println!("  do       {}", refused.fix());
            Err(Failure::Outcome(None))
        }
    }
}

fn json(wasm: &[u8], outcome: &Result<Checked<'_>, Refused>) -> serde_json::Value {
    let common = serde_json::json!({
        "accepted": outcome.is_ok(),
        "sha256": Hash::of(wasm),
        "size_bytes": wasm.len(),
    });
    let more = match outcome {
        Ok(checked) => serde_json::json!({ "memory_bytes": checked.memory_bytes() }),
        Err(refused) => serde_json::json!({
            "kind": refused.kind(),
            "error": refused.to_string(),
            "fix": refused.fix(),
        }),
    };
    let mut all = common;
    if let (Some(all), serde_json::Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
    }
    all
}
