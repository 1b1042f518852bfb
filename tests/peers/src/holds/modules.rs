//! Many different modules, and hostile ones.

use crate::runners::GUEST;
use anyhow::{Context as _, Result};
use hooksieve::sandbox::{Instances, Kept, Limits, Module, Program, Sandbox};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keeps everything.
pub(super) const ALL: Kept = Kept {
    count_max: usize::MAX,
    bytes_max: usize::MAX,
};

/// The benchmark's rule as a module of its own: a custom section with a number makes its hash another.
pub(super) fn numbered(number: usize) -> Vec<u8> {
    let number = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    // Section 0 of 6 bytes: a name of one byte, and the number.
    [GUEST, &[0, 6, 1, b'n'], &number].concat()
}

/// Compiles so many different modules on two threads, and says how far it is.
pub(super) fn compile(count: usize) -> Result<Vec<Program>> {
    let done = AtomicUsize::new(0);
    let half = |first: usize| -> Result<Vec<Program>> {
        let sandbox = Sandbox::new(Limits::default());
        (first..count)
            .step_by(2)
            .map(|number| {
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(1_000) {
                    progress(&format!("{done} of {count} modules compiled"));
                }
                program(sandbox.compile(numbered(number))?)
            })
            .collect()
    };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| half(1));
        let mut all = half(0)?;
        all.extend(second.join().ok().context("a compiling thread")??);
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
