use hooksieve_sdk::prelude::*;

#[rule]
fn decide<T>(_: &Event, _: &T) -> Decision {
    Decision::drop("")
}

fn main() {}
