//! Many different rules, all warm, with events through all of them.

use super::{Held, MB, modules, resident_bytes, threads};
use crate::events;
use anyhow::{Result, ensure};
use hooksieve::sandbox::Program;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const THREADS: usize = 2;
/// How often each rule is asked.
const PASSES: usize = 20;

pub(super) fn measure(count: usize) -> Result<Vec<Held>> {
    let input = &events::all()?[0];
    let folder = tempfile::tempdir()?;
    modules::fill(folder.path(), count)?;
    let begun = Instant::now();
    let programs = modules::start(folder.path(), count)?;
    let start = begun.elapsed();
    let compiled = resident_bytes()?;
    // Its code is on disk and its instance is not there.
    let firsts = programs.iter().take(1_000).map(|program| {
        let mut instances = modules::instances();
        let begun = Instant::now();
        std::hint::black_box(instances.run(program, &input.event, &input.index));
        begun.elapsed().as_secs_f64() * 1e3
    });
    let mut firsts: Vec<f64> = firsts.collect();
    firsts.sort_by(f64::total_cmp);
    let one = &programs[..1];
    let hot = threads::per_second(THREADS, || {
        let mut instances = modules::instances();
        move || {
            std::hint::black_box(instances.run(&one[0], &input.event, &input.index));
        }
    });
    // A rule stays with one worker, as in the engine.
    let shares: Vec<Vec<&Program>> = (0..THREADS)
        .map(|worker| programs.iter().skip(worker).step_by(THREADS).collect())
        .collect();
    let failed = &AtomicUsize::new(0);
    let (per_second, resident) = std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .iter()
            .map(|share| {
                scope.spawn(move || {
                    let mut instances = modules::instances();
                    let mut pass = || {
                        for program in share {
                            let run = instances.run(program, &input.event, &input.index);
                            failed.fetch_add(usize::from(run.outcome.is_err()), Ordering::Relaxed);
                        }
                    };
                    pass();
                    let started = Instant::now();
                    (0..PASSES).for_each(|_| pass());
                    let per_second =
                        (PASSES * share.len()) as f64 / started.elapsed().as_secs_f64();
                    (per_second, resident_bytes().unwrap_or(f64::NAN))
                })
            })
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .fold((0.0, 0.0f64), |sum, (per_second, resident)| {
                (sum.0 + per_second, sum.1.max(resident))
            })
    });
    let failed = failed.load(Ordering::Relaxed);
    ensure!(failed == 0, "{failed} decisions failed");
    let each = format!(
        "{:.1} kB a rule, of which before any is warm {:.1} kB",
        resident / count as f64 / 1e3,
        compiled / count as f64 / 1e3
    );
    Ok(vec![
        Held::at_most(
            format!("{count} rules, compiled before: ready"),
            start.as_secs_f64(),
            3.0,
            " s",
        )
        .how("each found in the cache, loaded, and its configuration tried".to_owned()),
        Held::at_most(
            "a rule not in memory: its first decision, p99".to_owned(),
            firsts[firsts.len() * 99 / 100],
            2.0,
            " ms",
        )
        .how(format!("p50 {:.2} ms of {}", firsts[firsts.len() / 2], firsts.len())),
        Held::at_most(
            format!("{count} rules warm: resident memory"),
            resident / MB,
            2_500.0,
            " MB",
        )
        .how(each),
        Held::at_least(
            format!("{count} rules warm, {THREADS} threads: decisions"),
            per_second,
            60_000.0,
            "/s",
        )
        .how(format!("each rule in turn, {PASSES} times")),
        Held::known(
            format!("{count} rules warm : one hot rule"),
            per_second / hot,
            "",
        )
        .how(format!("one hot rule: {hot:.0}/s")),
    ])
}
