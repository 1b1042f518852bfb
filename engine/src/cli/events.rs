//! `hooksieve events`, `deliveries` and `tenants`: what comes in, and what becomes of it.

use super::client::Remote;
use super::rules::Whose;
use super::{Failure, style};
use hooksieve::admin::{DecisionView, DeliveryView, OutcomeWord, Page, StateWord, StoryView};
use reqwest::Method;
use std::thread;
use std::time::Duration;

/// How often an engine is asked for what is new.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Events {
    /// Only of this type: issues.opened, or issues.* for all of them
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Only from this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only those that this rule was asked about
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// Only those that a rule made this of
    #[arg(long, value_enum)]
    outcome: Option<OutcomeWord>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Go on with what comes in, the newest last, until interrupted
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    whose: Whose,
}

pub(crate) fn events(args: Events) -> Result<(), Failure> {
    let remote = &args.whose.remote;
    let path = format!("{}/events", args.whose.base()?);
    let outcome = args.outcome.map(|it| it.to_string());
    let query = query(&[
        ("type", args.r#type.as_deref()),
        ("source", args.source.as_deref()),
        ("rule", args.rule.as_deref()),
        ("outcome", outcome.as_deref()),
    ]);
    let events: Vec<StoryView> = pages(remote, &format!("{path}?{query}"), args.limit)?;
    if args.follow {
        // Where to go on from is the newest event of all, of whatever type.
        let mut last = match events.first() {
            Some(newest) => Some(newest.event.id.clone()),
            None => newest(remote, &path)?,
        };
        for event in events.iter().rev() {
            print(remote, event);
        }
        loop {
            let since = last.as_deref().map(|id| format!("&since={id}"));
            let path = format!("{path}?{query}{}", since.unwrap_or_default());
            let page: Page<StoryView> = remote.call(Method::GET, &path)?;
            page.items.iter().for_each(|event| print(remote, event));
            let newest = page.items.last().map(|it| it.event.id.clone());
            let new = page.next.is_some() || newest.is_some();
            last = page.next.or(newest).or(last);
            if !new {
                thread::sleep(FOLLOW_EVERY);
            }
        }
    }
    if remote.json {
        anstream::println!("{}", serde_json::json!(events));
        return Ok(());
    }
    if events.is_empty() {
        anstream::println!("There is no such event.");
        return Ok(());
    }
    let mut table = style::table(&["event", "time", "type", "subject", "became", "deliveries"]);
    for StoryView {
        event,
        decided,
        decisions,
        deliveries,
    } in &events
    {
        table.add_row([
            event.id.as_str(),
            &style::clean(&event.time),
            &style::clean(&event.r#type),
            &style::clean(event.subject.as_deref().unwrap_or("")),
            &became(*decided, decisions),
            &went(deliveries),
        ]);
    }
    anstream::println!("{table}");
    Ok(())
}

fn newest(remote: &Remote, path: &str) -> Result<Option<String>, Failure> {
    let page: Page<StoryView> = remote.call(Method::GET, &format!("{path}?limit=1"))?;
    Ok(page.items.into_iter().next().map(|it| it.event.id))
}

/// An event as a line.
fn print(remote: &Remote, story: &StoryView) {
    if remote.json {
        anstream::println!("{}", serde_json::json!(story));
        return;
    }
    let (dim, event) = (style::DIM, &story.event);
    anstream::println!(
        "{dim}{} {}{dim:#} {} {}: {} {}",
        style::clean(&event.time),
        event.id,
        style::clean(&event.r#type),
        style::clean(event.subject.as_deref().unwrap_or("")),
        became(story.decided, &story.decisions),
        went(&story.deliveries),
    );
}

fn became(decided: bool, decisions: &[DecisionView]) -> String {
    if !decided {
        return "waits".to_owned();
    }
    let became = decisions
        .iter()
        .map(|it| format!("{} {}", it.rule, it.outcome));
    match decisions {
        [] => "no rule asked".to_owned(),
        _ => became.collect::<Vec<_>>().join(", "),
    }
}

fn went(deliveries: &[DeliveryView]) -> String {
    let went = deliveries
        .iter()
        .map(|it| format!("{} {}", it.channel, it.state));
    went.collect::<Vec<_>>().join(", ")
}

#[derive(clap::Args)]
pub(crate) struct Deliveries {
    /// Only to this channel
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// Only those that stand so
    #[arg(long, value_enum)]
    state: Option<StateWord>,
    /// At most so many, of the newest events
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    whose: Whose,
}

pub(crate) fn deliveries(args: Deliveries) -> Result<(), Failure> {
    let remote = &args.whose.remote;
    let state = args.state.map(|it| it.to_string());
    let query = query(&[
        ("channel", args.channel.as_deref()),
        ("state", state.as_deref()),
    ]);
    let path = format!("{}/deliveries?{query}", args.whose.base()?);
    let deliveries: Vec<DeliveryView> = pages(remote, &path, args.limit)?;
    if remote.json {
        anstream::println!("{}", serde_json::json!(deliveries));
        return Ok(());
    }
    if deliveries.is_empty() {
        anstream::println!("There is no such delivery.");
        return Ok(());
    }
    let header = [
        "delivery",
        "channel",
        "state",
        "at",
        "event type",
        "rule",
        "attempts",
    ];
    let mut table = style::table(&header);
    for delivery in &deliveries {
        table.add_row([
            delivery.id.as_str(),
            delivery.channel.as_str(),
            &delivery.state.to_string(),
            &delivery.at,
            &style::clean(&delivery.r#type),
            delivery.rule.as_str(),
            &delivery.attempts.len().to_string(),
        ]);
    }
    anstream::println!("{table}");
    Ok(())
}

fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.finish()
}

/// The first of a list, page by page.
fn pages<T: serde::de::DeserializeOwned>(
    remote: &Remote,
    path: &str,
    limit: usize,
) -> Result<Vec<T>, Failure> {
    let (mut items, mut after) = (Vec::new(), String::new());
    while items.len() < limit {
        let wanted = (limit - items.len()).min(100);
        let page: Page<T> = remote.call(Method::GET, &format!("{path}&limit={wanted}{after}"))?;
        items.extend(page.items);
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    items.truncate(limit);
    Ok(items)
}
