//! Runs a rule's module on one event: checked, compiled, limited, and new for every event.
//!
//! Guarantees:
//! - A module runs only after [`Sandbox::check`] found it within the contract (`guest-sdk/ABI.md`);
//!   what compiles and runs takes the proven type [`Checked`].
//! - Every limit of [`Limits`] is enforced, and the error it ends in carries the figures.
//! - The same module, configuration and event burn the same fuel and give the same answer on every
//!   run: a guest has no clock, no randomness and no other input.
//! - Whatever a guest returns is hostile: every pointer and length is checked before it is used.
//!
//! Architecture invariant: this module knows the wire contract and its own limits. It never touches
//! the store, the network or a tenant.

mod cache;
mod check;
mod child;
mod command;
mod compile;
mod image;
mod instance;
mod memory;
mod meter;
mod metering;
mod module;
mod prices;
mod profile;
mod program;
mod refused;
mod stack;
mod unwind;
mod warm;
mod watchdog;

pub(crate) use instance::decision;

pub use cache::Cache;
pub use check::{Checked, Form};
pub use child::{CompileLimits, compile_if_asked};
pub use module::Module;
pub use prices::VERSION as PRICES_VERSION;
pub use profile::{Profiler, strip};
pub use program::{LogLine, Program, Run};
pub use refused::Refused;
pub use warm::{Instances, Kept};

pub(crate) use cache::Hold;

use crate::id::Hash;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a rule may use. Each limit has a default in `defaults.toml`, an error of its own, and a test
/// from both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Fuel for one event. Every WebAssembly operator costs at least 1.
    pub fuel: u64,
    /// Fuel for reading the configuration, once for an instance.
    pub init_fuel: u64,
    /// Wall-clock time for one event, the backstop behind fuel.
    pub wall_clock_ms: u64,
    /// Linear memory, rounded down to whole pages of 64 KiB.
    pub memory_bytes: u64,
    /// Elements in each table.
    pub table_elements: u32,
    /// The stack that compiled code runs on. One size for a process: the stacks are kept, and what
    /// asks for a smaller one may get one that another left.
    pub stack_bytes: usize,
    /// A module as it is uploaded.
    pub module_bytes: usize,
    /// An event as MessagePack with its skip index, or a configuration.
    pub input_bytes: usize,
    /// What a rule returns.
    pub output_bytes: usize,
    /// What a rule logs for one event; the rest is cut off.
    pub log_bytes: usize,
    /// Actions in one decision.
    pub actions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        crate::config::Config::built_in().limits
    }
}

/// Bytes of a WebAssembly page.
pub const PAGE_BYTES: u64 = 65_536;

impl Limits {
    /// Whole pages of linear memory.
    pub fn memory_pages(&self) -> u32 {
        u32::try_from(self.memory_bytes / PAGE_BYTES).unwrap_or(u32::MAX)
    }

    /// The most fuel that a guest burns after its fuel is over or the watchdog struck, until it is stopped.
    pub fn fuel_past_max(&self) -> u64 {
        metering::burned_past_max(self.stack_bytes)
    }
}

/// Why a rule gave no decision. A rule's failure is data: it goes into the event's story and to the
/// rule's `on_error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("out of fuel: it needs more than the {limit} that one event may burn")]
    Fuel { limit: u64 },
    #[error("out of fuel while reading its configuration: it needs more than {limit}")]
    InitFuel { limit: u64 },
    #[error("still running after {limit_ms} ms")]
    WallClock { limit_ms: u64 },
    #[error(
        "memory: it asked for {requested_pages} more pages of 64 KiB, was refused at a limit of {limit_pages}, and then failed: {then}"
    )]
    Memory {
        requested_pages: u64,
        limit_pages: u32,
        then: String,
    },
    #[error(
        "table: it asked for {requested} more elements, was refused at a limit of {limit}, and then failed: {then}"
    )]
    Table {
        requested: u64,
        limit: u32,
        then: String,
    },
    #[error("stack overflow: its calls need more than {limit_bytes} bytes of stack")]
    Stack { limit_bytes: usize },
    #[error("the input is {bytes} bytes, the limit is {limit}")]
    Input { bytes: usize, limit: usize },
    #[error("its `hooksieve_reserve` has no room for {bytes} bytes of input")]
    NoRoom { bytes: usize },
    #[error(
        "its `hooksieve_reserve` returned {pointer:#x} for {bytes} bytes, which is outside its memory of {memory_bytes}"
    )]
    InputPlace {
        pointer: u32,
        bytes: usize,
        memory_bytes: u64,
    },
    #[error("its answer is {bytes} bytes, the limit is {limit}")]
    Output { bytes: usize, limit: usize },
    #[error(
        "its answer is said to be {bytes} bytes at {pointer:#x}, which is outside its memory of {memory_bytes}"
    )]
    OutputPlace {
        pointer: u32,
        bytes: u32,
        memory_bytes: u64,
    },
    #[error(
        "it logged {bytes} bytes at {pointer:#x}, which is outside its memory of {memory_bytes}"
    )]
    LogPlace {
        pointer: u32,
        bytes: u32,
        memory_bytes: u64,
    },
    #[error("panicked: {message}")]
    Panicked { message: String },
    #[error("trapped: {what}")]
    Trapped { what: &'static str },
    #[error("it could not read its input (code -1)")]
    BadInput,
    #[error("it ran out of memory (code -3)")]
    OutOfMemory,
    #[error("it returned the code {code}, which means nothing")]
    UnknownCode { code: i64 },
    #[error("it has no use for its configuration: {message}")]
    Config { message: String },
    #[error("it takes a configuration only with an export `hooksieve_init`")]
    NoInit,
    #[error("its answer cannot be read: {message}")]
    Answer { message: String },
    #[error("its decision has {actions} actions, the limit is {limit}")]
    Actions { actions: usize, limit: usize },
    #[error("it returned an error: {message}")]
    Rule { message: String },
    #[error("its program ended with the exit code {code}")]
    Exit { code: i32 },
    /// Not the rule's doing.
    #[error("the sandbox could not start it: {message}")]
    Engine { message: String },
}

impl Error {
    /// A stable word for the kind of failure, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Fuel { .. } => "fuel",
            Error::InitFuel { .. } => "init_fuel",
            Error::WallClock { .. } => "wall_clock",
            Error::Memory { .. } => "memory",
            Error::Table { .. } => "table",
            Error::Stack { .. } => "stack",
            Error::Input { .. } => "input",
            Error::NoRoom { .. } => "no_room",
            Error::InputPlace { .. } => "input_place",
            Error::Output { .. } => "output",
            Error::OutputPlace { .. } => "output_place",
            Error::LogPlace { .. } => "log_place",
            Error::Panicked { .. } => "panicked",
            Error::Trapped { .. } => "trapped",
            Error::BadInput => "bad_input",
            Error::OutOfMemory => "out_of_memory",
            Error::UnknownCode { .. } => "unknown_code",
            Error::Config { .. } => "config",
            Error::NoInit => "no_init",
            Error::Answer { .. } => "answer",
            Error::Actions { .. } => "actions",
            Error::Rule { .. } => "rule",
            Error::Exit { .. } => "exit",
            Error::Engine { .. } => "engine",
        }
    }
}

/// Checks and compiles modules under one set of limits.
#[derive(Clone, Debug)]
pub struct Sandbox {
    limits: Arc<Limits>,
    compiler: Compiler,
    cache: Option<Arc<Cache>>,
}

/// Where modules are compiled, and how much machine code they may become.
#[derive(Clone, Copy, Debug)]
enum Compiler {
    /// In this process: whatever the compiler needs, it takes.
    Here { code_bytes_max: u64 },
    /// In a process of its own, which ends with its limits.
    Child(CompileLimits),
}

/// The processors' time that compiling took besides that of the thread which asked for it: a child's, or that of
/// the compiler's own threads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CompilerTime(Duration);

impl CompilerTime {
    /// What all of the work took, of which this thread did its own part since `began`. A clock on the wall
    /// would charge it for what others have the processors do.
    pub(crate) fn since(self, began: Duration) -> Duration {
        thread_time().saturating_sub(began) + self.0
    }
}

/// For how long this thread has had a processor.
#[allow(unsafe_code)]
pub(crate) fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure lives until the call returns.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0 {
        // There is such a clock wherever there are children that bound themselves.
        return Duration::ZERO;
    }
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

impl Compiler {
    #[cfg(test)]
    const HERE: Self = Self::Here {
        code_bytes_max: 32 << 20,
    };

    /// The machine code of a module. Adds to `time`, also where it refuses.
    fn compile(
        self,
        checked: &Checked<'_>,
        limits: &Limits,
        time: &mut CompilerTime,
    ) -> Result<Vec<u8>, Refused> {
        let code = match self {
            Compiler::Here { .. } => {
                let (began, own) = (Instant::now(), thread_time());
                let code = compile::compile(checked, limits);
                // Its other threads' time is not known; it is what this one waited for them.
                let own = thread_time().saturating_sub(own);
                time.0 += began.elapsed().saturating_sub(own);
                code?
            }
            Compiler::Child(own) => {
                let (code, cpu) = child::compile(checked, limits, &own);
                time.0 += cpu;
                code?
            }
        };
        self.within(code.len() as u64, checked.wasm.len())?;
        Ok(code)
    }

    /// That a module of this size may become so much machine code.
    fn within(self, code_bytes: u64, wasm_bytes: usize) -> Result<(), Refused> {
        let max = match self {
            Compiler::Here { code_bytes_max } => code_bytes_max,
            Compiler::Child(own) => own.code_bytes_max,
        };
        compile::within(code_bytes, wasm_bytes, max)
    }
}

impl Sandbox {
    /// Compiles in this process and keeps compiled modules in memory: for modules of one's own.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits: Arc::new(limits),
            compiler: Compiler::Here {
                code_bytes_max: CompileLimits::default().code_bytes_max,
            },
            cache: None,
        }
    }

    /// Compiles in a process of its own from now on, if this program can be one (see
    /// [`compile_if_asked`]).
    #[must_use]
    pub fn compile_in_child(mut self, limits: CompileLimits) -> Self {
        if child::can_be() {
            self.compiler = Compiler::Child(limits);
        } else {
            self.compiler = Compiler::Here {
                code_bytes_max: limits.code_bytes_max,
            };
            tracing::warn!(
                "modules are compiled in this process, without limits on time and memory: `sandbox::compile_if_asked` was not called first in `main`"
            );
        }
        self
    }

    /// Keeps compiled modules in this cache from now on.
    #[must_use]
    pub fn cached(mut self, cache: Cache) -> Self {
        self.cache = Some(Arc::new(cache));
        self
    }

    /// The same under other limits.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self {
            limits: Arc::new(limits),
            ..self.clone()
        }
    }

    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Whether a module is within the contract, without compiling it.
    ///
    /// # Errors
    /// The first thing that is not, with the fix.
    pub fn check<'a>(&self, wasm: &'a [u8]) -> Result<Checked<'a>, Refused> {
        check::check(wasm, &self.limits)
    }

    /// Checks and compiles a module, or finds it in the cache. Takes milliseconds to tenths of a
    /// second: call it where that does not stall events.
    ///
    /// # Errors
    /// What [`Sandbox::check`] finds, and what the compiler cannot do.
    pub fn compile(&self, wasm: impl Into<Arc<[u8]>>) -> Result<Module, Refused> {
        Module::get(
            wasm.into(),
            self.compiler,
            self.cache.as_ref(),
            &self.limits,
        )
    }

    /// The same, and adds the time that the compiler took, also where it refused.
    pub(crate) fn compile_timed(
        &self,
        wasm: Arc<[u8]>,
        time: &mut CompilerTime,
    ) -> Result<Module, Refused> {
        let cache = self.cache.as_ref();
        Module::get_timed(wasm, self.compiler, cache, &self.limits, time)
    }

    /// Whether a module's machine code is there, so that nothing has to be compiled.
    pub(crate) fn has_code(&self, module: Hash) -> bool {
        let cache = self.cache.as_ref();
        cache.is_some_and(|cache| cache.facts(module::file_of(module, &self.limits)).is_some())
    }

    /// Keeps a module's machine code while a call is at work with it.
    pub(crate) fn hold(&self, module: Hash) -> Option<Hold> {
        self.cache.as_ref().map(|cache| cache.hold(module))
    }

    pub(crate) fn cache(&self) -> Option<&Arc<Cache>> {
        self.cache.as_ref()
    }
}
