use hooksieve_sdk::prelude::*;

#[rule]
fn decide(_: &Event) -> Option<Decision> {
    None
}

fn main() {}
