//! Any bytes as a module and its events: checked, compiled, run anew and warm. The first byte says
//! whether the module's bytes are as they stand or what a random module is made of.
#![no_main]

#[path = "../../src/smith.rs"]
#[allow(dead_code, reason = "some of it is for the proof beside it")]
mod smith;

use arbitrary::Unstructured;
use hooksieve::sandbox::{Error, Instances, Kept, Limits, Program, Refused, Sandbox};
use libfuzzer_sys::fuzz_target;

const KEPT: Kept = Kept {
    count_max: 4,
    bytes_max: 64 << 20,
};

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let _ = decide(&mut u);
});

fn decide(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let limits = Limits {
        fuel: 200_000,
        init_fuel: 200_000,
        wall_clock_ms: 600_000,
        ..Limits::default()
    };
    let made = u.ratio(2, 3)?;
    let events = (0..3)
        .map(|_| smith::event(u))
        .collect::<Result<Vec<_>, _>>()?;
    let wasm = match made {
        true => smith::module(u)?,
        false => u.bytes(u.len())?.to_vec(),
    };
    let sandbox = Sandbox::new(limits.clone());
    let module = match sandbox.compile(wasm) {
        Ok(module) => module,
        Err(Refused::Link { .. }) => return Ok(()),
        Err(refused) if made => panic!("refused: {refused}"),
        Err(_) => return Ok(()),
    };
    let program = match Program::new(module, Vec::new(), limits) {
        Ok(program) => program,
        Err(_) => return Ok(()),
    };
    let past_max = program.limits().fuel_past_max();
    let mut instances = Instances::new(KEPT);
    for event in events.iter().chain(&events) {
        let new = program.run(event, &[]);
        let warm = instances.run(&program, event, &[]);
        assert!(!matches!(new.outcome, Err(Error::Engine { .. })), "{new:?}");
        assert_eq!(new.outcome, warm.outcome);
        assert!(new.fuel_past <= past_max, "{} past its end", new.fuel_past);
        assert_eq!(
            (new.fuel, new.memory_bytes, new.log),
            (warm.fuel, warm.memory_bytes, warm.log)
        );
    }
    Ok(())
}
