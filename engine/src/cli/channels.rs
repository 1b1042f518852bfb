//! `hooksieve channels`: set up, and found to work before an event depends on them.

use super::client::Remote;
use super::rules::Whose;
use super::{Failure, settings, style};
use hooksieve::admin::{EnabledView, TestView};
use hooksieve::id::Name;
use reqwest::Method;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    whose: Whose,
}

#[derive(clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Settings(settings::Command),
    /// Send one real message through a channel and show what came back
    Test {
        #[arg(value_name = "CHANNEL")]
        channel: Name,
    },
    /// Send to a channel again that was disabled
    Enable {
        #[arg(value_name = "CHANNEL")]
        channel: Name,
    },
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { command, whose } = args;
    let remote = &whose.remote;
    let channel = match command {
        Command::Test { channel } => channel,
        Command::Settings(command) => {
            return settings::run(command, &whose, settings::Thing::Channel);
        }
        Command::Enable { channel } => return enable(remote, &whose.tenant()?, &channel),
    };
    let tenant = whose.tenant()?;
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

fn enable(remote: &Remote, tenant: &Name, channel: &Name) -> Result<(), Failure> {
    let path = format!("/v1/channels/{tenant}/{channel}/enable");
    let enabled: EnabledView = remote.call(Method::POST, &path)?;
    if remote.json {
        anstream::println!("{}", serde_json::json!(enabled));
    } else if enabled.was_disabled {
        anstream::println!(
            "{channel} of {tenant} is enabled; `hooksieve dead redrive --all --tenant {tenant} --channel {channel}` sends what it missed"
        );
    } else {
        anstream::println!("{channel} of {tenant} was not disabled");
    }
    Ok(())
}
