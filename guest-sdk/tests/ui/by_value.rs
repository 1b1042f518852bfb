use hooksieve_sdk::prelude::*;

#[rule]
fn decide(_: Event) -> Decision {
    Decision::drop("")
}

fn main() {}
