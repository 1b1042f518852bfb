use hooksieve_sdk::prelude::*;

#[rule]
struct Decide;

fn main() {}
