//! What a rule can cost that fails on purpose.

use super::{Held, modules};
use crate::events;
use anyhow::{Result, ensure};
use hooksieve::sandbox::{Error, Limits, Program};
use std::time::Instant;

const REPEATS: usize = 2_000;
const DEPTH: usize = 10_000;

pub(super) fn measure(loaded: usize) -> Result<Vec<Held>> {
    let at_once = modules::written("unreachable", Limits::default())?;
    let deep = modules::written(
        &format!("i32.const {DEPTH} call $down i64.extend_i32_u"),
        Limits {
            stack_bytes: 4 << 20,
            ..Limits::default()
        },
    )?;
    let few = [times(&at_once)?, times(&deep)?];
    let folder = tempfile::tempdir()?;
    modules::fill(folder.path(), loaded)?;
    let input = &events::all()?[0];
    // Code stays in memory as long as its instances.
    let mut instances = modules::instances();
    for program in modules::start(folder.path(), loaded)? {
        instances.run(&program, &input.event, &input.index).outcome?;
    }
    let many = [times(&at_once)?, times(&deep)?];
    let how = |few: &Times, many: &Times| {
        format!(
            "warm instance, {REPEATS} times; p50 {:.2} µs, p99 {:.2} µs; mean with 2 modules loaded {:.2} µs",
            many.p50_us, many.p99_us, few.mean_us
        )
    };
    Ok(vec![
        Held::at_most(
            format!("a trap at once, {loaded} modules loaded"),
            many[0].mean_us,
            10.0,
            " µs",
        )
        .how(how(&few[0], &many[0])),
        Held::at_most(
            format!("a trap {DEPTH} frames deep, {loaded} modules loaded"),
            many[1].mean_us,
            100.0,
            " µs",
        )
        .how(how(&few[1], &many[1])),
    ])
}

struct Times {
    mean_us: f64,
    p50_us: f64,
    p99_us: f64,
}

fn times(program: &Program) -> Result<Times> {
    let input = &events::all()?[0];
    let mut instances = modules::instances();
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        let started = Instant::now();
        let run = instances.run(program, &input.event, &input.index);
        times.push(started.elapsed().as_secs_f64() * 1e6);
        ensure!(
            matches!(run.outcome, Err(Error::Trapped { .. })),
            "no trap: {:?}",
            run.outcome
        );
    }
    let mean_us = times.iter().sum::<f64>() / times.len() as f64;
    times.sort_unstable_by(f64::total_cmp);
    Ok(Times {
        mean_us,
        p50_us: times[REPEATS / 2],
        p99_us: times[REPEATS * 99 / 100],
    })
}
