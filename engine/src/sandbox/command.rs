//! The command form: a WASI program that reads the event from its standard input and writes its
//! decision to its standard output. Any language that compiles to WASI can be a rule this way.
//!
//! wasmer-wasix runs it, and this file takes away what it must not have: its clock stands at the
//! event's time, its random numbers come from the event's id, it cannot sleep, and it has no files
//! and no network. Reading and writing is charged before wasmer-wasix is asked to do it.
//!
//! Every event gets a program of its own. What that costs is mostly wasmer-wasix making a process
//! with its file table, so it is charged, too.
#![allow(unsafe_code)]

use super::compile::Code;
use super::instance::{Used, engine_error};
use super::memory::{self, Linear};
use super::meter::{Fuel, Meter};
use super::program::Inner;
use super::{Error, Limits, Module, stack};
use hooksieve_sdk::wire::{Decision, Event, SkipIndex};
use sha2::{Digest as _, Sha256};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use wasmer::{
    AsStoreMut as _, Extern, ExternType, Function, FunctionEnv, FunctionEnvMut, Imports, Instance,
    RuntimeError, Store, TypedFunction, Value,
};
use wasmer_wasix::os::task::thread::WasiThreadError;
use wasmer_wasix::runtime::task_manager::{TaskWasm, VirtualTaskManager};
use wasmer_wasix::runtime::{PluggableRuntime, Runtime};
use wasmer_wasix::virtual_fs::{EmptyFileSystem, FsError, VirtualFile};
use wasmer_wasix::{
    WasiEnv, WasiError, WasiFunctionEnv, WasiVersion, generate_import_object_from_env,
};

/// The one namespace a program may import from.
pub(super) const NAMESPACE: &str = "wasi_snapshot_preview1";

/// The functions of WASI preview 1 that a program may import, and what becomes of a call. A language's
/// runtime imports much that it never calls for a rule; what would reach beyond the program fails with
/// the error number that says so.
pub(super) const IMPORTS: [(&str, Call); 43] = {
    use Call::{Fails, Ours, Wasix};
    [
        ("args_get", Wasix),
        ("args_sizes_get", Wasix),
        ("clock_res_get", Ours),
        ("clock_time_get", Ours),
        ("environ_get", Wasix),
        ("environ_sizes_get", Wasix),
        ("fd_advise", Fails(NOTSUP)),
        ("fd_allocate", Fails(NOTSUP)),
        ("fd_close", Fails(BADF)),
        ("fd_datasync", Fails(NOTSUP)),
        ("fd_fdstat_get", Wasix),
        ("fd_fdstat_set_flags", Fails(NOTSUP)),
        ("fd_fdstat_set_rights", Fails(NOTSUP)),
        ("fd_filestat_get", Wasix),
        ("fd_filestat_set_size", Fails(NOTSUP)),
        ("fd_filestat_set_times", Fails(NOTSUP)),
        ("fd_pread", Fails(SPIPE)),
        ("fd_prestat_dir_name", Fails(BADF)),
        ("fd_prestat_get", Fails(BADF)),
        ("fd_pwrite", Fails(SPIPE)),
        ("fd_read", Ours),
        ("fd_readdir", Fails(BADF)),
        ("fd_renumber", Fails(NOTSUP)),
        ("fd_seek", Fails(SPIPE)),
        ("fd_sync", Fails(NOTSUP)),
        ("fd_tell", Fails(SPIPE)),
        ("fd_write", Ours),
        ("path_create_directory", Fails(NOTCAPABLE)),
        ("path_filestat_get", Fails(NOTCAPABLE)),
        ("path_filestat_set_times", Fails(NOTCAPABLE)),
        ("path_link", Fails(NOTCAPABLE)),
        ("path_open", Fails(NOTCAPABLE)),
        ("path_readlink", Fails(NOTCAPABLE)),
        ("path_remove_directory", Fails(NOTCAPABLE)),
        ("path_rename", Fails(NOTCAPABLE)),
        ("path_symlink", Fails(NOTCAPABLE)),
        ("path_unlink_file", Fails(NOTCAPABLE)),
        // There is nothing to wait for, and time stands still.
        ("poll_oneoff", Fails(NOTSUP)),
        ("proc_exit", Wasix),
        ("random_get", Ours),
        ("sched_yield", Fails(SUCCESS)),
        ("sock_recv", Fails(BADF)),
        ("sock_shutdown", Fails(BADF)),
    ]
};

/// What a call of an import comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// wasmer-wasix does it.
    Wasix,
    /// We do it, or charge for it first.
    Ours,
    /// It returns this error number and does nothing.
    Fails(i32),
}

// Error numbers of WASI preview 1.
const SUCCESS: i32 = 0;
const BADF: i32 = 8;
const FAULT: i32 = 21;
const NOTSUP: i32 = 58;
const SPIPE: i32 = 70;
const NOTCAPABLE: i32 = 76;

/// Fuel for the process that every event gets, besides what its module costs.
const PROCESS_FUEL: u64 = 200_000;
/// Fuel for a call of an import, compiled in where it is called.
pub(super) const CALL_FUEL: u64 = 1_000;
/// Fuel for each buffer of a read or a write.
const BUFFER_FUEL: u64 = 20;
/// Bytes that are moved for 1 fuel.
const BYTES_PER_FUEL: u64 = 8;

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
    output: Captured,
    log: Captured,
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
        let (output, log) = (
            Captured::new(limits.output_bytes),
            Captured::new(limits.log_bytes),
        );
        let env = WasiEnv::builder("rule")
            .runtime(runtime())
            .fs(Arc::new(EmptyFileSystem::default()) as Arc<_>)
            .env(CONFIG_VARIABLE, config)
            .stdin(Box::new(Input {
                bytes: event.into(),
                at: 0,
            }))
            .stdout(Box::new(output.clone()))
            .stderr(Box::new(log.clone()))
            .build()
            .map_err(engine_error)?;
        let mut wasi = WasiFunctionEnv::new(&mut store, env);
        let mut imports =
            generate_import_object_from_env(&mut store, &wasi.env, WasiVersion::Snapshot1);
        let host = FunctionEnv::new(&mut store, Host::new(event, index));
        replace(&mut store, &mut imports, &code.module, &host);
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
            output,
            log,
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
        let base = PROCESS_FUEL
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
        let output = self.output.take();
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
        let log = self.log.take();
        let mut lines: Vec<_> = String::from_utf8_lossy(&log.kept)
            .lines()
            .map(str::to_owned)
            .collect();
        if log.seen > log.kept.len() {
            lines.push(super::instance::cut_off(&self.limits));
        }
        Used {
            fuel: self.meter.used(),
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
    /// Nanoseconds since 1970: the event's time.
    time_ns: i64,
    random: Random,
    read: Option<Io>,
    write: Option<Io>,
}

/// `fd_read` and `fd_write`: descriptor, buffers, their number, where the count goes.
type Io = TypedFunction<(i32, i32, i32, i32), i32>;

impl Host {
    fn new(event: &[u8], index: &[u8]) -> Self {
        let event = Event::decode(event, SkipIndex::new(index)).ok();
        let time: Option<jiff::Timestamp> = event.and_then(|event| event.time().parse().ok());
        Self {
            linear: None,
            fuel: None,
            time_ns: time.map_or(0, |time| time.as_millisecond() * 1_000_000),
            random: Random::new(event.map_or("", |event| event.id())),
            read: None,
            write: None,
        }
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

/// Puts our functions in the place of wasmer-wasix's.
fn replace(
    store: &mut Store,
    imports: &mut Imports,
    module: &wasmer::Module,
    host: &FunctionEnv<Host>,
) {
    for import in module.imports() {
        let name = import.name();
        let call = IMPORTS.iter().find(|(known, _)| *known == name);
        let ours = match (call.map(|(_, call)| *call), name) {
            (Some(Call::Fails(errno)), _) => {
                let ExternType::Function(ty) = import.ty() else {
                    continue;
                };
                Function::new(store, ty, move |_| Ok(vec![Value::I32(errno)]))
            }
            (Some(Call::Ours), "fd_read" | "fd_write") => {
                let Some(Extern::Function(theirs)) = imports.get_export(NAMESPACE, name) else {
                    continue;
                };
                let Ok(theirs) = theirs.typed(store) else {
                    continue;
                };
                if name == "fd_read" {
                    host.as_mut(store).read = Some(theirs);
                    Function::new_typed_with_env(store, host, fd_read)
                } else {
                    host.as_mut(store).write = Some(theirs);
                    Function::new_typed_with_env(store, host, fd_write)
                }
            }
            (Some(Call::Ours), "clock_time_get") => {
                Function::new_typed_with_env(store, host, clock_time_get)
            }
            (Some(Call::Ours), "clock_res_get") => {
                Function::new_typed_with_env(store, host, clock_res_get)
            }
            (Some(Call::Ours), "random_get") => {
                Function::new_typed_with_env(store, host, random_get)
            }
            _ => continue,
        };
        imports.define(NAMESPACE, name, ours);
    }
}

fn fd_read(env: FunctionEnvMut<'_, Host>, fd: i32, at: i32, n: i32, to: i32) -> Result<i32, Error> {
    if fd != 0 {
        return Ok(BADF);
    }
    let theirs = env.data().read.clone();
    move_bytes(env, theirs, (fd, at, n, to))
}

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
    let theirs = env.data().write.clone();
    move_bytes(env, theirs, (fd, at, n, to))
}

/// Charges for the buffers and the bytes, then has wasmer-wasix move them.
fn move_bytes(
    mut env: FunctionEnvMut<'_, Host>,
    theirs: Option<Io>,
    (fd, at, n, to): (i32, i32, i32, i32),
) -> Result<i32, Error> {
    let (host, mut store) = env.data_and_store_mut();
    let (Some(linear), Some(fuel), Some(theirs)) = (&host.linear, host.fuel, theirs) else {
        return Ok(FAULT);
    };
    let buffers = u64::from(n as u32);
    fuel.spend(buffers.saturating_mul(BUFFER_FUEL))?;
    // SAFETY: the guest waits for this function, and nothing is written before the slice is gone.
    let memory = unsafe { linear.as_slice() };
    let Some(list) = memory
        .get(at as u32 as usize..)
        .and_then(|rest| rest.get(..n as u32 as usize * 8))
    else {
        return Ok(FAULT);
    };
    let mut bytes = 0;
    for buffer in list.chunks_exact(8) {
        let length = [buffer[4], buffer[5], buffer[6], buffer[7]];
        bytes += u64::from(u32::from_le_bytes(length));
    }
    fuel.spend(bytes.div_ceil(BYTES_PER_FUEL))?;
    theirs
        .call(&mut store.as_store_mut(), fd, at, n, to)
        .map_err(engine_error)
}

fn clock_time_get(
    mut env: FunctionEnvMut<'_, Host>,
    _clock: i32,
    _precision: i64,
    to: i32,
) -> Result<i32, Error> {
    let time = env.data().time_ns.to_le_bytes();
    Ok(write(env.data_mut(), to, &time))
}

/// The clock stands still, so it has no resolution; a second is the least wrong.
fn clock_res_get(mut env: FunctionEnvMut<'_, Host>, _clock: i32, to: i32) -> Result<i32, Error> {
    Ok(write(env.data_mut(), to, &1_000_000_000u64.to_le_bytes()))
}

fn random_get(mut env: FunctionEnvMut<'_, Host>, to: i32, bytes: i32) -> Result<i32, Error> {
    let host = env.data_mut();
    let (Some(linear), Some(fuel)) = (&host.linear, host.fuel) else {
        return Ok(FAULT);
    };
    // A hash for each 32 bytes.
    fuel.spend(u64::from(bytes as u32).saturating_mul(8))?;
    // SAFETY: the guest waits for this function, and this is the only slice of its memory.
    let memory = unsafe { linear.as_mut_slice() };
    let place = memory
        .get_mut(to as u32 as usize..)
        .and_then(|rest| rest.get_mut(..bytes as u32 as usize));
    match place {
        Some(place) => {
            host.random.fill(place);
            Ok(SUCCESS)
        }
        None => Ok(FAULT),
    }
}

fn write(host: &mut Host, to: i32, bytes: &[u8]) -> i32 {
    let Some(linear) = &host.linear else {
        return FAULT;
    };
    // SAFETY: the guest waits for this function, and this is the only slice of its memory.
    let memory = unsafe { linear.as_mut_slice() };
    let place = memory
        .get_mut(to as u32 as usize..)
        .and_then(|rest| rest.get_mut(..bytes.len()));
    match place {
        Some(place) => {
            place.copy_from_slice(bytes);
            SUCCESS
        }
        None => FAULT,
    }
}

/// The event, to be read once.
#[derive(Debug)]
struct Input {
    bytes: Box<[u8]>,
    at: usize,
}

/// What was written to a standard output, up to a limit.
#[derive(Clone, Debug)]
struct Captured(Arc<Mutex<Output>>);

#[derive(Debug, Default)]
struct Output {
    kept: Vec<u8>,
    seen: usize,
    limit: usize,
}

impl Captured {
    fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Output {
            limit,
            ..Output::default()
        })))
    }

    fn take(&self) -> Output {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.bytes.get(self.at..).unwrap_or_default();
        let part = &left[..left.len().min(to.remaining())];
        to.put_slice(part);
        self.at += part.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Captured {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Captured {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = output.limit.saturating_sub(output.kept.len());
        output
            .kept
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        output.seen = output.seen.saturating_add(bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What wasmer-wasix asks of a file besides reading and writing: streams have none of it.
macro_rules! stream {
    ($stream:ty) => {
        impl AsyncSeek for $stream {
            fn start_seek(self: Pin<&mut Self>, _: io::SeekFrom) -> io::Result<()> {
                Err(io::ErrorKind::NotSeekable.into())
            }

            fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
                Poll::Ready(Ok(0))
            }
        }

        impl VirtualFile for $stream {
            fn last_accessed(&self) -> u64 {
                0
            }

            fn last_modified(&self) -> u64 {
                0
            }

            fn created_time(&self) -> u64 {
                0
            }

            fn size(&self) -> u64 {
                0
            }

            fn set_len(&mut self, _: u64) -> Result<(), FsError> {
                Err(FsError::PermissionDenied)
            }

            fn unlink(&mut self) -> Result<(), FsError> {
                Err(FsError::PermissionDenied)
            }

            fn poll_read_ready(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<io::Result<usize>> {
                Poll::Ready(Ok(1))
            }

            fn poll_write_ready(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<io::Result<usize>> {
                Poll::Ready(Ok(1))
            }
        }
    };
}

stream!(Input);
stream!(Captured);
