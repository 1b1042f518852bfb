//! The benchmark's rule as an Extism plugin. Its input is the event's length (u32, little-endian), the
//! event, and the skip index; its output is the decision as MessagePack.
#![cfg(target_arch = "wasm32")]
#![allow(unsafe_code, reason = "the export's glue, as in Hooksieve's SDK")]

use extism_pdk::{Error, FnResult, plugin_fn};
use hooksieve_sdk::__private::{NoConfig, Slot};
use hooksieve_sdk::wire::unpack;

static CONFIG: Slot<NoConfig> = Slot::new();

#[plugin_fn]
pub fn decide(input: Vec<u8>) -> FnResult<Vec<u8>> {
    let (length, rest) = input
        .split_first_chunk()
        .ok_or_else(|| Error::msg("no length"))?;
    let (event, index) = rest
        .split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or_else(|| Error::msg("no event"))?;
    hooksieve_sdk::__private::init(&CONFIG, 0, 0);
    let place = |bytes: &[u8]| (bytes.as_ptr() as u32, bytes.len() as u32);
    let returned =
        hooksieve_sdk::__private::decide(&CONFIG, place(event), place(index), |event, _| {
            peers_rule::decide(event).encode()
        });
    let (answer, length) = unpack(returned).map_err(|_| Error::msg("no answer"))?;
    // SAFETY: the place of an answer that `decide` leaked.
    Ok(unsafe { std::slice::from_raw_parts(answer as *const u8, length as usize) }.to_vec())
}
