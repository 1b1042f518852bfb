//! This policy as a WASI program: the command form of the same rule. What a program in
//! any language does: read the event from standard input, the configuration from the environment, and
//! write the decision to standard output.

#[allow(unreachable_pub, reason = "it is a crate of its own elsewhere")]
#[path = "../src/lib.rs"]
mod triage;

use hooksieve_sdk::wire::SkipIndex;
use hooksieve_sdk::{Event, FromConfig as _, Value};
use std::io::{Read as _, Write as _};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let event = Event::decode(&input, SkipIndex::new(&[])).map_err(|error| error.to_string())?;
    let config = config(&std::env::var("HOOKSIEVE_CONFIG")?)?;
    let decision = triage::triage(&event, &config);
    std::io::stdout().write_all(&decision.encode())?;
    Ok(())
}

/// The rule reads MessagePack, and a program gets JSON.
fn config(json: &str) -> Result<triage::Config, Failure> {
    let json: serde_json::Value = serde_json::from_str(json)?;
    let config = rmp_serde::to_vec(&json)?.leak();
    Ok(triage::Config::from_config(Value::new(config)).map_err(|error| error.to_string())?)
}
