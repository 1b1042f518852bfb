//! The one thread that writes.
//!
//! It takes the commands that are queued, up to a limit, makes one batch of them, applies and flushes
//! it, and only then answers: one flush, many answers. A command sees what the commands before it in
//! the same group did. A command that fails leaves nothing in the group; a batch or flush that fails
//! fails the whole group, and the store with it.

use super::{Options, Shared, keys};
use crate::id::{DeliveryId, EventId, Name};
use crate::store::{
    Appended, Attempt, Commit, DecisionRecord, Delivery, Error, NewEvent, Settlement, State,
    moment_ms,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sled::{Batch, IVec};
use std::collections::HashMap;
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
}

/// The row of what was made of an event.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) decisions: Vec<DecisionRecord>,
    pub(super) deliveries: Vec<DeliveryId>,
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
        }
    }

    fn append(&mut self, group: &mut Group, event: NewEvent) -> Result<Appended, Error> {
        let id = EventId::next(event.received_ms, self.last);
        let mut rows = Staged::default();
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
            rows.put(key, id.0.as_bytes().to_vec());
        }
        let event_bytes = event.data.bytes().len();
        let key = keys::event(&event.tenant, id);
        self.encode(&mut rows, key, &event.into_stored(id))?;
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
        let mut rows = Staged::default();
        for commit in commits {
            if cursor.is_some_and(|cursor| commit.event <= cursor) {
                continue;
            }
            cursor = Some(commit.event);
            let made = Made {
                deliveries: commit.deliveries.iter().map(|it| it.id).collect(),
                decisions: commit.decisions,
            };
            if !made.decisions.is_empty() || !made.deliveries.is_empty() {
                self.encode(&mut rows, keys::decisions(commit.event), &made)?;
            }
            for delivery in &commit.deliveries {
                self.add_delivery(group, &mut rows, delivery)?;
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
        let key = keys::delivery(id);
        let Some(mut delivery) = self.read::<Delivery>(group, &key)? else {
            return Ok(());
        };
        let State::Pending { due_ms } = delivery.state else {
            return Ok(());
        };
        let at_ms = attempt.at_ms;
        delivery.attempts.push(attempt);
        let mut rows = Staged::default();
        rows.no_longer_due((due_ms, id));
        delivery.state = match settlement {
            Settlement::Delivered => State::Delivered { at_ms },
            Settlement::RetryAt { due_ms } => {
                rows.due((due_ms, id));
                State::Pending { due_ms }
            }
            Settlement::Dead { reason } => {
                rows.put(keys::dead(&delivery.tenant, at_ms, id), Vec::new());
                State::Dead { at_ms, reason }
            }
        };
        self.encode(&mut rows, key, &delivery)?;
        group.take(rows);
        Ok(())
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
        let mut rows = Staged::default();
        rows.remove(held);
        let key = keys::decisions(decision.event);
        let mut made: Made = self.read(group, &key)?.unwrap_or_default();
        for delivery in &deliveries {
            self.add_delivery(group, &mut rows, delivery)?;
            if !made.deliveries.contains(&delivery.id) {
                made.deliveries.push(delivery.id);
            }
        }
        match made
            .decisions
            .iter_mut()
            .find(|it| it.rule == decision.rule)
        {
            Some(before) => *before = decision,
            None => made.decisions.push(decision),
        }
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
        let key = keys::delivery(id);
        let Some(mut dead) = self.read::<Delivery>(group, &key)? else {
            return Ok(None);
        };
        let State::Dead { at_ms, .. } = dead.state else {
            return Ok(None);
        };
        let Some(new) = dead.redrive(now_ms) else {
            return Ok(None);
        };
        let mut rows = Staged::default();
        rows.remove(keys::dead(&dead.tenant, at_ms, id));
        self.encode(&mut rows, key, &dead)?;
        self.add_delivery(group, &mut rows, &new)?;
        let key = keys::decisions(new.event);
        let mut made: Made = self.read(group, &key)?.unwrap_or_default();
        made.deliveries.push(new.id);
        self.encode(&mut rows, key, &made)?;
        group.take(rows);
        Ok(Some(new))
    }

    /// Adds a delivery unless it is there.
    fn add_delivery(
        &self,
        group: &Group,
        rows: &mut Staged,
        delivery: &Delivery,
    ) -> Result<(), Error> {
        let key = keys::delivery(delivery.id);
        if rows.writes.contains_key(&key) || self.get(group, &key)?.is_some() {
            return Ok(());
        }
        if let State::Pending { due_ms } = delivery.state {
            rows.due((due_ms, delivery.id));
        }
        self.encode(rows, key, delivery)
    }

    /// Applies the group, makes it durable, and answers.
    fn finish(&self, mut group: Group) {
        let done = self.store(&mut group);
        if done.is_ok() {
            let mut due = self.shared.due();
            for change in &group.due {
                match change {
                    Change::Due(key) => due.put(*key),
                    Change::NoLonger(key) => due.remove(*key),
                }
            }
            drop(due);
            if group.due.iter().any(|it| matches!(it, Change::Due(_))) {
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
        let mut batch = Batch::default();
        for (key, value) in group.rows.drain() {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        let shared = &self.shared;
        shared
            .db
            .apply_batch(batch)
            .map_err(|error| shared.broken(error))?;
        shared.db.flush().map_err(|error| shared.broken(error))?;
        shared
            .file
            .sync_data()
            .map_err(|error| shared.broken(error))?;
        shared.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes duplicates that no window reaches any more.
    fn prune(&self, group: &mut Group) -> Result<(), Error> {
        let Some(last) = self.last else { return Ok(()) };
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
            group.rows.insert(key.to_vec(), None);
        }
        Ok(())
    }

    fn get(&self, group: &Group, key: &[u8]) -> Result<Option<IVec>, Error> {
        match group.rows.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.shared.get(key),
        }
    }

    fn read<T: DeserializeOwned>(&self, group: &Group, key: &[u8]) -> Result<Option<T>, Error> {
        match self.get(group, key)? {
            Some(first) => {
                let row = keys::decode(key, &first, |piece| self.get(group, piece))?;
                row.map(Some)
                    .map_err(|error| self.shared.bad_row(key, error))
            }
            None => Ok(None),
        }
    }

    fn encode<T: Serialize>(&self, rows: &mut Staged, key: Vec<u8>, row: &T) -> Result<(), Error> {
        let name = key.clone();
        keys::encode(key, row, |key, value| rows.put(key, value))
            .map_err(|error| self.shared.bad_row(&name, error))
    }
}

enum Change {
    Due((i64, DeliveryId)),
    NoLonger((i64, DeliveryId)),
}

/// What one command writes; it joins the group only when all of the command went well.
#[derive(Default)]
struct Staged {
    writes: HashMap<Vec<u8>, Option<IVec>>,
    due: Vec<Change>,
}

impl Staged {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.insert(key, Some(value.into()));
    }

    fn remove(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    fn due(&mut self, key: (i64, DeliveryId)) {
        self.put(keys::due(key), Vec::new());
        self.due.push(Change::Due(key));
    }

    fn no_longer_due(&mut self, key: (i64, DeliveryId)) {
        self.remove(keys::due(key));
        self.due.push(Change::NoLonger(key));
    }
}

/// Answers a caller, given whether the group became durable.
type Told = Box<dyn FnOnce(Result<(), Error>)>;

/// What several commands write together.
#[derive(Default)]
struct Group {
    commands: usize,
    event_bytes: usize,
    rows: HashMap<Vec<u8>, Option<IVec>>,
    due: Vec<Change>,
    answers: Vec<Told>,
}

impl Group {
    fn take(&mut self, staged: Staged) {
        self.rows.extend(staged.writes);
        self.due.extend(staged.due);
    }

    /// Keeps the answer until the group is durable. A caller that is gone misses it; what it asked
    /// for happens all the same.
    fn answer<T: 'static>(&mut self, to: Answer<T>, done: Result<T, Error>) {
        self.answers.push(Box::new(move |stored| {
            let _ = to.send(stored.and(done));
        }));
    }
}
