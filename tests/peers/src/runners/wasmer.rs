//! Wasmer as it comes: the same module on its own memories, a new store and instance for each event.

use super::{FUEL, GUEST, Row, Runner};
use crate::events::Input;
use anyhow::{Result, anyhow, ensure};
use hooksieve_sdk::wire::{Decision, unpack};
use std::sync::Arc;
use wasmer::sys::{CompilerConfig as _, Cranelift, CraneliftOptLevel, EngineBuilder};
use wasmer::{Function, Instance, Module, Store, TypedFunction, imports};
use wasmer_middlewares::Metering;
use wasmer_middlewares::metering::set_remaining_points;

struct Wasmer {
    engine: wasmer::Engine,
    module: Module,
}

pub(super) fn row() -> Result<Row> {
    let mut compiler = Cranelift::new();
    compiler.opt_level(CraneliftOptLevel::Speed);
    compiler.push_middleware(Arc::new(Metering::new(FUEL, |_| 1)));
    let engine = wasmer::Engine::from(EngineBuilder::new(compiler).engine());
    let module = Module::new(&engine, GUEST)?;
    Ok(Row {
        name: "wasmer, stock memory",
        version: "7.4.2".to_owned(),
        how: "a new store and instance, with its default tunables",
        isolated: true,
        runner: Box::new(Wasmer { engine, module }),
    })
}

impl Runner for Wasmer {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        let mut store = Store::new(self.engine.clone());
        let log = Function::new_typed(&mut store, |_: u32, _: u32, _: u32| {});
        let imports = imports! { "hooksieve" => { "log" => log } };
        let instance = Instance::new(&mut store, &self.module, &imports)?;
        set_remaining_points(&mut store, &instance, FUEL);
        let exports = &instance.exports;
        let memory = exports.get_memory("memory")?;
        let reserve: TypedFunction<u32, u32> =
            exports.get_typed_function(&store, "hooksieve_reserve")?;
        let init: TypedFunction<(u32, u32), i64> =
            exports.get_typed_function(&store, "hooksieve_init")?;
        let decide: TypedFunction<(u32, u32, u32, u32), i64> =
            exports.get_typed_function(&store, "hooksieve_decide")?;

        let config = reserve.call(&mut store, 1)?;
        memory.view(&store).write(config.into(), &[0x80])?;
        ensure!(init.call(&mut store, config, 1)? == 0, "a configuration");

        let index_at = input.event.len().next_multiple_of(4);
        let place = reserve.call(&mut store, (index_at + input.index.len()) as u32)?;
        let index_place = place + index_at as u32;
        let view = memory.view(&store);
        view.write(place.into(), &input.event)?;
        view.write(index_place.into(), &input.index)?;
        let (event_len, index_len) = (input.event.len() as u32, input.index.len() as u32);
        let returned = decide.call(&mut store, place, event_len, index_place, index_len)?;
        let (place, length) = unpack(returned).map_err(|code| anyhow!("code {code}"))?;
        let mut answer = vec![0; length as usize];
        memory.view(&store).read(place.into(), &mut answer)?;
        Decision::decode(&answer)?.map_err(|message| anyhow!(message))
    }
}
