use hooksieve_sdk::prelude::*;

#[rule]
fn decide(_: &Event) -> bool {
    true
}

fn main() {}
