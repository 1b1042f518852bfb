use hooksieve_sdk::prelude::*;

#[rule]
unsafe fn decide(_: &Event) -> Decision {
    Decision::drop("")
}

fn main() {}
