//! Hooksieve beside other ways to run a user's rule on an event, and beside its own targets: one table
//! each, from one run. See `README.md`.

mod events;
mod holds;
mod measure;
mod report;
mod runners;

use anyhow::Result;
use clap::{Parser, Subcommand};
use measure::Effort;
use report::Report;
use std::time::Duration;

/// Compares Hooksieve with its peers and with its own targets.
#[derive(Debug, Parser)]
struct Arguments {
    /// One JSON object a line instead of tables.
    #[arg(long, global = true)]
    json: bool,
    /// Measure only these: `peers`, or parts of the second table.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Rows of the first table whose names contain this.
    #[arg(long, default_value = "")]
    runner: String,
    /// Only the first of the three events, or the first two.
    #[arg(long, default_value_t = 3)]
    events: usize,
    /// Rounds of the first table; each gives every row a batch of events.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// About how long a batch takes.
    #[arg(long, default_value_t = 20)]
    batch_ms: u64,
    #[command(flatten)]
    counts: holds::Counts,
    #[command(subcommand)]
    inner: Option<Inner>,
}

/// What this program starts itself, as processes of their own.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Inner {
    /// The server that the row "callback server" asks.
    CallbackServer,
    /// One part of the second table, so that memory and loaded modules are its own.
    Part { name: holds::Part },
    /// Compiles modules into a cache.
    FillCache {
        folder: std::path::PathBuf,
        count: usize,
    },
}

fn main() -> Result<()> {
    // Modules are compiled in a process of their own, which is this program.
    hooksieve::sandbox::compile_if_asked();
    let arguments = Arguments::parse();
    match &arguments.inner {
        Some(Inner::CallbackServer) => runners::serve(),
        Some(Inner::Part { name }) => holds::run(*name, &arguments.counts),
        Some(Inner::FillCache { folder, count }) => holds::modules::fill_here(folder, *count),
        None => compare(&arguments),
    }
}

fn compare(arguments: &Arguments) -> Result<()> {
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|o| o == name);
    let inputs = events::all()?;
    let report = Report::new(arguments.json);
    report.machine(&inputs, &arguments.counts);
    let mut times = Vec::new();
    if wanted("peers") {
        let mut rows = runners::all()?;
        rows.retain(|row| row.name.contains(&arguments.runner));
        report.runners(&rows);
        let effort = Effort {
            rounds: arguments.rounds,
            batch: Duration::from_millis(arguments.batch_ms),
        };
        for input in inputs.iter().take(arguments.events) {
            let measured = measure::measure(&mut rows, input, effort)?;
            report.times(&measured);
            times.extend(measured);
        }
    }
    let mut held = holds::from_times(&times);
    for part in holds::Part::ALL {
        if wanted(part.name()) {
            held.extend(holds::ask(part, &arguments.counts)?);
        }
    }
    report.held(&held);
    Ok(())
}
