//! The smallest rule there is. Its size is tested.

use hooksieve_sdk::prelude::*;

#[rule]
fn only_drop(_: &Event) -> Decision {
    Decision::drop("nothing for me")
}
