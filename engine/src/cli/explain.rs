//! `hooksieve explain`: the story of one event.

use super::client::Remote;
use super::{Failure, style};
use hooksieve::admin::{DecisionView, DeliveryView, ShadowView, StateWord, StoryView};
use reqwest::Method;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(value_name = "EVENT_ID")]
    event: String,
    /// With the event's headers and data
    #[arg(long = "with-data")]
    with_data: bool,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let path = format!("/v1/events/{}?data={}", args.event, args.with_data);
    let story: StoryView = args.remote.call(Method::GET, &path)?;
    if args.remote.json {
        anstream::println!("{}", serde_json::json!(story));
        return Ok(());
    }
    let (bold, dim, bad) = (style::HEADING, style::DIM, style::BAD);
    let event = &story.event;
    let subject = event.subject.as_deref().unwrap_or("no subject");
    anstream::println!(
        "{bold}{}{bold:#} {} {dim}{}{dim:#}",
        style::clean(&event.r#type),
        style::clean(subject),
        style::clean(&event.time)
    );
    anstream::println!("  id        {}", event.id);
    anstream::println!(
        "  came in   tenant {}, source {}",
        event.tenant,
        event.source
    );
    anstream::println!("  verified  {}", event.verified);
    if let Some(id) = &event.sender_id {
        anstream::println!("  sender    {}", style::clean(id));
    }
    if let Some(data) = &event.data {
        anstream::println!("  data      {}", style::json(data)?);
    }
    if !story.decided {
        anstream::println!("  rules     not asked yet");
    } else if story.decisions.is_empty() {
        anstream::println!("  rules     none subscribed to it");
    }
    for decision in &story.decisions {
        let what = match (&decision.reason, &decision.error) {
            (Some(reason), _) => style::clean(reason),
            (None, Some(error)) => format!("{bad}{}{bad:#}", style::clean(error)),
            (None, None) => String::new(),
        };
        anstream::println!(
            "{bold}rule {}{bold:#}{}: {}, {what}",
            decision.rule,
            decision
                .version
                .map(|it| format!(" version {it}"))
                .unwrap_or_default(),
            decision.outcome
        );
        if let Some(then) = decision.then {
            anstream::println!("  then      {}", format!("{then:?}").to_lowercase());
        }
        if let Some(other) = shadow(&args.remote, &story, decision) {
            anstream::println!("  shadow    {other}");
        }
        anstream::println!(
            "  used      {} fuel, {}, {} µs",
            style::grouped(decision.fuel),
            style::bytes(decision.memory_bytes),
            decision.duration_us
        );
        anstream::println!("  {dim}module    {}{dim:#}", decision.module);
        anstream::println!("  {dim}config    {}{dim:#}", decision.config);
        for line in &decision.log {
            anstream::println!("  log       {}", style::clean(line));
        }
        for delivery in story.deliveries.iter().filter(|d| d.rule == decision.rule) {
            anstream::println!(
                "  {bold}{}{bold:#}: {} {dim}{} {}{dim:#}",
                delivery.channel,
                delivery.state,
                delivery.at,
                delivery.id
            );
            how(delivery);
            attempts(delivery);
        }
    }
    Ok(())
}

/// What a version in the shadow would have decided, where that is other and is known still.
fn shadow(remote: &Remote, story: &StoryView, decision: &DecisionView) -> Option<String> {
    let (tenant, rule) = (&story.event.tenant, &decision.rule);
    decision.version?;
    let path = format!("/v1/tenants/{tenant}/rules/{rule}/shadow");
    // Most rules have none, which is answered 404.
    let shadow: ShadowView = remote.call(Method::GET, &path).ok()?;
    let differences = shadow.differences.into_iter();
    let other = differences
        .map(|it| (it.event, it.shadow))
        .find(|(event, _)| *event == story.event.id)?;
    let channels = match other.1.channels.is_empty() {
        true => String::new(),
        false => format!(", to {}", style::clean(&other.1.channels.join(", "))),
    };
    Some(format!(
        "version {} would have: {}, {}{channels}",
        shadow.version,
        style::clean(&other.1.outcome),
        style::clean(&other.1.reason)
    ))
}

/// How a delivery hangs together with others.
fn how(delivery: &DeliveryView) {
    let other = delivery.other.as_deref().unwrap_or_default();
    match delivery.state {
        StateWord::Gathered => anstream::println!("    listed in the digest {other}"),
        StateWord::Suppressed if !other.is_empty() => anstream::println!("    repeats {other}"),
        StateWord::Redriven => anstream::println!("    redriven as {other}"),
        StateWord::FallenBack => anstream::println!("    went out instead as {other}"),
        _ => {}
    }
    for (what, of) in [
        ("goes out for", &delivery.fallback_of),
        ("escalates", &delivery.escalation_of),
        ("redrives", &delivery.redrive_of),
    ] {
        if let Some(of) = of {
            anstream::println!("    {what} {of}");
        }
    }
    if delivery.gathered > 0 {
        anstream::println!("    a digest of {}", delivery.gathered);
    }
    if delivery.held_back > 0 {
        anstream::println!("    {} were held back before it", delivery.held_back);
    }
}

/// Every attempt of a delivery, a line each and what more there is to know of it.
pub(super) fn attempts(delivery: &DeliveryView) {
    for attempt in &delivery.attempts {
        let status = attempt
            .status
            .map(|status| status.to_string())
            .unwrap_or_default();
        let error = attempt.error.as_deref().unwrap_or("ok");
        let took = attempt.duration_ms;
        anstream::println!(
            "    {} {took} ms {status} {}",
            attempt.at,
            style::clean(error)
        );
        if attempt.ambiguous {
            anstream::println!("      the receiver may have taken it all the same");
        }
        if let Some(answer) = &attempt.answer {
            anstream::println!("      answered {}", style::clean(answer));
        }
        for refused in &attempt.refused {
            anstream::println!("      refused {}", style::clean(refused));
        }
    }
    if let Some(reason) = &delivery.reason {
        let what = match delivery.state {
            StateWord::Suppressed => "not sent",
            _ => "given up",
        };
        anstream::println!("    {what}: {}", style::clean(reason));
    }
}
