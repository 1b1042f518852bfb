//! Wasmtime with its pooling allocator: the same module, a new store and instance for each event.

use super::{FUEL, GUEST, MEMORY_BYTES, Row, Runner};
use crate::events::Input;
use anyhow::{Context as _, Result, anyhow, ensure};
use hooksieve_sdk::wire::{Decision, unpack};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, InstancePre, Linker, Module, ModuleExport,
    OptLevel, PoolingAllocationConfig, Store, Strategy,
};

struct Wasmtime {
    engine: Engine,
    pre: InstancePre<()>,
    memory: ModuleExport,
    reserve: ModuleExport,
    init: ModuleExport,
    decide: ModuleExport,
}

/// Slots of the pool. One is in use at a time; more would only lengthen the lists.
const SLOTS: u32 = 16;
/// What is put back by copying instead of by the system: more than the guest ever touches.
const RESIDENT_BYTES: usize = 256 << 10;

pub(super) fn rows() -> Result<Vec<Row>> {
    let row = |name, how, pool| -> Result<Row> {
        Ok(Row {
            name,
            version: "48.0.0".to_owned(),
            how,
            isolated: true,
            runner: Box::new(Wasmtime::new(pool)?),
        })
    };
    Ok(vec![
        row(
            "wasmtime, pooling, tuned",
            "a new store and instance; 256 KiB kept resident, copy-on-write images, no unused slots",
            tuned(),
        )?,
        row(
            "wasmtime, pooling, tuned, PAGEMAP_SCAN",
            "the same, and the system is asked which pages were touched",
            {
                let mut pool = tuned();
                pool.pagemap_scan(Enabled::Yes);
                pool
            },
        )?,
        row(
            "wasmtime, pooling, defaults",
            "a new store and instance",
            PoolingAllocationConfig::new(),
        )?,
    ])
}

fn tuned() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(SLOTS)
        .total_memories(SLOTS)
        .total_tables(SLOTS)
        .max_memory_size(MEMORY_BYTES)
        .max_unused_warm_slots(0)
        .decommit_batch_size(SLOTS as usize)
        .linear_memory_keep_resident(RESIDENT_BYTES)
        .table_elements(100)
        .table_keep_resident(4 << 10);
    pool
}

impl Wasmtime {
    fn new(pool: PoolingAllocationConfig) -> Result<Self> {
        let mut config = Config::new();
        config
            .strategy(Strategy::Cranelift)
            .cranelift_opt_level(OptLevel::Speed)
            .consume_fuel(true)
            .memory_init_cow(true)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config)?;
        let module = Module::new(&engine, GUEST)?;
        let mut linker = Linker::new(&engine);
        linker.func_wrap("hooksieve", "log", |_: u32, _: u32, _: u32| {})?;
        let export = |name| {
            module
                .get_export_index(name)
                .with_context(|| format!("the guest has no {name}"))
        };
        Ok(Self {
            pre: linker.instantiate_pre(&module)?,
            memory: export("memory")?,
            reserve: export("hooksieve_reserve")?,
            init: export("hooksieve_init")?,
            decide: export("hooksieve_decide")?,
            engine,
        })
    }
}

impl Runner for Wasmtime {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        let mut store = Store::new(&self.engine, ());
        store.set_fuel(FUEL)?;
        let instance = self.pre.instantiate(&mut store)?;
        let mut export = |export| {
            instance
                .get_module_export(&mut store, export)
                .context("an export")
        };
        let memory = export(&self.memory)?.into_memory().context("a memory")?;
        let [reserve, init, decide] = [&self.reserve, &self.init, &self.decide]
            .map(|name| export(name).map(|export| export.into_func()));
        let reserve = reserve?.context("a function")?.typed::<u32, u32>(&store)?;
        let init = init?
            .context("a function")?
            .typed::<(u32, u32), i64>(&store)?;
        let decide = decide?
            .context("a function")?
            .typed::<(u32, u32, u32, u32), i64>(&store)?;

        let config = reserve.call(&mut store, 1)?;
        memory.write(&mut store, config as usize, &[0x80])?;
        ensure!(init.call(&mut store, (config, 1))? == 0, "a configuration");

        let index_at = input.event.len().next_multiple_of(4);
        let place = reserve.call(&mut store, (index_at + input.index.len()) as u32)?;
        let index_place = place + index_at as u32;
        memory.write(&mut store, place as usize, &input.event)?;
        memory.write(&mut store, index_place as usize, &input.index)?;
        let arguments = (
            place,
            input.event.len() as u32,
            index_place,
            input.index.len() as u32,
        );
        let returned = decide.call(&mut store, arguments)?;
        let (place, length) = unpack(returned).map_err(|code| anyhow!("code {code}"))?;
        let answer = memory
            .data(&store)
            .get(place as usize..)
            .and_then(|rest| rest.get(..length as usize))
            .context("an answer inside memory")?;
        Decision::decode(answer)?.map_err(|message| anyhow!(message))
    }
}
