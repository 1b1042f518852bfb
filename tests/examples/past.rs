//! How long a guest runs on after its fuel is over or the watchdog struck.
//! `e2e/past.rs` proves the bound in units of fuel; this is what the units come to here.
//!
//! ```text
//! cargo run --release -p hooksieve-tests --example past [-- WORD]
//! ```
//!
//! Each shape of `tests/src/shapes.rs` is run as deep as its frames go and ended on its way up, at the place
//! where most runs past the end; and once more, stopped by the watchdog a few milliseconds after it began.
//! What ran past the end of fuel is what the units past it take at the shape's own pace. After a strike it is
//! the time until the thread came back, less what the strike was late. Ends with 1 if anything takes longer
//! than 10 ms.
#![allow(clippy::print_stdout, reason = "it is a table")]

use hooksieve::sandbox::{Error, Limits, Program, Sandbox};
use hooksieve_tests::shapes;
use std::process::ExitCode;
use std::time::Duration;

/// What is promised.
const MOST: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let word = std::env::args().nth(1).unwrap_or_default();
    let roomy = Limits {
        fuel: 1 << 40,
        wall_clock_ms: 60_000,
        ..Limits::default()
    };
    let mut worst = Duration::ZERO;
    println!(
        "{:<52} {:>7} {:>9} {:>8} {:>9} {:>12}",
        "shape", "depth", "past", "ns each", "us past", "us after ms"
    );
    for shape in shapes::all() {
        if !shape.name.contains(&word) {
            continue;
        }
        let wasm = wat::parse_str(&shape.wat).expect("it is valid");
        let module = Sandbox::new(roomy.clone())
            .compile(wasm)
            .expect("it is a rule");
        let run = |limits: Limits, depth: u32| {
            let program = Program::new(module.clone(), vec![0x80], limits).expect("it starts");
            program.run(&depth.to_le_bytes(), &[])
        };
        let with = |fuel: u64| Limits {
            fuel,
            ..roomy.clone()
        };
        let fits = |depth| {
            !matches!(
                run(with(50_000_000), depth).outcome,
                Err(Error::Stack { .. })
            )
        };
        let (mut depth, mut beyond) = (0, 1 << 16);
        while beyond - depth > 16 {
            let middle = (depth + beyond) / 2;
            *(if fits(middle) {
                &mut depth
            } else {
                &mut beyond
            }) = middle;
        }
        let whole = run(with(400_000_000), depth);
        let each_ns = whole.duration.as_secs_f64() * 1e9 / whole.fuel as f64;
        let past = (1..200).map(|n| run(with(whole.fuel * n / 200), depth).fuel_past);
        let past = past.max().unwrap_or_default();
        let after_fuel = Duration::from_secs_f64(past as f64 * each_ns / 1e9);
        // Struck at several places of its way; the quickest of three, since a machine may stand still.
        let after_strike = (1..6).filter_map(|ms| {
            let limits = Limits {
                wall_clock_ms: ms,
                ..roomy.clone()
            };
            let runs = (0..3).map(|_| run(limits.clone(), depth));
            let struck = runs.filter(|run| matches!(run.outcome, Err(Error::WallClock { .. })));
            let least = struck.map(|run| run.duration).min()?;
            Some(least.saturating_sub(Duration::from_millis(ms)))
        });
        let after_strike = after_strike.max().unwrap_or_default();
        worst = worst.max(after_fuel).max(after_strike);
        println!(
            "{:<52} {depth:>7} {past:>9} {each_ns:>8.3} {:>9.0} {:>12.0}",
            shape.name,
            after_fuel.as_secs_f64() * 1e6,
            after_strike.as_secs_f64() * 1e6
        );
    }
    println!("at worst {:.2} ms", worst.as_secs_f64() * 1e3);
    ExitCode::from(u8::from(worst > MOST))
}
