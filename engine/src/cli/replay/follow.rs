//! Where a rule is while it burns fuel: the flame graph of `--profile`, and the calls that led to a failure.

use crate::cli::{Failure, style};
use hooksieve::id::EventId;
use hooksieve::pipeline::Rules;
use hooksieve::sandbox::{Profiler, strip};
use hooksieve::store::StoredEvent;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Events of a profile: the first ones, as to follow every call takes far longer than to decide.
pub(super) const PROFILED_MAX: u64 = 1_000;
/// Failures of which it is told where they happened.
const TOLD_MAX: u32 = 10;
/// Calls that are told of a failure.
const FRAMES_MAX: usize = 8;
/// How functions' names begin that are on the way of every panic, and tell nothing.
const MACHINERY: [&str; 7] = [
    "core::panicking",
    "core::option::expect_failed",
    "core::option::unwrap_failed",
    "core::result::unwrap_failed",
    "hooksieve_sdk::",
    "__rustc",
    "std::",
];

/// Runs events once more, with every call followed.
pub(super) struct Follower<'a> {
    rules: &'a Rules,
    /// The rule's module, with names where it has some.
    wasm: Vec<u8>,
    profiler: Option<Result<Profiler, String>>,
    /// Where the flame graph goes.
    profile: Option<PathBuf>,
    /// The event that was profiled last, and where it failed.
    last: Option<(EventId, Vec<String>)>,
    told: u32,
}

impl<'a> Follower<'a> {
    pub(super) fn new(rules: &'a Rules, wasm: Vec<u8>, profile: Option<PathBuf>) -> Self {
        Self {
            rules,
            wasm,
            profiler: None,
            profile,
            last: None,
            told: 0,
        }
    }

    /// Whether events are needed once more.
    pub(super) fn profiles(&self) -> bool {
        self.profile.is_some()
    }

    fn profiler(&mut self) -> Result<&mut Profiler, &str> {
        let (rules, wasm) = (self.rules, &self.wasm);
        let made = self.profiler.get_or_insert_with(|| {
            let program = rules.program().ok_or("the rule cannot be used")?;
            Profiler::new(program, wasm)
        });
        made.as_mut().map_err(|error| error.as_str())
    }

    /// Adds an event to the profile.
    pub(super) fn profile(&mut self, event: &StoredEvent) {
        if let Ok(profiler) = self.profiler() {
            let (_, frames) = profiler.run(&event.encoded, &event.index);
            self.last = Some((event.id, frames));
        }
    }

    /// Tells where the rule was when it failed: of a profile's events, those that are in it.
    pub(super) fn tell(
        &mut self,
        event: &StoredEvent,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        if self.told == TOLD_MAX {
            return Ok(());
        }
        let frames = match self.last.take() {
            Some((id, frames)) if id == event.id => frames,
            // Run once more, it would count twice.
            _ if self.profiles() => return Ok(()),
            _ => match self.profiler() {
                Ok(profiler) => profiler.run(&event.encoded, &event.index).1,
                Err(_) => return Ok(()),
            },
        };
        self.told += 1;
        let known = |frame: &&String| !MACHINERY.iter().any(|it| frame.starts_with(it));
        let dim = style::DIM;
        for (n, frame) in frames.iter().filter(known).take(FRAMES_MAX).enumerate() {
            let before = if n == 0 { "in" } else { "called by" };
            let frame = style::clean(frame);
            writeln!(out, "{dim}{:>37}  {before} {frame}{dim:#}", "")?;
        }
        Ok(())
    }

    /// Writes the flame graph.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        let Some(path) = self.profile.take() else {
            return Ok(());
        };
        let failed = |error: String| Failure::input(format!("{}: {error}", path.display()));
        let folded = match self.profiler() {
            Ok(profiler) => profiler.folded(),
            Err(why) => return Err(failed(format!("no profile: {why}"))),
        };
        if folded.is_empty() {
            return Err(failed("no profile: the rule was not asked".to_owned()));
        }
        let mut options = inferno::flamegraph::Options::default();
        options.title = "Fuel by function".to_owned();
        options.count_name = "fuel".to_owned();
        options.deterministic = true;
        let written = File::create(&path).and_then(|file| {
            let mut to = BufWriter::new(file);
            let lines = folded.iter().map(String::as_str);
            inferno::flamegraph::from_lines(&mut options, lines, &mut to)?;
            to.flush()
        });
        written.map_err(|error| failed(error.to_string()))
    }
}

/// A module as it was built, if its names are kept beside it and it is the same otherwise.
pub(super) fn with_names(module: &Path, wasm: Vec<u8>) -> Vec<u8> {
    let named = crate::cli::build::names_beside(module);
    let named = named.and_then(|path| std::fs::read(path).ok());
    match named {
        Some(named) if strip(&named).ok() == strip(&wasm).ok() => named,
        _ => wasm,
    }
}
