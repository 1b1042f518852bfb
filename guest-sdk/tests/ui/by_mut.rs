use hooksieve_sdk::prelude::*;

#[rule]
fn decide(_: &mut Event) -> Decision {
    Decision::drop("")
}

fn main() {}
