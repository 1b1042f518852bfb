use hooksieve_sdk::prelude::*;

struct Rules;

impl Rules {
    #[rule]
    fn decide(&self, _: &Event) -> Decision {
        Decision::drop("")
    }
}

fn main() {}
