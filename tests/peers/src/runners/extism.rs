//! Extism: the plugin compiled once, a new one made from that for each event. Its guest is the same
//! rule behind Extism's own SDK, which copies input and output word by word through its kernel.

use super::{FUEL, MEMORY_BYTES, Row, Runner};
use crate::events::Input;
use anyhow::{Result, anyhow};
use extism::{CompiledPlugin, Manifest, Plugin, PluginBuilder, UserData, ValType, Wasm};
use hooksieve_sdk::wire::Decision;

const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/peers_guest_extism.wasm"));

struct Extism(CompiledPlugin);

pub(super) fn row() -> Result<Row> {
    let pages = (MEMORY_BYTES / 65_536) as u32;
    let manifest = Manifest::new([Wasm::data(GUEST)]).with_memory_max(pages);
    let builder = PluginBuilder::new(manifest)
        .with_wasi(false)
        // What the rule's SDK imports for a panic's message.
        .with_function_in_namespace(
            "hooksieve",
            "log",
            [ValType::I32, ValType::I32, ValType::I32],
            [],
            UserData::new(()),
            |_, _, _, _| Ok(()),
        )
        .with_fuel_limit(FUEL);
    Ok(Row {
        name: "extism, fresh plugin",
        version: "1.30.0".to_owned(),
        how: "compiled once; a new plugin for each event, with limits on fuel and memory",
        isolated: true,
        runner: Box::new(Extism(CompiledPlugin::new(builder)?)),
    })
}

impl Runner for Extism {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        let mut plugin = Plugin::new_from_compiled(&self.0)?;
        let answer: &[u8] = plugin.call("decide", input.framed.as_slice())?;
        Decision::decode(answer)?.map_err(|message| anyhow!(message))
    }
}
