//! One instance of a reactor: started, given its configuration, asked about events, put back.
#![allow(unsafe_code)]

use super::compile::Code;
use super::image::Image;
use super::memory::{self, Linear};
use super::meter::{Fuel, Meter};
use super::profile::{self, Tree};
use super::{Error, Limits, LogLine, Module, prices, stack};
use hooksieve_sdk::wire::{self, Decision, unpack};
use std::ptr::NonNull;
use std::sync::Arc;
use wasmer::sys::vm::VMGlobalDefinition;
use wasmer::{
    Function, FunctionEnv, FunctionEnvMut, Imports, Instance, RuntimeError, Store, TypedFunction,
    imports,
};

/// What an event used.
#[derive(Default)]
pub(super) struct Used {
    pub(super) fuel: u64,
    /// What it burned after its fuel was over.
    pub(super) fuel_past: u64,
    pub(super) memory_bytes: u64,
    pub(super) log: Vec<LogLine>,
}

/// What the `log` import reads and writes.
struct Host {
    linear: Option<Arc<Linear>>,
    fuel: Option<Fuel>,
    log: Log,
    panic: Option<String>,
    /// Who called whom, of a module that is followed.
    tree: Option<Tree>,
}

/// What was logged, and what still may be.
#[derive(Clone)]
struct Log {
    lines: Vec<LogLine>,
    bytes_left: usize,
    cut: bool,
}

/// Where an instance's globals live.
struct Globals(Vec<NonNull<VMGlobalDefinition>>);

// SAFETY: the places are in the instance beside which this value is kept and with which it moves.
unsafe impl Send for Globals {}

/// An instance that has read its configuration.
pub(super) struct Guest {
    limits: Arc<Limits>,
    store: Store,
    host: FunctionEnv<Host>,
    linear: Arc<Linear>,
    globals: Globals,
    reserve: TypedFunction<u32, u32>,
    init: Option<TypedFunction<(u32, u32), i64>>,
    decide: TypedFunction<(u32, u32, u32, u32), i64>,
    meter: Meter,
    /// What every event pays before it begins, besides its input.
    base_fuel: u64,
    // The store owns what the places above point into; the handle keeps its exports.
    _instance: Instance,
    // What runs. Last, so that it goes last.
    _code: Arc<Code>,
}

/// An instance with its image: it can be asked about any number of events.
pub(super) struct Warm {
    guest: Guest,
    image: Image,
    log: Log,
    /// The most pages that an event ended with.
    pages_max: u32,
    instance_bytes: usize,
}

impl Warm {
    pub(super) fn decide(&mut self, event: &[u8], index: &[u8]) -> Result<Decision, Error> {
        self.guest.decide(event, index)
    }

    /// What the last event used.
    pub(super) fn used(&mut self) -> Used {
        self.guest.used()
    }

    /// What the last event used. Puts the instance back for the next one; false when that failed, and
    /// the instance must not be used again.
    pub(super) fn reset(&mut self) -> (Used, bool) {
        let guest = &mut self.guest;
        let used = guest.used();
        self.pages_max = self.pages_max.max(guest.linear.pages());
        let host = guest.host.as_mut(&mut guest.store);
        host.log.clone_from(&self.log);
        host.panic = None;
        // SAFETY: the image is of this guest, which is not running.
        let back = unsafe { self.image.put_back(&guest.linear, &guest.globals.0) };
        (used, back)
    }

    /// The memory that this instance holds while it waits, at most.
    pub(super) fn bytes(&self) -> usize {
        self.image.bytes(self.pages_max) + self.instance_bytes
    }
}

impl Guest {
    /// A new instance that has read its configuration.
    pub(super) fn start(
        module: &Module,
        config: &[u8],
        limits: &Arc<Limits>,
    ) -> Result<Self, Error> {
        let mut guest = Self::new(module, limits)?;
        guest.init(config)?;
        // What `init` told of a panic it got over is not the first event's.
        guest.host.as_mut(&mut guest.store).panic = None;
        guest.base_fuel = start_pages_fuel(guest.linear.pages());
        if !module.keepable() {
            // A module that cannot be put back reads its configuration for every event.
            guest.base_fuel += module.start_fuel() + guest.meter.used();
        }
        Ok(guest)
    }

    /// Takes its image, so that it can serve more than one event. Gives it back as it is when there
    /// is no room for the image.
    pub(super) fn keep(mut self, module: &Module) -> Result<Warm, Box<Self>> {
        // SAFETY: these are this instance's own memory and globals, and it does not run.
        match unsafe { Image::take(&self.linear, &self.globals.0) } {
            Some(image) => Ok(Warm {
                log: self.host.as_mut(&mut self.store).log.clone(),
                pages_max: self.linear.pages(),
                instance_bytes: module.instance_bytes(),
                image,
                guest: self,
            }),
            None => Err(Box::new(self)),
        }
    }

    fn new(module: &Module, limits: &Arc<Limits>) -> Result<Self, Error> {
        let code = module.code()?;
        let mut store = code.store();
        let host = FunctionEnv::new(
            &mut store,
            Host {
                linear: None,
                fuel: None,
                log: Log {
                    lines: Vec::new(),
                    bytes_left: limits.log_bytes,
                    cut: false,
                },
                panic: None,
                tree: None,
            },
        );
        let log = Function::new_typed_with_env(&mut store, &host, log);
        let mut imports: Imports = imports! {
            "hooksieve" => { "log" => log },
        };
        if module.is_followed() {
            let enter = Function::new_typed_with_env(&mut store, &host, enter);
            let leave = Function::new_typed_with_env(&mut store, &host, leave);
            imports.define("hooksieve", profile::ENTER, enter);
            imports.define("hooksieve", profile::LEAVE, leave);
        }
        memory::take_made();
        let instance = Instance::new(&mut store, &code.module, &imports).map_err(engine_error)?;
        let (linear, globals) = memory::take_made();
        let linear = linear.ok_or_else(|| engine_error("the instance has no memory of its own"))?;
        let meter = Meter::new(linear.clone(), &globals, module.globals(), limits.clone())?;
        // SAFETY: it is this guest's, and `call` is the one place that runs it.
        unsafe { stack::watch(&mut store, meter.fuel) };
        let exports = &instance.exports;
        let state = host.as_mut(&mut store);
        state.linear = Some(linear.clone());
        state.fuel = Some(meter.fuel);
        Ok(Self {
            limits: limits.clone(),
            linear,
            globals: Globals(globals),
            reserve: exports
                .get_typed_function(&store, "hooksieve_reserve")
                .map_err(engine_error)?,
            init: if module.has_init() {
                let init = exports.get_typed_function(&store, "hooksieve_init");
                Some(init.map_err(engine_error)?)
            } else {
                None
            },
            decide: exports
                .get_typed_function(&store, "hooksieve_decide")
                .map_err(engine_error)?,
            meter,
            base_fuel: 0,
            host,
            store,
            _instance: instance,
            _code: code,
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
        let answered = self
            .meter
            .give(limit, config.len(), 0)
            .and_then(|()| {
                self.guarded(|guest| {
                    let pointer = guest.input(config.len())?;
                    guest.write(pointer, config)?;
                    guest.call(|store| init.call(store, pointer, config.len() as u32))
                })
            })
            .map_err(|error| match error {
                Error::Fuel { .. } => Error::InitFuel { limit },
                other => other,
            })?;
        match unpack(answered) {
            Ok((_, 0)) => Ok(()),
            Ok(place) => match Decision::decode(self.output(place)?) {
                Ok(Err(message)) => Err(Error::Config { message }),
                Ok(Ok(_)) => Err(Error::Config {
                    message: "`hooksieve_init` answered with a decision".to_owned(),
                }),
                Err(error) => Err(answer(error)),
            },
            Err(code) => Err(by_code(code)),
        }
    }

    /// Asks about one event. Once, unless it is put back in between: see [`Warm`].
    pub(super) fn decide(&mut self, event: &[u8], index: &[u8]) -> Result<Decision, Error> {
        // The index follows the event at the next multiple of 4.
        let index_at = event.len().next_multiple_of(4);
        let bytes = index_at + index.len();
        if bytes > self.limits.input_bytes {
            // Nothing ran: what an earlier call was given or burned is not this event's.
            self.meter.give(0, 0, 0)?;
            return Err(Error::Input {
                bytes,
                limit: self.limits.input_bytes,
            });
        }
        self.meter.give(self.limits.fuel, bytes, self.base_fuel)?;
        let decide = self.decide.clone();
        let returned = self.guarded(|guest| {
            let pointer = guest.input(bytes)?;
            guest.write(pointer, event)?;
            let index_pointer = pointer.wrapping_add(index_at as u32);
            guest.write(index_pointer, index)?;
            let (event_len, index_len) = (event.len() as u32, index.len() as u32);
            guest.call(|store| decide.call(store, pointer, event_len, index_pointer, index_len))
        })?;
        let place = unpack(returned).map_err(|code| match by_code(code) {
            Error::OutOfMemory => self.meter.after_refusal(Error::OutOfMemory),
            error => error,
        })?;
        decision(self.output(place)?, &self.limits)
    }

    /// Notes who calls whom for the next event.
    pub(super) fn follow(&mut self, mut tree: Tree) {
        tree.begin(self.limits.fuel);
        self.host.as_mut(&mut self.store).tree = Some(tree);
    }

    /// What was noted.
    pub(super) fn followed(&mut self) -> Tree {
        let tree = self.host.as_mut(&mut self.store).tree.take();
        let mut tree = tree.unwrap_or_default();
        tree.burned(self.meter.fuel.left());
        tree
    }

    pub(super) fn used(&mut self) -> Used {
        let log = &mut self.host.as_mut(&mut self.store).log;
        let mut lines = std::mem::take(&mut log.lines);
        if log.cut {
            lines.push(cut_off(&self.limits));
        }
        Used {
            fuel: self.meter.used(),
            fuel_past: self.meter.used_past(),
            memory_bytes: self.linear.bytes() as u64,
            log: lines,
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
        // SAFETY: the guest is not running, and this is the only slice of its memory.
        let memory = unsafe { self.linear.as_mut_slice() };
        let memory_bytes = memory.len() as u64;
        let place = memory
            .get_mut(pointer as usize..)
            .and_then(|rest| rest.get_mut(..bytes.len()))
            .ok_or(Error::InputPlace {
                pointer,
                bytes: bytes.len(),
                memory_bytes,
            })?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    fn output(&self, (pointer, bytes): (u32, u32)) -> Result<&[u8], Error> {
        if bytes as usize > self.limits.output_bytes {
            return Err(Error::Output {
                bytes: bytes as usize,
                limit: self.limits.output_bytes,
            });
        }
        // SAFETY: the guest is not running, and nothing writes while `self` is borrowed.
        let memory = unsafe { self.linear.as_slice() };
        memory
            .get(pointer as usize..)
            .and_then(|rest| rest.get(..bytes as usize))
            .ok_or(Error::OutputPlace {
                pointer,
                bytes,
                memory_bytes: memory.len() as u64,
            })
    }

    /// Runs what calls into the guest, under the watchdog.
    fn guarded<T>(
        &mut self,
        calls: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (fuel, limit_ms) = (self.meter.fuel, self.limits.wall_clock_ms);
        fuel.guarded(limit_ms, || calls(self))
    }

    /// Calls into the guest, and names what ended it.
    fn call<T>(
        &mut self,
        guest: impl FnOnce(&mut Store) -> Result<T, RuntimeError>,
    ) -> Result<T, Error> {
        if let Some(tree) = &mut self.host.as_mut(&mut self.store).tree {
            tree.outside(self.meter.fuel.left());
        }
        let (result, too_deep) = stack::call(self.meter.fuel, || guest(&mut self.store));
        if too_deep {
            return Err(self.meter.stack_overflow());
        }
        let result = result.map_err(|error| {
            let panic = self.host.as_mut(&mut self.store).panic.take();
            self.meter.ended_by(error, panic)
        })?;
        self.meter.ended_well()?;
        Ok(result)
    }
}

/// Whether an instance can be made of this module.
pub(super) fn try_instance(module: &Module, limits: &Arc<Limits>) -> Result<(), Error> {
    Guest::new(module, limits).map(|_| ())
}

/// The import `hooksieve.log(level, text, len)`: level 0 is a line, level 1 the message of a panic.
fn log(
    mut env: FunctionEnvMut<'_, Host>,
    level: u32,
    pointer: u32,
    bytes: u32,
) -> Result<(), Error> {
    let host = env.data_mut();
    let (Some(linear), Some(fuel)) = (&host.linear, host.fuel) else {
        // Only a start function could call before the instance is ready, and there is none.
        return Ok(());
    };
    fuel.spend(prices::LOG.saturating_add(u64::from(bytes)))?;
    // SAFETY: the guest waits for this function, and nothing is written before the slice is gone.
    let memory = unsafe { linear.as_slice() };
    let text = memory
        .get(pointer as usize..)
        .and_then(|rest| rest.get(..bytes as usize))
        .ok_or(Error::LogPlace {
            pointer,
            bytes,
            memory_bytes: memory.len() as u64,
        })?;
    let room = if level == 1 {
        PANIC_BYTES_MAX
    } else {
        host.log.bytes_left
    };
    let kept = text.len().min(room);
    let text = String::from_utf8_lossy(&text[..kept]).into_owned();
    if level == 1 {
        host.panic = Some(text);
        return Ok(());
    }
    host.log.cut |= kept < bytes as usize;
    host.log.bytes_left -= kept;
    if kept > 0 {
        host.log.lines.push(text);
    }
    Ok(())
}

/// A function of a module that is followed begins.
fn enter(mut env: FunctionEnvMut<'_, Host>, function: u32) {
    let host = env.data_mut();
    let Some(fuel) = host.fuel else { return };
    fuel.set(fuel.left() + profile::ENTER_FUEL);
    if let Some(tree) = &mut host.tree {
        tree.enter(function, fuel.left());
    }
}

/// A call is back.
fn leave(mut env: FunctionEnvMut<'_, Host>) {
    let host = env.data_mut();
    let Some(fuel) = host.fuel else { return };
    fuel.set(fuel.left() + profile::LEAVE_FUEL);
    if let Some(tree) = &mut host.tree {
        tree.leave(fuel.left());
    }
}

/// How much of a panic's message is kept.
const PANIC_BYTES_MAX: usize = 1_024;

/// What the memory that an event starts with costs it.
pub(super) fn start_pages_fuel(pages: u32) -> u64 {
    u64::from(pages).saturating_sub(prices::FREE_PAGES) * prices::START_PAGE
}

/// The last line of a log that was too long.
pub(super) fn cut_off(limits: &Limits) -> LogLine {
    format!("[cut off: the limit is {} bytes]", limits.log_bytes)
}

/// Reads what a rule answered.
pub(crate) fn decision(answered: &[u8], limits: &Limits) -> Result<Decision, Error> {
    if answered.len() > limits.output_bytes {
        return Err(Error::Output {
            bytes: answered.len(),
            limit: limits.output_bytes,
        });
    }
    let decision = match Decision::decode(answered) {
        Ok(Ok(decision)) => decision,
        Ok(Err(message)) => return Err(Error::Rule { message }),
        Err(error) => return Err(answer(error)),
    };
    if decision.actions.len() > limits.actions {
        return Err(Error::Actions {
            actions: decision.actions.len(),
            limit: limits.actions,
        });
    }
    Ok(decision)
}

fn by_code(code: i64) -> Error {
    match code {
        code if code == wire::Code::BadInput as i64 => Error::BadInput,
        code if code == wire::Code::OutOfMemory as i64 => Error::OutOfMemory,
        code if code == wire::Code::BadConfig as i64 => Error::Config {
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

pub(super) fn engine_error(error: impl std::fmt::Display) -> Error {
    Error::Engine {
        message: error.to_string(),
    }
}
