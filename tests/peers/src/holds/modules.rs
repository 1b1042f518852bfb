//! Many different modules, and hostile ones.

use crate::runners::GUEST;
use anyhow::{Context as _, Result, ensure};
use hooksieve::sandbox::{Cache, Instances, Kept, Limits, Module, Program, Sandbox};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keeps everything.
pub(super) const ALL: Kept = Kept {
    count_max: usize::MAX,
    bytes_max: usize::MAX,
};

/// The benchmark's rule as a module of its own: a custom section with a number makes its hash another.
pub(super) fn numbered(number: usize) -> Vec<u8> {
    with_number(GUEST, number)
}

pub(super) fn with_number(module: &[u8], number: usize) -> Vec<u8> {
    let number = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    // Section 0 of 6 bytes: a name of one byte, and the number.
    [module, &[0, 6, 1, b'n'], &number].concat()
}

/// Where compiled modules are kept, as in a running engine.
pub(super) fn sandbox(folder: &Path) -> Result<Sandbox> {
    Ok(Sandbox::new(Limits::default()).cached(Cache::open(folder)?))
}

/// Compiles so many different modules into a folder, in a process of its own: the compiler leaks.
pub(super) fn fill(folder: &Path, count: usize) -> Result<()> {
    let done = Command::new(std::env::current_exe()?)
        .arg("fill-cache")
        .arg(folder)
        .arg(count.to_string())
        .status()?;
    ensure!(done.success(), "the modules were not compiled: {done}");
    Ok(())
}

/// What [`fill`]'s process does.
pub(crate) fn fill_here(folder: &Path, count: usize) -> Result<()> {
    let done = AtomicUsize::new(0);
    let sandbox = sandbox(folder)?;
    on_two_threads(count, |number| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(1_000) {
            progress(&format!("{done} of {count} modules compiled"));
        }
        sandbox.compile(numbered(number))?;
        Ok(())
    })
    .map(drop)
}

/// The programs of modules that are in the folder, as an engine gets them when it starts.
pub(super) fn start(folder: &Path, count: usize) -> Result<Vec<Program>> {
    let sandbox = sandbox(folder)?;
    on_two_threads(count, |number| program(sandbox.compile(numbered(number))?))
}

fn on_two_threads<T: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let half = |first: usize| -> Result<Vec<T>> { (first..count).step_by(2).map(&work).collect() };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| half(1));
        let mut all = half(0)?;
        all.extend(second.join().ok().context("a second thread")??);
        Ok(all)
    })
}

pub(super) fn program(module: Module) -> Result<Program> {
    Ok(Program::new(module, vec![0x80], Limits::default())?)
}

/// A rule in text form whose `hooksieve_decide` has this body.
pub(super) fn written(body: &str, limits: Limits) -> Result<Program> {
    let text = format!(
        r#"(module
            (memory (export "memory") 1)
            (func (export "hooksieve_abi_1"))
            (func (export "hooksieve_reserve") (param i32) (result i32) i32.const 1024)
            (func $down (param i32) (result i32)
                local.get 0
                i32.eqz
                if unreachable end
                local.get 0
                i32.const 1
                i32.sub
                call $down
                i32.const 1
                i32.add)
            (func (export "hooksieve_decide") (param i32 i32 i32 i32) (result i64) {body}))"#
    );
    let module = Sandbox::new(limits.clone()).compile(wat::parse_str(text)?)?;
    Ok(Program::new(module, Vec::new(), limits)?)
}

/// Instances that keep everything.
pub(super) fn instances() -> Instances {
    Instances::new(ALL)
}

#[allow(
    clippy::print_stderr,
    reason = "minutes pass, and a person may be waiting"
)]
pub(super) fn progress(what: &str) {
    eprintln!("{what}");
}
