//! Puts the SDK's sources into the program, so that `hooksieve new` makes a rule that builds anywhere.
#![allow(
    clippy::print_stdout,
    reason = "build scripts speak to cargo on standard output"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Crates of the SDK: where each is in the workspace, and where it is put.
const CRATES: [(&str, &str); 2] = [
    ("guest-sdk", "hooksieve-sdk"),
    ("guest-sdk/macros", "hooksieve-sdk-macros"),
];

/// What authors read, where a crate has it.
const DOCUMENTS: [&str; 3] = ["README.md", "ABI.md", "ERRORS.md"];

fn main() {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let workspace = Path::new(&own).parent().expect("a crate of the workspace");
    let root = read(&workspace.join("Cargo.toml"));
    println!(
        "cargo::rerun-if-changed={}",
        workspace.join("Cargo.toml").display()
    );
    let mut listed = String::from("pub(super) const SDK: &[(&str, &str)] = &[\n");
    for (from, to) in CRATES {
        let folder = workspace.join(from);
        println!("cargo::rerun-if-changed={}", folder.join("src").display());
        println!(
            "cargo::rerun-if-changed={}",
            folder.join("Cargo.toml").display()
        );
        let manifest = standalone(&read(&folder.join("Cargo.toml")), &root);
        writeln!(listed, "({:?}, {manifest:?}),", format!("{to}/Cargo.toml")).expect("a string");
        let documents = DOCUMENTS.map(|name| folder.join(name));
        let documents = documents.into_iter().filter(|path| path.exists());
        for path in documents.clone() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        for file in sources(&folder.join("src")).into_iter().chain(documents) {
            let inside = file.strip_prefix(&folder).expect("it is inside");
            let name = format!("{to}/{}", inside.display());
            writeln!(listed, "({name:?}, {:?}),", read(&file)).expect("a string");
        }
    }
    listed.push_str("];\n");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("sdk.rs"), listed).expect("OUT_DIR takes a file");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the SDK has sources") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A crate's manifest without its workspace: what it takes from there is written out, and what only its own
/// development needs is left out.
fn standalone(manifest: &str, root: &str) -> String {
    let mut out = String::new();
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        if ["[dev-dependencies]", "[lints]"].contains(&section) || line.starts_with("readme") {
            continue;
        }
        let Some(key) = line.strip_suffix(".workspace = true") else {
            writeln!(out, "{line}").expect("a string");
            continue;
        };
        if key == "hooksieve-sdk-macros" {
            writeln!(out, "{key} = {{ path = \"../{key}\" }}").expect("a string");
            continue;
        }
        let value = root.lines().find_map(|it| {
            let value = it.strip_prefix(key)?.trim_start().strip_prefix('=')?;
            Some(value.split(" #").next().unwrap_or(value).trim())
        });
        let value = value.unwrap_or_else(|| panic!("the workspace has no `{key}`"));
        writeln!(out, "{key} = {value}").expect("a string");
    }
    out
}
