//! The one thread that writes.
//!
//! It takes the commands that are queued, up to a limit, makes one batch of them, applies and flushes
//! it, and only then answers: one flush, many answers. A command sees what the commands before it in
//! the same group did. A command that fails leaves nothing in the group; a batch or flush that fails
//! fails the whole group, and the store with it.

use super::row::{Made, Row};
use super::{Options, Shared, keys};
use crate::id::{DeliveryId, EventId, Name};
use crate::store::{
    Acknowledgement, Appended, Attempt, Changes, Commit, DecisionRecord, Delivery, Disabled, Error,
    Line, NewEvent, Settlement, State, moment_ms,
};
use crate::timing::{self, Memory, Remember, Slot};
use serde::{Serialize, de::DeserializeOwned};
use sled::{Batch, IVec};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, oneshot};

/// A group takes no further command once its events reach this, so that large events do not make
/// one batch of hundreds of megabytes.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// The duplicate window is kept in this many buckets. A bucket goes when all of it is over.
const BUCKETS: i64 = 4;
/// How many forgotten duplicates one group removes: more than it can add, so pruning keeps up.
const PRUNED_PER_COMMAND: usize = 2;
/// What an id takes as a row's value.
const ID_BYTES: usize = 16;

pub(super) type Answer<T> = oneshot::Sender<Result<T, Error>>;

pub(super) enum Command {
    Append {
        event: Box<NewEvent>,
        answer: Answer<Appended>,
    },
    Commit {
        tenant: Name,
        commits: Vec<Commit>,
        answer: Answer<()>,
    },
    Settle {
        id: DeliveryId,
        attempt: Attempt,
        settlement: Settlement,
        answer: Answer<()>,
    },
    ResolveHeld {
        tenant: Name,
        decision: Box<DecisionRecord>,
        deliveries: Vec<Delivery>,
        answer: Answer<bool>,
    },
    Redrive {
        id: DeliveryId,
        now_ms: i64,
        answer: Answer<Option<Delivery>>,
    },
    Switch {
        line: Line,
        disabled: Option<Disabled>,
        answer: Answer<()>,
    },
    Purge {
        ids: Vec<DeliveryId>,
        answer: Answer<usize>,
    },
    /// Rows that nothing changes any more.
    Remove {
        rows: Vec<(Name, Vec<u8>)>,
        answer: Answer<()>,
    },
    Acknowledge {
        id: DeliveryId,
        now_ms: i64,
        answer: Answer<Acknowledgement>,
    },
    SetRecords {
        changes: Changes,
        answer: Answer<()>,
    },
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    options: Options,
    /// The greatest id in the log. Its moment is the clock of the duplicate window: it never goes
    /// back, whatever the machine's clock does.
    last: Option<EventId>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, options: Options, last: Option<EventId>) -> Self {
        Self {
            shared,
            options,
            last,
        }
    }

    /// Runs until every sender is gone and the queue is empty.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(first) = commands.blocking_recv() {
            let mut group = Group::default();
            let mut next = Some(first);
            while let Some(command) = next {
                self.take(&mut group, command);
                let full = group.commands >= self.options.group_max
                    || group.event_bytes >= GROUP_BYTES_MAX;
                next = if full { None } else { commands.try_recv().ok() };
            }
            self.finish(group);
        }
    }

    fn take(&mut self, group: &mut Group, command: Command) {
        group.commands += 1;
        match command {
            Command::Append { event, answer } => {
                let done = self.append(group, *event);
                group.answer(answer, done);
            }
            Command::Commit {
                tenant,
                commits,
                answer,
            } => {
                let done = self.commit(group, &tenant, commits);
                group.answer(answer, done);
            }
            Command::Settle {
                id,
                attempt,
                settlement,
                answer,
            } => {
                let done = self.settle(group, id, attempt, settlement);
                group.answer(answer, done);
            }
            Command::ResolveHeld {
                tenant,
                decision,
                deliveries,
                answer,
            } => {
                let done = self.resolve_held(group, &tenant, *decision, deliveries);
                group.answer(answer, done);
            }
            Command::Redrive { id, now_ms, answer } => {
                let done = self.redrive(group, id, now_ms);
                group.answer(answer, done);
            }
            Command::Switch {
                line,
                disabled,
                answer,
            } => {
                let done = self.switch(group, &line, disabled);
                group.answer(answer, done);
            }
            Command::Purge { ids, answer } => {
                let done = self.purge(group, &ids);
                group.answer(answer, done);
            }
            Command::Remove { rows, answer } => {
                for (tenant, key) in rows {
                    change(&mut group.rows, key, None, false, Some(&tenant));
                }
                group.answer(answer, Ok(()));
            }
            Command::Acknowledge { id, now_ms, answer } => {
                let done = self.acknowledge(group, id, now_ms);
                group.answer(answer, done);
            }
            Command::SetRecords { changes, answer } => {
                let done = self.set_records(group, changes);
                group.answer(answer, done);
            }
        }
    }

    fn append(&mut self, group: &mut Group, event: NewEvent) -> Result<Appended, Error> {
        let id = EventId::next(event.received_ms, self.last);
        let mut rows = Staged::of(&event.tenant);
        if let Some(sender_id) = &event.sender_id {
            let print =
                keys::fingerprint(&event.tenant, &event.source, sender_id, &event.body_hash);
            if let Some(first) = self.first_of(group, &print, moment_ms(id))? {
                return Ok(Appended {
                    id: first,
                    duplicate: true,
                });
            }
            let key = keys::duplicate(self.bucket(moment_ms(id)), &print);
            rows.put_new(key, id.0.as_bytes().to_vec());
        }
        let event_bytes = event.data.bytes().len();
        let key = keys::event(&event.tenant, id);
        self.encode_new(&mut rows, key, &event.into_stored(id))?;
        group.take(rows);
        group.event_bytes += event_bytes;
        self.last = Some(id);
        Ok(Appended {
            id,
            duplicate: false,
        })
    }

    /// The first event of this fingerprint within the window.
    fn first_of(
        &self,
        group: &Group,
        print: &[u8; 16],
        now_ms: i64,
    ) -> Result<Option<EventId>, Error> {
        let oldest_ms = now_ms - self.options.duplicate_window_ms;
        for bucket in (self.bucket(oldest_ms)..=self.bucket(now_ms)).rev() {
            let row = self.get(group, &keys::duplicate(bucket, print))?;
            let id = row.and_then(|row| keys::last_id(&row)).map(EventId);
            if let Some(id) = id.filter(|id| moment_ms(*id) >= oldest_ms) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    fn bucket(&self, moment_ms: i64) -> i64 {
        moment_ms.div_euclid((self.options.duplicate_window_ms / BUCKETS).max(1))
    }

    fn commit(&self, group: &mut Group, tenant: &Name, commits: Vec<Commit>) -> Result<(), Error> {
        let cursor_key = keys::cursor(tenant);
        let mut cursor = self
            .get(group, &cursor_key)?
            .and_then(|row| keys::last_id(&row))
            .map(EventId);
        let before = cursor;
        let mut rows = Staged::of(tenant);
        for commit in commits {
            if cursor.is_some_and(|cursor| commit.event <= cursor) {
                continue;
            }
            cursor = Some(commit.event);
            let mut made = Made {
                about: None,
                deliveries: Vec::new(),
                decisions: commit.decisions,
            };
            let clock_ms = commit.received_ms;
            self.add_all(group, &mut rows, &mut made, commit.deliveries, clock_ms)?;
            if !made.decisions.is_empty() || !made.deliveries.is_empty() {
                self.encode_new(&mut rows, keys::decisions(commit.event), &made)?;
            }
            for held in &commit.held {
                let key = keys::held(tenant, held.event, &held.rule);
                self.encode(&mut rows, key, held)?;
            }
        }
        if let Some(cursor) = cursor.filter(|_| cursor != before) {
            rows.put(cursor_key, cursor.0.as_bytes().to_vec());
        }
        group.take(rows);
        Ok(())
    }

    fn settle(
        &self,
        group: &mut Group,
        id: DeliveryId,
        attempt: Attempt,
        settlement: Settlement,
    ) -> Result<(), Error> {
        let mut rows = Staged::default();
        // It goes on otherwise than it began.
        self.shared.fresh().pop(&id);
        let Some(mut row) = self.read::<Row>(group, &rows, &keys::delivery(id))? else {
            return Ok(());
        };
        let State::Pending { due_ms } = row.state else {
            return Ok(());
        };
        rows.tenant = Some(row.tenant.clone());
        let at_ms = attempt.at_ms;
        row.attempts.push(attempt);
        rows.no_longer_due(row.line(), (due_ms, id));
        row.state = match settlement {
            Settlement::Delivered => State::Delivered { at_ms },
            Settlement::RetryAt { due_ms } => {
                rows.due(row.line(), (due_ms, id));
                State::Pending { due_ms }
            }
            Settlement::Dead { reason } => {
                self.give_up(group, &mut rows, id, &row, at_ms, reason)?
            }
        };
        self.encode(&mut rows, keys::delivery(id), &row)?;
        group.take(rows);
        Ok(())
    }

    /// The state of a delivery that is given up: its rule may have named a channel for that.
    fn give_up(
        &self,
        group: &Group,
        rows: &mut Staged,
        id: DeliveryId,
        row: &Row,
        at_ms: i64,
        reason: String,
    ) -> Result<State, Error> {
        if row.timing.as_ref().is_some_and(|it| it.fallback.is_some()) {
            let key = keys::decisions(row.event);
            let mut made: Made = self.read(group, rows, &key)?.unwrap_or_default();
            let dead = row.clone().into_delivery(id, &made);
            if let Some(new) = timing::fallback(&dead, at_ms) {
                let to = new.id;
                self.add_delivery(group, rows, &mut made, &new)?;
                self.encode(rows, key, &made)?;
                return Ok(State::FallenBack { at_ms, reason, to });
            }
        }
        rows.put_new(keys::dead(&row.tenant, at_ms, id), Vec::new());
        Ok(State::Dead { at_ms, reason })
    }

    fn resolve_held(
        &self,
        group: &mut Group,
        tenant: &Name,
        decision: DecisionRecord,
        deliveries: Vec<Delivery>,
    ) -> Result<bool, Error> {
        let held = keys::held(tenant, decision.event, &decision.rule);
        if self.get(group, &held)?.is_none() {
            return Ok(false);
        }
        let mut rows = Staged::of(tenant);
        rows.remove(held);
        let key = keys::decisions(decision.event);
        let mut made: Made = self.read(group, &rows, &key)?.unwrap_or_default();
        let clock_ms = decision.decided_ms;
        match made
            .decisions
            .iter_mut()
            .find(|it| it.rule == decision.rule)
        {
            Some(before) => *before = decision,
            None => made.decisions.push(decision),
        }
        self.add_all(group, &mut rows, &mut made, deliveries, clock_ms)?;
        self.encode(&mut rows, key, &made)?;
        group.take(rows);
        Ok(true)
    }

    fn redrive(
        &self,
        group: &mut Group,
        id: DeliveryId,
        now_ms: i64,
    ) -> Result<Option<Delivery>, Error> {
        let mut rows = Staged::default();
        let Some(row) = self.read::<Row>(group, &rows, &keys::delivery(id))? else {
            return Ok(None);
        };
        let State::Dead { at_ms, .. } = row.state else {
            return Ok(None);
        };
        rows.tenant = Some(row.tenant.clone());
        let key = keys::decisions(row.event);
        let mut made: Made = self.read(group, &rows, &key)?.unwrap_or_default();
        let mut dead = row.into_delivery(id, &made);
        let Some(new) = dead.redrive(now_ms) else {
            return Ok(None);
        };
        rows.remove(keys::dead(&dead.tenant, at_ms, id));
        self.encode(&mut rows, keys::delivery(id), &Row::of(&dead, &mut made))?;
        self.add_delivery(group, &mut rows, &mut made, &new)?;
        self.encode(&mut rows, key, &made)?;
        group.take(rows);
        Ok(Some(new))
    }

    fn purge(&self, group: &mut Group, ids: &[DeliveryId]) -> Result<usize, Error> {
        let mut purged = 0;
        for id in ids {
            let mut rows = Staged::default();
            let Some(mut row) = self.read::<Row>(group, &rows, &keys::delivery(*id))? else {
                continue;
            };
            let (State::Dead { at_ms, .. }, Some(state)) = (&row.state, row.state.purged()) else {
                continue;
            };
            rows.tenant = Some(row.tenant.clone());
            rows.remove(keys::dead(&row.tenant, *at_ms, *id));
            row.state = state;
            self.encode(&mut rows, keys::delivery(*id), &row)?;
            group.take(rows);
            purged += 1;
        }
        Ok(purged)
    }

    fn set_records(&self, group: &mut Group, changes: Changes) -> Result<(), Error> {
        let mut rows = Staged::default();
        for (key, value) in changes {
            let key = keys::record(&key);
            if let Some(before) = self.get(group, &key)? {
                keys::pieces(&key, &before, |piece| rows.remove(piece));
            }
            match value {
                Some(value) => self.encode(&mut rows, key, serde_bytes::Bytes::new(&value))?,
                None => rows.remove(key),
            }
        }
        group.take(rows);
        Ok(())
    }

    fn acknowledge(
        &self,
        group: &mut Group,
        id: DeliveryId,
        now_ms: i64,
    ) -> Result<Acknowledgement, Error> {
        let mut rows = Staged::default();
        let mut escalation = id.escalated();
        let mut row = self.read::<Row>(group, &rows, &keys::delivery(escalation))?;
        if row.is_none() {
            escalation = id;
            row = self.read::<Row>(group, &rows, &keys::delivery(id))?;
        }
        let Some(mut row) = row.filter(|row| row.escalation_of.is_some()) else {
            return Ok(Acknowledgement::Nothing);
        };
        let due_ms = match row.state {
            State::Acknowledged { .. } => return Ok(Acknowledgement::Acknowledged),
            State::Pending { due_ms } if row.attempts.is_empty() => due_ms,
            _ => return Ok(Acknowledgement::TooLate),
        };
        if !self.freeze(group, escalation) {
            return Ok(Acknowledgement::TooLate);
        }
        rows.tenant = Some(row.tenant.clone());
        rows.no_longer_due(row.line(), (due_ms, escalation));
        row.state = State::Acknowledged { at_ms: now_ms };
        self.encode(&mut rows, keys::delivery(escalation), &row)?;
        group.take(rows);
        Ok(Acknowledgement::Acknowledged)
    }

    fn switch(
        &self,
        group: &mut Group,
        line: &Line,
        disabled: Option<Disabled>,
    ) -> Result<(), Error> {
        let mut rows = Staged::default();
        match disabled {
            Some(disabled) => self.encode(&mut rows, keys::channel(line), &disabled)?,
            None => rows.remove(keys::channel(line)),
        }
        group.take(rows);
        Ok(())
    }

    /// Keeps a delivery where it is until the group is durable; `false` when it is out on a lease.
    fn freeze(&self, group: &mut Group, id: DeliveryId) -> bool {
        group.frozen.contains(&id) || {
            let free = self.shared.due().freeze(id);
            if free {
                group.frozen.insert(id);
            }
            free
        }
    }

    /// Adds what an event leads to, each as its timing has it.
    fn add_all(
        &self,
        group: &mut Group,
        rows: &mut Staged,
        made: &mut Made,
        deliveries: Vec<Delivery>,
        clock_ms: i64,
    ) -> Result<(), Error> {
        for mut delivery in deliveries {
            let key = keys::delivery(delivery.id);
            if self.staged(group, rows, &key)?.is_some() {
                continue;
            }
            let mut keys = Keys {
                writer: self,
                group,
                rows,
                tenant: delivery.tenant.clone(),
            };
            let escalation = timing::admit(&mut delivery, clock_ms, &mut keys)?;
            self.add_delivery(group, rows, made, &delivery)?;
            if let Some(escalation) = escalation {
                self.add_delivery(group, rows, made, &escalation)?;
            }
            if delivery.timing.is_none() {
                rows.fresh.push(delivery);
            }
        }
        Ok(())
    }

    /// Adds a delivery unless it is there.
    fn add_delivery(
        &self,
        group: &Group,
        rows: &mut Staged,
        made: &mut Made,
        delivery: &Delivery,
    ) -> Result<(), Error> {
        let key = keys::delivery(delivery.id);
        if self.staged(group, rows, &key)?.is_some() {
            return Ok(());
        }
        if !made.deliveries.contains(&delivery.id) {
            made.deliveries.push(delivery.id);
        }
        if let State::Pending { due_ms } = delivery.state {
            rows.due(delivery.line(), (due_ms, delivery.id));
        }
        self.encode_new(rows, key, &Row::of(delivery, made))
    }

    /// Applies the group, makes it durable, and answers.
    fn finish(&self, mut group: Group) {
        let done = self.store(&mut group);
        if done.is_ok() {
            // First, or it could be claimed before it is here, and found here when it is no longer so.
            self.shared.keep_fresh(std::mem::take(&mut group.fresh));
            let mut due = self.shared.due();
            for change in &group.due {
                match change {
                    Change::Due(line, key) => due.put(line, *key),
                    Change::NoLonger(line, key) => due.remove(line, *key),
                }
            }
            for id in &group.frozen {
                due.thaw(*id);
            }
            drop(due);
            let added = group.due.iter().any(|it| matches!(it, Change::Due(..)));
            // What was being changed was passed over meanwhile.
            if added || !group.frozen.is_empty() {
                self.shared.changed.notify_one();
            }
        }
        for answer in group.answers {
            answer(done.clone());
        }
    }

    fn store(&self, group: &mut Group) -> Result<(), Error> {
        self.shared.check()?;
        if group.rows.is_empty() {
            return Ok(());
        }
        self.prune(group)?;
        let shared = &self.shared;
        let mut batch = Batch::default();
        let mut live_bytes = shared.live_bytes.load(Ordering::Relaxed);
        let mut of_tenants: HashMap<Name, i64> = HashMap::new();
        let mut copied = shared.copied();
        for (key, write) in group.rows.drain() {
            let before = self.bytes_before(&key, &write)?;
            let after = write.value.as_ref().map_or(0, |it| key.len() + it.len());
            let more = after as i64 - before;
            live_bytes += more;
            if let Some(tenant) = keys::owner(&key, write.tenant.as_ref()) {
                *of_tenants.entry(tenant).or_default() += more;
            }
            copied
                .keep(&shared.db, &key)
                .map_err(|error| shared.broken(error))?;
            match write.value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        let of_tenants = shared.with_more(of_tenants);
        let sizes = (of_tenants.iter()).map(|(tenant, bytes)| (keys::stored_bytes(tenant), *bytes));
        for (key, bytes) in sizes.chain([(keys::LIVE_BYTES.to_vec(), live_bytes)]) {
            copied
                .keep(&shared.db, &key)
                .map_err(|error| shared.broken(error))?;
            batch.insert(key, &bytes.to_be_bytes());
        }
        shared
            .db
            .apply_batch(batch)
            .map_err(|error| shared.broken(error))?;
        drop(copied);
        shared.db.flush().map_err(|error| shared.broken(error))?;
        shared
            .file
            .sync_data()
            .map_err(|error| shared.broken(error))?;
        shared.live_bytes.store(live_bytes, Ordering::Relaxed);
        shared.set_stored_bytes(of_tenants);
        shared.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What a row takes that is about to be changed. Looked up only where it is not known anyway.
    fn bytes_before(&self, key: &[u8], write: &Write) -> Result<i64, Error> {
        let value_bytes = match key.first() {
            _ if write.new => return Ok(0),
            Some(&keys::DUE | &keys::DEAD) if write.value.is_none() => 0,
            Some(&keys::DUPLICATE) if write.value.is_none() => ID_BYTES,
            _ => match self.shared.get(key)? {
                Some(value) => value.len(),
                None => return Ok(0),
            },
        };
        Ok((key.len() + value_bytes) as i64)
    }

    /// Removes duplicates that no window reaches any more, and what timing may forget.
    fn prune(&self, group: &mut Group) -> Result<(), Error> {
        let Some(last) = self.last else { return Ok(()) };
        for row in self
            .shared
            .db
            .range(keys::over(i64::MIN)..keys::over(moment_ms(last)))
            .keys()
            .take(group.commands * PRUNED_PER_COMMAND)
        {
            let key = row.map_err(|error| self.shared.broken(error))?;
            // What the group itself changes has its new place already.
            if !group.rows.contains_key(&*key)
                && let Some(memory) = keys::memory_over(&key)
            {
                group.remove(memory);
                group.remove(key.to_vec());
            }
        }
        let oldest = self.bucket(moment_ms(last) - self.options.duplicate_window_ms);
        let over = keys::bucket(i64::MIN)..keys::bucket(oldest);
        for row in self
            .shared
            .db
            .range(over)
            .keys()
            .take(group.commands * PRUNED_PER_COMMAND)
        {
            let key = row.map_err(|error| self.shared.broken(error))?;
            group.remove(key.to_vec());
        }
        Ok(())
    }

    fn get(&self, group: &Group, key: &[u8]) -> Result<Option<IVec>, Error> {
        match group.rows.get(key) {
            Some(write) => Ok(write.value.clone()),
            None => self.shared.get(key),
        }
    }

    /// A row as the group and one command of it have left it.
    fn staged(&self, group: &Group, rows: &Staged, key: &[u8]) -> Result<Option<IVec>, Error> {
        match rows.writes.get(key) {
            Some(write) => Ok(write.value.clone()),
            None => self.get(group, key),
        }
    }

    fn read<T: DeserializeOwned>(
        &self,
        group: &Group,
        rows: &Staged,
        key: &[u8],
    ) -> Result<Option<T>, Error> {
        match self.staged(group, rows, key)? {
            Some(first) => {
                let row = keys::decode(key, &first, |piece| self.staged(group, rows, piece))?;
                row.map(Some)
                    .map_err(|error| self.shared.bad_row(key, error))
            }
            None => Ok(None),
        }
    }

    fn encode<T: Serialize + ?Sized>(
        &self,
        rows: &mut Staged,
        key: Vec<u8>,
        row: &T,
    ) -> Result<(), Error> {
        let name = key.clone();
        keys::encode(key, row, |key, value| rows.put(key, value))
            .map_err(|error| self.shared.bad_row(&name, error))
    }

    /// The same, of a row that is not there yet.
    fn encode_new<T: Serialize>(
        &self,
        rows: &mut Staged,
        key: Vec<u8>,
        row: &T,
    ) -> Result<(), Error> {
        let name = key.clone();
        keys::encode(key, row, |key, value| rows.put_new(key, value))
            .map_err(|error| self.shared.bad_row(&name, error))
    }
}

/// What timing remembers, as one command sees it.
struct Keys<'a> {
    writer: &'a Writer,
    group: &'a mut Group,
    rows: &'a mut Staged,
    tenant: Name,
}

impl Remember for Keys<'_> {
    type Error = Error;

    fn get(&mut self, slot: &Slot) -> Result<Option<Memory>, Error> {
        let key = keys::memory(&self.tenant, slot);
        self.writer.read(self.group, self.rows, &key)
    }

    fn put(&mut self, slot: Slot, memory: Memory) -> Result<(), Error> {
        if let Some(before) = self.get(&slot)? {
            let over = keys::memory_is_over(before.over_ms(), &self.tenant, &slot);
            self.rows.remove(over);
        }
        let over = keys::memory_is_over(memory.over_ms(), &self.tenant, &slot);
        self.rows.put(over, Vec::new());
        let key = keys::memory(&self.tenant, &slot);
        self.writer.encode(self.rows, key, &memory)
    }

    fn join(&mut self, digest: DeliveryId, new: &Delivery, clock_ms: i64) -> Result<bool, Error> {
        let key = keys::delivery(digest);
        let Some(mut row) = self.writer.read::<Row>(self.group, self.rows, &key)? else {
            return Ok(false);
        };
        let State::Pending { due_ms: before_ms } = row.state else {
            return Ok(false);
        };
        if !self.writer.freeze(self.group, digest)
            || !timing::gather(row.as_digest(), new, clock_ms)
        {
            return Ok(false);
        }
        if let State::Pending { due_ms } = row.state
            && due_ms != before_ms
        {
            self.rows.no_longer_due(row.line(), (before_ms, digest));
            self.rows.due(row.line(), (due_ms, digest));
        }
        self.writer.encode(self.rows, key, &row)?;
        Ok(true)
    }
}

enum Change {
    Due(Line, (i64, DeliveryId)),
    NoLonger(Line, (i64, DeliveryId)),
}

/// A change of a row.
struct Write {
    /// Whose row it is, where its key does not say so.
    tenant: Option<Name>,
    /// `None` removes it.
    value: Option<IVec>,
    /// There is no such row on disk.
    new: bool,
}

/// What one command writes; it joins the group only when all of the command went well.
#[derive(Default)]
struct Staged {
    /// Whose decisions and deliveries it is about.
    tenant: Option<Name>,
    writes: HashMap<Vec<u8>, Write>,
    due: Vec<Change>,
    fresh: Vec<Delivery>,
}

impl Staged {
    fn of(tenant: &Name) -> Self {
        Self {
            tenant: Some(tenant.clone()),
            ..Self::default()
        }
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let tenant = self.tenant.as_ref();
        change(&mut self.writes, key, Some(value.into()), false, tenant);
    }

    /// A row that is not there yet.
    fn put_new(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let tenant = self.tenant.as_ref();
        change(&mut self.writes, key, Some(value.into()), true, tenant);
    }

    fn remove(&mut self, key: Vec<u8>) {
        change(&mut self.writes, key, None, false, self.tenant.as_ref());
    }

    fn due(&mut self, line: Line, key: (i64, DeliveryId)) {
        self.put_new(keys::due(&line, key), Vec::new());
        self.due.push(Change::Due(line, key));
    }

    fn no_longer_due(&mut self, line: Line, key: (i64, DeliveryId)) {
        self.remove(keys::due(&line, key));
        self.due.push(Change::NoLonger(line, key));
    }
}

/// Changes a row once more. What was new before the group, or is there since before it, stays so.
fn change(
    rows: &mut HashMap<Vec<u8>, Write>,
    key: Vec<u8>,
    value: Option<IVec>,
    new: bool,
    tenant: Option<&Name>,
) {
    match rows.entry(key) {
        Entry::Occupied(mut before) => before.get_mut().value = value,
        Entry::Vacant(place) => {
            let tenant = tenant.cloned();
            place.insert(Write { tenant, value, new });
        }
    }
}

/// Answers a caller, given whether the group became durable.
type Told = Box<dyn FnOnce(Result<(), Error>)>;

/// What several commands write together.
#[derive(Default)]
struct Group {
    commands: usize,
    event_bytes: usize,
    rows: HashMap<Vec<u8>, Write>,
    due: Vec<Change>,
    /// Deliveries that are likely to be claimed next.
    fresh: Vec<Delivery>,
    /// Deliveries that nobody may take while they are changed.
    frozen: HashSet<DeliveryId>,
    answers: Vec<Told>,
}

impl Group {
    fn take(&mut self, staged: Staged) {
        for (key, write) in staged.writes {
            change(
                &mut self.rows,
                key,
                write.value,
                write.new,
                write.tenant.as_ref(),
            );
        }
        self.due.extend(staged.due);
        self.fresh.extend(staged.fresh);
    }

    fn remove(&mut self, key: Vec<u8>) {
        change(&mut self.rows, key, None, false, None);
    }

    /// Keeps the answer until the group is durable. A caller that is gone misses it; what it asked
    /// for happens all the same.
    fn answer<T: 'static>(&mut self, to: Answer<T>, done: Result<T, Error>) {
        self.answers.push(Box::new(move |stored| {
            let _ = to.send(stored.and(done));
        }));
    }
}
