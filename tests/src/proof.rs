//! The proof that an instance which is put back between events is the same as a new one for each:
//! random modules, with random events and limits, in every way that the engine can run them.

use crate::smith;
use arbitrary::Unstructured;
use hooksieve::sandbox::{
    CompileLimits, Error, Instances, Kept, Limits, Program, Refused, Run, Sandbox,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// A module with what it is run on.
pub struct Case {
    pub seed: u64,
    pub wasm: Vec<u8>,
    limits: Limits,
    config: Vec<u8>,
    events: Vec<Vec<u8>>,
}

impl Case {
    /// The case of this number, always the same; `None` where the generator makes none of it.
    pub fn new(seed: u64) -> Option<Self> {
        Self::of(seed, smith::module)
    }

    /// The small case of this number, for as many modules as can be.
    pub fn small(seed: u64) -> Option<Self> {
        Self::of(seed, smith::small)
    }

    fn of(
        seed: u64,
        module: fn(&mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>>,
    ) -> Option<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; 6_000];
        random.fill_bytes(&mut bytes);
        let mut u = Unstructured::new(&bytes);
        let limits = limits(&mut u).ok()?;
        let mut config = vec![0; u.int_in_range(0..=200).ok()?];
        u.fill_buffer(&mut config).ok()?;
        let wasm = module(&mut u).ok()?;
        // The module takes what it wants; its events have bytes of their own.
        random.fill_bytes(&mut bytes);
        let mut u = Unstructured::new(&bytes);
        let count = u.int_in_range(3..=8).ok()?;
        let events: arbitrary::Result<_> = (0..count).map(|_| smith::event(&mut u)).collect();
        Some(Self {
            seed,
            wasm,
            limits,
            config,
            events: events.ok()?,
        })
    }
}

/// Limits that hurt, one time in three. The stack is not among them: a process has one size of it.
fn limits(u: &mut Unstructured<'_>) -> arbitrary::Result<Limits> {
    let roomy = Limits {
        fuel: *u.choose(&[100_000, 400_000, 1_000_000])?,
        init_fuel: 1_000_000,
        wall_clock_ms: 600_000,
        input_bytes: 150_000,
        ..Limits::default()
    };
    if u.ratio(2, 3)? {
        return Ok(roomy);
    }
    Ok(Limits {
        fuel: *u.choose(&[10_000, 100_000])?,
        memory_bytes: 4 << 16,
        table_elements: 100,
        input_bytes: 20_000,
        log_bytes: 64,
        ..roomy
    })
}

/// How often what happened, so that a proof can say that it proved something. A name's first word says
/// what is counted: `module`, `start`, `event`, `state`, or `run`.
#[derive(Debug, Default)]
pub struct Shares {
    counts: BTreeMap<(&'static str, &'static str), u64>,
    /// The most fuel that an event burned after its fuel was over.
    past_worst: u64,
}

impl Shares {
    pub fn count(&self, what: &'static str, kind: &'static str) -> u64 {
        self.counts.get(&(what, kind)).copied().unwrap_or_default()
    }

    /// Of all `what`, the percentage that was `kind`.
    pub fn percent(&self, what: &'static str, kind: &'static str) -> f64 {
        100.0 * self.count(what, kind) as f64 / self.count(what, ALL).max(1) as f64
    }

    pub fn merge(&mut self, other: &Self) {
        for (key, count) in &other.counts {
            *self.counts.entry(*key).or_default() += count;
        }
        self.past_worst = self.past_worst.max(other.past_worst);
    }

    fn add(&mut self, what: &'static str, kind: &'static str, count: u64) {
        *self.counts.entry((what, kind)).or_default() += count;
    }

    fn add_if(&mut self, what: &'static str, kind: &'static str, is_so: bool) {
        self.add(what, kind, u64::from(is_so));
    }

    fn add_event(&mut self, run: &Run, start_bytes: u64) {
        self.add("event", ALL, 1);
        self.past_worst = self.past_worst.max(run.fuel_past);
        let kind = match &run.outcome {
            Ok(_) => "decided",
            Err(error) => error.kind(),
        };
        self.add("event", kind, 1);
        self.add_if("event", "grew memory", run.memory_bytes > start_bytes);
        self.add_if("event", "logged", !run.log.is_empty());
        let cut = run.log.last().is_some_and(|line| line.starts_with("[cut"));
        self.add_if("event", "log cut off", cut);
        let states: Vec<_> = run.log.iter().map(|line| line.as_bytes()).collect();
        if let [.., before, after] = states[..]
            && before.len() == smith::STATE_BYTES
            && after.len() == smith::STATE_BYTES
        {
            self.add("state", ALL, 1);
            let changed = |at: Range<usize>| before[at.clone()] != after[at];
            self.add_if("state", "globals or tables changed", changed(8..16));
            self.add_if("state", "memory changed", changed(16..24));
        }
    }
}

/// The kind that is everything.
pub const ALL: &str = "all";

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for &(what, kind) in self.counts.keys() {
            if what != before {
                let line = if before.is_empty() { "" } else { "\n" };
                write!(f, "{line}{} {what}s", self.count(what, ALL))?;
                before = what;
            }
            if kind != ALL {
                write!(f, ", {kind} {:.2} %", self.percent(what, kind))?;
            }
        }
        write!(f, "\nat worst {} fuel past the end", self.past_worst)
    }
}

/// Runs cases one after another, each beside the one before it.
pub struct Proof {
    compiler: Option<CompileLimits>,
    wide: Instances,
    narrow: Instances,
    before: Option<Known>,
    pub shares: Shares,
}

/// A program with what its events come to in new instances.
struct Known {
    program: Program,
    events: Vec<Vec<u8>>,
    runs: Vec<Run>,
}

/// Room for several, so that they also make room for each other.
const WIDE: Kept = Kept {
    count_max: 8,
    bytes_max: 64 << 20,
};
/// Room for one.
const NARROW: Kept = Kept {
    count_max: 1,
    bytes_max: 64 << 20,
};

impl Proof {
    /// Compiles in this process, or where there are limits for it in a process of its own.
    pub fn new(compiler: Option<CompileLimits>) -> Self {
        Self {
            compiler,
            wide: Instances::new(WIDE),
            narrow: Instances::new(NARROW),
            before: None,
            shares: Shares::default(),
        }
    }

    /// Checks, compiles and runs a case: each event in new instances and in ones that served before.
    ///
    /// # Errors
    /// What was not the same, or went wrong in another way.
    pub fn check(&mut self, case: &Case) -> Result<(), String> {
        let Some(program) = self.start(case)? else {
            return Ok(());
        };
        let known = Known::new(program, &case.events, &mut self.shares)?;
        known.runs_the_same(&mut self.wide, 0..case.events.len())?;
        known.runs_the_same(&mut self.wide, (0..case.events.len()).rev())?;
        for n in 0..case.events.len() {
            known.runs_the_same(&mut self.narrow, [n, n])?;
            if let Some(before) = &self.before {
                let n = n % before.events.len();
                for instances in [&mut self.narrow, &mut self.wide] {
                    before.runs_the_same(instances, [n])?;
                }
            }
        }
        self.shares.add("run", ALL, 8 * case.events.len() as u64);
        self.before = Some(known);
        Ok(())
    }

    /// Checks and compiles a case, and has it decide one event: for as many modules as can be.
    ///
    /// # Errors
    /// What went wrong.
    pub fn once(&mut self, case: &Case) -> Result<(), String> {
        let Some(program) = self.start(case)? else {
            return Ok(());
        };
        for event in case.events.iter().take(1) {
            let run = self.wide.run(&program, event, &[]);
            stops_soon(&program, &run)?;
            if let Err(Error::Engine { message }) = &run.outcome {
                return Err(format!("the engine failed: {message}"));
            }
            self.shares.add_event(&run, run.memory_bytes);
            self.shares.add("run", ALL, 1);
        }
        Ok(())
    }

    /// The program of a case, where there is one.
    fn start(&mut self, case: &Case) -> Result<Option<Program>, String> {
        let shares = &mut self.shares;
        shares.add("module", ALL, 1);
        let mut sandbox = Sandbox::new(case.limits.clone());
        if let Some(limits) = self.compiler {
            sandbox = sandbox.compile_in_child(limits);
        }
        let module = match sandbox.compile(case.wasm.as_slice()) {
            Ok(module) => module,
            // What the lower limits are for, and segments that do not fit. Everything else is within
            // the contract.
            Err(
                refused @ (Refused::MemoryStart { .. }
                | Refused::TableStart { .. }
                | Refused::Link { .. }),
            ) => {
                shares.add("module", refused.kind(), 1);
                return Ok(None);
            }
            Err(refused) => return Err(format!("refused: {refused}")),
        };
        shares.add("module", "accepted", 1);
        shares.add_if("module", "accepted and keepable", module.keepable());
        shares.add("start", ALL, 1);
        let new =
            |config: &[u8]| Program::new(module.clone(), config.to_vec(), case.limits.clone());
        let mut config = case.config.as_slice();
        if new(config).is_err_and(|error| error == Error::NoInit) {
            config = &[];
        }
        let program = match new(config) {
            Ok(program) => program,
            Err(error) => {
                self.fails_to_start(&error, new(config).err())?;
                return Ok(None);
            }
        };
        shares.add("start", "decides", 1);
        Ok(Some(program))
    }

    fn fails_to_start(&mut self, error: &Error, again: Option<Error>) -> Result<(), String> {
        if again.as_ref() != Some(error) {
            return Err(format!("did not start: {error}; and then: {again:?}"));
        }
        self.shares.add("start", error.kind(), 1);
        match error {
            // A segment that does not fit.
            Error::Engine { message } if !message.contains("out of bounds") => {
                Err(format!("did not start: {message}"))
            }
            _ => Ok(()),
        }
    }
}

impl Known {
    fn new(program: Program, events: &[Vec<u8>], shares: &mut Shares) -> Result<Self, String> {
        let runs: Vec<_> = events.iter().map(|event| program.run(event, &[])).collect();
        // Without an event nothing is done, and memory is what it starts with; unless the room for
        // it is grown.
        let start_bytes = runs.iter().map(|run| run.memory_bytes).min();
        let start_bytes = start_bytes.unwrap_or_default();
        shares.add_if("start", "with more than 1 MiB", start_bytes > 1 << 20);
        for run in &runs {
            stops_soon(&program, run)?;
            if let Err(Error::Engine { message }) = &run.outcome {
                return Err(format!("the engine failed: {message}"));
            }
            shares.add_event(run, start_bytes);
        }
        Ok(Self {
            program,
            events: events.to_vec(),
            runs,
        })
    }

    /// Whether these events come to the same in an instance that has served before.
    fn runs_the_same(
        &self,
        instances: &mut Instances,
        events: impl IntoIterator<Item = usize>,
    ) -> Result<(), String> {
        for n in events {
            let warm = shown(&instances.run(&self.program, &self.events[n], &[]));
            let new = shown(&self.runs[n]);
            if warm != new {
                return Err(format!(
                    "event {n} is not the same:\nnew:  {new}\nwarm: {warm}"
                ));
            }
        }
        Ok(())
    }
}

/// Whether little ran after the end of its fuel.
fn stops_soon(program: &Program, run: &Run) -> Result<(), String> {
    let most = program.limits().fuel_past_max();
    match run.fuel_past {
        past if past > most => Err(format!("it burned {past} after its end, of {most} at most")),
        _ => Ok(()),
    }
}

/// All of a run but how long it took.
fn shown(run: &Run) -> String {
    format!(
        "{:?}, fuel {}, {} bytes, log {:?}",
        run.outcome, run.fuel, run.memory_bytes, run.log
    )
}

/// The memory of this process that is resident.
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * 4_096
}
