use hooksieve_sdk::prelude::*;

#[rule]
fn decide(_: &Event, _: &Settings, _: &Settings) -> Decision {
    Decision::drop("")
}

fn main() {}
