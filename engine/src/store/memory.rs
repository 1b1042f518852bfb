//! The store in memory: for tests, for embedding where losing everything at the end is right, and
//! as the model that the embedded store is compared with.
//!
//! It keeps every promise of the traits but durability, and bounds nothing.

use super::{
    Acknowledgement, Appended, Attempt, Changes, Claimed, Commit, DeadPage, DecisionRecord,
    Delivery, Disabled, Error, EventLog, Held, History, Line, Mark, NewEvent, Outbox, Records,
    Seek, Settlement, State, StoredEvent, Story, Swept, TransferError, Usage, Wanted, Which,
    moment_ms,
};
use crate::id::{DeliveryId, EventId, Hash, Name};
use crate::timing::{self, Memory, Remember, Slot};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A store that forgets everything when it is dropped.
pub struct MemoryStore {
    duplicate_window_ms: i64,
    changed: Arc<Notify>,
    rows: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    last: Option<EventId>,
    events: BTreeMap<(Name, EventId), StoredEvent>,
    cursors: BTreeMap<Name, EventId>,
    /// The first event of what a sender delivered: tenant, source, its id, the body.
    firsts: HashMap<(Name, Name, String, Hash), EventId>,
    decisions: BTreeMap<EventId, Vec<DecisionRecord>>,
    /// The deliveries of an event, in the order in which they were made.
    made: BTreeMap<EventId, Vec<DeliveryId>>,
    deliveries: BTreeMap<DeliveryId, Delivery>,
    /// Every pending delivery, by when it falls due.
    due: BTreeSet<(i64, DeliveryId)>,
    /// When the lease of a delivery ends.
    leases: HashMap<DeliveryId, i64>,
    held: BTreeMap<(EventId, Name), Held>,
    memories: HashMap<(Name, Slot), Memory>,
    disabled: BTreeMap<Line, Disabled>,
    records: BTreeMap<String, Vec<u8>>,
}

impl MemoryStore {
    /// An empty store that knows a sender's repeated delivery for this long.
    pub fn new(duplicate_window_ms: i64) -> Self {
        Self {
            duplicate_window_ms,
            changed: Arc::new(Notify::new()),
            rows: Mutex::new(Rows::default()),
        }
    }

    /// No change here panics halfway, so a poisoned lock has whole rows behind it.
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl EventLog for MemoryStore {
    async fn ready(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn append(&self, event: NewEvent) -> Result<Appended, Error> {
        let mut rows = self.rows();
        let id = EventId::next(event.received_ms, rows.last);
        if let Some(sender_id) = event.sender_id.clone() {
            let key = (
                event.tenant.clone(),
                event.source.clone(),
                sender_id,
                event.body_hash,
            );
            let first = rows.firsts.entry(key).or_insert(id);
            if moment_ms(id) - moment_ms(*first) > self.duplicate_window_ms {
                *first = id;
            } else if *first != id {
                return Ok(Appended {
                    id: *first,
                    duplicate: true,
                });
            }
        }
        rows.last = Some(id);
        let key = (event.tenant.clone(), id);
        rows.events.insert(key, event.into_stored(id));
        Ok(Appended {
            id,
            duplicate: false,
        })
    }

    async fn backlog(
        &self,
        tenant: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, Error> {
        Ok(self.rows().backlog(tenant, after, limit))
    }

    async fn event(&self, id: EventId) -> Result<Option<StoredEvent>, Error> {
        Ok(self.rows().event(id))
    }

    fn stored_bytes(&self, tenant: &Name) -> u64 {
        let rows = self.rows();
        let own = rows.events.iter().filter(|((of, _), _)| of == tenant);
        own.map(|(_, event)| event.encoded.len() as u64).sum()
    }
}

#[async_trait]
impl Outbox for MemoryStore {
    async fn commit(&self, tenant: &Name, commits: Vec<Commit>) -> Result<(), Error> {
        let mut rows = self.rows();
        let mut added = false;
        for commit in commits {
            if rows
                .cursors
                .get(tenant)
                .is_some_and(|last| commit.event <= *last)
            {
                continue;
            }
            rows.cursors.insert(tenant.clone(), commit.event);
            rows.decisions.insert(commit.event, commit.decisions);
            for delivery in commit.deliveries {
                added |= rows.admit(delivery, commit.received_ms);
            }
            for held in commit.held {
                rows.held.insert((held.event, held.rule.clone()), held);
            }
        }
        if added {
            self.changed.notify_one();
        }
        Ok(())
    }

    async fn claim(
        &self,
        now_ms: i64,
        lease_ms: i64,
        wanted: &mut Wanted<'_>,
    ) -> Result<Claimed, Error> {
        let mut rows = self.rows();
        rows.leases.retain(|_, ends_ms| *ends_ms > now_ms);
        let mut claimed = Claimed::default();
        let mut passed = HashSet::new();
        for (due_ms, id) in &rows.due {
            let delivery = &rows.deliveries[id];
            if rows.leases.contains_key(id) || passed.contains(&delivery.line()) {
                continue;
            }
            if *due_ms > now_ms {
                claimed.next_ms = Some(*due_ms);
                break;
            }
            if wanted(&delivery.line()) {
                claimed.deliveries.push(delivery.clone());
            } else {
                passed.insert(delivery.line());
            }
        }
        let ends_ms = now_ms.saturating_add(lease_ms);
        let taken = claimed.deliveries.iter();
        rows.leases.extend(taken.map(|it| (it.id, ends_ms)));
        let lease = rows.leases.values().min().copied();
        claimed.next_ms = claimed.next_ms.into_iter().chain(lease).min();
        Ok(claimed)
    }

    async fn settle(
        &self,
        id: DeliveryId,
        attempt: Attempt,
        settlement: Settlement,
    ) -> Result<(), Error> {
        let mut rows = self.rows();
        let rows = &mut *rows;
        let Some(delivery) = rows.deliveries.get_mut(&id) else {
            return Ok(());
        };
        let State::Pending { due_ms } = delivery.state else {
            return Ok(());
        };
        rows.leases.remove(&id);
        rows.due.remove(&(due_ms, id));
        let at_ms = attempt.at_ms;
        delivery.attempts.push(attempt);
        delivery.state = match settlement {
            Settlement::Delivered => State::Delivered { at_ms },
            Settlement::RetryAt { due_ms } => {
                rows.due.insert((due_ms, id));
                self.changed.notify_one();
                State::Pending { due_ms }
            }
            Settlement::Dead { reason } => match timing::fallback(delivery, at_ms) {
                Some(new) => {
                    let to = new.id;
                    delivery.state = State::FallenBack { at_ms, reason, to };
                    rows.add(new);
                    self.changed.notify_one();
                    return Ok(());
                }
                None => State::Dead { at_ms, reason },
            },
        };
        Ok(())
    }

    async fn next_due(&self) -> Result<Option<i64>, Error> {
        let rows = self.rows();
        let mut due = rows.due.iter();
        let free = due.find(|(_, id)| !rows.leases.contains_key(id));
        let lease = rows.leases.values().min();
        Ok(free
            .map(|(due_ms, _)| *due_ms)
            .into_iter()
            .chain(lease.copied())
            .min())
    }

    fn deliveries_changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    async fn held(
        &self,
        tenant: Option<&Name>,
        after: Option<&(EventId, Name)>,
        limit: usize,
    ) -> Result<Vec<Held>, Error> {
        let rows = self.rows();
        let held = rows.held.iter();
        let held = held.filter(|(key, _)| after.is_none_or(|after| *key > after));
        let held = held.map(|(_, held)| held);
        let held = held.filter(|held| tenant.is_none_or(|tenant| held.tenant == *tenant));
        Ok(held.take(limit).cloned().collect())
    }

    async fn resolve_held(
        &self,
        tenant: &Name,
        decision: DecisionRecord,
        deliveries: Vec<Delivery>,
    ) -> Result<bool, Error> {
        let mut rows = self.rows();
        let key = (decision.event, decision.rule.clone());
        if rows
            .held
            .get(&key)
            .is_none_or(|held| held.tenant != *tenant)
        {
            return Ok(false);
        }
        rows.held.remove(&key);
        let mut added = false;
        for delivery in deliveries {
            added |= rows.admit(delivery, decision.decided_ms);
        }
        let decisions = rows.decisions.entry(decision.event).or_default();
        match decisions.iter_mut().find(|it| it.rule == decision.rule) {
            Some(before) => *before = decision,
            None => decisions.push(decision),
        }
        if added {
            self.changed.notify_one();
        }
        Ok(true)
    }

    async fn dead(&self, which: &Which, limit: usize) -> Result<DeadPage, Error> {
        let rows = self.rows();
        let mut dead: Vec<_> = rows
            .deliveries
            .values()
            .filter(|delivery| which.are_of(delivery))
            .filter_map(|delivery| match delivery.state {
                State::Dead { at_ms, .. } => Some(((at_ms, delivery.id), delivery)),
                _ => None,
            })
            .filter(|(at, _)| which.after.is_none_or(|after| *at > after))
            .filter(|(at, _)| which.before_ms.is_none_or(|before_ms| at.0 < before_ms))
            .collect();
        dead.sort_by_key(|(at, _)| *at);
        let more = dead.len() > limit;
        dead.truncate(limit);
        Ok(DeadPage {
            next: dead.last().map(|(at, _)| *at).filter(|_| more),
            deliveries: dead.into_iter().map(|(_, it)| it.clone()).collect(),
        })
    }

    async fn redrive(&self, id: DeliveryId, now_ms: i64) -> Result<Option<Delivery>, Error> {
        let mut rows = self.rows();
        let Some(new) = rows
            .deliveries
            .get_mut(&id)
            .and_then(|dead| dead.redrive(now_ms))
        else {
            return Ok(None);
        };
        rows.add(new.clone());
        self.changed.notify_one();
        Ok(Some(new))
    }

    async fn acknowledge(&self, id: DeliveryId, now_ms: i64) -> Result<Acknowledgement, Error> {
        let mut rows = self.rows();
        let rows = &mut *rows;
        let escalation = match rows.deliveries.contains_key(&id.escalated()) {
            true => id.escalated(),
            false => id,
        };
        let delivery = rows.deliveries.get_mut(&escalation);
        let Some(delivery) = delivery.filter(|it| it.escalation_of.is_some()) else {
            return Ok(Acknowledgement::Nothing);
        };
        match delivery.state {
            State::Acknowledged { .. } => return Ok(Acknowledgement::Acknowledged),
            State::Pending { due_ms }
                if delivery.attempts.is_empty() && !rows.leases.contains_key(&escalation) =>
            {
                rows.due.remove(&(due_ms, escalation));
            }
            _ => return Ok(Acknowledgement::TooLate),
        }
        delivery.state = State::Acknowledged { at_ms: now_ms };
        Ok(Acknowledgement::Acknowledged)
    }

    async fn delivery(&self, id: DeliveryId) -> Result<Option<Delivery>, Error> {
        Ok(self.rows().deliveries.get(&id).cloned())
    }

    async fn switch(&self, line: &Line, disabled: Option<Disabled>) -> Result<(), Error> {
        let off = &mut self.rows().disabled;
        match disabled {
            Some(disabled) => off.insert(line.clone(), disabled),
            None => off.remove(line),
        };
        Ok(())
    }

    async fn disabled(&self) -> Result<Vec<(Line, Disabled)>, Error> {
        Ok(self.rows().disabled.clone().into_iter().collect())
    }

    async fn story(&self, id: EventId) -> Result<Option<Story>, Error> {
        let rows = self.rows();
        let event = rows.events.values().find(|event| event.id == id);
        Ok(event.map(|event| rows.story_of(event)))
    }

    async fn stories(&self, tenant: &Name, seek: Seek, limit: usize) -> Result<Vec<Story>, Error> {
        let rows = self.rows();
        let all = rows.events.values();
        let mut events: Vec<_> = all.filter(|event| event.tenant == *tenant).collect();
        match seek {
            Seek::Before(before) => {
                events.retain(|event| before.is_none_or(|before| event.id < before));
                events.reverse();
            }
            Seek::After(after) => events.retain(|event| event.id > after),
        }
        let stories = events.into_iter().take(limit);
        Ok(stories.map(|event| rows.story_of(event)).collect())
    }
}

#[async_trait]
impl History for MemoryStore {
    async fn purge(&self, ids: Vec<DeliveryId>) -> Result<usize, Error> {
        let mut rows = self.rows();
        let mut purge = |id: &DeliveryId| rows.deliveries.get_mut(id).is_some_and(Delivery::purge);
        Ok(ids.iter().filter(|id| purge(id)).count())
    }

    async fn forget(
        &self,
        before_ms: i64,
        only: Option<&Name>,
        _: Option<Mark>,
    ) -> Result<Swept, Error> {
        let mut rows = self.rows();
        let rows = &mut *rows;
        let (mut over, mut seen) = (Vec::new(), 0);
        let meant = |tenant: &Name| only.is_none_or(|only| only == tenant);
        for (tenant, id) in rows.events.keys().filter(|(tenant, _)| meant(tenant)) {
            seen += usize::from(moment_ms(*id) < before_ms);
            let decided = rows.cursors.get(tenant).is_some_and(|last| id <= last);
            let held = rows.held.keys().any(|(event, _)| event == id);
            let mut made = rows.made.get(id).into_iter().flatten();
            let is_final = made.all(|id| rows.deliveries[id].state.is_final());
            if moment_ms(*id) < before_ms && decided && !held && is_final {
                over.push((tenant.clone(), *id));
            }
        }
        for key in &over {
            rows.events.remove(key);
            rows.decisions.remove(&key.1);
            for id in rows.made.remove(&key.1).into_iter().flatten() {
                rows.deliveries.remove(&id);
            }
        }
        Ok(Swept {
            seen,
            forgotten: over.len(),
            next: None,
        })
    }

    async fn backup(&self, _: Box<dyn Write + Send>, _: i64) -> Result<u64, TransferError> {
        Err(TransferError::InMemory)
    }

    async fn usage(&self) -> Result<Usage, Error> {
        let rows = self.rows();
        let events = rows.events.iter();
        let live_bytes = events
            .clone()
            .map(|(_, it)| it.encoded.len() as u64)
            .sum::<u64>();
        Ok(Usage {
            live_bytes,
            file_bytes: live_bytes,
            oldest_ms: events.map(|((_, id), _)| moment_ms(*id)).min(),
        })
    }
}

impl Rows {
    fn backlog(&self, tenant: &Name, after: Option<EventId>, limit: usize) -> Vec<StoredEvent> {
        let after = after.max(self.cursors.get(tenant).copied());
        let of_tenant = self.events.iter().filter(|((of, _), _)| of == tenant);
        let open = of_tenant.filter(|((_, id), _)| after.is_none_or(|after| *id > after));
        open.take(limit).map(|(_, event)| event.clone()).collect()
    }

    fn event(&self, id: EventId) -> Option<StoredEvent> {
        self.events.values().find(|event| event.id == id).cloned()
    }

    fn story_of(&self, event: &StoredEvent) -> Story {
        let id = event.id;
        let made = self.made.get(&id).into_iter().flatten();
        let held = self.held.iter().filter(|((event, _), _)| *event == id);
        Story {
            decided: (self.cursors.get(&event.tenant)).is_some_and(|last| id <= *last),
            decisions: self.decisions.get(&id).cloned().unwrap_or_default(),
            deliveries: made.map(|id| self.deliveries[id].clone()).collect(),
            held: held.map(|(_, held)| held.clone()).collect(),
            event: event.clone(),
        }
    }

    /// Adds a delivery as its timing has it; whether anything waits now that did not.
    fn admit(&mut self, mut delivery: Delivery, clock_ms: i64) -> bool {
        if self.deliveries.contains_key(&delivery.id) {
            return false;
        }
        let tenant = delivery.tenant.clone();
        let Ok(escalation) = timing::admit(&mut delivery, clock_ms, &mut (&mut *self, tenant));
        self.add(delivery);
        if let Some(escalation) = escalation {
            self.add(escalation);
        }
        true
    }

    fn add(&mut self, delivery: Delivery) {
        let id = delivery.id;
        if let State::Pending { due_ms } = delivery.state {
            self.due.insert((due_ms, id));
        }
        self.made.entry(delivery.event).or_default().push(id);
        self.deliveries.insert(id, delivery);
    }
}

impl Remember for (&mut Rows, Name) {
    type Error = Infallible;

    fn get(&mut self, slot: &Slot) -> Result<Option<Memory>, Infallible> {
        Ok(self.0.memories.get(&(self.1.clone(), *slot)).cloned())
    }

    fn put(&mut self, slot: Slot, memory: Memory) -> Result<(), Infallible> {
        self.0.memories.insert((self.1.clone(), slot), memory);
        Ok(())
    }

    fn join(
        &mut self,
        digest: DeliveryId,
        new: &Delivery,
        clock_ms: i64,
    ) -> Result<bool, Infallible> {
        let rows = &mut *self.0;
        if rows.leases.contains_key(&digest) {
            return Ok(false);
        }
        let Some(delivery) = rows.deliveries.get_mut(&digest) else {
            return Ok(false);
        };
        let before = delivery.state.clone();
        let joined = timing::gather(delivery.as_digest(), new, clock_ms);
        if let (State::Pending { due_ms: before }, State::Pending { due_ms }) =
            (before, &delivery.state)
        {
            rows.due.remove(&(before, digest));
            rows.due.insert((*due_ms, digest));
        }
        Ok(joined)
    }
}

#[async_trait]
impl Records for MemoryStore {
    async fn record(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.rows().records.get(key).cloned())
    }

    async fn records(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let rows = self.rows();
        let from = rows.records.range(prefix.to_owned()..);
        let found = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(found
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    async fn set_records(&self, changes: Changes) -> Result<(), Error> {
        let mut rows = self.rows();
        for (key, value) in changes {
            match value {
                Some(value) => rows.records.insert(key, value),
                None => rows.records.remove(&key),
            };
        }
        Ok(())
    }
}
