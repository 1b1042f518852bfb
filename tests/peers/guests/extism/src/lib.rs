//! The benchmark's rule as an Extism plugin. Its input is the event's length (u32, little-endian), the
//! event, and the skip index; its output is the decision as MessagePack.
#![cfg(target_arch = "wasm32")]
#![allow(unsafe_code, reason = "the export that `plugin_fn` makes")]

use extism_pdk::{Error, FnResult, plugin_fn};
use hooksieve_sdk::wire::{Event, SkipIndex};

#[plugin_fn]
pub fn decide(input: Vec<u8>) -> FnResult<Vec<u8>> {
    let (length, rest) = input
        .split_first_chunk()
        .ok_or_else(|| Error::msg("no length"))?;
    let (event, index) = rest
        .split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or_else(|| Error::msg("no event"))?;
    let event = Event::decode(event, SkipIndex::new(index)).map_err(Error::msg)?;
    Ok(peers_rule::decide(&event).encode())
}
