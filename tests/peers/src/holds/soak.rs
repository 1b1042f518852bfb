//! Whether memory stays what it is: over many decisions, and over many modules.

use super::{Held, MB, modules, resident_bytes};
use crate::events;
use crate::runners::GUEST;
use anyhow::Result;
use hooksieve::sandbox::{Limits, Sandbox};

/// Decisions of all three payloads, with traps and exhausted fuel among them.
pub(super) fn soak(count: usize) -> Result<Vec<Held>> {
    let inputs = events::all()?;
    let good = modules::program(Sandbox::new(Limits::default()).compile(GUEST)?)?;
    let traps = modules::written("unreachable", Limits::default())?;
    let burns = modules::written(
        "(loop br 0) unreachable",
        Limits {
            fuel: 100_000,
            ..Limits::default()
        },
    )?;
    let mut instances = modules::instances();
    let mut failed = 0;
    let mut decide = |number: usize| {
        let input = &inputs[number % inputs.len()];
        let program = match number % 1_000 {
            0 => &burns,
            n if n.is_multiple_of(100) => &traps,
            _ => &good,
        };
        // Every seventh is decided in a new instance, failures too.
        let run = if number.is_multiple_of(7) {
            program.run(&input.event, &input.index)
        } else {
            instances.run(program, &input.event, &input.index)
        };
        failed += usize::from(run.outcome.is_err());
    };
    let warm_up = count / 20;
    (0..warm_up).for_each(&mut decide);
    let before = resident_bytes()?;
    (warm_up..count).for_each(&mut decide);
    let after = resident_bytes()?;
    Ok(vec![flat(
        format!("{count} decisions: resident memory after : after a twentieth of them"),
        before,
        after,
        &format!(", {failed} of them failed as they should"),
    )])
}

/// Modules that are loaded, asked once and dropped. The same ones come again.
pub(super) fn churn(count: usize) -> Result<Vec<Held>> {
    const DIFFERENT: usize = 200;
    let input = &events::all()?[0];
    let folder = tempfile::tempdir()?;
    modules::fill(folder.path(), DIFFERENT)?;
    let sandbox = modules::sandbox(folder.path())?;
    let mut instances = modules::instances();
    let mut load = |number: usize| -> Result<()> {
        if number.is_multiple_of(1_000) && number > 0 {
            modules::progress(&format!("{number} of {count} modules loaded and dropped"));
        }
        let program = modules::program(sandbox.compile(modules::numbered(number % DIFFERENT))?)?;
        instances
            .run(&program, &input.event, &input.index)
            .outcome?;
        Ok(())
    };
    let warm_up = count / 20;
    (0..warm_up).try_for_each(&mut load)?;
    let before = resident_bytes()?;
    (warm_up..count).try_for_each(&mut load)?;
    let after = resident_bytes()?;
    Ok(vec![flat(
        format!("{count} modules loaded and dropped: likewise"),
        before,
        after,
        "",
    )])
}

fn flat(what: String, before: f64, after: f64, more: &str) -> Held {
    Held::at_most(what, after / before, 1.05, "").how(format!(
        "{:.1} MB, then {:.1} MB{more}",
        before / MB,
        after / MB
    ))
}
