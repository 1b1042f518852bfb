use hooksieve_sdk::prelude::*;

#[rule]
fn decide(_: &str) -> Decision {
    Decision::drop("")
}

fn main() {}
