use hooksieve_sdk::prelude::*;

#[rule]
async fn decide(_: &Event<'_>) -> Decision {
    Decision::drop("")
}

fn main() {}
