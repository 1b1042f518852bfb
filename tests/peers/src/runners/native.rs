//! The rule as a function of this program: what remains when nothing is isolated.

use super::{Row, Runner};
use crate::events::Input;
use anyhow::Result;
use hooksieve_sdk::wire::Decision;
use std::hint::black_box;

struct Native;

pub(super) fn row() -> Row {
    Row {
        name: "native call",
        version: String::new(),
        how: "the event is read and the decision encoded; nothing isolates it",
        isolated: false,
        runner: Box::new(Native),
    }
}

impl Runner for Native {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        let decision = peers_rule::decide(&black_box(input).event());
        black_box(decision.encode());
        Ok(decision)
    }
}
