//! One thread of a process that is stopped while the others go on: what a guest looks like that the
//! sandbox cannot end.
#![allow(unsafe_code)]

use crate::peers::{Absent, absent};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A thread that stands still until its process ends. Whoever stops a thread has to be the one to see it
/// end, so another thread waits for that.
pub struct StoppedThread {
    waits: Option<JoinHandle<()>>,
}

impl StoppedThread {
    /// Stops this thread of a child of ours.
    ///
    /// # Errors
    /// When this user may not, and the environment does not say that it must be so.
    pub fn stop(tid: i32) -> Result<Self, Absent> {
        let (tell, told) = mpsc::channel();
        let waits = std::thread::spawn(move || {
            let stopped = trace(tid);
            let traced = stopped.is_ok();
            let _ = tell.send(stopped);
            // The next thing that happens to it is its end.
            while traced && wait(tid) {}
        });
        let stopped = told.recv().expect("it says whether it could");
        stopped.map_err(|error| {
            absent(
                &format!("this user may not stop a thread ({error})"),
                "sysctl kernel.yama.ptrace_scope=1",
                "HOOKSIEVE_NEED_PTRACE",
            )
        })?;
        Ok(Self { waits: Some(waits) })
    }

    /// Waits until its process has ended.
    pub fn ended(mut self) {
        if let Some(waits) = self.waits.take() {
            waits.join().expect("it only waits");
        }
    }
}

/// Stops it, and returns when it stands.
fn trace(tid: i32) -> std::io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    let done = |returned: libc::c_long| match returned {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: the kernel checks whether the thread is ours to trace, and neither request reads or writes
    // this process's memory.
    done(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, none, none) })?;
    // SAFETY: as above.
    done(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, none, none) })?;
    wait(tid);
    Ok(())
}

/// Waits for what happens next to a thread that is traced here. Whether it is still there.
fn wait(tid: i32) -> bool {
    let mut status = 0;
    // SAFETY: the status lives until the call has returned.
    let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
    waited == tid && libc::WIFSTOPPED(status)
}

/// The thread of a process that is busiest while one looks, of those whose name begins so.
pub fn busiest(pid: u32, name: &str) -> Option<i32> {
    let tasks = || -> Vec<(i32, f64)> {
        let folder = std::fs::read_dir(format!("/proc/{pid}/task"));
        let paths = folder.into_iter().flatten().flatten();
        let paths = paths.map(|entry| entry.path());
        let of = |path: PathBuf| {
            let comm = std::fs::read_to_string(path.join("comm")).ok()?;
            let (_, used_s) = crate::process::stat(&path.join("stat"))?;
            let tid = path.file_name()?.to_str()?.parse().ok()?;
            comm.starts_with(name).then_some((tid, used_s))
        };
        paths.filter_map(of).collect()
    };
    let before = tasks();
    std::thread::sleep(Duration::from_millis(100));
    let used = |(tid, now_s): (i32, f64)| {
        let before = before.iter().find(|it| it.0 == tid);
        let used_s = now_s - before.map_or(0.0, |it| it.1);
        (used_s > 0.04).then_some((tid, used_s))
    };
    let used = tasks().into_iter().filter_map(used);
    let busiest = used.max_by(|one, other| one.1.total_cmp(&other.1));
    busiest.map(|(tid, _)| tid)
}
