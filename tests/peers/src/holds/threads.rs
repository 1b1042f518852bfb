//! What a second thread gains.

use super::{Held, modules};
use crate::events::{self, Input};
use crate::runners::GUEST;
use anyhow::Result;
use hooksieve::sandbox::{Limits, Program, Sandbox};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_millis(250);

pub(super) fn measure() -> Result<Vec<Held>> {
    let input = &events::all()?[0];
    let program = &modules::program(Sandbox::new(Limits::default()).compile(GUEST)?)?;
    let native = || {
        || {
            let decision = peers_rule::decide(&std::hint::black_box(input).event());
            std::hint::black_box(decision.encode());
        }
    };
    let warm = || warm(program, input);
    let new = || {
        || {
            std::hint::black_box(program.run(&input.event, &input.index));
        }
    };
    let (mut of_native, mut of_warm, mut of_new) = ([0.0; 2], [0.0; 2], [0.0; 2]);
    for _ in 0..ROUNDS {
        for threads in [1, 2] {
            of_native[threads - 1] += per_second(threads, native);
            of_warm[threads - 1] += per_second(threads, warm);
            of_new[threads - 1] += per_second(threads, new);
        }
    }
    let gain = |[one, two]: [f64; 2]| two / one;
    let how = |[one, two]: [f64; 2]| {
        let rounds = ROUNDS as f64;
        format!("{:.0}/s, then {:.0}/s", one / rounds, two / rounds)
    };
    Ok(vec![
        Held::known("2 threads : 1, native call", gain(of_native), "").how(how(of_native)),
        Held::at_least(
            "2 threads : 1, warm reset",
            gain(of_warm),
            0.9 * gain(of_native),
            "",
        )
        .how(how(of_warm)),
        Held::known("2 threads : 1, new instance", gain(of_new), "").how(how(of_new)),
    ])
}

fn warm<'a>(program: &'a Program, input: &'a Input) -> impl FnMut() + 'a {
    let mut instances = modules::instances();
    move || {
        std::hint::black_box(instances.run(program, &input.event, &input.index));
    }
}

/// Decisions per second of so many threads, each with a state of its own.
pub(super) fn per_second<D: FnMut()>(threads: usize, decider: impl Fn() -> D + Sync) -> f64 {
    let (start, stop) = (Barrier::new(threads + 1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let deciding: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut decide = decider();
                    decide();
                    start.wait();
                    let (started, mut count) = (Instant::now(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        (0..32).for_each(|_| decide());
                        count += 32;
                    }
                    f64::from(count) / started.elapsed().as_secs_f64()
                })
            })
            .collect();
        start.wait();
        std::thread::sleep(ROUND);
        stop.store(true, Ordering::Relaxed);
        deciding
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .sum()
    })
}
