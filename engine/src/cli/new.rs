//! `hooksieve new`: a rule that builds, with tests and sample events.

use super::{Failure, style};
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What it is called: letters, digits, - and _
    #[arg(value_name = "NAME")]
    name: String,
    /// What it begins with
    #[arg(long, value_enum, default_value = "github")]
    template: Template,
    /// The folder that it is made in [default: one of its name, here]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Template {
    /// Issues and CI runs of GitHub
    Github,
    /// Orders of a Shopify shop
    Shopify,
    /// Any program's alerts
    Json,
}

/// A template's rule, and its sample events by file name.
struct Parts {
    rule: &'static str,
    events: [(&'static str, &'static str); 3],
}

macro_rules! parts {
    ($folder:literal, $one:literal, $two:literal, $three:literal) => {
        Parts {
            rule: include_str!(concat!("../../templates/", $folder, "/lib.rs")),
            events: [
                (
                    $one,
                    include_str!(concat!("../../templates/", $folder, "/events/", $one)),
                ),
                (
                    $two,
                    include_str!(concat!("../../templates/", $folder, "/events/", $two)),
                ),
                (
                    $three,
                    include_str!(concat!("../../templates/", $folder, "/events/", $three)),
                ),
            ],
        }
    };
}

impl Template {
    fn parts(self) -> Parts {
        match self {
            Template::Github => parts!(
                "github",
                "1-issue-opened.json",
                "2-bot-comment.json",
                "3-run-failed.json"
            ),
            Template::Shopify => parts!(
                "shopify",
                "1-large-order.json",
                "2-small-order.json",
                "3-order-paid.json"
            ),
            Template::Json => parts!(
                "json",
                "1-disk-full.json",
                "2-load-high.json",
                "3-backup-done.json"
            ),
        }
    }
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let name = args.name.as_str();
    let fits = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_');
    let begins = name
        .chars()
        .next()
        .is_some_and(|it| it.is_ascii_alphabetic());
    if !begins || !name.chars().all(fits) || name.len() > 64 {
        return Err(Failure::Input(format!(
            "{name:?} is no name of a rule: it begins with a letter, and has up to 64 letters, digits, - and _"
        )));
    }
    let folder = args.folder.unwrap_or_else(|| name.into());
    if folder.exists() {
        return Err(Failure::Input(format!(
            "there is something at {} already; take another name, or another folder with --folder",
            folder.display()
        )));
    }
    let Parts { rule, events } = args.template.parts();
    write(&folder.join("Cargo.toml"), &manifest(name))?;
    write(&folder.join(".cargo/config.toml"), CARGO_CONFIG)?;
    write(&folder.join(".gitignore"), "/target\n")?;
    write(&folder.join("src/lib.rs"), rule)?;
    for (file, text) in events {
        write(&folder.join("events").join(file), text)?;
    }
    for (file, text) in SDK {
        write(&folder.join("sdk").join(file), text)?;
    }
    let (good, dim) = (style::GOOD, style::DIM);
    anstream::println!("{good}made{good:#} {}", folder.display());
    anstream::println!("  src/lib.rs   the rule, with its tests");
    anstream::println!("  events/      three events to try it on");
    anstream::println!(
        "  sdk/         what it is written with; sdk/hooksieve-sdk/README.md tells all of it"
    );
    anstream::println!("Next:");
    anstream::println!("  cd {}", folder.display());
    anstream::println!("  cargo test               {dim}# as a function{dim:#}");
    anstream::println!(
        "  hooksieve replay         {dim}# builds it, and runs events/ with the limits of an engine{dim:#}"
    );
    anstream::println!("  hooksieve build          {dim}# as a module, checked, to push{dim:#}");
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error| Failure::input(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, text).map_err(failed)
}

/// As what rules of this project are compiled with: every byte is checked, compiled and kept.
fn manifest(name: &str) -> String {
    format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"

[lib]
crate-type = ["cdylib"]

[dependencies]
hooksieve-sdk = {{ path = "sdk/hooksieve-sdk" }}

# A workspace of its own, wherever it lies.
[workspace]

# Small first: every byte is checked, compiled and kept.
[profile.release]
opt-level = "s"
lto = true
codegen-units = 1
panic = "abort"
strip = true
"#
    )
}

/// A stack of 32 KiB instead of 1 MiB, and numbers in the code as short as they can be.
const CARGO_CONFIG: &str = r#"# A stack of 32 KiB instead of 1 MiB, and numbers in the code as short as they can be.
[target.wasm32-unknown-unknown]
rustflags = ["-Clink-arg=-zstack-size=32768", "-Clink-arg=--compress-relocations"]
"#;
