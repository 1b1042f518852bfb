//! `hooksieve dead`: deliveries that were given up, and how they are taken up again.

use super::client::Remote;
use super::explain::attempts;
use super::{Failure, style};
use hooksieve::admin::DeliveryView;
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
    /// List the oldest 1,000
    List(Filter),
    /// Show one, with every attempt and what was to be sent
    Show {
        #[arg(value_name = "DELIVERY_ID")]
        delivery: String,
    },
    /// Take them up again, each as a new delivery under an id of its own
    Redrive {
        #[arg(
            value_name = "DELIVERY_ID",
            required_unless_present = "all",
            conflicts_with_all = ["tenant", "channel"]
        )]
        deliveries: Vec<String>,
        /// All that `list` shows with the same options
        #[arg(long, conflicts_with = "deliveries")]
        all: bool,
        #[command(flatten)]
        filter: Filter,
    },
}

#[derive(clap::Args)]
struct Filter {
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Of those, only this channel's
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
}

impl Filter {
    fn list(&self, remote: &Remote) -> Result<Vec<DeliveryView>, Failure> {
        let query = match &self.tenant {
            Some(tenant) => format!("?tenant={tenant}"),
            None => String::new(),
        };
        let mut dead: Vec<DeliveryView> = remote.call(Method::GET, &format!("/v1/dead{query}"))?;
        if let Some(channel) = &self.channel {
            dead.retain(|dead| dead.channel.as_str() == channel);
        }
        Ok(dead)
    }
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { command, remote } = args;
    match command {
        Command::List(filter) => {
            let dead = filter.list(&remote)?;
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
                    &dead.r#type,
                    &dead.at,
                    &dead.attempts.len().to_string(),
                    &style::clean(dead.reason.as_deref().unwrap_or("")),
                ]);
            }
            anstream::println!("{table}");
        }
        Command::Show { delivery } => {
            let path = format!("/v1/deliveries/{delivery}");
            let delivery: DeliveryView = remote.call(Method::GET, &path)?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(delivery));
                return Ok(());
            }
            anstream::println!("delivery {} ({})", delivery.id, delivery.state);
            anstream::println!("event    {} ({})", delivery.event, delivery.r#type);
            anstream::println!("tenant   {}, rule {}", delivery.tenant, delivery.rule);
            anstream::println!("channel  {}", delivery.channel);
            attempts(&delivery);
            if let Some(of) = &delivery.redrive_of {
                anstream::println!("of       {of}, which was given up");
            }
            if let ("redriven", Some(as_what)) = (delivery.state.as_str(), &delivery.other) {
                anstream::println!("redriven as {as_what}");
            }
            let payload =
                serde_json::to_string_pretty(&delivery.payload).map_err(Failure::outcome)?;
            anstream::println!("payload  {payload}");
        }
        Command::Redrive {
            mut deliveries,
            all,
            filter,
        } => {
            if all {
                let listed = filter.list(&remote)?;
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
        }
    }
    Ok(())
}
