//! Hooksieve through its public sandbox, with its default limits.

use super::{GUEST, REFERENCE, Row, Runner};
use crate::events::Input;
use anyhow::Result;
use hooksieve::sandbox::{Instances, Kept, Limits, Program, Sandbox};
use hooksieve_sdk::wire::Decision;

struct Warm {
    program: Program,
    instances: Instances,
}

struct New(Program);

/// The warm instance without its reset. The guest's allocator only moves on, so the instance is put
/// back, outside of the measured time, before it would need another page.
struct Unreset(Warm);

pub(super) fn rows() -> Result<Vec<Row>> {
    let program = program(GUEST)?;
    let version = env!("CARGO_PKG_VERSION");
    let row = |name, how, isolated, runner| Row {
        name,
        version: version.to_owned(),
        how,
        isolated,
        runner,
    };
    Ok(vec![
        row(
            REFERENCE,
            "one instance, put back after each event: memory, globals, fuel and log",
            true,
            Box::new(Warm::new(program.clone())),
        ),
        row(
            "hooksieve, no reset",
            "the same instance, put back outside of the measured time",
            false,
            Box::new(Unreset(Warm::new(program.clone()))),
        ),
        row(
            "hooksieve, new instance",
            "a new store and instance for each event, on memory from a pool",
            true,
            Box::new(New(program)),
        ),
    ])
}

/// A rule without configuration, under the default limits.
pub(crate) fn program(wasm: &[u8]) -> Result<Program> {
    let limits = Limits::default();
    let module = Sandbox::new(limits.clone()).compile(wasm)?;
    Ok(Program::new(module, vec![0x80], limits)?)
}

impl Warm {
    fn new(program: Program) -> Self {
        Self {
            program,
            instances: Instances::new(Kept {
                count_max: 16,
                bytes_max: 64 << 20,
            }),
        }
    }
}

impl Runner for Warm {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        let run = self
            .instances
            .run(&self.program, &input.event, &input.index);
        Ok(run.outcome?)
    }
}

impl Runner for New {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        Ok(self.0.run(&input.event, &input.index).outcome?)
    }
}

impl Runner for Unreset {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        let Warm { program, instances } = &mut self.0;
        let run = instances.run_without_reset(program, &input.event, &input.index);
        Ok(run.outcome?)
    }

    fn in_a_row(&self, input: &Input) -> usize {
        const HEAP_BYTES: usize = 48 << 10;
        const ANSWER_BYTES: usize = 1 << 10;
        (HEAP_BYTES / (input.event.len() + input.index.len() + ANSWER_BYTES)).max(1)
    }

    fn between(&mut self, input: &Input) {
        // Its reset is what counts.
        let _ = self.0.decide(input);
    }
}
