//! The ways to ask a rule about an event, one file each.

mod callback;
mod extism;
mod hooksieve;
mod native;
mod quickjs;
mod wasmer;
mod wasmtime;

pub(crate) use callback::serve;

use crate::events::Input;
use anyhow::Result;
use hooksieve_sdk::wire::Decision;

/// The rule as a Hooksieve module.
pub(crate) const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/peers_guest.wasm"));

/// A rule of about 100 kB.
pub(crate) const LARGE_GUEST: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/peers_guest_large.wasm"));

/// Fuel for one event, as in Hooksieve's default limits.
const FUEL: u64 = 10_000_000;
/// Memory for one event, likewise.
const MEMORY_BYTES: usize = 16 << 20;

/// One way to ask the rule.
pub(crate) trait Runner {
    /// Asks about one event, from its bytes to the decision in the host's own type.
    ///
    /// # Errors
    /// What none of the runners should meet here.
    fn decide(&mut self, input: &Input) -> Result<Decision>;

    /// How many events can be measured in a row; [`Runner::between`] is called after each such row.
    fn in_a_row(&self, _: &Input) -> usize {
        usize::MAX
    }

    /// What is done outside of the measured time.
    fn between(&mut self, _: &Input) {}
}

/// A row of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    /// What is made for each event, and what serves them all.
    pub(crate) how: &'static str,
    /// Whether an event can see what another left behind.
    pub(crate) isolated: bool,
    pub(crate) runner: Box<dyn Runner>,
}

/// The row that the others are compared with.
pub(crate) const REFERENCE: &str = "hooksieve, warm reset";

/// All rows.
pub(crate) fn all() -> Result<Vec<Row>> {
    let mut rows = vec![native::row()];
    rows.extend(hooksieve::rows()?);
    rows.extend(wasmtime::rows()?);
    rows.push(wasmer::row()?);
    rows.push(extism::row()?);
    rows.push(quickjs::row()?);
    rows.push(callback::row()?);
    Ok(rows)
}
