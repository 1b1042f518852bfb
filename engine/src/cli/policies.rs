//! `hooksieve policies`: the ready-made rules.

use super::{Failure, style};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List them
    List {
        /// One JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Write each module, and the part of a tenant file that uses it, to a folder
    Export {
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::List { json: true } => {
            let all = hooksieve_policies::ALL.iter().map(|policy| {
                serde_json::json!({
                    "name": policy.name,
                    "summary": policy.summary,
                    "size_bytes": policy.wasm.len(),
                    "sha256": hooksieve::id::Hash::of(policy.wasm),
                })
            });
            anstream::println!("{}", serde_json::Value::Array(all.collect()));
        }
        Command::List { json: false } => {
            let mut table = style::table(&["policy", "what it does", "size"]);
            for policy in &hooksieve_policies::ALL {
                let size = style::bytes(policy.wasm.len() as u64);
                table.add_row([policy.name, policy.summary, &size]);
            }
            anstream::println!("{table}");
            anstream::println!("A tenant's rule names one as module = \"policy:NAME\".");
        }
        Command::Export { folder } => {
            std::fs::create_dir_all(&folder).map_err(Failure::input)?;
            for policy in &hooksieve_policies::ALL {
                for (extension, bytes) in
                    [("wasm", policy.wasm), ("toml", policy.example.as_bytes())]
                {
                    let path = folder.join(policy.name).with_extension(extension);
                    std::fs::write(&path, bytes).map_err(|error| {
                        Failure::Input(format!("{} cannot be written: {error}", path.display()))
                    })?;
                    anstream::println!("{}", path.display());
                }
            }
        }
    }
    Ok(())
}
