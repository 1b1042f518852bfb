//! `hooksieve dead`: deliveries that were given up.

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
    /// List them, oldest first
    List {
        /// Only this tenant's
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
    },
    /// Show one, with every attempt and what was to be sent
    Show {
        #[arg(value_name = "DELIVERY_ID")]
        delivery: String,
    },
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { command, remote } = args;
    match command {
        Command::List { tenant } => {
            let query = tenant
                .map(|tenant| format!("?tenant={tenant}"))
                .unwrap_or_default();
            let dead: Vec<DeliveryView> = remote.call(Method::GET, &format!("/v1/dead{query}"))?;
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
            let payload =
                serde_json::to_string_pretty(&delivery.payload).map_err(Failure::outcome)?;
            anstream::println!("payload  {payload}");
        }
    }
    Ok(())
}
