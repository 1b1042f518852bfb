//! The long form of the proofs in `e2e/smith.rs`: as many random modules as there is time for, in this
//! process and through the process that compiles; and whether anything leaks.
//!
//! An example and not a program of the workspace, so that a plain `cargo run` knows what it runs.
//!
//! ```text
//! smith [--once N] [--modules N] [--through-child N] [--decisions N] [--loads N] [--seed S] [--threads N]
//! ```
//!
//! `--once` are small ones, only checked, compiled and asked about one event; `--modules` are compared, warm and new.
//! `--decisions` are of one rule, warm and new, with traps, refused growth and exhausted fuel among
//! them. `--loads` are of modules that are in the cache, each run once and dropped.
//!
//! Ends with 1 at the first difference, at a crash, when one module takes minutes, or when resident
//! memory grew by more than 5 % (and what the linker leaks) after the first tenth. The number of the module in hand stands in
//! `smith-current-<thread>` in the folder for temporary files, so that a crash can be looked into.
#![allow(clippy::print_stderr, reason = "progress and findings")]

use hooksieve::config::Config;
use hooksieve::sandbox::{Cache, CompileLimits, Instances, Kept, Limits, Program, Sandbox};
use hooksieve_sdk::wire::EventHead;
use hooksieve_sdk::wire::json::Data;
use hooksieve_tests::PROBE;
use hooksieve_tests::proof::{Case, Proof, Shares, resident_bytes};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Modules before which memory is not looked at: the pools fill, and neighbours differ in size.
const WARM_UP: u64 = 1_000;

/// What the linker behind the compiler leaks for a module of this size: 360 bytes for every function
/// and section. A server compiles in processes of their own, where nothing of it stays.
const LINKER_LEAK_BYTES: u64 = 16 << 10;

struct Arguments {
    once: u64,
    modules: u64,
    through_child: u64,
    decisions: u64,
    loads: u64,
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
    let run = |how, modules, compiler, case, prove| {
        run(how, &arguments, modules, compiler, Steps { case, prove })
    };
    let passed = run("once each", arguments.once, None, Case::small, Proof::once)
        && run(
            "in this process",
            arguments.modules,
            None,
            Case::new,
            Proof::check,
        )
        && run(
            "through a process that compiles",
            arguments.through_child,
            Some(child),
            Case::new,
            Proof::check,
        )
        && stays_flat("decisions", arguments.decisions, decisions)
        && stays_flat("loads", arguments.loads, loads);
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut read = Self {
            once: 0,
            modules: 0,
            through_child: 0,
            decisions: 0,
            loads: 0,
            seed: 1,
            threads: 1,
        };
        while let Some(name) = words.next() {
            let place = match name.as_str() {
                "--once" => &mut read.once,
                "--modules" => &mut read.modules,
                "--through-child" => &mut read.through_child,
                "--decisions" => &mut read.decisions,
                "--loads" => &mut read.loads,
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

/// What is done with a number: the module it stands for, and the proof that it is put to.
#[derive(Clone, Copy)]
struct Steps {
    case: fn(u64) -> Option<Case>,
    prove: fn(&mut Proof, &Case) -> Result<(), String>,
}

/// How far all threads together have come.
struct Progress {
    next: AtomicU64,
    until: u64,
    failed: AtomicBool,
    shares: Mutex<Shares>,
}

/// Whether all of these modules ran as they should.
fn run(
    how: &str,
    arguments: &Arguments,
    modules: u64,
    compiler: Option<CompileLimits>,
    steps: Steps,
) -> bool {
    if modules == 0 {
        return true;
    }
    let progress = Progress {
        next: AtomicU64::new(arguments.seed),
        until: arguments.seed + modules,
        failed: AtomicBool::new(false),
        shares: Mutex::default(),
    };
    let leak_bytes = match compiler {
        Some(_) => 0,
        None => LINKER_LEAK_BYTES,
    };
    let started = Instant::now();
    let flat = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.threads.max(1))
            .map(|thread| {
                scope.spawn({
                    let progress = &progress;
                    move || work(thread, progress, compiler, steps)
                })
            })
            .collect();
        watch(&progress, started, leak_bytes, &|| {
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

fn work(thread: u64, progress: &Progress, compiler: Option<CompileLimits>, steps: Steps) {
    let current = std::env::temp_dir().join(format!("smith-current-{thread}"));
    let mut proof = Proof::new(compiler);
    while !progress.failed.load(Ordering::Relaxed) {
        let seed = progress.next.fetch_add(1, Ordering::Relaxed);
        if seed >= progress.until {
            break;
        }
        // What cannot be written makes only crashes harder to find.
        let _ = std::fs::write(&current, seed.to_string());
        let Some(case) = (steps.case)(seed) else {
            continue;
        };
        if let Err(message) = (steps.prove)(&mut proof, &case) {
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
fn watch(progress: &Progress, started: Instant, leak_bytes: u64, done: &dyn Fn() -> bool) -> bool {
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
        if at >= (all / 10).max(WARM_UP) {
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
    let flat = after * 100 <= before * 105 + 100 * leak_bytes * all;
    if !flat {
        eprintln!("resident memory grew from {before} to {after} bytes");
    }
    flat
}

/// Whether resident memory stays flat while a step is taken so often.
fn stays_flat(what: &str, count: u64, steps: fn() -> Box<dyn FnMut(u64)>) -> bool {
    if count == 0 {
        return true;
    }
    let mut step = steps();
    let started = Instant::now();
    let mut before = 0;
    for n in 0..count {
        if n % (count / 10).max(1) == 0 {
            let resident = resident_bytes();
            eprintln!("{n:>9} {what}  {:>7.1} MB resident", resident as f64 / 1e6);
            if before == 0 && n > 0 {
                before = resident;
            }
        }
        step(n);
    }
    let (after, seconds) = (resident_bytes(), started.elapsed().as_secs_f64());
    eprintln!(
        "{count:>9} {what}  {:>7.1} MB resident, {:.0}/s",
        after as f64 / 1e6,
        count as f64 / seconds
    );
    let flat = before == 0 || after * 100 <= before * 105;
    if !flat {
        eprintln!("resident memory grew from {before} to {after} bytes");
    }
    flat
}

fn limits() -> Limits {
    Limits {
        wall_clock_ms: 600_000,
        ..Limits::default()
    }
}

const KEPT: Kept = Kept {
    count_max: 4,
    bytes_max: 64 << 20,
};

fn decisions() -> Box<dyn FnMut(u64)> {
    let scarce = Limits {
        fuel: 3_000,
        ..limits()
    };
    let module = Sandbox::new(limits()).compile(PROBE).expect("it is a rule");
    let program = |limits: Limits| {
        Program::new(module.clone(), vec![0x80], limits).expect("it takes no configuration")
    };
    let programs = [program(limits()), program(scarce)];
    let events = [
        ("{}", "decided"),
        (r#"{"do": "panic", "code": 1}"#, "panicked"),
        (r#"{"do": "log", "lines": ["one", "two"]}"#, "decided"),
        (r#"{"do": "error"}"#, "rule"),
        (
            r#"{"do": "post", "payload": {"a": [1, 2, {"b": null}]}}"#,
            "decided",
        ),
        (r#"{"do": "allocate", "bytes": 300000}"#, "decided"),
        (r#"{"do": "allocate", "bytes": 30000000}"#, "memory"),
        (r#"{"do": "recurse", "depth": 100000}"#, "any"),
    ]
    .map(|(json, kind)| (event("test", json), kind));
    let mut instances = Instances::new(KEPT);
    Box::new(move |n| {
        let (event, kind) = &events[n as usize % events.len()];
        let (event, index) = (&event.0, &event.1);
        // Each event meets both programs, and one time in eight a new instance.
        let turn = n as usize / events.len();
        let program = &programs[turn % 2];
        let run = match turn % 8 {
            0 | 1 => program.run(event, index),
            _ => instances.run(program, event, index),
        };
        let found = match &run.outcome {
            Ok(_) => "decided",
            Err(error) => error.kind(),
        };
        let as_expected = turn % 2 == 1 || *kind == "any" || found == *kind;
        assert!(as_expected, "{kind}: {:?}", run.outcome);
    })
}

/// Modules in a cache: each is loaded from its file, run, and dropped with its code.
fn loads() -> Box<dyn FnMut(u64)> {
    const MODULES: u64 = 50;
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cache = Cache::open(folder.path()).expect("a cache in it");
    let sandbox = Sandbox::new(limits()).cached(cache);
    let cases: Vec<_> = (1..=MODULES).filter_map(Case::new).collect();
    let event = event("test", "{}");
    Box::new(move |n| {
        let _ = &folder;
        let case = &cases[n as usize % cases.len()];
        let Ok(module) = sandbox.compile(case.wasm.as_slice()) else {
            return;
        };
        // Its `init` may fail; then it was loaded all the same.
        if let Ok(program) = Program::new(module, Vec::new(), limits()) {
            program.run(&event.0, &event.1);
        }
    })
}

fn event(kind: &str, json: &str) -> (Vec<u8>, Vec<u8>) {
    let head = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "test",
        kind,
        subject: None,
        time: "2026-01-01T00:00:00Z",
        headers: &[],
    };
    head.encode(&Data::from_json(json.as_bytes()).expect("it is JSON"))
}
