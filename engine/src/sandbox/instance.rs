//! One event through one module: a new instance, its configuration, its decision.
#![allow(unsafe_code)]

use super::{Error, Limits, Module, PAGE_BYTES, memory, watchdog};
use crate::id::Hash;
use hooksieve_sdk::wire::{Code, Decision, unpack};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmer::sys::vm::{TrapCode, VMGlobalDefinition};
use wasmer::{
    Function, FunctionEnv, FunctionEnvMut, Imports, Instance, Memory, RuntimeError, Store,
    TypedFunction, imports,
};

/// Fuel for each call of `hooksieve.log`, besides one for each byte.
const LOG_FUEL: u64 = 100;
/// Bytes of input for 1 fuel, rounded up.
const INPUT_BYTES_PER_FUEL: u64 = 16;

/// A module with its configuration and limits: what decides events.
#[derive(Clone, Debug)]
pub struct Program {
    module: Module,
    config: Arc<[u8]>,
    config_hash: Hash,
    limits: Arc<Limits>,
}

/// What one event's turn used and gave.
#[derive(Clone, Debug)]
pub struct Run {
    pub outcome: Result<Decision, Error>,
    /// Fuel that the event burned; reading the configuration is not in it.
    pub fuel: u64,
    /// The guest's linear memory at the end.
    pub memory_bytes: u64,
    /// With the start of the instance.
    pub duration: Duration,
    pub log: Vec<LogLine>,
}

impl Default for Run {
    /// A run that used nothing and decided nothing.
    fn default() -> Self {
        Self {
            outcome: Ok(Decision::default()),
            fuel: 0,
            memory_bytes: 0,
            duration: Duration::ZERO,
            log: Vec::new(),
        }
    }
}

/// A line that a rule logged.
pub type LogLine = String;

impl Program {
    /// A module with its configuration as MessagePack, tried once: an `init` that refuses the
    /// configuration is found here and not at the first event.
    ///
    /// # Errors
    /// What [`Program::run`] would fail with before it sees an event.
    pub fn new(module: Module, config: Vec<u8>, limits: Limits) -> Result<Self, Error> {
        let program = Self {
            module,
            config_hash: Hash::of(&config),
            config: config.into(),
            limits: Arc::new(limits),
        };
        program.start()?;
        Ok(program)
    }

    pub fn module(&self) -> &Module {
        &self.module
    }

    /// SHA-256 of the configuration as MessagePack.
    pub fn config_hash(&self) -> Hash {
        self.config_hash
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Decides one event in a new instance. Blocks for as long as the guest runs.
    pub fn run(&self, event: &[u8], index: &[u8]) -> Run {
        let started = Instant::now();
        let (outcome, used) = match self.start() {
            Ok(mut guest) => {
                let outcome = guest.decide(event, index);
                (outcome, guest.used())
            }
            Err(error) => (Err(error), Used::default()),
        };
        Run {
            outcome,
            fuel: used.fuel,
            memory_bytes: used.memory_bytes,
            log: used.log,
            duration: started.elapsed(),
        }
    }

    /// A new instance that has read its configuration.
    fn start(&self) -> Result<Guest<'_>, Error> {
        let mut guest = Guest::new(&self.module, &self.limits)?;
        guest.init(&self.config)?;
        Ok(guest)
    }
}

#[derive(Default)]
struct Used {
    fuel: u64,
    memory_bytes: u64,
    log: Vec<LogLine>,
}

/// What the `log` import reads and writes.
struct Host {
    memory: Option<Memory>,
    fuel: Option<Fuel>,
    lines: Vec<LogLine>,
    log_left: usize,
    log_cut: bool,
    panic: Option<String>,
}

/// An instance on its way through one event.
struct Guest<'p> {
    limits: &'p Limits,
    store: Store,
    host: FunctionEnv<Host>,
    memory: Memory,
    reserve: TypedFunction<u32, u32>,
    init: Option<TypedFunction<(u32, u32), i64>>,
    decide: TypedFunction<(u32, u32, u32, u32), i64>,
    fuel: Fuel,
    fuel_given: u64,
    refused_memory: Place,
    refused_table: Place,
    // The store owns what the places above point into; the handle keeps its exports.
    _instance: Instance,
}

impl<'p> Guest<'p> {
    fn new(module: &Module, limits: &'p Limits) -> Result<Self, Error> {
        let mut store = Store::new(module.engine.clone());
        let host = FunctionEnv::new(
            &mut store,
            Host {
                memory: None,
                fuel: None,
                lines: Vec::new(),
                log_left: limits.log_bytes,
                log_cut: false,
                panic: None,
            },
        );
        let imports: Imports = imports! {
            "hooksieve" => { "log" => Function::new_typed_with_env(&mut store, &host, log) }
        };
        memory::take_globals();
        let instance = Instance::new(&mut store, &module.module, &imports).map_err(engine_error)?;
        let globals = memory::take_globals();
        let place = |at: usize| match globals.get(at) {
            Some(&place) => Ok(Place(place.cast())),
            None => Err(Error::Engine {
                message: format!(
                    "the instance has {} globals, and global {at} is ours",
                    globals.len()
                ),
            }),
        };
        let fuel = Fuel {
            left: place(module.globals.fuel)?,
            exhausted: place(module.globals.exhausted)?,
        };
        let exports = &instance.exports;
        let memory = exports.get_memory("memory").map_err(engine_error)?.clone();
        let state = host.as_mut(&mut store);
        state.memory = Some(memory.clone());
        state.fuel = Some(fuel);
        Ok(Self {
            limits,
            memory,
            reserve: exports
                .get_typed_function(&store, "hooksieve_reserve")
                .map_err(engine_error)?,
            init: if module.init {
                let init = exports.get_typed_function(&store, "hooksieve_init");
                Some(init.map_err(engine_error)?)
            } else {
                None
            },
            decide: exports
                .get_typed_function(&store, "hooksieve_decide")
                .map_err(engine_error)?,
            fuel,
            fuel_given: 0,
            refused_memory: place(module.globals.refused_memory)?,
            refused_table: place(module.globals.refused_table)?,
            host,
            store,
            _instance: instance,
        })
    }

    /// Hands over the configuration. A module without `init` takes the empty one only.
    fn init(&mut self, config: &[u8]) -> Result<(), Error> {
        let Some(init) = self.init.clone() else {
            return match config {
                [] | [0x80] => Ok(()),
                _ => Err(Error::NoInit),
            };
        };
        let limit = self.limits.init_fuel;
        self.give_fuel(limit, config.len())
            .map_err(|_| Error::InitFuel { limit })?;
        let answered = self
            .input(config.len())
            .and_then(|pointer| {
                self.write(pointer, config)?;
                self.call(|store| init.call(store, pointer, config.len() as u32))
            })
            .map_err(|error| match error {
                Error::Fuel { .. } => Error::InitFuel { limit },
                other => other,
            })?;
        match unpack(answered) {
            Ok((_, 0)) => Ok(()),
            Ok(place) => match Decision::decode(&self.output(place)?) {
                Ok(Err(message)) => Err(Error::Config { message }),
                Ok(Ok(_)) => Err(Error::Config {
                    message: "`hooksieve_init` answered with a decision".to_owned(),
                }),
                Err(error) => Err(answer(error)),
            },
            Err(code) => Err(by_code(code)),
        }
    }

    fn decide(&mut self, event: &[u8], index: &[u8]) -> Result<Decision, Error> {
        // The index follows the event at the next multiple of 4.
        let index_at = event.len().next_multiple_of(4);
        let bytes = index_at + index.len();
        if bytes > self.limits.input_bytes {
            return Err(Error::Input {
                bytes,
                limit: self.limits.input_bytes,
            });
        }
        self.give_fuel(self.limits.fuel, bytes)?;
        let pointer = self.input(bytes)?;
        self.write(pointer, event)?;
        let index_pointer = pointer.wrapping_add(index_at as u32);
        self.write(index_pointer, index)?;
        let decide = self.decide.clone();
        let (event_len, index_len) = (event.len() as u32, index.len() as u32);
        let returned =
            self.call(|store| decide.call(store, pointer, event_len, index_pointer, index_len))?;
        let place = unpack(returned).map_err(|code| match by_code(code) {
            Error::OutOfMemory => self.after_refusal(Error::OutOfMemory),
            error => error,
        })?;
        let answered = self.output(place)?;
        let decision = match Decision::decode(&answered) {
            Ok(Ok(decision)) => decision,
            Ok(Err(message)) => return Err(Error::Rule { message }),
            Err(error) => return Err(answer(error)),
        };
        if decision.actions.len() > self.limits.actions {
            return Err(Error::Actions {
                actions: decision.actions.len(),
                limit: self.limits.actions,
            });
        }
        Ok(decision)
    }

    fn used(self) -> Used {
        let memory_bytes = self.memory.view(&self.store).data_size();
        let mut store = self.store;
        let host = self.host.as_mut(&mut store);
        let mut log = std::mem::take(&mut host.lines);
        if host.log_cut {
            log.push(format!(
                "[cut off: the limit is {} bytes]",
                self.limits.log_bytes
            ));
        }
        Used {
            fuel: self.fuel_given - self.fuel.left(),
            memory_bytes,
            log,
        }
    }

    /// Fills the fuel up, less what the input costs.
    fn give_fuel(&mut self, limit: u64, input_bytes: usize) -> Result<(), Error> {
        self.fuel_given = limit;
        let price = (input_bytes as u64).div_ceil(INPUT_BYTES_PER_FUEL);
        match limit.checked_sub(price) {
            Some(left) => {
                self.fuel.set(left);
                Ok(())
            }
            None => {
                self.fuel.set(0);
                Err(Error::Fuel { limit })
            }
        }
    }

    /// A place for `bytes` of input, inside the guest's memory.
    fn input(&mut self, bytes: usize) -> Result<u32, Error> {
        if bytes > self.limits.input_bytes {
            return Err(Error::Input {
                bytes,
                limit: self.limits.input_bytes,
            });
        }
        let reserve = self.reserve.clone();
        match self.call(|store| reserve.call(store, bytes as u32))? {
            0 if bytes > 0 => Err(Error::NoRoom { bytes }),
            pointer => Ok(pointer),
        }
    }

    fn write(&mut self, pointer: u32, bytes: &[u8]) -> Result<(), Error> {
        let view = self.memory.view(&self.store);
        let written = view.write(u64::from(pointer), bytes);
        written.map_err(|_| Error::InputPlace {
            pointer,
            bytes: bytes.len(),
            memory_bytes: view.data_size(),
        })
    }

    fn output(&self, (pointer, bytes): (u32, u32)) -> Result<Vec<u8>, Error> {
        if bytes as usize > self.limits.output_bytes {
            return Err(Error::Output {
                bytes: bytes as usize,
                limit: self.limits.output_bytes,
            });
        }
        let view = self.memory.view(&self.store);
        let mut output = vec![0; bytes as usize];
        match view.read(u64::from(pointer), &mut output) {
            Ok(()) => Ok(output),
            Err(_) => Err(Error::OutputPlace {
                pointer,
                bytes,
                memory_bytes: view.data_size(),
            }),
        }
    }

    /// Calls into the guest under the watchdog, and names what ended it.
    fn call<T>(
        &mut self,
        guest: impl FnOnce(&mut Store) -> Result<T, RuntimeError>,
    ) -> Result<T, Error> {
        let limit_ms = self.limits.wall_clock_ms;
        let store = &mut self.store;
        // SAFETY: the fuel lives in the instance, which this guest owns.
        let (result, struck) = unsafe {
            let limit = Duration::from_millis(limit_ms);
            watchdog::guarded(self.fuel.left.0, limit, || guest(store))
        };
        match result {
            Ok(value) if !struck => Ok(value),
            Ok(_) => Err(Error::WallClock { limit_ms }),
            Err(_) if struck => {
                self.fuel.set(0);
                Err(Error::WallClock { limit_ms })
            }
            Err(error) => Err(self.ended_by(error)),
        }
    }

    fn ended_by(&mut self, error: RuntimeError) -> Error {
        let error = match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) => {
                let panic = self.host.as_mut(&mut self.store).panic.take();
                let stack = Error::Stack {
                    limit_bytes: self.limits.stack_bytes,
                };
                match (error.to_trap(), panic) {
                    _ if self.fuel.is_exhausted() => Error::Fuel {
                        limit: self.fuel_given,
                    },
                    (Some(TrapCode::UnreachableCodeReached), Some(message)) => {
                        Error::Panicked { message }
                    }
                    (Some(TrapCode::StackOverflow), _) => stack,
                    (Some(code), _) => Error::Trapped {
                        what: trap_name(code),
                    },
                    (None, _) => Error::Trapped {
                        what: "for a reason the engine does not know",
                    },
                }
            }
        };
        if matches!(error, Error::Fuel { .. }) {
            self.fuel.set(0);
            return Error::Fuel {
                limit: self.fuel_given,
            };
        }
        self.after_refusal(error)
    }

    /// A failure after growth was refused is told as that: what the guest did next hides the cause.
    fn after_refusal(&self, error: Error) -> Error {
        let then = error.to_string();
        if let requested @ 1.. = self.refused_memory.u32() {
            return Error::Memory {
                requested_pages: u64::from(requested),
                limit_pages: self.memory_limit_pages(),
                then,
            };
        }
        if let requested @ 1.. = self.refused_table.u32() {
            return Error::Table {
                requested: u64::from(requested),
                limit: self.limits.table_elements,
                then,
            };
        }
        error
    }

    /// The limit that a refused growth met: ours, or the module's own maximum below it.
    fn memory_limit_pages(&self) -> u32 {
        let own = self.memory.ty(&self.store).maximum;
        own.map_or(u32::MAX, |pages| pages.0)
            .min(self.limits.memory_pages())
    }
}

/// The import `hooksieve.log(level, text, len)`: level 0 is a line, level 1 the message of a panic.
fn log(
    mut env: FunctionEnvMut<'_, Host>,
    level: u32,
    pointer: u32,
    bytes: u32,
) -> Result<(), Error> {
    let (host, store) = env.data_and_store_mut();
    let (Some(memory), Some(fuel)) = (&host.memory, host.fuel) else {
        // Only a start function could call before the instance is ready, and there is none.
        return Ok(());
    };
    fuel.spend(LOG_FUEL.saturating_add(u64::from(bytes)))?;
    let view = memory.view(&store);
    let memory_bytes = view.data_size();
    if u64::from(pointer) + u64::from(bytes) > memory_bytes {
        return Err(Error::LogPlace {
            pointer,
            bytes,
            memory_bytes,
        });
    }
    let room = if level == 1 {
        PANIC_BYTES_MAX
    } else {
        host.log_left
    };
    let kept = (bytes as usize).min(room);
    let mut text = vec![0; kept];
    if view.read(u64::from(pointer), &mut text).is_err() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    if level == 1 {
        host.panic = Some(text);
        return Ok(());
    }
    host.log_cut |= kept < bytes as usize;
    host.log_left -= kept;
    if kept > 0 {
        host.lines.push(text);
    }
    Ok(())
}

/// How much of a panic's message is kept.
const PANIC_BYTES_MAX: usize = 1_024;

/// Where one of the instance's globals lives: 8 bytes that compiled code reads and writes.
#[derive(Clone, Copy)]
struct Place(NonNull<u64>);

// SAFETY: a place is used by the thread that runs its instance; the store that owns both moves to
// another thread only as a whole.
unsafe impl Send for Place {}

impl Place {
    fn u32(self) -> u32 {
        // SAFETY: the instance is alive as long as whoever holds this place; see `Guest`.
        unsafe { self.0.cast::<u32>().read() }
    }
}

const _: () = assert!(size_of::<VMGlobalDefinition>() == 16);

/// The fuel of one instance, in its own globals.
#[derive(Clone, Copy)]
struct Fuel {
    left: Place,
    exhausted: Place,
}

impl Fuel {
    fn left(self) -> u64 {
        // SAFETY: as for `Place::u32`. Atomic, because the watchdog may write.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.left.0.as_ptr()) }
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    fn set(self, fuel: u64) {
        // SAFETY: as for `Fuel::left`.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.left.0.as_ptr()) }
            .store(fuel, std::sync::atomic::Ordering::Relaxed);
    }

    fn is_exhausted(self) -> bool {
        self.exhausted.u32() != 0
    }

    fn spend(self, price: u64) -> Result<(), Error> {
        match self.left().checked_sub(price) {
            Some(left) => {
                self.set(left);
                Ok(())
            }
            // The limit is put in by `Guest::ended_by`, which knows it.
            None => Err(Error::Fuel { limit: 0 }),
        }
    }
}

fn by_code(code: i64) -> Error {
    match code {
        code if code == Code::BadInput as i64 => Error::BadInput,
        code if code == Code::OutOfMemory as i64 => Error::OutOfMemory,
        code if code == Code::BadConfig as i64 => Error::Config {
            message: "code -2".to_owned(),
        },
        code => Error::UnknownCode { code },
    }
}

fn answer(error: hooksieve_sdk::Error) -> Error {
    Error::Answer {
        message: error.to_string(),
    }
}

fn engine_error(error: impl std::fmt::Display) -> Error {
    Error::Engine {
        message: error.to_string(),
    }
}

fn trap_name(code: TrapCode) -> &'static str {
    match code {
        TrapCode::StackOverflow => "stack overflow",
        TrapCode::HeapAccessOutOfBounds => "it reached outside its memory",
        TrapCode::TableAccessOutOfBounds => "it reached outside a table",
        TrapCode::IndirectCallToNull => "it called through an empty table entry",
        TrapCode::BadSignature => "it called through a table entry of another type",
        TrapCode::IntegerOverflow => "an integer overflowed in a division",
        TrapCode::IntegerDivisionByZero => "it divided an integer by zero",
        TrapCode::BadConversionToInteger => "it converted a number that no integer can hold",
        TrapCode::UnreachableCodeReached => "it reached `unreachable`, as an abort does",
        _ => "for a reason that the contract's features cannot cause",
    }
}

const _: () = assert!(PAGE_BYTES == 65_536);
