//! When and how often a delivery goes out: what a rule's `timing` comes to.
//!
//! Guarantees:
//! - Everything here is a function of the deliveries in their order and of the moment each event came
//!   in. The engine's own clock has no part in it, so replay comes to the same as production did,
//!   however late production was.
//! - What is remembered of a key belongs to one tenant, rule and channel, and is forgotten at a stated
//!   time.
//! - It is decided within the commit that stores the delivery: after a crash either both are there or
//!   neither is.
//!
//! The order: a repetition is dropped (`dedupe`), then what is too much (`throttle`); what is left is
//! gathered (`digest`) or goes out when `after_s`, `at` and `window` let it. `critical` passes throttle,
//! digest and window.
//!
//! What this module does not do: wait, store, or send.

mod rehearsal;
mod render;
#[cfg(test)]
mod tests;
mod window;

pub use rehearsal::Rehearsal;
pub use render::{Room, render};
pub use window::Window;

use crate::id::{DeliveryId, EventId, Name};
use crate::store::{Delivery, State};
use hooksieve_sdk::wire::{Payload, Timing};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How long what a throttle held back is remembered when nothing comes that could tell of it.
const HELD_BACK_KEPT_MS: i64 = 7 * 24 * 3_600 * 1_000;
/// What one line of a digest keeps of a title, in characters.
const LINE_CHARS_MAX: usize = 120;

/// Where what is known of a key is kept: a hash over what it is for, rule, channel and key.
pub type Slot = [u8; 16];

/// What is remembered of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// `dedupe`: this one was sent, and what comes before the end is a repetition.
    Sent { first: DeliveryId, until_ms: i64 },
    /// `throttle`: how many were sent in this period, and how many were not.
    Counted {
        until_ms: i64,
        sent: u64,
        held_back: u64,
    },
    /// `digest`: this one gathers.
    Open { digest: DeliveryId, until_ms: i64 },
}

impl Memory {
    /// From when on it may be forgotten.
    pub fn over_ms(&self) -> i64 {
        match self {
            Memory::Sent { until_ms, .. } | Memory::Open { until_ms, .. } => *until_ms,
            Memory::Counted {
                until_ms,
                held_back: 0,
                ..
            } => *until_ms,
            Memory::Counted { until_ms, .. } => until_ms.saturating_add(HELD_BACK_KEPT_MS),
        }
    }
}

/// Why a delivery was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suppressed {
    /// It repeats one that was sent.
    Dedupe,
    /// Enough were sent in this period.
    Throttle,
}

/// One line of a digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub delivery: DeliveryId,
    pub event: EventId,
    pub title: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What the stores and replay lend to [`admit`].
pub trait Remember {
    type Error;

    fn get(&mut self, slot: &Slot) -> Result<Option<Memory>, Self::Error>;

    fn put(&mut self, slot: Slot, memory: Memory) -> Result<(), Self::Error>;

    /// Has [`gather`] add a delivery to this digest; `false` when it is no longer open.
    fn join(
        &mut self,
        digest: DeliveryId,
        new: &Delivery,
        clock_ms: i64,
    ) -> Result<bool, Self::Error>;
}

/// Decides how a new delivery begins: its state, and a second delivery that escalates it. `clock_ms` is
/// when its event came in.
///
/// # Errors
/// What [`Remember`] cannot do.
pub fn admit<R: Remember>(
    delivery: &mut Delivery,
    clock_ms: i64,
    memory: &mut R,
) -> Result<Option<Delivery>, R::Error> {
    let Some(timing) = delivery.timing.clone() else {
        return Ok(None);
    };
    let slot = |purpose: &str, key: &str| slot(purpose, &delivery.rule, &delivery.channel, key);
    let mut puts = Vec::new();
    if let Some(dedupe) = &timing.dedupe {
        let slot = slot("dedupe", &dedupe.key);
        match memory.get(&slot)? {
            Some(Memory::Sent { first, until_ms }) if clock_ms < until_ms => {
                delivery.state = State::Suppressed {
                    at_ms: clock_ms,
                    by: Suppressed::Dedupe,
                    first: Some(first),
                };
                return Ok(None);
            }
            _ => puts.push((
                slot,
                Memory::Sent {
                    first: delivery.id,
                    until_ms: later(clock_ms, dedupe.window_s),
                },
            )),
        }
    }
    if let Some(throttle) = timing.throttle.as_ref().filter(|_| !timing.critical) {
        let slot = slot("throttle", &throttle.key);
        let counted = match memory.get(&slot)? {
            Some(Memory::Counted {
                until_ms,
                sent,
                held_back,
            }) if clock_ms < until_ms => {
                if sent >= throttle.count {
                    let more = Memory::Counted {
                        until_ms,
                        sent,
                        held_back: held_back + 1,
                    };
                    memory.put(slot, more)?;
                    delivery.state = State::Suppressed {
                        at_ms: clock_ms,
                        by: Suppressed::Throttle,
                        first: None,
                    };
                    return Ok(None);
                }
                Memory::Counted {
                    until_ms,
                    sent: sent + 1,
                    held_back,
                }
            }
            before => {
                if let Some(Memory::Counted { held_back, .. }) = before {
                    delivery.held_back = held_back;
                }
                Memory::Counted {
                    until_ms: later(clock_ms, throttle.period_s),
                    sent: 1,
                    held_back: 0,
                }
            }
        };
        puts.push((slot, counted));
    }
    for (slot, put) in puts {
        memory.put(slot, put)?;
    }

    let mut due_ms = due_ms(&timing, clock_ms);
    if let Some(digest) = timing.digest.as_ref().filter(|_| !timing.critical) {
        let slot = self::slot("digest", &delivery.rule, &delivery.channel, &digest.key);
        if let Some(Memory::Open { digest, until_ms }) = memory.get(&slot)?
            && clock_ms < until_ms
            && memory.join(digest, delivery, clock_ms)?
        {
            delivery.state = State::Gathered {
                at_ms: clock_ms,
                into: digest,
            };
            return Ok(None);
        }
        let closes_ms = later(clock_ms, digest.window_s);
        due_ms = within(&timing, due_ms.max(closes_ms));
        delivery.gathered = vec![line(delivery)];
        let open = Memory::Open {
            digest: delivery.id,
            until_ms: closes_ms,
        };
        memory.put(slot, open)?;
        if digest.size <= 1 {
            due_ms = within(&timing, clock_ms);
        }
    }
    delivery.state = State::Pending { due_ms };
    Ok(escalation(delivery, &timing, due_ms))
}

/// What of a delivery is a digest.
pub struct Digest<'a> {
    pub timing: Option<&'a Timing>,
    pub state: &'a mut State,
    pub attempted: bool,
    pub gathered: &'a mut Vec<Line>,
}

/// Adds a delivery to an open digest, which goes out at once when it is full; `false` when it no longer
/// takes any.
pub fn gather(digest: Digest<'_>, new: &Delivery, clock_ms: i64) -> bool {
    let Some(timing) = digest.timing else {
        return false;
    };
    let size = timing.digest.as_ref().map_or(0, |digest| digest.size);
    let State::Pending { due_ms } = *digest.state else {
        return false;
    };
    let gathered = digest.gathered.len() as u64;
    if digest.attempted || gathered == 0 || gathered >= size {
        return false;
    }
    if gathered + 1 == size {
        *digest.state = State::Pending {
            due_ms: within(timing, clock_ms).min(due_ms),
        };
    }
    digest.gathered.push(line(new));
    true
}

/// The delivery to the channel that a dead one falls back on.
pub fn fallback(dead: &Delivery, now_ms: i64) -> Option<Delivery> {
    let channel = dead.timing.as_ref()?.fallback.as_ref()?.parse().ok()?;
    Some(Delivery {
        id: dead.id.fallen_back(),
        channel,
        state: State::Pending { due_ms: now_ms },
        attempts: Vec::new(),
        created_ms: now_ms,
        timing: None,
        redrive_of: None,
        fallback_of: Some(dead.id),
        ..dead.clone()
    })
}

fn escalation(delivery: &Delivery, timing: &Timing, due_ms: i64) -> Option<Delivery> {
    let escalate = timing.escalate.as_ref()?;
    Some(Delivery {
        id: delivery.id.escalated(),
        channel: escalate.channel.parse().ok()?,
        state: State::Pending {
            due_ms: later(due_ms, escalate.after_s),
        },
        timing: None,
        escalation_of: Some(delivery.id),
        ..delivery.clone()
    })
}

/// When it may go out, digests apart.
fn due_ms(timing: &Timing, clock_ms: i64) -> i64 {
    let after_ms = later(clock_ms, timing.after_s.unwrap_or(0));
    let at = timing.at.as_deref().and_then(|at| at.parse().ok());
    let at_ms = at.map_or(i64::MIN, |at: jiff::Timestamp| at.as_millisecond());
    within(timing, after_ms.max(at_ms))
}

/// The moment itself, or the window's next opening.
fn within(timing: &Timing, at_ms: i64) -> i64 {
    let window = timing.window.as_deref().filter(|_| !timing.critical);
    // What is not a window was refused with its decision.
    match window.and_then(|text| Window::parse(text).ok()) {
        Some(window) => window.opening_ms(at_ms),
        None => at_ms,
    }
}

fn later(from_ms: i64, seconds: u64) -> i64 {
    let ms = i64::try_from(seconds)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000);
    from_ms.saturating_add(ms)
}

fn line(delivery: &Delivery) -> Line {
    let (title, url) = match &delivery.payload {
        Payload::Message(message) => (
            render::one_line(&message.title, LINE_CHARS_MAX),
            message.link.as_ref().map(|link| link.url.clone()),
        ),
        Payload::Body(_) => (String::new(), None),
    };
    Line {
        delivery: delivery.id,
        event: delivery.event,
        title,
        url,
    }
}

fn slot(purpose: &str, rule: &Name, channel: &Name, key: &str) -> Slot {
    let mut hash = Sha256::new();
    for part in [purpose, rule.as_str(), channel.as_str(), key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut slot = [0; 16];
    slot.copy_from_slice(&hash.finalize()[..16]);
    slot
}
