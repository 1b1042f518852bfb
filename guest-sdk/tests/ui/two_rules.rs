use hooksieve_sdk::prelude::*;

#[rule]
fn first(_: &Event) -> Decision {
    Decision::drop("")
}

#[rule]
fn second(_: &Event) -> Decision {
    Decision::drop("")
}

fn main() {}
