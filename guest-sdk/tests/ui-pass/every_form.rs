use hooksieve_sdk::prelude::*;

// An error that borrows from the event, lifetimes that are named, and a builder as answer.
#[rule]
fn decide<'a>(event: &Event<'a>, settings: &Settings) -> Result<hooksieve_sdk::Notify, &'a str> {
    match settings.str("/channel") {
        Some(channel) => Ok(notify(channel).title(event.kind())),
        None => Err(event.kind()),
    }
}

fn main() {
    let event = hooksieve_sdk::testing::event("ping", "{}");
    let answer = decide(&event.event(), &hooksieve_sdk::testing::settings("{}"));
    assert_eq!(answer.err(), Some("ping"));
}
