use hooksieve_sdk::prelude::*;

#[rule(issues)]
fn decide(_: &Event) -> Decision {
    Decision::drop("")
}

fn main() {}
