//! The long form of the proof in `e2e/smith.rs`: as many random modules as there is time for, in one
//! process, and through the process that compiles.
//!
//! ```text
//! smith [--modules N] [--through-child N] [--seed S] [--threads N]
//! ```
//!
//! Ends with 1 at the first difference, at a crash, when one module takes minutes, or when resident
//! memory grew by more than 5 % after the first tenth. The number of the module in hand stands in
//! `smith-current-<thread>` in the folder for temporary files, so that a crash can be looked into.
#![allow(clippy::print_stderr, reason = "progress and findings")]

use hooksieve::config::Config;
use hooksieve::sandbox::CompileLimits;
use hooksieve_tests::proof::{Case, Proof, Shares, resident_bytes};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

struct Arguments {
    modules: u64,
    through_child: u64,
    seed: u64,
    threads: u64,
}

fn main() -> ExitCode {
    hooksieve::sandbox::compile_if_asked();
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let child = Config::built_in().compile;
    let passed = run("in this process", &arguments, arguments.modules, None)
        && run(
            "through a process that compiles",
            &arguments,
            arguments.through_child,
            Some(child),
        );
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut read = Self {
            modules: 0,
            through_child: 0,
            seed: 1,
            threads: 1,
        };
        while let Some(name) = words.next() {
            let place = match name.as_str() {
                "--modules" => &mut read.modules,
                "--through-child" => &mut read.through_child,
                "--seed" => &mut read.seed,
                "--threads" => &mut read.threads,
                _ => return Err(format!("there is no argument {name:?}")),
            };
            let figure = words.next().and_then(|word| word.parse().ok());
            *place = figure.ok_or_else(|| format!("{name} takes a number"))?;
        }
        Ok(read)
    }
}

/// How far all threads together have come.
struct Progress {
    next: AtomicU64,
    until: u64,
    failed: AtomicBool,
    shares: Mutex<Shares>,
}

/// Whether all of these modules ran as they should.
fn run(how: &str, arguments: &Arguments, modules: u64, compiler: Option<CompileLimits>) -> bool {
    if modules == 0 {
        return true;
    }
    let progress = Progress {
        next: AtomicU64::new(arguments.seed),
        until: arguments.seed + modules,
        failed: AtomicBool::new(false),
        shares: Mutex::default(),
    };
    let started = Instant::now();
    let flat = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.threads.max(1))
            .map(|thread| {
                scope.spawn({
                    let progress = &progress;
                    move || work(thread, progress, compiler)
                })
            })
            .collect();
        watch(&progress, started, &|| {
            workers.iter().all(|worker| worker.is_finished())
        })
    });
    let seconds = started.elapsed().as_secs_f64();
    if let Ok(shares) = progress.shares.lock() {
        eprintln!("{shares}");
    }
    eprintln!(
        "{modules} modules {how} in {seconds:.0} s, {:.0}/s",
        modules as f64 / seconds
    );
    flat && !progress.failed.load(Ordering::Relaxed)
}

fn work(thread: u64, progress: &Progress, compiler: Option<CompileLimits>) {
    let current = std::env::temp_dir().join(format!("smith-current-{thread}"));
    let mut proof = Proof::new(compiler);
    while !progress.failed.load(Ordering::Relaxed) {
        let seed = progress.next.fetch_add(1, Ordering::Relaxed);
        if seed >= progress.until {
            break;
        }
        // What cannot be written makes only crashes harder to find.
        let _ = std::fs::write(&current, seed.to_string());
        let Some(case) = Case::new(seed) else {
            continue;
        };
        if let Err(message) = proof.check(&case) {
            progress.failed.store(true, Ordering::Relaxed);
            eprintln!("module {seed} ({}): {message}", kept(&case).display());
        }
    }
    if let Ok(mut shares) = progress.shares.lock() {
        shares.merge(&proof.shares);
    }
}

/// The file that the module of this case now stands in.
fn kept(case: &Case) -> PathBuf {
    let path = std::env::temp_dir().join(format!("smith-{}.wasm", case.seed));
    match std::fs::write(&path, &case.wasm) {
        Ok(()) => path,
        Err(error) => PathBuf::from(format!("not kept: {error}")),
    }
}

/// Reports until all is done. Whether resident memory stayed flat after the first tenth.
fn watch(progress: &Progress, started: Instant, done: &dyn Fn() -> bool) -> bool {
    const PATIENCE: Duration = Duration::from_secs(300);
    let first = progress.next.load(Ordering::Relaxed);
    let all = progress.until - first;
    let mut reported = 0;
    let mut warmed_up = None;
    let mut moved = (0, Instant::now());
    while !done() {
        std::thread::sleep(Duration::from_millis(20));
        let at = (progress.next.load(Ordering::Relaxed) - first).min(all);
        if at != moved.0 {
            moved = (at, Instant::now());
        }
        if moved.1.elapsed() > PATIENCE {
            eprintln!("module {} or one just before it hangs", first + at);
            std::process::exit(1);
        }
        let resident = resident_bytes();
        if at * 10 >= all {
            warmed_up.get_or_insert(resident);
        }
        if at * 40 / all > reported {
            reported = at * 40 / all;
            eprintln!(
                "{:>6.0} s  {at:>8} modules  {:>7.1} MB resident",
                started.elapsed().as_secs_f64(),
                resident as f64 / 1e6
            );
        }
    }
    let (Some(before), after) = (warmed_up, resident_bytes()) else {
        return true;
    };
    let flat = after * 100 <= before * 105;
    if !flat {
        eprintln!("resident memory grew from {before} to {after} bytes");
    }
    flat
}
