//! How long a tenant waits between the last byte of a module and its first decision.

use super::{Held, modules};
use crate::events;
use crate::runners::LARGE_GUEST;
use anyhow::{Result, ensure};
use hooksieve::config::Config;
use hooksieve::sandbox::{Cache, Limits, Sandbox};
use std::time::Instant;

const UPLOADS: usize = 200;

pub(super) fn measure() -> Result<Vec<Held>> {
    let input = &events::all()?[0];
    let folder = tempfile::tempdir()?;
    let sandbox = Sandbox::new(Limits::default())
        .cached(Cache::open(folder.path())?)
        .compile_in_child(Config::built_in().compile);
    let mut times = Vec::with_capacity(UPLOADS);
    for number in 0..UPLOADS {
        let wasm = modules::with_number(LARGE_GUEST, number);
        let mut instances = modules::instances();
        let begun = Instant::now();
        let program = modules::program(sandbox.compile(wasm)?)?;
        let run = instances.run(&program, &input.event, &input.index);
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(run.outcome.is_ok(), "it failed: {:?}", run.outcome);
    }
    times.sort_by(f64::total_cmp);
    let kb = LARGE_GUEST.len() / 1_000;
    Ok(vec![
        Held::at_most(
            format!("a module of {kb} kB from upload to first decision, p99"),
            times[UPLOADS * 99 / 100],
            200.0,
            " ms",
        )
        .how(format!(
            "checked, compiled in a process of its own, kept on disk, loaded, asked; p50 {:.1} ms of {UPLOADS}",
            times[UPLOADS / 2]
        )),
    ])
}
