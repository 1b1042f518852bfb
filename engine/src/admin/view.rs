//! Events, decisions and deliveries as calls show them.

use crate::id::Name;
use crate::store::{
    self, Attempt, DecisionRecord, Delivery, Outcome, State as DeliveryState, StoredEvent, Story,
    Then,
};
use crate::timing::Suppressed;
use clap::ValueEnum;
use hooksieve_sdk::wire::{Event, Payload, SkipIndex, Timing};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// Words that are the same in JSON, on screens, in queries and on the command line.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, ValueEnum)]
        // Not each by its word: derives do not see a word that comes through a macro.
        #[serde(rename_all = "kebab-case")]
        pub enum $name {
            $($(#[$of])* $variant,)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $($name::$variant => $word,)*
                })
            }
        }
    };
}

words! {
    /// What a rule made of an event.
    OutcomeWord {
        /// It named nobody to be told.
        Dropped = "dropped",
        Notified = "notified",
        Failed = "failed",
    }
}

words! {
    /// Where a delivery stands.
    StateWord {
        Pending = "pending",
        Delivered = "delivered",
        /// Given up: a dead letter.
        Dead = "dead",
        /// Dead, and taken up again.
        Redriven = "redriven",
        /// Dead, and no longer a dead letter.
        Purged = "purged",
        /// Dead, and another channel told instead.
        FallenBack = "fallen-back",
        /// It repeats another, or enough were sent.
        Suppressed = "suppressed",
        /// Listed in a digest.
        Gathered = "gathered",
        /// An escalation that was made needless.
        Acknowledged = "acknowledged",
    }
}

/// An event with what became of it, for people and programs.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct StoryView {
    pub event: EventView,
    /// Whether every rule has seen it.
    pub decided: bool,
    pub decisions: Vec<DecisionView>,
    pub deliveries: Vec<DeliveryView>,
}

/// An event's attributes, named as CloudEvents names them; its data only where it was asked for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    pub id: String,
    pub tenant: Name,
    pub source: Name,
    pub r#type: String,
    pub subject: Option<String>,
    pub time: String,
    pub sender_id: Option<String>,
    pub verified: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub headers: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub data: Option<serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DecisionView {
    pub rule: Name,
    /// Which of its rule's versions decided, where the rule has versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    pub outcome: OutcomeWord,
    pub reason: Option<String>,
    pub error: Option<String>,
    /// What was done about the failure: `held`, `passed` or `dropped`.
    pub then: Option<Then>,
    pub module: String,
    pub config: String,
    pub fuel: u64,
    pub memory_bytes: u64,
    pub duration_us: u64,
    pub log: Vec<String>,
    pub decided_at: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    pub id: String,
    pub tenant: Name,
    pub event: String,
    pub r#type: String,
    pub rule: Name,
    pub channel: Name,
    pub state: StateWord,
    /// When it was delivered or given up, or when it is due.
    pub at: String,
    /// Why it was given up.
    pub reason: Option<String>,
    pub attempts: Vec<AttemptView>,
    /// The dead letter that this one takes up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_of: Option<String>,
    /// The delivery that this state is about: what this one was redriven or fell back as, is listed in,
    /// or repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The dead one that this goes out for, to another channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_of: Option<String>,
    /// The one that this escalates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalation_of: Option<String>,
    /// How many a throttle held back before it.
    #[serde(default)]
    pub held_back: u64,
    /// How many a digest lists.
    #[serde(default)]
    pub gathered: usize,
    /// What the rule said of when and how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub timing: Option<Box<Timing>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub payload: Option<Payload>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    pub at: String,
    pub duration_ms: u64,
    pub status: Option<u16>,
    pub error: Option<String>,
    /// The beginning of what the receiver answered, where it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The receiver may have taken it although no success was seen.
    #[serde(default, skip_serializing_if = "store::is_false")]
    pub ambiguous: bool,
    pub refused: Vec<String>,
}

pub(super) fn story_view(story: &Story, with_data: bool) -> StoryView {
    let deliveries = story.deliveries.iter();
    StoryView {
        event: event_view(&story.event, with_data),
        decided: story.decided,
        decisions: story.decisions.iter().map(decision_view).collect(),
        deliveries: deliveries.map(|it| delivery_view(it, false)).collect(),
    }
}

pub(super) fn event_view(event: &StoredEvent, with_data: bool) -> EventView {
    let decoded = Event::decode(&event.encoded, SkipIndex::new(&event.index)).ok();
    let json = |value| serde_json::to_value(value).ok();
    EventView {
        id: event.id.to_string(),
        tenant: event.tenant.clone(),
        source: event.source.clone(),
        r#type: event.kind.clone(),
        subject: decoded.and_then(|event| event.subject().map(str::to_owned)),
        time: decoded
            .map(|event| event.time().to_owned())
            .unwrap_or_default(),
        sender_id: event.sender_id.clone(),
        verified: event.verified.clone(),
        headers: decoded
            .filter(|_| with_data)
            .and_then(|event| json(event.headers())),
        data: decoded
            .filter(|_| with_data)
            .and_then(|event| json(event.data())),
    }
}

pub(super) fn outcome_word(outcome: &Outcome) -> OutcomeWord {
    match outcome {
        Outcome::Decided(decided) if decided.actions.is_empty() => OutcomeWord::Dropped,
        Outcome::Decided(_) => OutcomeWord::Notified,
        Outcome::Failed { .. } => OutcomeWord::Failed,
    }
}

pub(super) fn decision_view(decision: &DecisionRecord) -> DecisionView {
    let (reason, error, then) = match &decision.outcome {
        Outcome::Decided(decided) => (Some(decided.reason.clone()), None, None),
        Outcome::Failed { error, then, .. } => (None, Some(error.clone()), Some(*then)),
    };
    DecisionView {
        rule: decision.rule.clone(),
        version: decision.version,
        outcome: outcome_word(&decision.outcome),
        reason,
        error,
        then,
        module: decision.module.to_string(),
        config: decision.config.to_string(),
        fuel: decision.fuel,
        memory_bytes: decision.memory_bytes,
        duration_us: decision.duration_us,
        log: decision.log.clone(),
        decided_at: moment(decision.decided_ms),
    }
}

pub(super) fn delivery_view(delivery: &Delivery, with_payload: bool) -> DeliveryView {
    let (state, at, reason) = match &delivery.state {
        DeliveryState::Pending { due_ms } => (StateWord::Pending, *due_ms, None),
        DeliveryState::Delivered { at_ms } => (StateWord::Delivered, *at_ms, None),
        DeliveryState::Dead { at_ms, reason } => (StateWord::Dead, *at_ms, Some(reason.clone())),
        DeliveryState::Redriven { at_ms, reason, .. } => {
            (StateWord::Redriven, *at_ms, Some(reason.clone()))
        }
        DeliveryState::Purged { at_ms, reason } => {
            (StateWord::Purged, *at_ms, Some(reason.clone()))
        }
        DeliveryState::FallenBack { at_ms, reason, .. } => {
            (StateWord::FallenBack, *at_ms, Some(reason.clone()))
        }
        DeliveryState::Suppressed { at_ms, by, .. } => {
            let reason = match by {
                Suppressed::Dedupe => "it repeats one that was sent",
                Suppressed::Throttle => "enough were sent in this period",
            };
            (StateWord::Suppressed, *at_ms, Some(reason.to_owned()))
        }
        DeliveryState::Gathered { at_ms, .. } => (StateWord::Gathered, *at_ms, None),
        DeliveryState::Acknowledged { at_ms } => (StateWord::Acknowledged, *at_ms, None),
    };
    let other = match &delivery.state {
        DeliveryState::Redriven { to, .. } | DeliveryState::FallenBack { to, .. } => Some(*to),
        DeliveryState::Gathered { into, .. } => Some(*into),
        DeliveryState::Suppressed { first, .. } => *first,
        _ => None,
    };
    DeliveryView {
        id: delivery.id.to_string(),
        tenant: delivery.tenant.clone(),
        event: delivery.event.to_string(),
        r#type: delivery.about.kind.clone(),
        rule: delivery.rule.clone(),
        channel: delivery.channel.clone(),
        state,
        at: moment(at),
        reason,
        attempts: delivery.attempts.iter().map(attempt_view).collect(),
        redrive_of: delivery.redrive_of.as_ref().map(|of| of.id.to_string()),
        other: other.map(|id| id.to_string()),
        fallback_of: delivery.fallback_of.map(|id| id.to_string()),
        escalation_of: delivery.escalation_of.map(|id| id.to_string()),
        held_back: delivery.held_back,
        gathered: delivery.gathered.len(),
        timing: delivery.timing.clone(),
        payload: with_payload.then(|| delivery.payload.clone()),
    }
}

fn attempt_view(attempt: &Attempt) -> AttemptView {
    AttemptView {
        at: moment(attempt.at_ms),
        duration_ms: attempt.duration_ms,
        status: attempt.status,
        error: attempt.error.clone(),
        answer: attempt.answer.clone(),
        ambiguous: attempt.ambiguous,
        refused: attempt.refused.clone(),
    }
}

pub(super) fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .unwrap_or_default()
        .to_string()
}
