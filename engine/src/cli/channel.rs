//! `hooksieve channel`: whether a channel works, before an event depends on it.

use super::client::Remote;
use super::{Failure, style};
use hooksieve::admin::TestView;
use reqwest::Method;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Send one real message through a channel and show what came back
    Test {
        #[arg(value_name = "TENANT")]
        tenant: String,
        #[arg(value_name = "CHANNEL")]
        channel: String,
    },
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { command, remote } = args;
    let Command::Test { tenant, channel } = command;
    let path = format!("/v1/channels/{tenant}/{channel}/test");
    let test: TestView = remote.call(Method::POST, &path)?;
    let outcome = match test.delivered {
        true => Ok(()),
        false => Err(Failure::Outcome(None)),
    };
    if remote.json {
        anstream::println!("{}", serde_json::json!(test));
        return outcome;
    }
    let (colour, word) = match test.delivered {
        true => (style::GOOD, "delivered"),
        false => (style::ERROR, "not delivered"),
    };
    anstream::println!(
        "{colour}{word}{colour:#} through {} ({})",
        channel,
        test.kind
    );
    if let Some(error) = &test.error {
        anstream::println!("  why      {}", style::clean(error));
    }
    if let Some(status) = test.status {
        anstream::println!("  answer   {status}");
    }
    if let Some(answer) = &test.answer {
        anstream::println!("  said     {}", style::clean(answer));
    }
    for refused in &test.refused {
        anstream::println!("  refused  {}", style::clean(refused));
    }
    anstream::println!("  took     {} ms", test.duration_ms);
    outcome
}
