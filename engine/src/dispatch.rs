//! Takes deliveries that are due out of the store, tries them, and records what came of it.
//!
//! Guarantees:
//! - At most `in_flight_max` attempts run at once, and at most `in_flight_per_channel_max` of them to
//!   one channel; a delivery is claimed only while there is a permit for it.
//! - Deliveries to one channel begin in the order in which they fell due, but for retries and for
//!   what is said below of overflow.
//! - Every attempt ends in the store as one record. Where the store cannot take it, the delivery is
//!   tried again when its lease ends: at least once, never not at all.
//! - After the token is cancelled nothing new begins, and [`Dispatcher::run`] returns when the
//!   attempts in flight have ended, each within its channel's timeout.
//!
//! A channel at its cap must not stop the others, and the store gives out what is due in its own
//! order. So what is claimed for such a channel waits here, as its id alone (it is read again when
//! its turn comes), and the permit goes to the next one. Its lease may end while it waits: when the
//! store then gives it out again, it is recognised. Where a channel has more than
//! `WAITING_PER_CHANNEL_MAX` waiting, the rest is let go of and comes back when its lease ends: a
//! delay for that channel, and none for the others. (The alternative, to stop claiming at some
//! number in all, would let one tenant's dead endpoint stall everyone; to put deliveries back would
//! record attempts that were none.)
//!
//! What this module deliberately does not do: decide what is sent or how, keep state of its own
//! beyond the process, or slow a channel down beyond its cap.

mod retry;
#[cfg(test)]
mod tests;

pub use retry::{RETRY_AFTER_MAX, Schedule};

use crate::channel::{Channel, Failure, Outgoing, Retry, Sent};
use crate::id::{DeliveryId, Name};
use crate::store::{self, Attempt, Delivery, Settlement, State, Store};
use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Deliveries that may wait here for one channel.
const WAITING_PER_CHANNEL_MAX: usize = 16_384;
/// Deliveries that may wait here for all channels: some 20 MB of ids.
const WAITING_MAX: usize = 262_144;
/// How long to leave the store alone after it failed.
const STORE_PAUSE_MS: i64 = 1_000;
/// How often, and how long apart, a result is offered to a store that is busy.
const SETTLE_TRIES_MAX: u32 = 10;
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

/// The channels of all tenants, by tenant and channel.
pub type Channels = HashMap<(Name, Name), Arc<Channel>>;

/// Milliseconds since 1970 (UTC).
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The limits of a [`Dispatcher`].
#[derive(Clone, Debug)]
pub struct Settings {
    pub in_flight_max: usize,
    pub in_flight_per_channel_max: usize,
    /// For how long a claimed delivery is ours; longer than the longest timeout of a channel.
    pub lease_ms: i64,
    pub schedule: Schedule,
}

/// Delivers what the store holds, until it is cancelled.
pub struct Dispatcher {
    shared: Arc<Shared>,
    settings: Settings,
}

/// What every attempt needs.
struct Shared {
    store: Arc<dyn Store>,
    channels: Arc<Channels>,
    outgoing: Arc<Outgoing>,
    schedule: Schedule,
    clock: Clock,
}

type Key = (Name, Name);

/// What is claimed: running or waiting.
#[derive(Default)]
struct Work {
    attempts: JoinSet<()>,
    running: HashMap<task::Id, (Key, DeliveryId)>,
    /// A channel is in here while something of it runs; only at its cap does anything wait.
    lines: HashMap<Key, Line>,
    /// All that runs or waits, and whether the store has given it out again meanwhile: its lease
    /// ended, or its attempt was recorded, is due again, and has not been seen to end here.
    held: HashMap<DeliveryId, bool>,
}

#[derive(Default)]
struct Line {
    running: usize,
    waiting: VecDeque<DeliveryId>,
}

impl Dispatcher {
    pub fn new(
        store: Arc<dyn Store>,
        channels: Arc<Channels>,
        outgoing: Arc<Outgoing>,
        settings: Settings,
        clock: Clock,
    ) -> Self {
        let shared = Shared {
            store,
            channels,
            outgoing,
            schedule: settings.schedule.clone(),
            clock,
        };
        Self {
            shared: Arc::new(shared),
            settings,
        }
    }

    /// Delivers until `cancel`, then lets the attempts in flight end.
    pub async fn run(self, cancel: CancellationToken) {
        let mut work = Work::default();
        let changed = self.shared.store.deliveries_changed();
        // Enabled before the store is asked, so that nothing added meanwhile goes unnoticed; kept
        // from one round to the next, so that a change during another branch is not forgotten.
        let mut told = pin!(changed.notified());
        told.as_mut().enable();
        // When to ask the store again, unless it tells of a change first.
        let mut ask_at_ms = Some(i64::MIN);
        while !cancel.is_cancelled() {
            let free = self.settings.in_flight_max - work.attempts.len();
            let now_ms = (self.shared.clock)();
            if free > 0 && ask_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
                ask_at_ms = match self.claim(&mut work, now_ms, free).await {
                    Ok(ask_at_ms) => ask_at_ms,
                    Err(error) => {
                        tracing::error!(%error, "no deliveries could be claimed");
                        Some(now_ms + STORE_PAUSE_MS)
                    }
                };
                continue;
            }
            let wait = async {
                match ask_at_ms {
                    Some(at_ms) if free > 0 => {
                        let wait_ms = at_ms.saturating_sub(now_ms).max(1) as u64;
                        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = &mut told => {
                    told.set(changed.notified());
                    told.as_mut().enable();
                    ask_at_ms = Some(i64::MIN);
                }
                Some(ended) = work.attempts.join_next_with_id() => {
                    self.ended(&mut work, ended).await;
                    // What has ended as well is taken along, so that one claim fills all of it.
                    while let Some(ended) = work.attempts.try_join_next_with_id() {
                        self.ended(&mut work, ended).await;
                    }
                }
                () = wait => {}
            }
        }
        // Without its line, nothing follows an attempt that ends.
        work.lines.clear();
        while let Some(ended) = work.attempts.join_next_with_id().await {
            self.ended(&mut work, ended).await;
        }
    }

    /// Claims what there are permits for, and says when to ask again.
    async fn claim(
        &self,
        work: &mut Work,
        now_ms: i64,
        free: usize,
    ) -> Result<Option<i64>, store::Error> {
        let store = &self.shared.store;
        let claimed = store.claim(now_ms, self.settings.lease_ms, free).await?;
        let more = claimed.len() == free;
        for delivery in claimed {
            self.take(work, delivery);
        }
        if more {
            // A store in memory never waits, and a long backlog would keep the thread to itself.
            task::yield_now().await;
            return Ok(Some(i64::MIN));
        }
        store.next_due().await
    }

    /// Begins a claimed delivery, or lets it wait behind its channel.
    fn take(&self, work: &mut Work, delivery: Delivery) {
        if let Some(again) = work.held.get_mut(&delivery.id) {
            *again = true;
            return;
        }
        let key = (delivery.tenant.clone(), delivery.channel.clone());
        let waiting = work.held.len() - work.running.len();
        let line = work.lines.entry(key.clone()).or_default();
        if line.running < self.settings.in_flight_per_channel_max {
            line.running += 1;
            work.held.insert(delivery.id, false);
            let id = delivery.id;
            let attempt = Arc::clone(&self.shared).attempt(delivery);
            work.running
                .insert(work.attempts.spawn(attempt).id(), (key, id));
        } else if line.waiting.len() < WAITING_PER_CHANNEL_MAX && waiting < WAITING_MAX {
            work.held.insert(delivery.id, false);
            line.waiting.push_back(delivery.id);
        } else if line.waiting.len() == WAITING_PER_CHANNEL_MAX {
            tracing::debug!(tenant = %key.0, channel = %key.1, "more is due than may wait");
        }
    }

    /// Frees what an attempt held and begins the next one of its channel.
    async fn ended(&self, work: &mut Work, ended: Result<(task::Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some((key, delivery)) = work.running.remove(&id) else {
            return;
        };
        let again = work.held.remove(&delivery).unwrap_or_default();
        if let Err(error) = ended {
            // A bug of ours that this delivery brings out: it would bring it out at every try.
            tracing::error!(tenant = %key.0, channel = %key.1, %delivery, %error, "an attempt panicked");
            let reason = "the attempt ended in a bug of hooksieve; its log has the details";
            let attempt = Attempt {
                at_ms: (self.shared.clock)(),
                error: Some(reason.into()),
                ..Attempt::default()
            };
            let dead = Settlement::Dead {
                reason: reason.into(),
            };
            self.shared.settle(delivery, attempt, dead).await;
        }
        let Some(line) = work.lines.get_mut(&key) else {
            return;
        };
        if again {
            // Whether anything is left to do is seen when its turn comes.
            work.held.insert(delivery, false);
            line.waiting.push_back(delivery);
        }
        match line.waiting.pop_front() {
            Some(next) => {
                let attempt = Arc::clone(&self.shared).attempt_later(next);
                work.running
                    .insert(work.attempts.spawn(attempt).id(), (key, next));
            }
            None => {
                line.running -= 1;
                if line.running == 0 {
                    work.lines.remove(&key);
                }
            }
        }
    }
}

impl Shared {
    /// Tries a delivery by its id, unless it was settled or put off since it was claimed.
    async fn attempt_later(self: Arc<Self>, id: DeliveryId) {
        match self.store.delivery(id).await {
            Ok(Some(delivery)) => {
                let now_ms = (self.clock)();
                if matches!(delivery.state, State::Pending { due_ms } if due_ms <= now_ms) {
                    self.attempt(delivery).await;
                }
            }
            Ok(None) => {}
            // It comes back when its lease ends.
            Err(error) => tracing::error!(delivery = %id, %error, "a delivery could not be read"),
        }
    }

    /// Tries a delivery once, logs the outcome and records it.
    async fn attempt(self: Arc<Self>, delivery: Delivery) {
        let at_ms = (self.clock)();
        let began = Instant::now();
        let key = (delivery.tenant.clone(), delivery.channel.clone());
        let result = match self.channels.get(&key) {
            Some(channel) => channel.send(&self.outgoing, &delivery).await,
            None => Err(Failure::never(format!(
                "channel {:?} is no longer configured",
                delivery.channel
            ))),
        };
        let duration_ms = began.elapsed().as_millis() as u64;
        let number = delivery.attempts.len() as u32 + 1;
        let now_ms = (self.clock)();
        let settlement = settlement(&result, &self.schedule, number, now_ms, rand::random());
        log(&delivery, number, duration_ms, &result, &settlement);
        let attempt = record(result, at_ms, duration_ms);
        self.settle(delivery.id, attempt, settlement).await;
    }

    async fn settle(&self, id: DeliveryId, attempt: Attempt, settlement: Settlement) {
        for _ in 1..SETTLE_TRIES_MAX {
            match self
                .store
                .settle(id, attempt.clone(), settlement.clone())
                .await
            {
                Err(store::Error::Busy(_)) => tokio::time::sleep(SETTLE_PAUSE).await,
                Err(error) => return unrecorded(id, &error),
                Ok(()) => return,
            }
        }
        if let Err(error) = self.store.settle(id, attempt, settlement).await {
            unrecorded(id, &error);
        }
    }
}

fn unrecorded(id: DeliveryId, error: &store::Error) {
    tracing::error!(delivery = %id, %error, "an attempt could not be recorded and will be made again");
}

/// How a delivery goes on after its attempt `number`.
fn settlement(
    result: &Result<Sent, Failure>,
    schedule: &Schedule,
    number: u32,
    now_ms: i64,
    random: f64,
) -> Settlement {
    let failure = match result {
        Ok(_) => return Settlement::Delivered,
        Err(failure) => failure,
    };
    let retry_after = match failure.retry {
        Retry::Never | Retry::Gone => {
            return Settlement::Dead {
                reason: failure.error.clone(),
            };
        }
        Retry::Later => None,
        Retry::After(wait) => Some(wait),
    };
    match schedule.next(number, retry_after, now_ms, random) {
        Some(due_ms) => Settlement::RetryAt { due_ms },
        None => Settlement::Dead {
            reason: format!("given up after {number} attempts: {}", failure.error),
        },
    }
}

fn record(result: Result<Sent, Failure>, at_ms: i64, duration_ms: u64) -> Attempt {
    match result {
        Ok(sent) => Attempt {
            at_ms,
            duration_ms,
            status: sent.status,
            refused: sent.refused,
            ..Attempt::default()
        },
        Err(failure) => Attempt {
            at_ms,
            duration_ms,
            status: failure.status,
            error: Some(failure.error),
            answer: failure.answer,
            ambiguous: failure.ambiguous,
            refused: failure.refused,
            accepted: failure.accepted,
        },
    }
}

/// One line an outcome; a failure's error names the host and nothing secret.
fn log(
    of: &Delivery,
    attempt: u32,
    duration_ms: u64,
    result: &Result<Sent, Failure>,
    settlement: &Settlement,
) {
    let (tenant, channel, delivery) = (&of.tenant, &of.channel, &of.id);
    let (status, error, refused) = match result {
        Ok(sent) => (sent.status, None, sent.refused.len()),
        Err(failure) => (
            failure.status,
            Some(failure.error.as_str()),
            failure.refused.len(),
        ),
    };
    match settlement {
        Settlement::Delivered => {
            tracing::info!(%tenant, %channel, %delivery, attempt, status, duration_ms, refused, "delivered");
        }
        Settlement::RetryAt { due_ms } => {
            tracing::warn!(%tenant, %channel, %delivery, attempt, status, duration_ms, error, due_ms, "delivery failed, to be tried again");
        }
        Settlement::Dead { .. } => {
            tracing::warn!(%tenant, %channel, %delivery, attempt, status, duration_ms, error, refused, "delivery given up");
        }
    }
}
