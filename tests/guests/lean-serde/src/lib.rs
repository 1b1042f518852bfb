//! A rule that reads its configuration as a type of its own. Its size is tested.

use hooksieve_sdk::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    channel: String,
    #[serde(default)]
    ignore: Vec<String>,
}

#[rule]
fn forward(event: &Event, config: &Config) -> Decision {
    let sender = event.str("/sender/login").unwrap_or("");
    if config.ignore.iter().any(|name| name == sender) {
        return Decision::drop("from a sender that is ignored");
    }
    notify(&*config.channel)
        .title(event.kind())
        .because("forwarded")
}
