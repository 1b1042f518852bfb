//! QuickJS: the rule in JavaScript, compiled to bytecode once, in a new context for each event.
#![allow(
    unsafe_code,
    reason = "loading bytecode is unsafe, and this bytecode was just made"
)]

use super::{MEMORY_BYTES, Row, Runner};
use crate::events::Input;
use anyhow::Result;
use hooksieve_sdk::wire::Decision;
use rquickjs::{Context, Function, Module, Runtime, WriteOptions};

const RULE: &str = include_str!("../../rule/rule.js");

struct QuickJs {
    runtime: Runtime,
    bytecode: Vec<u8>,
}

pub(super) fn row() -> Result<Row> {
    let runtime = Runtime::new()?;
    runtime.set_memory_limit(MEMORY_BYTES);
    // Called now and then by the interpreter: where a limit on time would be.
    runtime.set_interrupt_handler(Some(Box::new(|| false)));
    let bytecode = Context::full(&runtime)?
        .with(|ctx| Module::declare(ctx, "rule", RULE)?.write(WriteOptions::default()))?;
    Ok(Row {
        name: "quickjs, fresh context",
        version: "rquickjs 0.14.0".to_owned(),
        how: "bytecode and runtime reused; a new context with the standard objects; the event as JSON",
        isolated: true,
        runner: Box::new(QuickJs { runtime, bytecode }),
    })
}

impl Runner for QuickJs {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        let answer: String = Context::full(&self.runtime)?.with(|ctx| {
            // SAFETY: the bytecode is what this program's QuickJS wrote.
            let (module, done) = unsafe { Module::load(ctx, &self.bytecode) }?.eval()?;
            done.finish::<()>()?;
            let decide: Function<'_> = module.get("decide")?;
            decide.call((input.json.as_str(),))
        })?;
        Ok(serde_json::from_str(&answer)?)
    }
}
