//! `hooksieve dead`: deliveries that were given up, how they are taken up again, and how they go.

use super::client::Remote;
use super::explain::attempts;
use super::{Failure, style};
use hooksieve::admin::{DeliveryView, Page, Purged, StateWord};
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
    /// List them, oldest first
    List {
        #[command(flatten)]
        filter: Filter,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Show one, with every attempt and what was to be sent
    Show {
        #[arg(value_name = "DELIVERY_ID")]
        delivery: String,
    },
    /// Take them up again, each as a new delivery under an id of its own
    Redrive {
        #[command(flatten)]
        which: Which,
    },
    /// Have them forgotten, with their events, once those are old enough
    Purge {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(clap::Args)]
struct Which {
    #[arg(
        value_name = "DELIVERY_ID",
        required_unless_present = "all",
        conflicts_with_all = ["tenant", "channel", "older_than"]
    )]
    deliveries: Vec<String>,
    /// All that `list` shows with the same options
    #[arg(long, conflicts_with = "deliveries")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
}

#[derive(clap::Args)]
struct Filter {
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Only this channel's
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// Only those that were given up longer ago: 90m, 12h, 7d
    #[arg(long, value_name = "TIME")]
    older_than: Option<jiff::SignedDuration>,
}

impl Filter {
    fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in [("tenant", &self.tenant), ("channel", &self.channel)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if let Some(age) = self.older_than {
            let before = jiff::Timestamp::now() - age;
            query.append_pair("before", &before.to_string());
        }
        query.finish()
    }

    /// All of them, page by page; whether there are more than `limit`.
    fn list(&self, remote: &Remote, limit: usize) -> Result<(Vec<DeliveryView>, bool), Failure> {
        let (query, mut after, mut dead) = (self.query(), String::new(), Vec::new());
        loop {
            let path = format!("/v1/dead?{query}{after}");
            let page: Page<DeliveryView> = remote.call(Method::GET, &path)?;
            dead.extend(page.items);
            match page.next {
                Some(next) if dead.len() <= limit => after = format!("&after={next}"),
                next => {
                    let more = next.is_some() || dead.len() > limit;
                    dead.truncate(limit);
                    return Ok((dead, more));
                }
            }
        }
    }
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { command, remote } = args;
    match command {
        Command::List { filter, limit } => {
            let (dead, more) = filter.list(&remote, limit)?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(dead));
                return Ok(());
            }
            if dead.is_empty() {
                anstream::println!("No delivery was given up.");
                return Ok(());
            }
            let header = [
                "tenant",
                "delivery",
                "channel",
                "event type",
                "at",
                "attempts",
                "why",
            ];
            let mut table = style::table(&header);
            for dead in &dead {
                table.add_row([
                    dead.tenant.as_str(),
                    &dead.id,
                    dead.channel.as_str(),
                    &style::clean(&dead.r#type),
                    &dead.at,
                    &dead.attempts.len().to_string(),
                    &style::clean(dead.reason.as_deref().unwrap_or("")),
                ]);
            }
            anstream::println!("{table}");
            if more {
                anstream::println!("There are more; show them with --limit.");
            }
        }
        Command::Show { delivery } => {
            let path = format!("/v1/deliveries/{delivery}");
            let delivery: DeliveryView = remote.call(Method::GET, &path)?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(delivery));
                return Ok(());
            }
            anstream::println!("delivery {} ({})", delivery.id, delivery.state);
            let kind = style::clean(&delivery.r#type);
            anstream::println!("event    {} ({kind})", delivery.event);
            anstream::println!("tenant   {}, rule {}", delivery.tenant, delivery.rule);
            anstream::println!("channel  {}", delivery.channel);
            attempts(&delivery);
            if let Some(of) = &delivery.redrive_of {
                anstream::println!("of       {of}, which was given up");
            }
            if let (StateWord::Redriven, Some(as_what)) = (delivery.state, &delivery.other) {
                anstream::println!("redriven as {as_what}");
            }
            anstream::println!("payload  {}", style::json(&delivery.payload)?);
        }
        Command::Redrive { which } => redrive(&remote, which)?,
        Command::Purge { which } => purge(&remote, which)?,
    }
    Ok(())
}

fn redrive(remote: &Remote, which: Which) -> Result<(), Failure> {
    let mut deliveries = which.deliveries;
    if which.all {
        let (listed, _) = which.filter.list(remote, usize::MAX)?;
        deliveries = listed.into_iter().map(|dead| dead.id).collect();
    }
    let mut redriven = Vec::new();
    for id in &deliveries {
        let path = format!("/v1/dead/{id}/redrive");
        let new: DeliveryView = remote.call(Method::POST, &path)?;
        if !remote.json {
            anstream::println!("{id} goes out again as {}", new.id);
        }
        redriven.push(new);
    }
    if remote.json {
        anstream::println!("{}", serde_json::json!(redriven));
    } else if redriven.is_empty() {
        anstream::println!("There was nothing to redrive.");
    }
    Ok(())
}

fn purge(remote: &Remote, which: Which) -> Result<(), Failure> {
    let mut paths: Vec<_> = which.deliveries.iter().map(|id| format!("/{id}")).collect();
    if which.all {
        paths.push(format!("?{}", which.filter.query()));
    }
    let mut purged = 0;
    for path in paths {
        let done: Purged = remote.call(Method::DELETE, &format!("/v1/dead{path}"))?;
        purged += done.purged;
    }
    if remote.json {
        anstream::println!("{}", serde_json::json!(Purged { purged }));
    } else {
        anstream::println!("Purged: {purged}.");
    }
    Ok(())
}
