use hooksieve_sdk::prelude::*;

#[rule]
fn decide(_: &Event) {}

fn main() {}
