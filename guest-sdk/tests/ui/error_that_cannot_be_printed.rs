use hooksieve_sdk::prelude::*;

struct Failed;

#[rule]
fn decide(_: &Event) -> Result<Decision, Failed> {
    Err(Failed)
}

fn main() {}
