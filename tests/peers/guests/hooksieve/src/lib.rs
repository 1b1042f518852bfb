//! The benchmark's rule as a Hooksieve module, which the wasmer and wasmtime runners run as well.

use hooksieve_sdk::prelude::*;

#[rule]
fn decide(event: &Event) -> Decision {
    peers_rule::decide(event)
}
