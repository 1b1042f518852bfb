//! What must hold besides the comparison: figures of Hooksieve alone, each part measured in a process
//! of its own, so that memory and loaded modules are its own.

pub(crate) mod modules;
mod rules;
mod soak;
mod threads;
mod traps;
mod upload;

use crate::measure::Times;
use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::process::{Command, Stdio};

/// How much of what is measured.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Counts {
    /// Different rules in memory at once (stated for 10000; each compiles for 15 ms).
    #[arg(long, global = true, default_value_t = 500)]
    rules: usize,
    /// Decisions in one process, traps and exhausted fuel among them (stated for 10000000).
    #[arg(long, global = true, default_value_t = 500_000)]
    soak: usize,
    /// Modules loaded and dropped (stated for 20000).
    #[arg(long, global = true, default_value_t = 500)]
    churn: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rules, soak, churn } = self;
        write!(
            f,
            "--rules {rules} --soak {soak} --churn {churn} (stated for 10000, 10000000 and 20000)"
        )
    }
}

/// A part of the second table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Threads,
    Traps,
    Rules,
    Upload,
    Soak,
    Churn,
}

impl Part {
    pub(crate) const ALL: [Part; 6] = [
        Part::Threads,
        Part::Traps,
        Part::Rules,
        Part::Upload,
        Part::Soak,
        Part::Churn,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Part::Threads => "threads",
            Part::Traps => "traps",
            Part::Rules => "rules",
            Part::Upload => "upload",
            Part::Soak => "soak",
            Part::Churn => "churn",
        }
    }
}

/// One figure beside its target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) what: String,
    pub(crate) target: String,
    pub(crate) reached: String,
    /// `None` for what has no target.
    pub(crate) holds: Option<bool>,
    pub(crate) how: String,
}

impl Held {
    /// A figure that must not be larger than its target.
    fn at_most(what: impl Into<String>, reached: f64, target: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            target: format!("at most {}", figure(target, unit)),
            reached: figure(reached, unit),
            holds: Some(reached <= target),
            how: String::new(),
        }
    }

    /// A figure that must not be smaller than its target.
    fn at_least(what: impl Into<String>, reached: f64, target: f64, unit: &str) -> Self {
        Self {
            target: format!("at least {}", figure(target, unit)),
            holds: Some(reached >= target),
            ..Self::at_most(what, reached, target, unit)
        }
    }

    /// A figure to know.
    fn known(what: impl Into<String>, reached: f64, unit: &str) -> Self {
        Self {
            target: String::new(),
            holds: None,
            ..Self::at_most(what, reached, 0.0, unit)
        }
    }

    fn how(mut self, how: impl Into<String>) -> Self {
        self.how = how.into();
        self
    }
}

fn figure(figure: f64, unit: &str) -> String {
    let digits = match figure {
        f if f >= 1_000.0 => 0,
        f if f >= 100.0 => 1,
        _ => 2,
    };
    format!("{figure:.digits$}{unit}")
}

/// What must hold between rows of the first table.
pub(crate) fn from_times(times: &[Times]) -> Vec<Held> {
    let smallest = times.iter().map(|row| row.payload_bytes).min();
    let largest = times.iter().map(|row| row.payload_bytes).max();
    let mean = |runner: &str, bytes: Option<usize>| {
        let row = times
            .iter()
            .find(|row| row.runner == runner && Some(row.payload_bytes) == bytes);
        row.map(|row| row.mean_us)
    };
    let warm = mean(crate::runners::REFERENCE, smallest);
    // The better of the two is wasmtime at its best.
    let tuned = [
        mean("wasmtime, pooling, tuned", smallest),
        mean("wasmtime, pooling, tuned, PAGEMAP_SCAN", smallest),
    ];
    let tuned = tuned.into_iter().flatten().reduce(f64::min);
    let ratios = [
        (
            "warm reset : wasmtime pooling at its best",
            warm,
            tuned,
            0.6,
        ),
        (
            "warm reset : wasmtime pooling, defaults",
            warm,
            mean("wasmtime, pooling, defaults", smallest),
            0.1,
        ),
        (
            "warm reset : extism",
            warm,
            mean("extism, fresh plugin", smallest),
            0.02,
        ),
        (
            "warm reset : callback server",
            warm,
            mean("callback server", smallest),
            0.05,
        ),
        (
            "warm reset : no reset",
            warm,
            mean("hooksieve, no reset", smallest),
            2.0,
        ),
        (
            "new instance : wasmtime pooling at its best",
            mean("hooksieve, new instance", smallest),
            tuned,
            1.5,
        ),
        (
            "warm reset, largest event : smallest",
            mean(crate::runners::REFERENCE, largest),
            warm,
            3.0,
        ),
    ];
    ratios
        .into_iter()
        .filter_map(|(what, ours, theirs, target)| {
            Some(Held::at_most(what, ours? / theirs?, target, "").how("means of the first table"))
        })
        .collect()
}

/// Has another process measure a part.
pub(crate) fn ask(part: Part, counts: &Counts) -> Result<Vec<Held>> {
    let output = Command::new(std::env::current_exe()?)
        .arg("part")
        .arg(part.name())
        .arg(format!("--rules={}", counts.rules))
        .arg(format!("--soak={}", counts.soak))
        .arg(format!("--churn={}", counts.churn))
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "{} ended with {}",
        part.name(),
        output.status
    );
    let line = output.stdout.as_slice();
    serde_json::from_slice(line).with_context(|| format!("what {} printed", part.name()))
}

/// Measures a part in this process.
#[allow(clippy::print_stdout, reason = "read by the process that asked")]
pub(crate) fn run(part: Part, counts: &Counts) -> Result<()> {
    let held = match part {
        Part::Threads => threads::measure()?,
        Part::Traps => traps::measure(counts.rules)?,
        Part::Rules => rules::measure(counts.rules)?,
        Part::Upload => upload::measure()?,
        Part::Soak => soak::soak(counts.soak)?,
        Part::Churn => soak::churn(counts.churn)?,
    };
    println!("{}", serde_json::to_string(&held)?);
    Ok(())
}

/// Resident memory of this process in bytes.
fn resident_bytes() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .context("VmRSS in /proc/self/status")?
        .parse()?;
    Ok(kib * 1024.0)
}

const MB: f64 = 1e6;
