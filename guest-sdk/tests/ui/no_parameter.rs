use hooksieve_sdk::prelude::*;

#[rule]
fn decide() -> Decision {
    Decision::drop("")
}

fn main() {}
