//! The wire contract between the engine and a rule: types and bytes, stated in `ABI.md`.
//!
//! Guests and the engine use this one module, so the two sides cannot drift apart; golden files in
//! `golden/` hold the bytes. Everything that reads here treats its input as hostile: no length is
//! trusted before it was checked against what is left, and nothing recurses on input.

mod decision;
mod event;
mod index;
#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
pub mod json;
mod msgpack;
mod timing;
mod value;

pub use decision::{Action, Body, Decision, Field, Link, Message, Payload};
pub use event::{Event, EventHead};
pub use index::{INDEXED_BYTES_MIN, SkipIndex};
pub use msgpack::Writer;
pub use timing::{Dedupe, Digest, Escalate, Throttle, Timing};
pub(crate) use value::Number;
pub use value::{Entries, Error, Items, Kind, Value};

/// The version of this contract. A module states the one it speaks by exporting `hooksieve_abi_1`.
pub const ABI_VERSION: u32 = 1;

/// How many containers may nest in an event's data, and in a whole answer: there the decision, its
/// actions and the action stand around a body, which leaves 61 to it.
pub const DEPTH_MAX: usize = 64;

/// What a rule's export returns when it has no answer to point at: small negative numbers, which no
/// (pointer, length) pair can be, as no memory reaches 2 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Code {
    /// The input was not the MessagePack it should be.
    BadInput = -1,
    /// The configuration was refused.
    BadConfig = -2,
    /// The rule ran out of its own memory.
    OutOfMemory = -3,
}

/// Packs an answer's place for a rule's return value: the pointer in the high half, the length in
/// the low half.
pub const fn pack(pointer: u32, length: u32) -> i64 {
    ((pointer as i64) << 32) | length as i64
}

/// The pointer and the length in a rule's return value, or the code of a rule without an answer.
pub const fn unpack(returned: i64) -> Result<(u32, u32), i64> {
    if returned < 0 {
        return Err(returned);
    }
    Ok(((returned >> 32) as u32, returned as u32))
}
