//! `hooksieve held`: events that a rule failed on, kept until someone releases or drops them.

use super::client::Remote;
use super::{Failure, style};
use hooksieve::admin::{DecisionView, HeldStory, HeldView, Page, ReleaseBody, Released};
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
    /// Show one, with the event's data
    Show(Which),
    /// Ask the rule again, and carry out what it decides
    Release(Which),
    /// Ask a rule again about all that is held for it, the oldest first
    ReleaseAll(Rule),
    /// Let it go
    Drop(Which),
}

#[derive(clap::Args)]
struct Rule {
    #[arg(value_name = "TENANT")]
    tenant: String,
    #[arg(value_name = "RULE")]
    rule: String,
}

#[derive(clap::Args)]
struct Which {
    #[arg(value_name = "TENANT")]
    tenant: String,
    #[arg(value_name = "EVENT_ID")]
    event: String,
    #[arg(value_name = "RULE")]
    rule: String,
}

impl Which {
    fn path(&self) -> String {
        format!("/v1/held/{}/{}/{}", self.tenant, self.event, self.rule)
    }
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { command, remote } = args;
    match command {
        Command::List { tenant } => {
            let query = tenant
                .map(|tenant| format!("?tenant={tenant}"))
                .unwrap_or_default();
            let page: Page<HeldView> = remote.call(Method::GET, &format!("/v1/held{query}"))?;
            let held = page.items;
            if remote.json {
                anstream::println!("{}", serde_json::json!(held));
                return Ok(());
            }
            if held.is_empty() {
                anstream::println!("No event is held.");
                return Ok(());
            }
            let mut table = style::table(&["tenant", "event", "rule", "since", "why"]);
            for held in &held {
                table.add_row([
                    held.tenant.as_str(),
                    &held.event,
                    held.rule.as_str(),
                    &held.since,
                    &style::clean(&held.error),
                ]);
            }
            anstream::println!("{table}");
            if page.next.is_some() {
                anstream::println!("These are the oldest; there are more.");
            }
        }
        Command::ReleaseAll(which) => release_all(&remote, &which)?,
        Command::Show(which) => {
            let story: HeldStory = remote.call(Method::GET, &which.path())?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(story));
                return Ok(());
            }
            let event = &story.event;
            let (kind, time) = (style::clean(&event.r#type), style::clean(&event.time));
            anstream::println!("event    {} ({kind}, {time})", event.id);
            anstream::println!("tenant   {}, source {}", event.tenant, event.source);
            anstream::println!("rule     {}", story.held.rule);
            anstream::println!("since    {}", story.held.since);
            anstream::println!("why      {}", style::clean(&story.held.error));
            anstream::println!("data     {}", style::json(&event.data)?);
        }
        Command::Release(which) => {
            let path = format!("{}/release", which.path());
            let decision: DecisionView = remote.call(Method::POST, &path)?;
            resolved(&remote, &decision);
        }
        Command::Drop(which) => {
            let decision: DecisionView = remote.call(Method::DELETE, &which.path())?;
            resolved(&remote, &decision);
        }
    }
    Ok(())
}

fn release_all(remote: &Remote, which: &Rule) -> Result<(), Failure> {
    let path = format!("/v1/tenants/{}/rules/{}/release", which.tenant, which.rule);
    let mut all = Released {
        released: 0,
        failed: 0,
        error: None,
        next: None,
    };
    loop {
        let body = ReleaseBody {
            after: all.next.take(),
        };
        let part: Released = remote.send(Method::POST, &path, |it| it.json(&body))?;
        all.released += part.released;
        all.failed += part.failed;
        all.error = part.error.or(all.error);
        all.next = part.next;
        if all.next.is_none() {
            break;
        }
    }
    if remote.json {
        anstream::println!("{}", serde_json::json!(all));
        return Ok(());
    }
    anstream::println!("released {}", style::grouped(all.released as u64));
    match &all.error {
        Some(error) => Err(Failure::outcome(format!(
            "{} stay held: {}",
            style::grouped(all.failed as u64),
            style::clean(error)
        ))),
        None => Ok(()),
    }
}

fn resolved(remote: &Remote, decision: &DecisionView) {
    if remote.json {
        anstream::println!("{}", serde_json::json!(decision));
        return;
    }
    match &decision.reason {
        Some(reason) => {
            anstream::println!(
                "released: {}, because: {}",
                decision.outcome,
                style::clean(reason)
            );
        }
        None => anstream::println!("dropped"),
    }
}
