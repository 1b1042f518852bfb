//! A process that is killed at a system call: the nth of those by which it changes what is in a folder. The
//! kernel stops each of its threads before every call (ptrace(2)), and the one that is meant does not happen.
//!
//! Processes that it starts are not traced; they see their pipe to it end.
#![allow(unsafe_code)]

use crate::peers::{Absent, absent};
use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// A process that runs until it ends or is killed.
pub struct Traced {
    pid: i32,
    output: mpsc::Receiver<String>,
    traces: JoinHandle<Ended>,
}

/// How it ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// The calls that were counted, in their order: each with its file's name, where it has one.
    pub calls: Vec<String>,
    /// Whether the last of them did not happen.
    pub killed: bool,
}

/// Calls that change files and are told a file by its number, or make one.
const BY_NUMBER: [(libc::c_long, &str); 10] = [
    (libc::SYS_write, "write"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_sync_file_range, "sync_file_range"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_flock, "flock"),
];

/// Calls that change files and are told their path, and which argument that is.
const BY_PATH: [(libc::c_long, usize, &str); 6] = [
    (libc::SYS_openat, 1, "openat"),
    (libc::SYS_mkdirat, 1, "mkdirat"),
    (libc::SYS_renameat, 1, "renameat"),
    (libc::SYS_renameat2, 1, "renameat2"),
    (libc::SYS_unlinkat, 1, "unlinkat"),
    (libc::SYS_fchmodat, 1, "fchmodat"),
];

/// What older kernels' architectures have besides.
#[cfg(target_arch = "x86_64")]
const BY_OLD_PATH: [(libc::c_long, usize, &str); 7] = [
    (libc::SYS_open, 0, "open"),
    (libc::SYS_creat, 0, "creat"),
    (libc::SYS_mkdir, 0, "mkdir"),
    (libc::SYS_rename, 0, "rename"),
    (libc::SYS_unlink, 0, "unlink"),
    (libc::SYS_rmdir, 0, "rmdir"),
    (libc::SYS_chmod, 0, "chmod"),
];
#[cfg(not(target_arch = "x86_64"))]
const BY_OLD_PATH: [(libc::c_long, usize, &str); 0] = [];

impl Traced {
    /// Starts a process whose standard output is a pipe, and kills it at the `kill_at`th call that changes what is
    /// in `folder`; at 0, never.
    ///
    /// # Errors
    /// When this user may not trace it, and the environment does not say that it must be so.
    pub fn start(command: Command, folder: &Path, kill_at: usize) -> Result<Self, Absent> {
        let (tell, told) = mpsc::channel();
        let mut tracer = Tracer {
            folder: folder.canonicalize().unwrap_or(folder.to_owned()),
            kill_at,
            pid: 0,
            known: HashSet::new(),
            ended: Ended::default(),
        };
        // Whoever starts a process that is to be traced is the one to trace it: this one thread.
        let traces = std::thread::spawn(move || match spawn(command) {
            Ok((pid, stdout)) => {
                let _ = tell.send(Ok((pid, stdout)));
                tracer.pid = pid;
                tracer.run();
                tracer.ended
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                tracer.ended
            }
        });
        let (pid, stdout) = told
            .recv()
            .expect("it says whether it could")
            .map_err(|error| {
                absent(
                    &format!("this user may not trace a process ({error})"),
                    "sysctl kernel.yama.ptrace_scope=1",
                    "HOOKSIEVE_NEED_PTRACE",
                )
            })?;
        let (line, output) = mpsc::channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = line.send(text);
            }
        });
        Ok(Self {
            pid,
            output,
            traces,
        })
    }

    /// The next line of its output; none when it has ended.
    pub fn line(&self) -> Option<String> {
        self.output.recv_timeout(crate::PATIENCE).ok()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child of ours. It may have ended, and is waited for by the thread that traces it
        // alone, which has not told so yet; at worst nobody has this id.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Waits for its end.
    pub fn ended(self) -> Ended {
        self.traces.join().expect("it only traces")
    }
}

/// Starts a process that stops when it runs its program, and has the kernel stop it at its calls from then on.
fn spawn(mut command: Command) -> std::io::Result<(i32, ChildStdout)> {
    // SAFETY: one system call, which takes nothing of this process's memory and no lock.
    unsafe {
        command.pre_exec(|| {
            let none = std::ptr::null_mut::<libc::c_void>();
            match libc::ptrace(libc::PTRACE_TRACEME, 0, none, none) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().expect("standard output is a pipe");
    let pid = i32::try_from(child.id()).expect("process ids are small");
    let Some((_, status)) = wait(pid) else {
        return Err(std::io::Error::other("it is not there"));
    };
    if !libc::WIFSTOPPED(status) {
        return Err(std::io::Error::other("it did not stop"));
    }
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    // SAFETY: the process is stopped, and the kernel checks that it is ours.
    let set = unsafe {
        let options = options as usize as *mut libc::c_void;
        libc::ptrace(
            libc::PTRACE_SETOPTIONS,
            pid,
            std::ptr::null_mut::<libc::c_void>(),
            options,
        )
    };
    if set == -1 {
        return Err(std::io::Error::last_os_error());
    }
    go_on(pid, 0);
    Ok((pid, stdout))
}

/// Waits for what happens to a process or thread that this thread has started or traces; -1 is any of them.
fn wait(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // Other threads' children are theirs to wait for.
    let options = libc::__WALL | libc::__WNOTHREAD;
    loop {
        // SAFETY: the status lives until the call has returned.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, options) };
        match waited {
            -1 if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            -1 => return None,
            waited => return Some((waited, status)),
        }
    }
}

/// Lets a thread go on to the next call, with a signal that it is to have.
fn go_on(tid: i32, signal: i32) {
    // SAFETY: the thread is stopped; where it was killed meanwhile, the kernel says so and nothing happens.
    unsafe {
        let signal = signal as usize as *mut libc::c_void;
        libc::ptrace(
            libc::PTRACE_SYSCALL,
            tid,
            std::ptr::null_mut::<libc::c_void>(),
            signal,
        );
    }
}

struct Tracer {
    folder: PathBuf,
    kill_at: usize,
    pid: i32,
    /// Threads that have stopped once: each begins with a stop of its own.
    known: HashSet<i32>,
    ended: Ended,
}

impl Tracer {
    /// Goes from stop to stop until all threads have ended.
    fn run(&mut self) {
        self.known.insert(self.pid);
        while let Some((tid, status)) = wait(-1) {
            if !libc::WIFSTOPPED(status) {
                continue;
            }
            let signal = libc::WSTOPSIG(status);
            let new = self.known.insert(tid);
            if signal == libc::SIGTRAP | 0x80 {
                self.call(tid);
                go_on(tid, 0);
            } else if (status >> 16) != 0
                || (new && signal == libc::SIGSTOP)
                || signal == libc::SIGTRAP
            {
                go_on(tid, 0);
            } else {
                go_on(tid, signal);
            }
        }
    }

    /// Looks at the call that a thread is about to make.
    fn call(&mut self, tid: i32) {
        if self.ended.killed {
            return;
        }
        let Some(told) = about(tid).and_then(|(number, args)| self.changes(tid, number, args))
        else {
            return;
        };
        self.ended.calls.push(told);
        if self.ended.calls.len() == self.kill_at {
            self.ended.killed = true;
            // SAFETY: the process is a child of this thread's and was not waited for.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }

    /// What the call does, where it changes something in the folder.
    fn changes(&self, tid: i32, number: u64, args: [u64; 6]) -> Option<String> {
        let number = libc::c_long::try_from(number).ok()?;
        if let Some((_, name)) = BY_NUMBER.iter().find(|(known, _)| *known == number) {
            let file = std::fs::read_link(format!("/proc/{tid}/fd/{}", args[0])).ok()?;
            let inner = file.strip_prefix(&self.folder).ok()?;
            return Some(format!("{name} {}", inner.display()));
        }
        let all = BY_PATH.iter().chain(&BY_OLD_PATH);
        let (_, at, name) = all.into_iter().find(|(known, ..)| *known == number)?;
        if matches!(*name, "open" | "openat") {
            let flags = args[at + 1] as i32;
            if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 {
                return None;
            }
        }
        let path = PathBuf::from(text(tid, args[*at])?);
        // Relative ones are of the working folder, in which nothing of ours lies.
        let inner = path.strip_prefix(&self.folder).ok()?;
        Some(format!("{name} {}", inner.display()))
    }
}

/// The number and the arguments of the call that a thread is about to make; none where it comes back from one.
fn about(tid: i32) -> Option<(u64, [u64; 6])> {
    // SAFETY: all bytes zero are a value of this structure of integers.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let bytes = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the kernel writes at most so many bytes to the structure, which lives until it has.
    let got = unsafe {
        let bytes = bytes as *mut libc::c_void;
        libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, bytes, &raw mut info)
    };
    if got <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that it is this one.
    let entry = unsafe { info.u.entry };
    Some((entry.nr, entry.args))
}

/// A text in the memory of a thread that is stopped.
fn text(tid: i32, at: u64) -> Option<String> {
    use std::os::unix::fs::FileExt as _;

    let memory = std::fs::File::open(format!("/proc/{tid}/mem")).ok()?;
    let mut bytes = Vec::new();
    let mut part = [0; 64];
    while bytes.len() < 4_096 {
        // Near the end of a page that is mapped, less may be there.
        let read = memory.read_at(&mut part, at + bytes.len() as u64).ok()?;
        let end = part[..read].iter().position(|byte| *byte == 0);
        bytes.extend_from_slice(&part[..end.unwrap_or(read)]);
        if end.is_some() || read == 0 {
            break;
        }
    }
    String::from_utf8(bytes).ok()
}
