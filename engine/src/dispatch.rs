//! Takes deliveries that are due out of the store, tries them, and records what came of it.
//!
//! Guarantees:
//! - At most `in_flight_max` attempts run at once, and at most so many of them to one channel as it or
//!   `in_flight_per_channel_max` says. A delivery is claimed only when it can begin, so what waits for a
//!   slow channel waits in the store, in its own line, and costs the others nothing.
//! - A tenant may hold as many attempts as are free besides: one alone takes half of all, two a third
//!   each. So whoever comes next always finds room, however many channels another one floods.
//! - No tenant begins more attempts in a second than its quota; the others are not held up by it.
//! - A channel's rates hold, and one that fails again and again gets rests ([`pace`]).
//! - Every attempt ends in the store as one record. Where the store cannot take it, the delivery is
//!   tried again when its lease ends: at least once, never not at all.
//! - After the token is cancelled nothing new begins, and [`Dispatcher::run`] returns when the
//!   attempts in flight have ended, each within its channel's timeout.
//!
//! A channel that is disabled (the receiver said that it is gone, or nothing arrived for
//! `disable_after_ms`) makes dead letters of its deliveries at once; its tenant gets an event that says
//! so, and the letters can be redriven once someone has enabled it again.
//!
//! What this module deliberately does not do: decide what is sent or how, or keep state of its own
//! beyond the process.

pub mod pace;
mod retry;
mod switches;
#[cfg(test)]
mod tests;

pub(crate) use pace::Buckets;
pub use pace::{Pace, Rate};
pub use retry::{RETRY_AFTER_MAX, Schedule, WAIT_MS_MAX, WAITS_MAX};
pub use switches::{Switches, Wake};

use self::pace::Breaker;
use crate::acknowledge::Links;
use crate::channel::{Failure, Outgoing, Retry, Sent};
use crate::id::{DeliveryId, EventId, Name};
use crate::live::Live;
use crate::metrics::{Attempted, Metrics};
use crate::store::{self, Attempt, Delivery, Disabled, Line, Settlement, State, Store};
use crate::telemetry::{Kind, Span};
use crate::timing;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Attempts whose outcome is on its way into the store. They are no longer in flight; beyond this many,
/// nothing is claimed.
const SETTLING_MAX: usize = 2_048;
/// Channels whose breaker or rates are remembered beyond their attempts before the idle ones are
/// looked for.
const IDLE_LANES: usize = 1_024;
/// How long to leave the store alone after it failed.
const STORE_PAUSE_MS: i64 = 1_000;
/// How often, and how long apart, a result is offered to a store that is busy.
const SETTLE_TRIES_MAX: u32 = 10;
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

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
    /// After how long without anything arriving a channel is disabled.
    pub disable_after_ms: i64,
    pub metrics: Arc<Metrics>,
}

/// Delivers what the store holds, until it is cancelled.
pub struct Dispatcher {
    shared: Arc<Shared>,
    settings: Settings,
}

/// What every attempt needs.
struct Shared {
    store: Arc<dyn Store>,
    live: Arc<Live>,
    outgoing: Arc<Outgoing>,
    links: Links,
    switches: Arc<Switches>,
    clock: Clock,
}

/// What is under way.
#[derive(Default)]
struct Work {
    /// Channels that are being disabled.
    disabling: JoinSet<()>,
    attempts: JoinSet<Ended>,
    running: HashMap<task::Id, Begun>,
    settling: JoinSet<DeliveryId>,
    /// All of both, and whether the store has given it out again meanwhile: its lease ended, or its
    /// attempt was recorded, is due again, and was not seen to end here.
    in_hand: HashMap<DeliveryId, bool>,
    lanes: HashMap<Line, Lane>,
    tenants: HashMap<Name, OfTenant>,
    /// Which of the tenants' settings the two are made of.
    revision: u64,
}

/// A tenant while it has attempts in flight, and for as long as its quota is not whole.
struct OfTenant {
    running: usize,
    buckets: Buckets,
}

/// One channel while it is in use, and for as long as there is something to remember of it.
struct Lane {
    running: usize,
    in_flight_max: usize,
    buckets: Buckets,
    breaker: Breaker,
}

/// An attempt in flight: all that is needed when it has ended.
struct Begun {
    id: DeliveryId,
    event: EventId,
    line: Line,
    /// Of the delivery's attempts, from 1.
    number: u32,
}

/// What came of an attempt.
struct Ended {
    attempt: Attempt,
    result: Result<(), Retry>,
    error: Option<String>,
}

impl Dispatcher {
    pub fn new(
        store: Arc<dyn Store>,
        live: Arc<Live>,
        outgoing: Arc<Outgoing>,
        links: Links,
        switches: Arc<Switches>,
        settings: Settings,
        clock: Clock,
    ) -> Self {
        let shared = Shared {
            store,
            live,
            outgoing,
            links,
            switches,
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
            let room = work.attempts.len() < self.settings.in_flight_max
                && work.settling.len() < SETTLING_MAX;
            let now_ms = (self.shared.clock)();
            if room && ask_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
                ask_at_ms = match self.claim(&mut work, now_ms).await {
                    Ok(ask_at_ms) => ask_at_ms,
                    Err(error) => {
                        tracing::error!(%error, "no deliveries could be claimed");
                        Some(now_ms + STORE_PAUSE_MS)
                    }
                };
            }
            let wait = async {
                match ask_at_ms {
                    Some(at_ms) if room => {
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
                    self.ended(&mut work, ended);
                    // What has ended as well is taken along, so that one claim fills all of it.
                    while let Some(ended) = work.attempts.try_join_next_with_id() {
                        self.ended(&mut work, ended);
                    }
                    ask_at_ms = Some(i64::MIN);
                }
                Some(settled) = work.settling.join_next() => {
                    let full = work.settling.len() + 1 >= SETTLING_MAX;
                    self.settled(&mut work, settled).await;
                    while let Some(settled) = work.settling.try_join_next() {
                        self.settled(&mut work, settled).await;
                    }
                    if full {
                        ask_at_ms = Some(i64::MIN);
                    }
                }
                () = wait => {}
            }
        }
        while let Some(ended) = work.attempts.join_next_with_id().await {
            self.ended(&mut work, ended);
        }
        work.settling.join_all().await;
        work.disabling.join_all().await;
    }

    /// Claims and begins what may begin, and says when to ask again.
    async fn claim(&self, work: &mut Work, now_ms: i64) -> Result<Option<i64>, store::Error> {
        let free = self
            .settings
            .in_flight_max
            .saturating_sub(work.attempts.len());
        let mut free = free.min(SETTLING_MAX - work.settling.len());
        let mut wake_ms = None;
        let mut granted = Vec::new();
        self.follow(work, now_ms);
        let (lanes, tenants) = (&mut work.lanes, &mut work.tenants);
        let mut wanted = |line: &Line| {
            if free == 0 {
                return false;
            }
            if !tenants.contains_key(&line.tenant) {
                tenants.insert(line.tenant.clone(), self.of_tenant(&line.tenant, now_ms));
            }
            let Some(tenant) = tenants.get_mut(&line.tenant) else {
                return false;
            };
            if tenant.running > 0 && tenant.running >= free {
                return false;
            }
            if let Err(at_ms) = tenant.buckets.ready(now_ms) {
                wake_ms = wake_ms.into_iter().chain([at_ms]).min();
                return false;
            }
            if !lanes.contains_key(line) {
                lanes.insert(line.clone(), self.lane(line, now_ms));
            }
            let Some(lane) = lanes.get_mut(line) else {
                return false;
            };
            match lane.begin(now_ms) {
                Ok(()) => {}
                Err(at_ms) => {
                    wake_ms = at_ms.into_iter().chain(wake_ms).min();
                    return false;
                }
            }
            // It was ready a moment ago.
            let _ = tenant.buckets.take(now_ms);
            tenant.running += 1;
            free -= 1;
            granted.push(line.clone());
            true
        };
        let store = &self.shared.store;
        let claimed = store
            .claim(now_ms, self.settings.lease_ms, &mut wanted)
            .await;
        if let Ok(claimed) = &claimed {
            for delivery in &claimed.deliveries {
                let line = delivery.line();
                if let Some(at) = granted.iter().position(|granted| *granted == line) {
                    granted.swap_remove(at);
                }
            }
        }
        // What was granted and did not come: it was settled meanwhile, or the store failed.
        for line in granted {
            work.unused(&line);
        }
        let claimed = claimed?;
        for delivery in claimed.deliveries {
            if let Some(again) = work.in_hand.get_mut(&delivery.id) {
                *again = true;
                work.unused(&delivery.line());
            } else {
                self.begin(work, delivery);
            }
        }
        if work.lanes.len() > work.running.len() + IDLE_LANES {
            work.lanes.retain(|_, lane| !lane.is_idle(now_ms));
        }
        if work.tenants.len() > work.running.len() + IDLE_LANES {
            work.tenants.retain(|_, tenant| !tenant.is_idle(now_ms));
        }
        Ok(claimed.next_ms.into_iter().chain(wake_ms).min())
    }

    /// Begins an attempt that was counted already.
    fn begin(&self, work: &mut Work, delivery: Delivery) {
        work.in_hand.insert(delivery.id, false);
        let begun = Begun {
            event: delivery.event,
            id: delivery.id,
            line: delivery.line(),
            number: delivery.attempts.len() as u32 + 1,
        };
        let attempt = Arc::clone(&self.shared).attempt(delivery);
        let id = work.attempts.spawn(attempt).id();
        work.running.insert(id, begun);
    }

    /// An attempt is recorded. What the store gave out again meanwhile is looked at once more: whether
    /// anything is left to do can be seen only now.
    async fn settled(&self, work: &mut Work, settled: Result<DeliveryId, JoinError>) {
        let id = match settled {
            Ok(id) => id,
            Err(error) => {
                tracing::error!(%error, "recording an attempt panicked; it will be made again");
                return;
            }
        };
        if work.in_hand.remove(&id) != Some(true) {
            return;
        }
        match self.shared.store.delivery(id).await {
            Ok(Some(delivery)) => {
                let now_ms = (self.shared.clock)();
                if matches!(delivery.state, State::Pending { due_ms } if due_ms <= now_ms) {
                    work.count(&delivery.line());
                    self.begin(work, delivery);
                }
            }
            Ok(None) => {}
            // It comes back when its lease ends.
            Err(error) => tracing::error!(delivery = %id, %error, "a delivery could not be read"),
        }
    }

    /// Takes over what the tenants' settings say by now; what is under way and what failed stays known.
    fn follow(&self, work: &mut Work, now_ms: i64) {
        let revision = self.shared.live.revision();
        if std::mem::replace(&mut work.revision, revision) == revision {
            return;
        }
        for (line, lane) in &mut work.lanes {
            let new = self.lane(line, now_ms);
            lane.in_flight_max = new.in_flight_max;
            lane.buckets.follow(new.buckets);
        }
        for (name, tenant) in &mut work.tenants {
            tenant.buckets.follow(self.of_tenant(name, now_ms).buckets);
        }
    }

    fn lane(&self, line: &Line, now_ms: i64) -> Lane {
        let live = self.shared.live.get(&line.tenant);
        let pace = live.as_ref().and_then(|it| it.paces.get(&line.channel));
        let in_flight_max = pace.and_then(|pace| pace.in_flight_max);
        Lane {
            running: 0,
            in_flight_max: in_flight_max.unwrap_or(self.settings.in_flight_per_channel_max),
            buckets: Buckets::new(pace.map_or(&[], |pace| &pace.rates), now_ms),
            breaker: Breaker::default(),
        }
    }

    fn of_tenant(&self, tenant: &Name, now_ms: i64) -> OfTenant {
        let live = self.shared.live.get(tenant);
        let per_s = live.map_or(0, |it| it.deliveries_per_s);
        let rate = (per_s > 0).then(|| Rate::new(per_s, 1));
        OfTenant {
            running: 0,
            buckets: Buckets::new(rate.as_slice(), now_ms),
        }
    }

    /// What an attempt came to, for who counts and who follows single events.
    fn count(
        &self,
        (event, id, line, number): (EventId, DeliveryId, &Line, u32),
        ended: &Ended,
        settlement: &Settlement,
    ) {
        let channel = self.shared.live.channel(line);
        let attempted = match settlement {
            Settlement::Delivered => Attempted::Delivered,
            Settlement::RetryAt { .. } => Attempted::Retried,
            Settlement::Dead { .. } => Attempted::Dead,
        };
        let took = Duration::from_millis(ended.attempt.duration_ms);
        let channel = channel.map_or("none", |it| it.kind());
        let metrics = &self.settings.metrics;
        metrics.attempted(&line.tenant, channel, attempted, took);
        if !metrics.traces.traces(event) {
            return;
        }
        let outcome = match attempted {
            Attempted::Delivered => "delivered",
            Attempted::Retried => "retried",
            Attempted::Dead => "dead",
        };
        let attributes = [
            ("hooksieve.tenant", line.tenant.as_str().into()),
            ("hooksieve.channel", line.channel.as_str().into()),
            ("hooksieve.channel.kind", channel.into()),
            ("hooksieve.delivery.id", id.to_string().into()),
            ("hooksieve.outcome", outcome.into()),
            ("hooksieve.attempt", number.into()),
            // Of an HTTP answer, or of a mail server's.
            ("hooksieve.answer.status", ended.attempt.status.into()),
        ];
        let span = Span {
            kind: Kind::Client,
            name: format!("deliver {}", line.channel),
            began_ms: ended.attempt.at_ms,
            took,
            attributes: &attributes,
            failed: attempted != Attempted::Delivered,
        };
        metrics.traces.did(event, &span);
    }

    /// Frees what an attempt held, and has its outcome recorded.
    fn ended(&self, work: &mut Work, ended: Result<(task::Id, Ended), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(begun) = work.running.remove(&id) else {
            return;
        };
        let Begun {
            id,
            event,
            line,
            number,
        } = begun;
        work.free(&line);
        let now_ms = (self.shared.clock)();
        let ended = match ended {
            Ok((_, ended)) => ended,
            Err(error) => {
                // A bug of ours that this delivery brings out: it would bring it out at every try.
                let (tenant, channel, delivery) = (&line.tenant, &line.channel, id);
                tracing::error!(%tenant, %channel, %delivery, %error, "an attempt panicked");
                Ended::panicked(now_ms)
            }
        };
        let mut disable = None;
        if let Some(lane) = work.lanes.get_mut(&line) {
            match ended.result {
                Ok(()) | Err(Retry::Never) => lane.breaker.answered(),
                Err(Retry::Gone) => {
                    lane.breaker.answered();
                    disable = Some(ended.error.clone().unwrap_or_default());
                }
                Err(Retry::Later | Retry::After(_)) => {
                    let (since_ms, opened) = lane.breaker.failed(now_ms);
                    if now_ms - since_ms >= self.settings.disable_after_ms {
                        disable = Some(format!(
                            "nothing has arrived since {}: {}",
                            crate::ingest::time(since_ms),
                            ended.error.as_deref().unwrap_or_default()
                        ));
                    }
                    if opened {
                        let (tenant, channel) = (&line.tenant, &line.channel);
                        tracing::warn!(%tenant, %channel, since_ms, "the receiver keeps failing and gets a rest");
                    }
                }
            }
        }
        if let Some(reason) = disable {
            let (shared, line) = (Arc::clone(&self.shared), line.clone());
            let disabled = Disabled {
                at_ms: now_ms,
                reason,
            };
            work.disabling
                .spawn(async move { shared.switches.disable(line, disabled).await });
        }
        while work.disabling.try_join_next().is_some() {}
        let live = self.shared.live.get(&line.tenant);
        let pace = live.as_ref().and_then(|it| it.paces.get(&line.channel));
        let schedule = pace.and_then(|pace| pace.schedule.as_ref());
        let schedule = schedule.unwrap_or(&self.settings.schedule);
        let settlement = settlement(&ended, schedule, number, now_ms, rand::random());
        log(id, &line, number, &ended, &settlement);
        self.count((event, id, &line, number), &ended, &settlement);
        let settle = Arc::clone(&self.shared).settle(id, ended.attempt, settlement);
        work.settling.spawn(settle);
    }
}

impl Work {
    /// One more attempt, whether or not there is room for it.
    fn count(&mut self, line: &Line) {
        if let Some(lane) = self.lanes.get_mut(line) {
            lane.running += 1;
        }
        if let Some(tenant) = self.tenants.get_mut(&line.tenant) {
            tenant.running += 1;
        }
    }

    /// Takes back what was granted and came to no attempt.
    fn unused(&mut self, line: &Line) {
        if let Some(lane) = self.lanes.get_mut(line) {
            lane.breaker.not_begun();
        }
        self.free(line);
    }

    fn free(&mut self, line: &Line) {
        if let Some(lane) = self.lanes.get_mut(line) {
            lane.running = lane.running.saturating_sub(1);
        }
        if let Some(tenant) = self.tenants.get_mut(&line.tenant) {
            tenant.running = tenant.running.saturating_sub(1);
        }
    }
}

impl Lane {
    /// Begins an attempt, or says when it may, where time decides that.
    fn begin(&mut self, now_ms: i64) -> Result<(), Option<i64>> {
        if self.running >= self.in_flight_max {
            return Err(None);
        }
        self.breaker.allows(now_ms)?;
        self.buckets.take(now_ms).map_err(Some)?;
        self.breaker.begun();
        self.running += 1;
        Ok(())
    }

    /// Whether a new one would be the same.
    fn is_idle(&self, now_ms: i64) -> bool {
        self.running == 0 && self.breaker.is_closed() && self.buckets.is_full(now_ms)
    }
}

impl OfTenant {
    /// Whether a new one would be the same.
    fn is_idle(&self, now_ms: i64) -> bool {
        self.running == 0 && self.buckets.is_full(now_ms)
    }
}

impl Ended {
    fn panicked(now_ms: i64) -> Self {
        let reason = "the attempt ended in a bug of hooksieve; its log has the details";
        let failure = Failure::never(reason);
        Self::new(Err(failure), now_ms, 0)
    }

    fn new(result: Result<Sent, Failure>, at_ms: i64, duration_ms: u64) -> Self {
        let retry = match &result {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.retry),
        };
        let attempt = record(result, at_ms, duration_ms);
        Self {
            error: attempt.error.clone(),
            result: retry,
            attempt,
        }
    }
}

impl Shared {
    /// Tries a delivery once.
    async fn attempt(self: Arc<Self>, mut delivery: Delivery) -> Ended {
        let at_ms = (self.clock)();
        let began = Instant::now();
        if let Some(disabled) = self.switches.get(&delivery.line()) {
            let failure = Failure::never(format!(
                "channel {:?} is disabled since {}: {}; enable it, then redrive this",
                delivery.channel,
                crate::ingest::time(disabled.at_ms),
                disabled.reason
            ));
            return Ended::new(Err(failure), at_ms, 0);
        }
        let result = match self.live.channel(&delivery.line()) {
            Some(channel) => {
                let escalates = delivery
                    .timing
                    .as_ref()
                    .is_some_and(|it| it.escalate.is_some());
                let link = escalates.then(|| self.links.address(delivery.id)).flatten();
                if let Some(payload) = timing::render(&delivery, link.as_deref(), &channel.room()) {
                    delivery.payload = payload;
                }
                channel.send(&self.outgoing, &delivery).await
            }
            None => Err(Failure::never(format!(
                "channel {:?} is no longer configured",
                delivery.channel
            ))),
        };
        Ended::new(result, at_ms, began.elapsed().as_millis() as u64)
    }

    /// Records an attempt; the store may be busy for a while.
    async fn settle(
        self: Arc<Self>,
        id: DeliveryId,
        attempt: Attempt,
        settlement: Settlement,
    ) -> DeliveryId {
        for tries in 1..=SETTLE_TRIES_MAX {
            let settled = self.store.settle(id, attempt.clone(), settlement.clone());
            match settled.await {
                Err(store::Error::Busy(_)) if tries < SETTLE_TRIES_MAX => {
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                Err(error) => {
                    unrecorded(id, &error);
                    break;
                }
                Ok(()) => break,
            }
        }
        id
    }
}

fn unrecorded(id: DeliveryId, error: &store::Error) {
    tracing::error!(delivery = %id, %error, "an attempt could not be recorded and will be made again");
}

/// How a delivery goes on after its attempt `number`.
fn settlement(
    ended: &Ended,
    schedule: &Schedule,
    number: u32,
    now_ms: i64,
    random: f64,
) -> Settlement {
    let error = ended.error.as_deref().unwrap_or_default();
    let retry_after = match ended.result {
        Ok(()) => return Settlement::Delivered,
        Err(Retry::Never | Retry::Gone) => {
            return Settlement::Dead {
                reason: error.to_owned(),
            };
        }
        Err(Retry::Later) => None,
        Err(Retry::After(wait)) => Some(wait),
    };
    match schedule.next(number, retry_after, now_ms, random) {
        Some(due_ms) => Settlement::RetryAt { due_ms },
        None => Settlement::Dead {
            reason: format!("given up after {number} attempts: {error}"),
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
fn log(delivery: DeliveryId, line: &Line, attempt: u32, ended: &Ended, settlement: &Settlement) {
    let (tenant, channel) = (&line.tenant, &line.channel);
    let (error, refused) = (ended.error.as_deref(), ended.attempt.refused.len());
    let Attempt {
        status,
        duration_ms,
        ..
    } = ended.attempt;
    match settlement {
        Settlement::Delivered => {
            tracing::debug!(%tenant, %channel, %delivery, attempt, status, duration_ms, refused, "delivered");
        }
        Settlement::RetryAt { due_ms } => {
            tracing::warn!(%tenant, %channel, %delivery, attempt, status, duration_ms, error, due_ms, "delivery failed, to be tried again");
        }
        Settlement::Dead { .. } => {
            tracing::warn!(%tenant, %channel, %delivery, attempt, status, duration_ms, error, refused, "delivery given up");
        }
    }
}
