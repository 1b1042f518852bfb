use hooksieve_sdk::prelude::*;

struct Config;

#[rule]
fn decide(_: &Event, _: &Config) -> Decision {
    Decision::drop("")
}

fn main() {}
