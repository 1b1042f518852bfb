//! `hooksieve sources`, `hooksieve channels` and `hooksieve tenants`: what tenants consist of, in a running
//! engine.

use super::client::Remote;
use super::rules::{Whose, read_config};
use super::{Failure, style};
use hooksieve::admin::{Removed, SettingView, TenantSet, TenantView, UsageView};
use hooksieve::id::Name;
use hooksieve::registry::{Change, Fileless};
use hooksieve::tenant::{OwnLimits, OwnQuotas};
use reqwest::Method;
use std::path::PathBuf;

/// What there are two kinds of.
#[derive(Clone, Copy)]
pub(super) enum Thing {
    Source,
    Channel,
}

impl Thing {
    fn word(self) -> &'static str {
        match self {
            Thing::Source => "source",
            Thing::Channel => "channel",
        }
    }
}

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List them, those of the tenant's file too
    List,
    /// Set one up, or put another in its place
    Set {
        #[arg(value_name = "NAME")]
        name: Name,
        /// Its settings, a TOML or JSON file: what would stand in the tenant's file, without the name,
        /// and with secrets as text
        #[arg(value_name = "FILE")]
        settings: PathBuf,
    },
    /// Remove one
    Remove {
        #[arg(value_name = "NAME")]
        name: Name,
    },
}

#[derive(clap::Args)]
pub(crate) struct Sources {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    whose: Whose,
}

pub(crate) fn sources(args: Sources) -> Result<(), Failure> {
    run(args.command, &args.whose, Thing::Source)
}

pub(super) fn run(command: Command, whose: &Whose, thing: Thing) -> Result<(), Failure> {
    let (word, remote) = (thing.word(), &whose.remote);
    let base = format!("{}/{word}s", whose.base()?);
    match command {
        Command::List => {
            let all: Vec<SettingView> = remote.call(Method::GET, &base)?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(all));
                return Ok(());
            }
            if all.is_empty() {
                anstream::println!("There is no {word}.");
                return Ok(());
            }
            let mut table = style::table(&[word, "kind", "settings", "secrets"]);
            for one in &all {
                let settings = match one.in_file {
                    true => "in the file".to_owned(),
                    false => serde_json::json!(one.settings).to_string(),
                };
                table.add_row([
                    one.name.to_string(),
                    style::clean(&one.kind),
                    style::clean(&settings),
                    style::clean(&one.secrets.join(", ")),
                ]);
            }
            anstream::println!("{table}");
        }
        Command::Set { name, settings } => {
            let settings = read_config(&settings)?;
            let path = format!("{base}/{name}");
            let set: SettingView = remote.send(Method::PUT, &path, |it| it.json(&settings))?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(set));
            } else {
                let good = style::GOOD;
                let change = match set.change {
                    Some(Change::Unchanged) => "was so already",
                    _ => "is set",
                };
                anstream::println!("{good}{word} {}{good:#} {change} ({})", set.name, set.kind);
            }
        }
        Command::Remove { name } => {
            let path = format!("{base}/{name}");
            let removed: Removed = remote.call(Method::DELETE, &path)?;
            tell_removed(remote, &removed);
        }
    }
    Ok(())
}

fn tell_removed(remote: &Remote, removed: &Removed) {
    if remote.json {
        anstream::println!("{}", serde_json::json!(removed));
    } else {
        anstream::println!("removed {}", removed.removed);
    }
}

#[derive(clap::Args)]
pub(crate) struct Usage {
    #[command(flatten)]
    whose: Whose,
}

pub(crate) fn usage(args: Usage) -> Result<(), Failure> {
    let remote = &args.whose.remote;
    let path = format!("{}/usage", args.whose.base()?);
    let usage: UsageView = remote.call(Method::GET, &path)?;
    if remote.json {
        anstream::println!("{}", serde_json::json!(usage));
        return Ok(());
    }
    let mut table = style::table(&["what", "used", "at most", "share"]);
    let mut row = |what: &str, used: f64, max: u64| {
        let (most, share) = match max {
            0 => ("no quota".to_owned(), String::new()),
            max => {
                let share = format!("{:.0} %", 100.0 * used / max as f64);
                (style::grouped(max), share)
            }
        };
        let used = style::grouped(used.round() as u64);
        table.add_row([what, &used, &most, &share]);
    };
    for (what, rate) in [
        ("events a second, in the last minute", &usage.events_per_s),
        ("fuel a second, in the last minute", &usage.fuel_per_s),
        (
            "deliveries a second, in the last minute",
            &usage.deliveries_per_s,
        ),
    ] {
        row(what, rate.used, rate.max);
    }
    for (what, used) in [
        ("rules", &usage.rules),
        ("bytes of modules", &usage.modules_bytes),
        ("bytes of their machine code", &usage.code_bytes),
        ("sources", &usage.sources),
        ("channels", &usage.channels),
        ("tokens", &usage.tokens),
    ] {
        row(what, used.used as f64, used.max);
    }
    anstream::println!("{table}");
    Ok(())
}

#[derive(clap::Args)]
pub(crate) struct Tenants {
    #[command(subcommand)]
    command: Option<TenantCommand>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Subcommand)]
enum TenantCommand {
    /// List those that the token can see (what is done without a command)
    List,
    /// Make one that has no file, or give it other settings: what is left out is as for all; 0 is no quota
    Set {
        #[arg(value_name = "NAME")]
        name: Name,
        #[arg(long, value_name = "N")]
        events_per_s: Option<u32>,
        #[arg(long, value_name = "N")]
        fuel_per_s: Option<u64>,
        #[arg(long, value_name = "N")]
        deliveries_per_s: Option<u32>,
        /// What its events may take in the store
        #[arg(long, value_name = "BYTES")]
        stored_bytes: Option<u64>,
        /// Fuel that its rules may burn for one event
        #[arg(long, value_name = "N")]
        fuel: Option<u64>,
        /// Linear memory of each of its rules
        #[arg(long, value_name = "BYTES")]
        memory_bytes: Option<u64>,
        /// Actions in one decision of its rules
        #[arg(long, value_name = "N")]
        actions: Option<usize>,
        /// Where events go that a rule with `on_error` `pass` failed on
        #[arg(long, value_name = "CHANNEL")]
        default_channel: Option<Name>,
    },
    /// Remove one that has no file, with all that it has set up
    Remove {
        #[arg(value_name = "NAME")]
        name: Name,
    },
}

pub(crate) fn tenants(args: Tenants) -> Result<(), Failure> {
    let remote = &args.remote;
    match args.command.unwrap_or(TenantCommand::List) {
        TenantCommand::List => list(remote),
        TenantCommand::Set {
            name,
            events_per_s,
            fuel_per_s,
            deliveries_per_s,
            stored_bytes,
            fuel,
            memory_bytes,
            actions,
            default_channel,
        } => {
            let body = Fileless {
                quotas: OwnQuotas {
                    events_per_s,
                    fuel_per_s,
                    deliveries_per_s,
                    stored_bytes,
                },
                limits: OwnLimits {
                    fuel,
                    memory_bytes,
                    actions,
                },
                default_channel,
            };
            let path = format!("/v1/tenants/{name}");
            let set: TenantSet = remote.send(Method::PUT, &path, |it| it.json(&body))?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(set));
            } else {
                anstream::println!("the tenant {} is set", set.name);
            }
            Ok(())
        }
        TenantCommand::Remove { name } => {
            let path = format!("/v1/tenants/{name}");
            let removed: Removed = remote.call(Method::DELETE, &path)?;
            tell_removed(remote, &removed);
            Ok(())
        }
    }
}

fn list(remote: &Remote) -> Result<(), Failure> {
    let tenants: Vec<TenantView> = remote.call(Method::GET, "/v1/tenants")?;
    if remote.json {
        anstream::println!("{}", serde_json::json!(tenants));
        return Ok(());
    }
    let mut table = style::table(&["tenant", "sources", "channels"]);
    for tenant in &tenants {
        let sources: Vec<_> = tenant.sources.iter().map(|it| it.as_str()).collect();
        let channels: Vec<_> = tenant.channels.iter().map(|it| it.as_str()).collect();
        table.add_row([
            tenant.name.as_str(),
            &sources.join(", "),
            &channels.join(", "),
        ]);
    }
    anstream::println!("{table}");
    Ok(())
}
