//! What a rule made of one event, as it is told, compared and kept.

use super::differ::Made;
use super::page;
use super::threads::Answer;
use crate::cli::style;
use hooksieve::channel::{Channel, Preview};
use hooksieve::id::Name;
use hooksieve::recording::Personal;
use hooksieve::replay::Recorded;
use hooksieve::sandbox::{PRICES_VERSION, Run};
use hooksieve::store::{Delivery, Outcome, State, StoredEvent};
use hooksieve::timing::{Rehearsal, Suppressed};
use hooksieve_sdk::wire::{Decision, Payload};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

/// What a rule made of one event.
pub(super) struct Seen {
    pub(super) run: Run,
    pub(super) decision: Option<Decision>,
    /// The kind of failure, and its text.
    error: Option<(String, String)>,
    pub(super) timed: Vec<Timed>,
    deliveries: Vec<Delivery>,
}

impl Seen {
    /// What an answer comes to, where those before it are remembered; `None` of one that decided nothing.
    pub(super) fn new(answer: Answer, event: &StoredEvent, before: &mut Rehearsal) -> Option<Self> {
        let Answer { run, commit } = answer;
        let received_ms = event.received_ms;
        let mut timed = Vec::with_capacity(commit.deliveries.len());
        for delivery in &commit.deliveries {
            let (delivery, escalation) = before.admit(delivery.clone(), received_ms);
            timed.push(Timed::of(&delivery, received_ms));
            timed.extend(escalation.map(|it| Timed::of(&it, received_ms)));
        }
        let (decision, error) = match commit.decisions.into_iter().next()?.outcome {
            Outcome::Decided(decision) => (Some(decision), None),
            Outcome::Failed { kind, error, .. } => (None, Some((kind, error))),
        };
        Some(Self {
            run,
            decision,
            error,
            timed,
            deliveries: commit.deliveries,
        })
    }

    pub(super) fn failed(&self) -> bool {
        self.decision.is_none()
    }

    /// Whether it was the rule's own code that failed, so that it was somewhere.
    pub(super) fn failed_within(&self) -> bool {
        const KINDS: [&str; 7] = [
            "fuel",
            "wall_clock",
            "memory",
            "table",
            "stack",
            "panicked",
            "trapped",
        ];
        let kind = self.error.as_ref().map(|(kind, _)| kind.as_str());
        kind.is_some_and(|kind| KINDS.contains(&kind))
    }

    /// Whether it comes to the same: all that is compared but the fuel, as other code burns other fuel.
    pub(super) fn same(&self, other: &Self) -> bool {
        (&self.decision, &self.error, &self.timed) == (&other.decision, &other.error, &other.timed)
    }

    /// What each of these channels would send; with masks, where there are some.
    pub(super) fn sent(
        &self,
        channels: &BTreeMap<Name, Arc<Channel>>,
        masks: Option<&Personal>,
    ) -> Vec<Sent> {
        let sent = self.deliveries.iter().filter_map(|delivery| {
            let channel = channels.get(&delivery.channel)?;
            let name = delivery.channel.to_string();
            let sent = |head, body| Sent {
                channel: name,
                kind: channel.kind(),
                head,
                body,
            };
            let delivery = match masks.map(|masks| masked(delivery, masks)) {
                None => delivery.clone(),
                Some(Ok(masked)) => masked,
                // What cannot be masked is not shown.
                Some(Err(error)) => {
                    let why = format!("it is left out, as it cannot be masked: {error}");
                    return Some(sent(Vec::new(), Err(why)));
                }
            };
            Some(sent(channel.head(&delivery), channel.preview(&delivery)))
        });
        sent.collect()
    }

    /// Tells what each of these channels would send.
    pub(super) fn render(
        &self,
        channels: &BTreeMap<Name, Arc<Channel>>,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let (bold, bad) = (style::HEADING, style::BAD);
        for sent in self.sent(channels, None) {
            let (name, kind) = (&sent.channel, sent.kind);
            writeln!(out, "    {bold}{name}{bold:#} ({kind})")?;
            let text = match &sent.body {
                Ok(body) => sent.text(body),
                Err(error) => format!("{bad}{error}{bad:#}"),
            };
            for line in text.lines() {
                writeln!(out, "      {}", style::clean(line))?;
            }
        }
        Ok(())
    }

    pub(super) fn row(&self, recorded: &Recorded) -> page::Row {
        let (outcome, why) = match (&self.decision, &self.error) {
            (Some(decision), _) if decision.actions.is_empty() => ("drop", &*decision.reason),
            (Some(decision), _) => ("notify", &*decision.reason),
            (None, error) => ("failed", error.as_ref().map_or("", |(_, error)| error)),
        };
        page::Row {
            kind: recorded.event.kind.clone(),
            name: recorded.name().to_owned(),
            outcome,
            to: self.decision.as_ref().map(channels).unwrap_or_default(),
            why: why.to_owned(),
            fuel: self.run.fuel,
            took: self.run.duration,
        }
    }

    fn failure(&self) -> Option<serde_json::Value> {
        let (kind, message) = self.error.as_ref()?;
        Some(serde_json::json!({ "kind": kind, "message": message }))
    }

    /// What is the same in every run on every machine.
    pub(super) fn made(&self, recorded: &Recorded) -> Made {
        serde_json::json!({
            "event": {
                "id": recorded.id,
                "source": recorded.source,
                "type": recorded.event.kind,
            },
            "decision": self.decision,
            "error": self.failure(),
            "deliveries": self.timed,
            "fuel": self.run.fuel,
            "prices": PRICES_VERSION,
        })
    }

    /// All of it.
    pub(super) fn line(&self, recorded: &Recorded) -> serde_json::Value {
        let mut line = self.made(recorded);
        line["memory_bytes"] = self.run.memory_bytes.into();
        line["duration_us"] = (self.run.duration.as_micros() as u64).into();
        line["log"] = serde_json::json!(self.run.log);
        line
    }

    pub(super) fn tell(&self, recorded: &Recorded, out: &mut impl Write) -> std::io::Result<()> {
        let run = &self.run;
        let (good, bad, dim) = (style::GOOD, style::BAD, style::DIM);
        let used = format!(
            "{dim}{:>9} fuel {:>8} {:>7} µs{dim:#}",
            style::grouped(run.fuel),
            style::bytes(run.memory_bytes),
            run.duration.as_micros()
        );
        let kind = style::clean(&recorded.event.kind);
        match (&self.decision, &self.error) {
            (Some(decision), _) if decision.actions.is_empty() => {
                let reason = style::clean(&decision.reason);
                writeln!(out, "{used}  {kind:<36} drop    {reason}")?;
            }
            (Some(decision), _) => {
                let to = channels(decision);
                let reason = style::clean(&decision.reason);
                let title = title(decision);
                writeln!(
                    out,
                    "{used}  {kind:<36} {good}notify{good:#}  {to}: {reason}{dim}{title}{dim:#}"
                )?;
            }
            (None, error) => {
                let error = error.as_ref().map(|(_, error)| style::clean(error));
                let error = error.unwrap_or_default();
                let name = style::clean(recorded.name());
                writeln!(
                    out,
                    "{used}  {kind:<36} {bad}failed{bad:#}  {error} {dim}({name}){dim:#}"
                )?;
            }
        }
        for timed in self.timed.iter().filter(|timed| timed.state != AT_ONCE) {
            let (channel, comes_to) = (style::clean(&timed.channel), timed.comes_to());
            writeln!(out, "{dim}{:>37}  {channel}: {comes_to}{dim:#}", "")?;
        }
        for line in &run.log {
            writeln!(out, "{dim}{:>37}  log: {}{dim:#}", "", style::clean(line))?;
        }
        Ok(())
    }
}

/// What a channel would send.
pub(super) struct Sent {
    pub(super) channel: String,
    pub(super) kind: &'static str,
    head: Vec<String>,
    pub(super) body: Result<Preview, String>,
}

impl Sent {
    /// All of it but a mail's HTML.
    pub(super) fn text(&self, body: &Preview) -> String {
        let mut text = self.head.join("\n");
        if !text.is_empty() {
            text += "\n\n";
        }
        match (&body.text, &body.json) {
            (Some(plain), _) => text + plain,
            (None, Some(json)) => format!("{text}{json:#}"),
            (None, None) => text,
        }
    }
}

fn masked(delivery: &Delivery, masks: &Personal) -> serde_json::Result<Delivery> {
    let mut delivery = delivery.clone();
    masks.hide(&mut delivery.reason);
    let mut payload = serde_json::to_value(&delivery.payload)?;
    masks.hide_in(&mut payload);
    delivery.payload = serde_json::from_value(payload)?;
    Ok(delivery)
}

/// A delivery that goes out as soon as it is decided.
pub(super) const AT_ONCE: &str = "at-once";

/// What a delivery comes to, by its timing.
#[derive(PartialEq, serde::Serialize)]
pub(super) struct Timed {
    channel: String,
    /// `at-once`, `later`, `digest`, `escalation`, `gathered`, `deduped`, or `throttled`.
    pub(super) state: &'static str,
    /// When it is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<String>,
    /// The delivery that it is gathered in, or repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<String>,
    /// How many a throttle held back before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_back: Option<u64>,
}

impl Timed {
    fn of(delivery: &Delivery, clock_ms: i64) -> Self {
        let (state, due_ms, into) = match &delivery.state {
            State::Suppressed {
                by: Suppressed::Dedupe,
                first,
                ..
            } => ("deduped", None, *first),
            State::Suppressed { .. } => ("throttled", None, None),
            State::Gathered { into, .. } => ("gathered", None, Some(*into)),
            State::Pending { due_ms } if delivery.escalation_of.is_some() => {
                ("escalation", Some(*due_ms), None)
            }
            State::Pending { due_ms } if !delivery.gathered.is_empty() => {
                ("digest", Some(*due_ms), None)
            }
            State::Pending { due_ms } if *due_ms > clock_ms => ("later", Some(*due_ms), None),
            _ => (AT_ONCE, None, None),
        };
        let due = due_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        Self {
            channel: delivery.channel.to_string(),
            state,
            due: due.map(|due| due.to_string()),
            into: into.map(|id| id.to_string()),
            held_back: Some(delivery.held_back).filter(|held_back| *held_back > 0),
        }
    }

    fn comes_to(&self) -> String {
        let due = self.due.as_deref().unwrap_or_default();
        match self.state {
            "later" => format!("waits until {due}"),
            "digest" => format!("begins a digest, which goes out at {due}, or when it is full"),
            "escalation" => format!("told at {due}, unless someone acknowledges"),
            "gathered" => "goes into the digest that is open".to_owned(),
            "deduped" => "dropped: it repeats one that was sent".to_owned(),
            _ => "held back: enough were sent in this period".to_owned(),
        }
    }
}

/// The title of the first message, as much of it as fits on a line.
fn title(decision: &Decision) -> String {
    const CHARS_MAX: usize = 60;
    let mut messages = decision.actions.iter().map(|action| &action.payload);
    let Some(Payload::Message(message)) = messages.next() else {
        return String::new();
    };
    let title = style::clean(&message.title);
    let cut: String = title.chars().take(CHARS_MAX).collect();
    match (title.is_empty(), cut.len() < title.len()) {
        (true, _) => String::new(),
        (_, true) => format!(" \u{201c}{cut}...\u{201d}"),
        (_, false) => format!(" \u{201c}{cut}\u{201d}"),
    }
}

fn channels(decision: &Decision) -> String {
    let names: Vec<_> = decision
        .actions
        .iter()
        .map(|action| style::clean(&action.channel))
        .collect();
    names.join(", ")
}
