//! The command form: a WASI program that reads the event from its standard input and writes its
//! decision to its standard output. Any language that compiles to WASI can be a rule this way.
//!
//! wasmer-wasix makes its process and ends it. All else is done or refused in this file: its clock stands
//! at the event's time, its random numbers come from the event's id, it cannot sleep, it has no files and
//! no network, and what it reads and writes is charged. No byte is written into its memory but by this
//! file, so that nothing of the engine's is in it.
//!
//! Every event gets a program of its own. What that costs is mostly wasmer-wasix making a process
//! with its file table, so it is charged, too.
#![allow(unsafe_code)]

use super::compile::Code;
use super::instance::{Used, engine_error};
use super::memory::{self, Linear};
use super::meter::{Fuel, Meter};
use super::program::Inner;
use super::{Error, Limits, Module, prices, stack};
use hooksieve_sdk::wire::{Decision, Event, SkipIndex};
use sha2::{Digest as _, Sha256};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use wasmer::{
    Extern, Function, FunctionEnv, FunctionEnvMut, FunctionType, Imports, Instance, RuntimeError,
    Store, TypedFunction, Value,
};
use wasmer_wasix::os::task::thread::WasiThreadError;
use wasmer_wasix::runtime::task_manager::{TaskWasm, VirtualTaskManager};
use wasmer_wasix::runtime::{PluggableRuntime, Runtime};
use wasmer_wasix::virtual_fs::{EmptyFileSystem, NullFile};
use wasmer_wasix::{
    WasiEnv, WasiError, WasiFunctionEnv, WasiVersion, generate_import_object_from_env,
};
use wasmparser::ValType;

/// The one namespace a program may import from.
pub(super) const NAMESPACE: &str = "wasi_snapshot_preview1";

/// The functions of WASI preview 1 that a program may import, their parameters (`i` is an i32, `I` an i64),
/// and what becomes of a call. A language's runtime imports much that it never calls for a rule; what would
/// reach beyond the program fails with the error number that says so.
pub(super) const IMPORTS: [(&str, &str, Call); 43] = {
    use Call::{Fails, Ours, Wasix};
    [
        ("args_get", "ii", Ours),
        ("args_sizes_get", "ii", Ours),
        ("clock_res_get", "ii", Ours),
        ("clock_time_get", "iIi", Ours),
        ("environ_get", "ii", Ours),
        ("environ_sizes_get", "ii", Ours),
        ("fd_advise", "iIIi", Fails(NOTSUP)),
        ("fd_allocate", "iII", Fails(NOTSUP)),
        ("fd_close", "i", Fails(BADF)),
        ("fd_datasync", "i", Fails(NOTSUP)),
        ("fd_fdstat_get", "ii", Ours),
        ("fd_fdstat_set_flags", "ii", Fails(NOTSUP)),
        ("fd_fdstat_set_rights", "iII", Fails(NOTSUP)),
        ("fd_filestat_get", "ii", Ours),
        ("fd_filestat_set_size", "iI", Fails(NOTSUP)),
        ("fd_filestat_set_times", "iIIi", Fails(NOTSUP)),
        ("fd_pread", "iiiIi", Fails(SPIPE)),
        ("fd_prestat_dir_name", "iii", Fails(BADF)),
        ("fd_prestat_get", "ii", Fails(BADF)),
        ("fd_pwrite", "iiiIi", Fails(SPIPE)),
        ("fd_read", "iiii", Ours),
        ("fd_readdir", "iiiIi", Fails(BADF)),
        ("fd_renumber", "ii", Fails(NOTSUP)),
        ("fd_seek", "iIii", Fails(SPIPE)),
        ("fd_sync", "i", Fails(NOTSUP)),
        ("fd_tell", "ii", Fails(SPIPE)),
        ("fd_write", "iiii", Ours),
        ("path_create_directory", "iii", Fails(NOTCAPABLE)),
        ("path_filestat_get", "iiiii", Fails(NOTCAPABLE)),
        ("path_filestat_set_times", "iiiiIIi", Fails(NOTCAPABLE)),
        ("path_link", "iiiiiii", Fails(NOTCAPABLE)),
        ("path_open", "iiiiiIIii", Fails(NOTCAPABLE)),
        ("path_readlink", "iiiiii", Fails(NOTCAPABLE)),
        ("path_remove_directory", "iii", Fails(NOTCAPABLE)),
        ("path_rename", "iiiiii", Fails(NOTCAPABLE)),
        ("path_symlink", "iiiii", Fails(NOTCAPABLE)),
        ("path_unlink_file", "iii", Fails(NOTCAPABLE)),
        // There is nothing to wait for, and time stands still.
        ("poll_oneoff", "iiii", Fails(NOTSUP)),
        ("proc_exit", "i", Wasix),
        ("random_get", "ii", Ours),
        ("sched_yield", "", Fails(SUCCESS)),
        ("sock_recv", "iiiiii", Fails(BADF)),
        ("sock_shutdown", "ii", Fails(BADF)),
    ]
};

/// The type of an import of this name: all give an error number, but for the one that does not return.
pub(super) fn import_type(name: &str) -> Option<(Vec<ValType>, Vec<ValType>)> {
    let (_, params, _) = IMPORTS.iter().find(|(known, ..)| *known == name)?;
    let params = params.chars().map(|letter| match letter {
        'I' => ValType::I64,
        _ => ValType::I32,
    });
    let results = match name {
        "proc_exit" => Vec::new(),
        _ => vec![ValType::I32],
    };
    Some((params.collect(), results))
}

/// What a call of an import comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// wasmer-wasix does it. It is never given a place in memory: where a guest's is not aligned, it writes
    /// there all the same, which ends a process that is built with checks.
    Wasix,
    /// We do it: all that is written is ours.
    Ours,
    /// It returns this error number and does nothing.
    Fails(i32),
}

// Error numbers of WASI preview 1.
const SUCCESS: i32 = 0;
const BADF: i32 = 8;
const FAULT: i32 = 21;
const INVAL: i32 = 28;
const NOTSUP: i32 = 58;
const SPIPE: i32 = 70;
const NOTCAPABLE: i32 = 76;

/// The most buffers of one read or write, as on Linux.
const BUFFERS_MAX: u32 = 1_024;
/// How many random bytes are made between two looks at the fuel.
const RANDOM_PIECE_BYTES: usize = 16 << 10;

/// The one argument that a program gets.
const PROGRAM_NAME: &str = "rule";
const ARGUMENT: &[u8] = b"rule\0";
/// The variable that holds the rule's configuration, as JSON.
pub(super) const CONFIG_VARIABLE: &str = "HOOKSIEVE_CONFIG";
/// A configuration in a variable is copied whenever a program asks for its environment.
const CONFIG_BYTES_MAX: usize = 65_536;

/// The configuration as a program sees it.
pub(super) fn config(messagepack: &[u8]) -> Result<String, Error> {
    let refused = |message: String| Error::Config { message };
    let value: serde_json::Value =
        rmp_serde::from_slice(messagepack).map_err(|error| refused(error.to_string()))?;
    let json = value.to_string();
    if json.len() > CONFIG_BYTES_MAX {
        return Err(refused(format!(
            "it is {} bytes as JSON, and a WASI program gets at most {CONFIG_BYTES_MAX}",
            json.len()
        )));
    }
    Ok(json)
}

/// Finds out whether the program can be given its configuration.
pub(super) fn try_start(program: &Inner) -> Result<(), Error> {
    config(&program.config).map(|_| ())
}

/// Whether an instance can be made of this module.
pub(super) fn try_instance(module: &Module, limits: &Arc<Limits>) -> Result<(), Error> {
    Process::start(module, limits, String::new(), &[], &[]).map(|_| ())
}

/// Runs the program on one event.
pub(super) fn decide(
    program: &Inner,
    event: &[u8],
    index: &[u8],
) -> (Result<Decision, Error>, Used) {
    let started = config(&program.config)
        .and_then(|config| Process::start(&program.module, &program.limits, config, event, index));
    match started {
        Ok(mut process) => {
            let outcome = process.decide(program, event);
            (outcome, process.used())
        }
        Err(error) => (Err(error), Used::default()),
    }
}

/// A program on its way through one event.
struct Process {
    limits: Arc<Limits>,
    store: Store,
    wasi: WasiFunctionEnv,
    linear: Arc<Linear>,
    meter: Meter,
    start: TypedFunction<(), ()>,
    host: FunctionEnv<Host>,
    _instance: Instance,
    _code: Arc<Code>,
}

impl Process {
    fn start(
        module: &Module,
        limits: &Arc<Limits>,
        config: String,
        event: &[u8],
        index: &[u8],
    ) -> Result<Self, Error> {
        let code = module.code()?;
        let mut store = code.store();
        let env = WasiEnv::builder(PROGRAM_NAME)
            .runtime(runtime())
            .fs(Arc::new(EmptyFileSystem::default()) as Arc<_>)
            // What the program reads and writes does not pass through wasmer-wasix.
            .stdin(Box::new(NullFile::default()))
            .stdout(Box::new(NullFile::default()))
            .stderr(Box::new(NullFile::default()))
            .build()
            .map_err(engine_error)?;
        let mut wasi = WasiFunctionEnv::new(&mut store, env);
        let theirs = generate_import_object_from_env(&mut store, &wasi.env, WasiVersion::Snapshot1);
        let host = Host::new(event, index, &config, limits);
        let host = FunctionEnv::new(&mut store, host);
        let imports = imports(&mut store, &theirs, &code.module, &host);
        memory::take_made();
        let instance = Instance::new(&mut store, &code.module, &imports).map_err(engine_error)?;
        let (linear, globals) = memory::take_made();
        let linear = linear.ok_or_else(|| engine_error("the instance has no memory of its own"))?;
        let meter = Meter::new(linear.clone(), &globals, module.globals(), limits.clone())?;
        // SAFETY: it is this process's, and `decide` is the one place that runs it.
        unsafe { stack::watch(&mut store, meter.fuel) };
        let state = host.as_mut(&mut store);
        state.linear = Some(linear.clone());
        state.fuel = Some(meter.fuel);
        wasi.initialize(&mut store, instance.clone())
            .map_err(engine_error)?;
        let start = instance
            .exports
            .get_typed_function(&store, "_start")
            .map_err(engine_error)?;
        Ok(Self {
            limits: limits.clone(),
            store,
            wasi,
            linear,
            meter,
            start,
            host,
            _instance: instance,
            _code: code,
        })
    }

    fn decide(&mut self, program: &Inner, event: &[u8]) -> Result<Decision, Error> {
        if event.len() > self.limits.input_bytes {
            return Err(Error::Input {
                bytes: event.len(),
                limit: self.limits.input_bytes,
            });
        }
        let base = prices::PROCESS
            + program.module.start_fuel()
            + super::instance::start_pages_fuel(self.linear.pages());
        self.meter.give(self.limits.fuel, event.len(), base)?;
        let start = self.start.clone();
        let (fuel, limit_ms) = (self.meter.fuel, self.limits.wall_clock_ms);
        fuel.guarded(limit_ms, || {
            let (ended, too_deep) = stack::call(fuel, || start.call(&mut self.store));
            if too_deep {
                return Err(self.meter.stack_overflow());
            }
            self.exit_code(ended)
        })?;
        let output = &self.host.as_ref(&self.store).output;
        if output.seen > self.limits.output_bytes {
            return Err(Error::Output {
                bytes: output.seen,
                limit: self.limits.output_bytes,
            });
        }
        super::instance::decision(&output.kept, &self.limits)
    }

    /// A program ends well by returning or with the code 0.
    fn exit_code(&self, ended: Result<(), RuntimeError>) -> Result<(), Error> {
        let Err(error) = ended else {
            return self.meter.ended_well();
        };
        match error.downcast::<WasiError>() {
            Ok(WasiError::Exit(code)) if code.raw() == 0 => self.meter.ended_well(),
            Ok(WasiError::Exit(code)) => {
                Err(self.meter.after_refusal(Error::Exit { code: code.raw() }))
            }
            Ok(other) => Err(engine_error(other)),
            Err(error) => Err(self.meter.ended_by(error, None)),
        }
    }

    fn used(mut self) -> Used {
        // Gives up what wasmer-wasix keeps for the process.
        self.wasi.on_exit(&mut self.store, None);
        let log = &self.host.as_ref(&self.store).log;
        let mut lines: Vec<_> = String::from_utf8_lossy(&log.kept)
            .lines()
            .map(str::to_owned)
            .collect();
        if log.seen > log.kept.len() {
            lines.push(super::instance::cut_off(&self.limits));
        }
        Used {
            fuel: self.meter.used(),
            fuel_past: self.meter.used_past(),
            memory_bytes: self.linear.bytes() as u64,
            log: lines,
        }
    }
}

/// The parts of wasmer-wasix that all processes share. None of them can start a thread or a task.
fn runtime() -> Arc<dyn Runtime + Send + Sync> {
    static RUNTIME: OnceLock<Arc<PluggableRuntime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| Arc::new(PluggableRuntime::new(Arc::new(NoTasks))))
        .clone()
}

#[derive(Debug)]
struct NoTasks;

impl VirtualTaskManager for NoTasks {
    fn sleep_now(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        Box::pin(std::future::ready(()))
    }

    fn task_shared(
        &self,
        _: Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>,
    ) -> Result<(), WasiThreadError> {
        Err(WasiThreadError::Unsupported)
    }

    fn task_wasm(&self, _: TaskWasm) -> Result<(), WasiThreadError> {
        Err(WasiThreadError::Unsupported)
    }

    fn task_dedicated(&self, _: Box<dyn FnOnce() + Send>) -> Result<(), WasiThreadError> {
        Err(WasiThreadError::Unsupported)
    }

    fn thread_parallelism(&self) -> Result<usize, WasiThreadError> {
        Ok(1)
    }
}

/// What our own imports read and write.
struct Host {
    linear: Option<Arc<Linear>>,
    fuel: Option<Fuel>,
    /// What is left to read of the event.
    input: Box<[u8]>,
    read: usize,
    output: Captured,
    log: Captured,
    /// Nanoseconds since 1970: the event's time.
    time_ns: i64,
    random: Random,
    /// The one variable, with the zero at its end.
    variable: Box<[u8]>,
}

impl Host {
    fn new(event: &[u8], index: &[u8], config: &str, limits: &Limits) -> Self {
        let decoded = Event::decode(event, SkipIndex::new(index)).ok();
        let time: Option<jiff::Timestamp> = decoded.and_then(|event| event.time().parse().ok());
        Self {
            linear: None,
            fuel: None,
            input: event.into(),
            read: 0,
            output: Captured::new(limits.output_bytes),
            log: Captured::new(limits.log_bytes),
            time_ns: time.map_or(0, |time| time.as_millisecond() * 1_000_000),
            random: Random::new(decoded.map_or("", |event| event.id())),
            variable: format!("{CONFIG_VARIABLE}={config}\0").into_bytes().into(),
        }
    }
}

/// What was written to a standard output, up to a limit.
struct Captured {
    kept: Vec<u8>,
    seen: usize,
    limit: usize,
}

impl Captured {
    fn new(limit: usize) -> Self {
        Self {
            kept: Vec::new(),
            seen: 0,
            limit,
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let room = self.limit - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.seen = self.seen.saturating_add(bytes.len());
    }
}

/// Random numbers that are the same for the same event: SHA-256 over its id and a counter.
struct Random {
    seed: Sha256,
    blocks: u64,
}

impl Random {
    fn new(id: &str) -> Self {
        Self {
            seed: Sha256::new_with_prefix(id),
            blocks: 0,
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for block in bytes.chunks_mut(32) {
            let random = self.seed.clone().chain_update(self.blocks.to_le_bytes());
            block.copy_from_slice(&random.finalize()[..block.len()]);
            self.blocks += 1;
        }
    }
}

/// What the program gets for its imports. Each is made from wasmer-wasix's own or from nothing, never from
/// what was made before: a name that stands twice, as Go's linker writes `fd_write`, is one function.
fn imports(
    store: &mut Store,
    theirs: &Imports,
    module: &wasmer::Module,
    host: &FunctionEnv<Host>,
) -> Imports {
    let mut imports = Imports::new();
    for import in module.imports() {
        let name = import.name();
        if imports.exists(NAMESPACE, name) {
            continue;
        }
        let Some((_, _, call)) = IMPORTS.iter().find(|(known, ..)| *known == name) else {
            continue;
        };
        let function = match *call {
            Call::Fails(errno) => fails(store, name, errno),
            Call::Ours => ours(store, name, host),
            Call::Wasix => match theirs.get_export(NAMESPACE, name) {
                Some(Extern::Function(theirs)) => Some(theirs),
                _ => None,
            },
        };
        if let Some(function) = function {
            imports.define(NAMESPACE, name, function);
        }
    }
    imports
}

/// A function that does nothing but give this error number.
fn fails(store: &mut Store, name: &str, errno: i32) -> Option<Function> {
    let (params, results) = import_type(name)?;
    let types = |types: Vec<ValType>| {
        let types = types.into_iter().map(|ty| match ty {
            ValType::I64 => wasmer::Type::I64,
            _ => wasmer::Type::I32,
        });
        types.collect::<Vec<_>>()
    };
    let ty = FunctionType::new(types(params), types(results));
    Some(Function::new(store, ty, move |_| {
        Ok(vec![Value::I32(errno)])
    }))
}

fn ours(store: &mut Store, name: &str, host: &FunctionEnv<Host>) -> Option<Function> {
    Some(match name {
        "args_get" => Function::new_typed_with_env(store, host, args_get),
        "args_sizes_get" => Function::new_typed_with_env(store, host, args_sizes_get),
        "clock_res_get" => Function::new_typed_with_env(store, host, clock_res_get),
        "clock_time_get" => Function::new_typed_with_env(store, host, clock_time_get),
        "environ_get" => Function::new_typed_with_env(store, host, environ_get),
        "environ_sizes_get" => Function::new_typed_with_env(store, host, environ_sizes_get),
        "fd_fdstat_get" => Function::new_typed_with_env(store, host, fd_fdstat_get),
        "fd_filestat_get" => Function::new_typed_with_env(store, host, fd_filestat_get),
        "fd_read" => Function::new_typed_with_env(store, host, fd_read),
        "fd_write" => Function::new_typed_with_env(store, host, fd_write),
        "random_get" => Function::new_typed_with_env(store, host, random_get),
        _ => return None,
    })
}

/// An error number in place of what a call was to do.
type Errno = i32;

/// A place in the guest's memory.
fn place(memory: &mut [u8], at: i32, bytes: usize) -> Result<&mut [u8], Errno> {
    let rest = memory.get_mut(at as u32 as usize..);
    rest.and_then(|rest| rest.get_mut(..bytes)).ok_or(FAULT)
}

/// The buffers of a read or a write, where each stands and how long it is.
fn buffers(memory: &[u8], at: i32, n: i32) -> Result<Vec<(usize, usize)>, Errno> {
    let list = memory.get(at as u32 as usize..);
    let list = list.and_then(|rest| rest.get(..n as u32 as usize * 8));
    let mut buffers = Vec::with_capacity(n as u32 as usize);
    for buffer in list.ok_or(FAULT)?.as_chunks::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *buffer;
        let at = u32::from_le_bytes([a, b, c, d]) as usize;
        let length = u32::from_le_bytes([e, f, g, h]) as usize;
        if at + length > memory.len() {
            return Err(FAULT);
        }
        buffers.push((at, length));
    }
    Ok(buffers)
}

/// Has `does` work on the guest's memory, after its price was paid for so many buffers.
fn with_buffers(
    mut env: FunctionEnvMut<'_, Host>,
    n: i32,
    does: impl FnOnce(&mut Host, &mut [u8]) -> Result<u64, Errno>,
) -> Result<i32, Error> {
    let host = env.data_mut();
    let (Some(linear), Some(fuel)) = (host.linear.clone(), host.fuel) else {
        return Ok(FAULT);
    };
    if n as u32 > BUFFERS_MAX {
        return Ok(INVAL);
    }
    fuel.spend(u64::from(n as u32) * prices::BUFFER)?;
    // SAFETY: the guest waits for this function, and this is the only slice of its memory.
    let memory = unsafe { linear.as_mut_slice() };
    match does(host, memory) {
        Ok(moved) => {
            fuel.spend(moved.div_ceil(prices::BYTES_IN_BULK as u64))?;
            Ok(SUCCESS)
        }
        Err(errno) => Ok(errno),
    }
}

/// Reads what is left of the event. It moves no more than there is of it, so its length is bounded.
fn fd_read(env: FunctionEnvMut<'_, Host>, fd: i32, at: i32, n: i32, to: i32) -> Result<i32, Error> {
    if fd != 0 {
        return Ok(BADF);
    }
    with_buffers(env, n, |host, memory| {
        let buffers = buffers(memory, at, n)?;
        place(memory, to, 4)?;
        let before = host.read;
        for (at, length) in buffers {
            let left = &host.input[host.read..];
            let part = &left[..left.len().min(length)];
            memory[at..at + part.len()].copy_from_slice(part);
            host.read += part.len();
        }
        let read = host.read - before;
        place(memory, to, 4)?.copy_from_slice(&(read as u32).to_le_bytes());
        Ok(read as u64)
    })
}

/// Takes all that is written, and keeps as much of it as the limit lets: only that is moved.
fn fd_write(
    env: FunctionEnvMut<'_, Host>,
    fd: i32,
    at: i32,
    n: i32,
    to: i32,
) -> Result<i32, Error> {
    if fd != 1 && fd != 2 {
        return Ok(BADF);
    }
    with_buffers(env, n, |host, memory| {
        let buffers = buffers(memory, at, n)?;
        place(memory, to, 4)?;
        let all: u64 = buffers.iter().map(|(_, length)| *length as u64).sum();
        let written = u32::try_from(all).map_err(|_| INVAL)?;
        let captured = match fd {
            1 => &mut host.output,
            _ => &mut host.log,
        };
        for (at, length) in buffers {
            captured.write(&memory[at..at + length]);
        }
        place(memory, to, 4)?.copy_from_slice(&written.to_le_bytes());
        Ok(all)
    })
}

/// What a standard descriptor is: of no known type, so that programs buffer what they write, with the
/// rights to read or to write. `fdstat`: type, 1 byte; flags, 2 bytes at 2; rights, 8 bytes at 8 and at 16.
fn fd_fdstat_get(env: FunctionEnvMut<'_, Host>, fd: i32, to: i32) -> Result<i32, Error> {
    const FD_READ: u64 = 1 << 1;
    const FD_WRITE: u64 = 1 << 6;
    let rights = match fd {
        0 => FD_READ,
        1 | 2 => FD_WRITE,
        _ => return Ok(BADF),
    };
    let mut stat = [0; 24];
    stat[8..16].copy_from_slice(&rights.to_le_bytes());
    write(env, to, &stat)
}

/// A standard descriptor has nothing of what a file has: 64 zeros.
fn fd_filestat_get(env: FunctionEnvMut<'_, Host>, fd: i32, to: i32) -> Result<i32, Error> {
    match fd {
        0..=2 => write(env, to, &[0; 64]),
        _ => Ok(BADF),
    }
}

/// Writes the one text of a list: its place, and the text itself. Charged for its length.
fn text(
    mut env: FunctionEnvMut<'_, Host>,
    (pointers, texts): (i32, i32),
    text: impl FnOnce(&Host) -> &[u8],
) -> Result<i32, Error> {
    let host = env.data_mut();
    let (Some(linear), Some(fuel)) = (&host.linear, host.fuel) else {
        return Ok(FAULT);
    };
    let text = text(host);
    fuel.spend((text.len() as u64).div_ceil(prices::BYTES_IN_BULK as u64))?;
    // SAFETY: the guest waits for this function, and this is the only slice of its memory.
    let memory = unsafe { linear.as_mut_slice() };
    let written = (|| {
        place(memory, texts, text.len())?.copy_from_slice(text);
        place(memory, pointers, 4)?.copy_from_slice(&texts.to_le_bytes());
        Ok(())
    })();
    Ok(written.err().unwrap_or(SUCCESS))
}

/// Writes how many texts a list has, one, and how long it is.
fn text_sizes(
    mut env: FunctionEnvMut<'_, Host>,
    (count, bytes): (i32, i32),
    text: impl FnOnce(&Host) -> &[u8],
) -> Result<i32, Error> {
    let host = env.data_mut();
    let Some(linear) = &host.linear else {
        return Ok(FAULT);
    };
    let length = text(host).len() as u32;
    // SAFETY: the guest waits for this function, and this is the only slice of its memory.
    let memory = unsafe { linear.as_mut_slice() };
    let written = (|| {
        place(memory, count, 4)?.copy_from_slice(&1u32.to_le_bytes());
        place(memory, bytes, 4)?.copy_from_slice(&length.to_le_bytes());
        Ok(())
    })();
    Ok(written.err().unwrap_or(SUCCESS))
}

fn args_get(env: FunctionEnvMut<'_, Host>, pointers: i32, texts: i32) -> Result<i32, Error> {
    text(env, (pointers, texts), |_| ARGUMENT)
}

fn args_sizes_get(env: FunctionEnvMut<'_, Host>, count: i32, bytes: i32) -> Result<i32, Error> {
    text_sizes(env, (count, bytes), |_| ARGUMENT)
}

fn environ_get(env: FunctionEnvMut<'_, Host>, pointers: i32, texts: i32) -> Result<i32, Error> {
    text(env, (pointers, texts), |host| &host.variable)
}

fn environ_sizes_get(env: FunctionEnvMut<'_, Host>, count: i32, bytes: i32) -> Result<i32, Error> {
    text_sizes(env, (count, bytes), |host| &host.variable)
}

fn clock_time_get(
    env: FunctionEnvMut<'_, Host>,
    _clock: i32,
    _precision: i64,
    to: i32,
) -> Result<i32, Error> {
    let time = env.data().time_ns.to_le_bytes();
    write(env, to, &time)
}

/// The clock stands still, so it has no resolution; a second is the least wrong.
fn clock_res_get(env: FunctionEnvMut<'_, Host>, _clock: i32, to: i32) -> Result<i32, Error> {
    write(env, to, &1_000_000_000u64.to_le_bytes())
}

fn random_get(mut env: FunctionEnvMut<'_, Host>, to: i32, bytes: i32) -> Result<i32, Error> {
    let host = env.data_mut();
    let (Some(linear), Some(fuel)) = (&host.linear, host.fuel) else {
        return Ok(FAULT);
    };
    // SAFETY: the guest waits for this function, and this is the only slice of its memory.
    let memory = unsafe { linear.as_mut_slice() };
    match place(memory, to, bytes as u32 as usize) {
        Ok(place) => {
            for piece in place.chunks_mut(RANDOM_PIECE_BYTES) {
                fuel.spend(piece.len() as u64 * prices::RANDOM_BYTE)?;
                host.random.fill(piece);
            }
            Ok(SUCCESS)
        }
        Err(errno) => Ok(errno),
    }
}

fn write(mut env: FunctionEnvMut<'_, Host>, to: i32, bytes: &[u8]) -> Result<i32, Error> {
    let Some(linear) = &env.data_mut().linear else {
        return Ok(FAULT);
    };
    // SAFETY: the guest waits for this function, and this is the only slice of its memory.
    let memory = unsafe { linear.as_mut_slice() };
    Ok(match place(memory, to, bytes.len()) {
        Ok(place) => {
            place.copy_from_slice(bytes);
            SUCCESS
        }
        Err(errno) => errno,
    })
}
