//! `hooksieve sources`, `hooksieve channels` and `hooksieve tenants`: what tenants consist of, in a running
//! engine.

use super::client::Remote;
use super::rules::{Whose, read_config};
use super::{Failure, style};
use hooksieve::admin::{Removed, SettingView, TenantBody, TenantSet, TenantView, UsageView};
use hooksieve::id::Name;
use hooksieve::tenant::OwnQuotas;
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
    List {
        #[arg(value_name = "TENANT")]
        tenant: Name,
    },
    /// Set one up, or put another in its place
    Set {
        #[arg(value_name = "TENANT")]
        tenant: Name,
        #[arg(value_name = "NAME")]
        name: Name,
        /// Its settings, a TOML or JSON file: what would stand in the tenant's file, without the name,
        /// and with secrets as text
        #[arg(value_name = "FILE")]
        settings: PathBuf,
    },
    /// Remove one
    Remove {
        #[arg(value_name = "TENANT")]
        tenant: Name,
        #[arg(value_name = "NAME")]
        name: Name,
    },
}

#[derive(clap::Args)]
pub(crate) struct Sources {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) fn sources(args: Sources) -> Result<(), Failure> {
    run(args.command, &args.remote, Thing::Source)
}

pub(super) fn run(command: Command, remote: &Remote, thing: Thing) -> Result<(), Failure> {
    let word = thing.word();
    let base = |tenant: &Name| format!("/v1/tenants/{tenant}/{word}s");
    match command {
        Command::List { tenant } => {
            let all: Vec<SettingView> = remote.call(Method::GET, &base(&tenant))?;
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
        Command::Set {
            tenant,
            name,
            settings,
        } => {
            let settings = read_config(&settings)?;
            let path = format!("{}/{name}", base(&tenant));
            let set: SettingView = remote.send(Method::PUT, &path, |it| it.json(&settings))?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(set));
            } else {
                let good = style::GOOD;
                anstream::println!("{good}{word} {}{good:#} is set ({})", set.name, set.kind);
            }
        }
        Command::Remove { tenant, name } => {
            let path = format!("{}/{name}", base(&tenant));
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
    /// Make one that has no file, or change its quotas; 0 is none
    Set {
        #[arg(value_name = "NAME")]
        name: Name,
        #[arg(long, value_name = "N")]
        events_per_s: Option<u32>,
        #[arg(long, value_name = "N")]
        fuel_per_s: Option<u64>,
        #[arg(long, value_name = "N")]
        deliveries_per_s: Option<u32>,
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
        } => {
            let quotas = OwnQuotas {
                events_per_s,
                fuel_per_s,
                deliveries_per_s,
            };
            let path = format!("/v1/tenants/{name}");
            let body = TenantBody { quotas };
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
