//! What a guest burns after its fuel is over: bounded, whatever its shape.

use hooksieve::sandbox::{Error, Limits, Program, Sandbox};
use hooksieve_tests::{say, shapes};

/// At every tenth of its way each shape is stopped soon, in units of fuel, which do not depend on the
/// machine.
#[test]
fn after_the_end_of_fuel_little_runs() {
    let roomy = Limits {
        fuel: 1 << 40,
        wall_clock_ms: 60_000,
        ..Limits::default()
    };
    let most = roomy.fuel_past_max();
    let mut worst = (0, String::new());
    let mut ends = 0;
    for shape in shapes::all() {
        let wasm = wat::parse_str(&shape.wat).unwrap_or_else(|error| panic!("{error}"));
        let module = Sandbox::new(roomy.clone()).compile(wasm).unwrap();
        let run = |fuel: u64, depth: u32| {
            let limits = Limits {
                fuel,
                ..roomy.clone()
            };
            let program = Program::new(module.clone(), vec![0x80], limits).unwrap();
            program.run(&depth.to_le_bytes(), &[])
        };
        // As deep as its frames go.
        let enough = 30_000_000;
        let fits = |depth: u32| !matches!(run(enough, depth).outcome, Err(Error::Stack { .. }));
        let (mut depth, mut beyond) = (0, 1 << 16);
        while beyond - depth > 64 {
            let middle = (depth + beyond) / 2;
            *(if fits(middle) {
                &mut depth
            } else {
                &mut beyond
            }) = middle;
        }
        // What never ends is cut off where the others end.
        let whole = run(enough, depth).fuel;
        let base = run(enough, 0).fuel.min(whole / 2);
        for tenth in 1..10 {
            let fuel = base + (whole - base) * tenth / 10;
            let run = run(fuel, depth);
            assert_eq!(
                run.outcome,
                Err(Error::Fuel { limit: fuel }),
                "{}",
                shape.name
            );
            assert_eq!(run.fuel, fuel);
            ends += 1;
            if run.fuel_past > worst.0 {
                worst = (run.fuel_past, shape.name.clone());
            }
            assert!(
                run.fuel_past <= most,
                "{}: {} units past its end at {fuel}, {depth} deep",
                shape.name,
                run.fuel_past
            );
        }
    }
    say(&format!(
        "{ends} ends of fuel; at worst {} units past it ({}), of {most} that can be",
        worst.0, worst.1
    ));
}
