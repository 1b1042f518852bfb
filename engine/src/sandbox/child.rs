//! Compilation in a process of its own: what a module makes the compiler need ends there, and the
//! engine does not notice.
//!
//! The child is this same program, started under another name of its first argument. It bounds
//! itself before it reads a byte: CPU time, memory, nothing written to files, no core dump, and a place behind
//! those who decide events. The request is on its standard input as a file, the answer comes on its
//! standard output; the wall clock is the parent's, who also learns from the system how much of a
//! processor's time it had.

use super::{Checked, Limits, Refused};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::process::ExitStatusExt as _;
use std::panic::catch_unwind;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What compiling one module may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompileLimits {
    /// Seconds of processor time, of all threads together.
    pub cpu_s: u64,
    /// Addresses, which bounds memory.
    pub memory_bytes: u64,
    /// Milliseconds until the process is ended.
    pub wall_clock_ms: u64,
    /// Machine code that one module may become, on the disk.
    pub code_bytes_max: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        // Read once, since every sandbox of one's own begins with it.
        static BUILT_IN: LazyLock<CompileLimits> =
            LazyLock::new(|| crate::config::Config::built_in().compile);
        *BUILT_IN
    }
}

/// The first argument by which the child knows what it is.
const ARGUMENT: &str = "compile-module";

/// An answer is at most so much longer than the machine code that the module may become.
const ANSWER_BYTES: usize = 64 << 10;

/// How far the compiler stands back for others, as `nice` counts: events are decided and taken in first.
const NICE: i32 = 10;

/// The compiler's own stack: it goes as deep as a module nests.
const STACK_BYTES: usize = 64 << 20;

static CAN_BE: AtomicBool = AtomicBool::new(false);

/// Whether this program called [`compile_if_asked`].
pub(super) fn can_be() -> bool {
    CAN_BE.load(Ordering::Relaxed)
}

#[derive(Serialize, Deserialize)]
struct Request {
    limits: Limits,
    code_bytes_max: u64,
    #[serde(with = "serde_bytes")]
    wasm: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Compiled(#[serde(with = "serde_bytes")] Vec<u8>),
    /// It became more machine code than it may.
    Code {
        bytes: u64,
        limit: u64,
    },
    Refused(String),
}

/// Compiles one module and ends, if this process was started for that; otherwise returns at once.
/// A program that runs the engine calls it first in `main`: without it, modules are compiled in the
/// engine's own process.
pub fn compile_if_asked() {
    CAN_BE.store(true, Ordering::Relaxed);
    if std::env::args_os().nth(1).as_deref() != Some(OsStr::new(ARGUMENT)) {
        return;
    }
    let bounds = std::env::args().skip(2).map(|bound| bound.parse().ok());
    let code = match serve(&bounds.collect::<Vec<_>>()) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    std::process::exit(code);
}

fn serve(bounds: &[Option<u64>]) -> io::Result<()> {
    let &[Some(cpu_s), Some(memory_bytes)] = bounds else {
        return Err(io::Error::other("its bounds are not two numbers"));
    };
    bound(cpu_s, memory_bytes)?;
    let mut request = Vec::new();
    io::stdin().lock().read_to_end(&mut request)?;
    let request: Request = rmp_serde::from_slice(&request).map_err(io::Error::other)?;
    // The answer says what went wrong; the text that a panic prints goes nowhere.
    std::panic::set_hook(Box::new(|_| {}));
    let worker = std::thread::Builder::new().stack_size(STACK_BYTES);
    let worker = worker.spawn(move || {
        catch_unwind(|| {
            let compiled =
                super::check::check(&request.wasm, &request.limits).and_then(|checked| {
                    let artifact = super::compile::compile(&checked, &request.limits)?;
                    let (bytes, wasm_bytes) = (artifact.len() as u64, request.wasm.len());
                    super::compile::within(bytes, wasm_bytes, request.code_bytes_max)?;
                    Ok(artifact)
                });
            match compiled {
                Ok(artifact) => Answer::Compiled(artifact),
                Err(Refused::Code { bytes, limit }) => Answer::Code { bytes, limit },
                Err(Refused::Compiler { message }) => Answer::Refused(message),
                Err(refused) => Answer::Refused(refused.to_string()),
            }
        })
        .unwrap_or_else(|_| Answer::Refused("the compiler panicked".to_owned()))
    });
    let Ok(worker) = worker else {
        // There is no memory for its stack.
        std::process::abort();
    };
    let answer = worker
        .join()
        .map_err(|_| io::Error::other("the compiling thread is gone"))?;
    let answer = rmp_serde::to_vec(&answer).map_err(io::Error::other)?;
    io::stdout().lock().write_all(&answer)
}

/// Takes from this process what it does not need.
#[allow(unsafe_code)]
fn bound(cpu_s: u64, memory_bytes: u64) -> io::Result<()> {
    let limits = [
        (libc::RLIMIT_CPU, cpu_s),
        (libc::RLIMIT_AS, memory_bytes),
        (libc::RLIMIT_FSIZE, 0),
        (libc::RLIMIT_CORE, 0),
    ];
    for (resource, most) in limits {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: the structure lives until the call returns.
        if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // Where it may not, it compiles all the same.
    // SAFETY: it changes this process alone.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    Ok(())
}

/// The machine code of a module, compiled by a child; and for how long the child had a processor.
pub(super) fn compile(
    checked: &Checked<'_>,
    limits: &Limits,
    own: &CompileLimits,
) -> (Result<Vec<u8>, Refused>, Duration) {
    let request = Request {
        limits: limits.clone(),
        code_bytes_max: own.code_bytes_max,
        wasm: checked.wasm.to_vec(),
    };
    let started = Instant::now();
    let mut cpu = Duration::ZERO;
    let code = start(&request, own)
        .map_err(failed)
        .and_then(|child| answered(child, started, checked.wasm.len(), own, &mut cpu));
    (code, cpu)
}

fn failed(error: io::Error) -> Refused {
    Refused::Compiler {
        message: format!("its process could not be run: {error}"),
    }
}

/// What a child makes of a module, until its time is up.
fn answered(
    mut child: Child,
    started: Instant,
    wasm_bytes: usize,
    own: &CompileLimits,
    cpu: &mut Duration,
) -> Result<Vec<u8>, Refused> {
    let until = started + Duration::from_millis(own.wall_clock_ms);
    let answer = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("it has no output"))
        .and_then(|output| {
            let code = super::compile::code_bytes_max(wasm_bytes, own.code_bytes_max);
            let code = usize::try_from(code).unwrap_or(usize::MAX);
            read_until(output, until, code.saturating_add(ANSWER_BYTES))
        });
    if !matches!(answer, Ok(Some(_))) {
        // It may have ended already; then there is nothing to end.
        let _ = child.kill();
    }
    let (status, used) = waited(&child).map_err(failed)?;
    *cpu = used;
    match answer.map_err(failed)? {
        Some(answer) if status.success() => match rmp_serde::from_slice(&answer) {
            Ok(Answer::Compiled(artifact)) => Ok(artifact),
            Ok(Answer::Code { bytes, limit }) => Err(Refused::Code { bytes, limit }),
            Ok(Answer::Refused(message)) => Err(Refused::Compiler { message }),
            Err(error) => Err(failed(io::Error::other(error))),
        },
        Some(_) => Err(refused(status, own)),
        None => Err(Refused::CompileTime {
            limit_ms: own.wall_clock_ms,
        }),
    }
}

/// Waits for a child to end: how it ended, and for how long all its threads had a processor.
#[allow(unsafe_code)]
fn waited(child: &Child) -> io::Result<(ExitStatus, Duration)> {
    let id = i32::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: of integers alone, all of which may be zero.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both live until the call returns. Nobody else waits for this child, so the id is its own.
    while unsafe { libc::wait4(id, &raw mut status, 0, &raw mut used) } < 0 {
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
    let time = |it: libc::timeval| {
        let (seconds, micros) = (it.tv_sec.unsigned_abs(), it.tv_usec.unsigned_abs());
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    let used = time(used.ru_utime) + time(used.ru_stime);
    Ok((ExitStatus::from_raw(status), used))
}

fn start(request: &Request, own: &CompileLimits) -> io::Result<Child> {
    let mut input = memory_file()?;
    input.write_all(&rmp_serde::to_vec(request).map_err(io::Error::other)?)?;
    input.rewind()?;
    // The running program itself, also after its file was replaced by a newer one.
    let program = if cfg!(target_os = "linux") {
        "/proc/self/exe".into()
    } else {
        std::env::current_exe()?
    };
    Command::new(program)
        .arg(ARGUMENT)
        .arg(own.cpu_s.to_string())
        .arg(own.memory_bytes.to_string())
        .env_clear()
        // The program's allocator otherwise takes a gigabyte of addresses at once, and addresses are what
        // is bounded.
        .env("MIMALLOC_ARENA_RESERVE", "32MiB")
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// A file without a name, in memory.
#[allow(unsafe_code)]
pub(super) fn memory_file() -> io::Result<File> {
    // SAFETY: makes a new descriptor, which the file owns at once.
    unsafe {
        let descriptor = libc::memfd_create(c"hooksieve".as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from_raw_fd(descriptor))
    }
}

/// All of the output, or `None` when time is up first.
#[allow(unsafe_code)]
fn read_until(
    mut output: std::process::ChildStdout,
    until: Instant,
    most: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut all = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut ready = libc::pollfd {
            fd: output.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one structure that lives until the call returns.
        match unsafe { libc::poll(&raw mut ready, 1, left_ms) } {
            0 => return Ok(None),
            1.. => {}
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        }
        match output.read(&mut part)? {
            0 => return Ok(Some(all)),
            read if all.len() + read > most => {
                return Err(io::Error::other("its answer has no end"));
            }
            read => all.extend_from_slice(&part[..read]),
        }
    }
}

/// What the way in which a child ended says about the module.
fn refused(status: ExitStatus, own: &CompileLimits) -> Refused {
    match status.signal() {
        Some(libc::SIGXCPU | libc::SIGKILL) => Refused::CompileCpu { limit_s: own.cpu_s },
        // Rust aborts when memory runs out, and when a stack does, which is memory as well.
        Some(libc::SIGABRT) => Refused::CompileMemory {
            limit_bytes: own.memory_bytes,
        },
        Some(signal) => Refused::Compiler {
            message: format!("its process was ended by signal {signal}"),
        },
        None => Refused::Compiler {
            message: "its process gave no answer".to_owned(),
        },
    }
}
