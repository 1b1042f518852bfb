//! What must not be lost: events until every rule has seen them, deliveries until they arrived or
//! were given up, and what became of both.
//!
//! Invariants, kept by every implementation and tested by one conformance suite:
//! - When [`EventLog::append`] returns, the event is durable; a repeated delivery by the sender
//!   (same source, sender's id and body, within the window) gets the first one's id and no second row.
//! - A tenant's events have growing ids, and its backlog begins after its cursor. Only
//!   [`Outbox::commit`] moves the cursor.
//! - A commit is atomic: decisions, deliveries, held events and the cursor all become durable, or
//!   none does. Committing an event at or before the cursor again changes nothing.
//! - How often and when deliveries go out ([`crate::timing`]) is decided in the commit that adds them.
//! - A delivery that was given out by [`Outbox::claim`] is not given out again before it is settled,
//!   its lease ends, or the process does. What was settled as delivered or dead never comes back.
//! - [`History::forget`] removes an event only with all that was made of it, and only when nothing of it
//!   can change any more: it is decided, not held, and none of its deliveries waits or is a dead letter.
//!
//! What this module does not do: decide, deliver, or know the time. Every moment is a parameter, in
//! milliseconds since 1970 (UTC).

#[cfg(test)]
mod conformance;
mod memory;
mod sled;

pub use self::memory::MemoryStore;
pub use self::sled::{
    Kind, Options, Report, SledStore, TransferError, check, export, export_readable, import,
};

use crate::id::{DeliveryId, EventId, Hash, Name};
use crate::timing::{self, Suppressed};
use async_trait::async_trait;
use hooksieve_sdk::wire::{Decision, EventHead, Payload, Timing, json::Data};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Notify;
use utoipa::ToSchema;

/// A verified event that has no id yet: the store gives it one.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub tenant: Name,
    pub source: Name,
    pub kind: String,
    pub subject: Option<String>,
    /// RFC 3339.
    pub time: String,
    /// What the source lets through to rules, names in lower case.
    pub headers: Vec<(String, String)>,
    pub data: Data,
    /// The sender's own id of this delivery: data, bounded by ingest, never a key by itself.
    pub sender_id: Option<String>,
    /// SHA-256 of the body as it was received.
    pub body_hash: Hash,
    /// How the sender was verified, for the person who asks later: "github hmac-sha256".
    pub verified: String,
    pub received_ms: i64,
}

impl NewEvent {
    /// The event in the form that rules read, and its skip index.
    fn encoded(&self, id: EventId) -> (Vec<u8>, Vec<u8>) {
        EventHead {
            id: &id.to_string(),
            source: self.source.as_str(),
            kind: &self.kind,
            subject: self.subject.as_deref(),
            time: &self.time,
            headers: &self.headers,
        }
        .encode(&self.data)
    }

    /// How many bytes a rule is handed of it, where that is more than `limit`.
    pub fn is_over(&self, limit: usize) -> Option<usize> {
        // Its head is small, and most events are far from the limit.
        const HEAD_BYTES_MAX: usize = 8_192;
        if self.data.input_bytes() + HEAD_BYTES_MAX <= limit {
            return None;
        }
        let (encoded, index) = self.encoded(EventId(uuid::Uuid::nil()));
        let bytes = encoded.len().next_multiple_of(4) + index.len();
        (bytes > limit).then_some(bytes)
    }

    /// The event under its id, in the form that rules read.
    pub fn into_stored(self, id: EventId) -> StoredEvent {
        let (encoded, index) = self.encoded(id);
        StoredEvent {
            id,
            tenant: self.tenant,
            source: self.source,
            kind: self.kind,
            sender_id: self.sender_id,
            verified: self.verified,
            received_ms: self.received_ms,
            encoded,
            index,
        }
    }
}

/// An event in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredEvent {
    pub id: EventId,
    pub tenant: Name,
    pub source: Name,
    pub kind: String,
    pub sender_id: Option<String>,
    pub verified: String,
    pub received_ms: i64,
    /// The event as MessagePack, as every rule gets it.
    #[serde(with = "serde_bytes")]
    pub encoded: Vec<u8>,
    /// The skip index over `encoded`.
    #[serde(with = "serde_bytes")]
    pub index: Vec<u8>,
}

/// What [`EventLog::append`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub id: EventId,
    /// The sender had delivered this before; `id` is the first one's.
    pub duplicate: bool,
}

/// What one rule made of one event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    pub event: EventId,
    pub rule: Name,
    /// Which of its rule's versions decided, where the rule has versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// SHA-256 of the module.
    pub module: Hash,
    /// SHA-256 of the configuration as MessagePack.
    pub config: Hash,
    pub outcome: Outcome,
    pub fuel: u64,
    pub memory_bytes: u64,
    pub duration_us: u64,
    pub log: Vec<String>,
    pub decided_ms: i64,
    /// The version of the prices that `fuel` was counted in; the first had none.
    #[serde(default = "first_prices")]
    pub prices: u32,
}

/// The version of what was written down before prices had one.
pub(crate) fn first_prices() -> u32 {
    1
}

/// How a rule's turn ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Decided(Decision),
    Failed {
        /// A stable word for the kind of failure, such as `fuel`.
        kind: String,
        /// One sentence with the figures.
        error: String,
        then: Then,
    },
}

/// What was done with an event that a rule failed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// Kept until someone releases or drops it.
    Held,
    /// Sent to the tenant's default channel.
    Passed,
    Dropped,
}

/// One action bound to one channel, with what was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    pub id: DeliveryId,
    pub tenant: Name,
    pub event: EventId,
    pub rule: Name,
    /// The place of the action in its decision.
    pub position: u32,
    pub channel: Name,
    pub reason: String,
    pub payload: Payload,
    /// The event's attributes, for what the receiver is told.
    pub about: About,
    pub state: State,
    pub attempts: Vec<Attempt>,
    pub created_ms: i64,
    /// What the rule said of when and how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Box<Timing>>,
    /// How many a throttle held back before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_back: u64,
    /// What a digest lists, this delivery's own first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gathered: Vec<timing::Line>,
    /// The dead letter that this one takes up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_of: Option<RedriveOf>,
    /// The dead delivery that this one goes out for, to another channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_of: Option<DeliveryId>,
    /// The delivery that this one escalates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalation_of: Option<DeliveryId>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where deliveries wait in their order: one channel of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line {
    pub tenant: Name,
    pub channel: Name,
}

/// Whether one more delivery of this line can be taken.
pub type Wanted<'a> = dyn FnMut(&Line) -> bool + Send + 'a;

/// What a claim gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claimed {
    pub deliveries: Vec<Delivery>,
    /// When to claim again, unless deliveries are added or what was not wanted is.
    pub next_ms: Option<i64>,
}

/// Since when and why nothing is sent to a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    pub at_ms: i64,
    /// One sentence that names the host.
    pub reason: String,
}

/// What became of a request to acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Acknowledgement {
    /// The escalation will not happen, now or because it was acknowledged before.
    Acknowledged,
    /// It was escalated already.
    TooLate,
    /// It does not escalate.
    Nothing,
}

/// A dead letter, as the delivery knows it that took it up again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RedriveOf {
    pub id: DeliveryId,
    /// Who has it all the same, of its attempts.
    pub accepted: Vec<String>,
}

impl Delivery {
    /// It as a digest that others may join.
    pub(crate) fn as_digest(&mut self) -> timing::Digest<'_> {
        timing::Digest {
            timing: self.timing.as_deref(),
            state: &mut self.state,
            attempted: !self.attempts.is_empty(),
            gathered: &mut self.gathered,
        }
    }

    pub fn line(&self) -> Line {
        Line {
            tenant: self.tenant.clone(),
            channel: self.channel.clone(),
        }
    }

    /// Recipients who have it already, from earlier attempts.
    pub fn accepted(&self) -> impl Iterator<Item = &str> {
        let before = self.redrive_of.iter().flat_map(|of| &of.accepted);
        let own = self.attempts.iter().flat_map(|attempt| &attempt.accepted);
        before.chain(own).map(String::as_str)
    }

    /// Makes a dead letter one that can be forgotten; `false` for what is no dead letter.
    fn purge(&mut self) -> bool {
        let purged = self.state.purged();
        let is_dead = purged.is_some();
        self.state = purged.unwrap_or_else(|| self.state.clone());
        is_dead
    }

    /// Takes a dead letter up again: gives the new delivery, due at once, and notes its id in the old
    /// one. `None` for what is no dead letter.
    fn redrive(&mut self, now_ms: i64) -> Option<Self> {
        let State::Dead { at_ms, reason } = &self.state else {
            return None;
        };
        let id = self.id.redriven();
        let new = Self {
            id,
            state: State::Pending { due_ms: now_ms },
            attempts: Vec::new(),
            created_ms: now_ms,
            // What its rule said of fallbacks still holds; nobody is called a second time.
            timing: self.timing.clone().map(|mut timing| {
                timing.escalate = None;
                timing
            }),
            redrive_of: Some(RedriveOf {
                id: self.id,
                accepted: self.accepted().map(str::to_owned).collect(),
            }),
            ..self.clone()
        };
        self.state = State::Redriven {
            at_ms: *at_ms,
            reason: reason.clone(),
            to: id,
        };
        Some(new)
    }
}

/// The attributes of an event that go out with its deliveries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub source: Name,
    pub kind: String,
    pub subject: Option<String>,
    pub time: String,
}

/// Where a delivery stands.
///
/// ```text
/// commit -> pending --claim--> leased (in memory) --settle--> delivered
///   |          ^                   |                       -> dead --redrive--> redriven
///   |          +---- retry at -----+ (lease ends:          |         (and a new delivery: pending)
///   |          |                      pending again)       -> fallen-back
///   |          |                                                     (and a new delivery: pending)
///   |          |                                           -> dead --purge--> purged
///   |          +--acknowledge, where it is an escalation--> acknowledged
///   +-> suppressed (by dedupe or throttle)
///   +-> gathered   (a digest lists it)
/// ```
///
/// Only `pending` goes on; only `dead` is a dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Pending {
        due_ms: i64,
    },
    Delivered {
        at_ms: i64,
    },
    /// Given up; the reason is one sentence.
    Dead {
        at_ms: i64,
        reason: String,
    },
    /// Given up, and taken up again as another delivery.
    Redriven {
        at_ms: i64,
        reason: String,
        to: DeliveryId,
    },
    /// Given up, and no longer a dead letter: it was purged.
    Purged {
        at_ms: i64,
        reason: String,
    },
    /// Given up, and sent to the channel that its rule named for that.
    FallenBack {
        at_ms: i64,
        reason: String,
        to: DeliveryId,
    },
    /// Not sent, because of what was sent before.
    Suppressed {
        at_ms: i64,
        by: Suppressed,
        /// The one that it repeats.
        first: Option<DeliveryId>,
    },
    /// Listed in another delivery.
    Gathered {
        at_ms: i64,
        into: DeliveryId,
    },
    /// An escalation that someone's acknowledgement made needless.
    Acknowledged {
        at_ms: i64,
    },
}

impl State {
    /// Whether nothing can change it any more.
    fn is_final(&self) -> bool {
        !matches!(self, State::Pending { .. } | State::Dead { .. })
    }

    /// What a dead letter becomes that is purged.
    fn purged(&self) -> Option<Self> {
        match self {
            State::Dead { at_ms, reason } => Some(State::Purged {
                at_ms: *at_ms,
                reason: reason.clone(),
            }),
            _ => None,
        }
    }
}

/// One try to deliver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub at_ms: i64,
    pub duration_ms: u64,
    /// The HTTP status or SMTP code, where there was an answer.
    pub status: Option<u16>,
    /// Why it did not succeed; `None` when it did.
    pub error: Option<String>,
    /// The beginning of what the receiver answered, where it did not succeed: one line without the
    /// channel's secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The receiver may have taken it although no success was seen.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ambiguous: bool,
    /// Where the receiver took it for some and not for others: who was refused, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// Who has it although it is to be tried again: the retry leaves them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<String>,
}

/// For fields that are left out where they say nothing.
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// An event that a rule failed on, kept until someone releases or drops it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    pub tenant: Name,
    pub event: EventId,
    pub rule: Name,
    pub error: String,
    pub since_ms: i64,
}

/// All that one event leads to, committed at once.
#[derive(Clone, Debug)]
pub struct Commit {
    pub event: EventId,
    /// When the event came in: the clock of its deliveries' timing.
    pub received_ms: i64,
    pub decisions: Vec<DecisionRecord>,
    pub deliveries: Vec<Delivery>,
    pub held: Vec<Held>,
}

/// How a claimed delivery goes on.
#[derive(Clone, Debug, PartialEq)]
pub enum Settlement {
    Delivered,
    RetryAt { due_ms: i64 },
    Dead { reason: String },
}

/// Which dead letters are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Which {
    pub tenant: Option<Name>,
    pub channel: Option<Name>,
    /// Given up before this moment.
    pub before_ms: Option<i64>,
    /// After this one, in the order of when they were given up.
    pub after: Option<(i64, DeliveryId)>,
}

impl Which {
    fn are_of(&self, delivery: &Delivery) -> bool {
        let is = |wanted: &Option<Name>, name: &Name| wanted.as_ref().is_none_or(|it| it == name);
        is(&self.tenant, &delivery.tenant) && is(&self.channel, &delivery.channel)
    }
}

/// Some of the dead letters that were asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeadPage {
    pub deliveries: Vec<Delivery>,
    /// Where the next page begins, unless this was the last. A page may have fewer than its limit, or
    /// none, and not be the last.
    pub next: Option<(i64, DeliveryId)>,
}

/// How far a sweep through old events has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub tenant: Name,
    pub event: EventId,
}

/// What one step of a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many events it looked at.
    pub seen: usize,
    /// How many events it removed.
    pub forgotten: usize,
    /// Where the next step begins; `None` when all old events were looked at.
    pub next: Option<Mark>,
}

/// What a store takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What its rows take. A file has more: room of rows that were removed, which new ones use.
    pub live_bytes: u64,
    pub file_bytes: u64,
    /// When the oldest event came in.
    pub oldest_ms: Option<i64>,
}

/// An event with all that became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Story {
    pub event: StoredEvent,
    /// Whether every rule has seen it.
    pub decided: bool,
    pub decisions: Vec<DecisionRecord>,
    pub deliveries: Vec<Delivery>,
    pub held: Vec<Held>,
}

/// Which events of a tenant a list has, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The newest first; those before one, where one is named.
    Before(Option<EventId>),
    /// Those after one, the oldest of them first.
    After(EventId),
}

/// Why the store could not do it. What the caller must do follows from the variant.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Try later: the queue into the store is full, or it is closing.
    #[error("the store cannot take more now: {0}")]
    Busy(&'static str),
    /// Nothing more can be stored until a person has looked: the disk is full or failing.
    #[error("the store at {path} failed: {error}; free space or mend the disk, then restart", path = path.display())]
    Broken { path: PathBuf, error: String },
    /// It was written by another version of Hooksieve.
    #[error("the store at {path} has format {found}, and this version reads {known}; start the version that wrote it, or name an empty folder with --data", path = path.display())]
    Format {
        path: PathBuf,
        found: String,
        known: u32,
    },
    /// It is there and does not open.
    #[error("the store at {path} does not open: {error}", path = path.display())]
    Open { path: PathBuf, error: String },
    /// What stands in it cannot be read, since a disk or somebody's hand has changed it. Nothing is taken
    /// any more, and what can be read still is kept.
    #[error(
        "the store at {path} is damaged: {what}; nothing more is taken, and the rest is kept as it is: with the engine stopped, `hooksieve store check --data {data}` says what can be read, `hooksieve store export --readable FILE --data {data}` saves that, and `hooksieve store import FILE` makes a new store of it or of the last backup",
        path = path.display(),
        data = path.parent().unwrap_or(path).display()
    )]
    Damaged { path: PathBuf, what: String },
    /// Another process has it open.
    #[error("the store at {path} is in use by another process; stop it, or name another folder with --data", path = path.display())]
    InUse { path: PathBuf },
    /// A row cannot be read.
    #[error(
        "the store at {path} holds a row that cannot be read ({row}): {error}; the others are kept, and with the engine stopped, `hooksieve store check` says which there are",
        path = path.display()
    )]
    Row {
        path: PathBuf,
        row: String,
        error: String,
    },
}

/// The log of events, with a cursor per tenant.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Stores an event; returns when it is durable.
    async fn append(&self, event: NewEvent) -> Result<Appended, Error>;

    /// The oldest events of a tenant that are not committed yet, in order; of those after one, where one
    /// is named.
    async fn backlog(
        &self,
        tenant: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, Error>;

    /// Whether an append would be taken now, as far as can be told without one.
    async fn ready(&self) -> Result<(), Error>;

    /// An event by its id, whoever owns it.
    async fn event(&self, id: EventId) -> Result<Option<StoredEvent>, Error>;

    /// What a tenant's events take, and all that became of them.
    fn stored_bytes(&self, tenant: &Name) -> u64;
}

/// What is to be delivered, and what became of every event.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Stores what events of one tenant led to, in the order of their ids, and moves the tenant's
    /// cursor past them; returns when durable.
    async fn commit(&self, tenant: &Name, commits: Vec<Commit>) -> Result<(), Error>;

    /// Takes deliveries that are due for `lease_ms`, earliest first. Before each, `wanted` is asked
    /// whether its line may take one more; a line of which it is not is left alone by this claim.
    async fn claim(
        &self,
        now_ms: i64,
        lease_ms: i64,
        wanted: &mut Wanted<'_>,
    ) -> Result<Claimed, Error>;

    /// Records an attempt of a claimed delivery and how it goes on; returns when durable. A delivery
    /// that is unknown or no longer pending stays as it is.
    async fn settle(
        &self,
        id: DeliveryId,
        attempt: Attempt,
        settlement: Settlement,
    ) -> Result<(), Error>;

    /// When the next delivery that nobody holds falls due, or a lease ends; `None` when none waits.
    async fn next_due(&self) -> Result<Option<i64>, Error>;

    /// Told whenever deliveries were added or put back.
    fn deliveries_changed(&self) -> Arc<Notify>;

    /// Held events of one tenant or of all, oldest first: those after one, where one is named.
    async fn held(
        &self,
        tenant: Option<&Name>,
        after: Option<&(EventId, Name)>,
        limit: usize,
    ) -> Result<Vec<Held>, Error>;

    /// Ends the holding of an event for one rule, with what it led to instead; `false` when it was
    /// not held (any more).
    async fn resolve_held(
        &self,
        tenant: &Name,
        decision: DecisionRecord,
        deliveries: Vec<Delivery>,
    ) -> Result<bool, Error>;

    /// A page of dead letters, oldest first.
    async fn dead(&self, which: &Which, limit: usize) -> Result<DeadPage, Error>;

    /// Takes a dead letter up again, as a new delivery under an id of its own; gives the new one.
    /// `None` when there is no such dead letter (any more).
    async fn redrive(&self, id: DeliveryId, now_ms: i64) -> Result<Option<Delivery>, Error>;

    /// Makes the escalation of a delivery needless.
    async fn acknowledge(&self, id: DeliveryId, now_ms: i64) -> Result<Acknowledgement, Error>;

    async fn delivery(&self, id: DeliveryId) -> Result<Option<Delivery>, Error>;

    /// Notes that a channel is disabled, or no longer; returns when durable.
    async fn switch(&self, line: &Line, disabled: Option<Disabled>) -> Result<(), Error>;

    /// The channels that are disabled.
    async fn disabled(&self) -> Result<Vec<(Line, Disabled)>, Error>;

    /// What became of an event.
    async fn story(&self, id: EventId) -> Result<Option<Story>, Error>;

    /// What became of a tenant's events.
    async fn stories(&self, tenant: &Name, seek: Seek, limit: usize) -> Result<Vec<Story>, Error>;
}

/// What is over: it is kept for a while, and then goes.
#[async_trait]
pub trait History: Send + Sync {
    /// Makes dead letters ones that can be forgotten, with their events; how many of these were dead
    /// letters.
    async fn purge(&self, ids: Vec<DeliveryId>) -> Result<usize, Error>;

    /// One step of a sweep through the events, of one tenant or of all, that came in before a moment:
    /// removes those of which nothing can change any more, with their decisions and deliveries.
    async fn forget(
        &self,
        before_ms: i64,
        only: Option<&Name>,
        from: Option<Mark>,
    ) -> Result<Swept, Error>;

    /// What it takes now.
    async fn usage(&self) -> Result<Usage, Error>;

    /// Writes all that it holds, as it stands at this moment, while it goes on; gives the number of rows.
    /// What is written is what [`import`] reads.
    async fn backup(&self, to: Box<dyn Write + Send>, now_ms: i64) -> Result<u64, TransferError>;
}

/// A change of records: each one's key with what it holds from now on, or `None` where it goes.
pub type Changes = Vec<(String, Option<Vec<u8>>)>;

/// What people set up while the engine runs, as small documents under keys. What they mean is the
/// business of [`crate::registry`].
#[async_trait]
pub trait Records: Send + Sync {
    async fn record(&self, key: &str) -> Result<Option<Vec<u8>>, Error>;

    /// All whose keys begin so, in the order of their keys.
    async fn records(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, Error>;

    /// Makes all of these changes or none; returns when durable.
    async fn set_records(&self, changes: Changes) -> Result<(), Error>;
}

/// When an id was given out: the first 48 bits of a UUIDv7.
fn moment_ms(id: EventId) -> i64 {
    (id.0.as_u128() >> 80) as i64
}

/// All in one: what the engine runs on.
pub trait Store: EventLog + Outbox + History + Records {}

impl<T: EventLog + Outbox + History + Records> Store for T {}
