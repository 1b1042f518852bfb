//! The embedded store: sled, one tree, one writer.
//!
//! Guarantees:
//! - What a call answers is on disk. sled's own flush waits for the data and, on Linux, not for the
//!   file's length nor the disk's cache (`sync_file_range`), so the writer syncs the file after it.
//! - Callers share flushes: the writer answers a whole group after one (see [`writer`]).
//! - Ids only grow, also across restarts and when the clock went back.
//! - Once a write failed, every call fails with [`Error::Broken`] until the store is opened again:
//!   sled is in error from then on, and nothing that was applied in memory alone is acknowledged.
//! - Once something was found that cannot be read, every call fails with [`Error::Damaged`], after a restart
//!   too: what is taken could not be told of, and what is written over damage may be lost as well.
//! - Duplicates are recognised by sender's id and body hash for as long as the window says. The
//!   window's clock is the greatest `received_ms` so far, so it does not run backwards.
//!
//! What it does not do: leases are not stored (one process has the store, its end ends them all);
//! it does not watch the free space, and forgets only what it is told to.
//!
//! [`folder`] opens the folder, [`keys`] has the rows.

mod copy;
mod due;
mod folder;
mod history;
mod keys;
mod offline;
mod records;
mod row;
mod salvage;
#[cfg(test)]
mod tests;
mod writer;

pub use self::offline::{Kind, Report, TransferError, check, export, export_readable, import};

use self::copy::Copied;
use self::due::{Due, Step};
use self::folder::{open_folder, unreadable};
use self::row::{Made, Row};
use self::writer::{Answer, Command, Writer};
use super::{
    Acknowledgement, Appended, Attempt, Claimed, Commit, DeadPage, DecisionRecord, Delivery,
    Disabled, Error, EventLog, Held, Line, NewEvent, Outbox, Seek, Settlement, State, StoredEvent,
    Story, Wanted, Which,
};
use crate::id::{DeliveryId, EventId, Name};
use async_trait::async_trait;
use hooksieve_sdk::wire::Payload;
use lru::LruCache;
use serde::de::DeserializeOwned;
use sled::IVec;
use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use tokio::sync::{Notify, mpsc, oneshot};

/// The version of the rows that this code writes and reads.
const FORMAT: u32 = 2;
/// How many dead letters one page looks at, where few of them are of the channel that is asked for.
const DEAD_LOOKED_AT_MAX: usize = 2_000;

/// How many deliveries are kept as [`Shared::fresh`].
const FRESH_MAX: NonZeroUsize = NonZeroUsize::new(2_048).unwrap();
/// Beyond how many bytes of text or body a delivery is read again instead.
const FRESH_BYTES_MAX: usize = 8 * 1_024;

/// How an embedded store is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a sender's repeated delivery is recognised.
    pub duplicate_window_ms: i64,
    /// What sled may keep in memory.
    pub cache_bytes: u64,
    /// How many calls may wait for the writer. Beyond that, an append is refused and others wait.
    pub queue_max: usize,
    /// How many calls share one flush.
    pub group_max: usize,
    /// How many due deliveries of a channel are kept in memory; the others wait on disk.
    pub due_loaded_max: usize,
}

/// The embedded store. Dropping it waits until what was queued is durable.
pub struct SledStore {
    shared: Arc<Shared>,
    /// `None` once it is closing.
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<thread::JoinHandle<()>>,
}

/// Why a store fails from now on.
enum Cause {
    /// Something could not be written, or sled gave up.
    Failed(String),
    /// What stands there cannot be read.
    Damaged(String),
}

impl From<::sled::Error> for Cause {
    fn from(error: ::sled::Error) -> Self {
        match unreadable(&error) {
            Some(what) => Cause::Damaged(what),
            None => Cause::Failed(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Cause {
    fn from(error: std::io::Error) -> Self {
        Cause::Failed(error.to_string())
    }
}

/// What the writer and the readers have in common. Fields drop in this order: the lock goes last.
struct Shared {
    db: ::sled::Db,
    /// sled's file, to sync it.
    file: File,
    path: PathBuf,
    broken: OnceLock<Error>,
    due: Mutex<Due>,
    /// Deliveries that were just added, so that the claim that comes next reads nothing.
    fresh: Mutex<LruCache<DeliveryId, Delivery>>,
    changed: Arc<Notify>,
    /// What the rows take: keys and values, as in the row that says so.
    live_bytes: AtomicI64,
    /// What each tenant stores, as in the rows that say so.
    stored_bytes: RwLock<HashMap<Name, i64>>,
    /// A copy that is being made of everything.
    copy: Mutex<Copied>,
    /// How many groups became durable.
    flushes: AtomicU64,
    _lock: File,
}

impl SledStore {
    /// Opens the store in a folder, and makes it where there is none.
    ///
    /// # Errors
    /// [`Error::InUse`] when a process has it open, [`Error::Format`] when another version wrote it or
    /// it is not a store of ours, [`Error::Open`] when it cannot be read, [`Error::Damaged`] when a part of it
    /// could not be read before.
    pub fn open(path: &Path, options: Options) -> Result<Self, Error> {
        let loaded_max = options.due_loaded_max.max(1);
        let shared = Arc::new(open_folder(path, options.cache_bytes, loaded_max, true)?);
        shared
            .live_bytes
            .store(shared.counted_bytes()?, Ordering::Relaxed);
        shared.load_stored_bytes()?;
        let last = shared.greatest_id()?;
        *shared.due() = Due::new(loaded_max, shared.lines()?);
        let (commands, queue) = mpsc::channel(options.queue_max.max(1));
        let writer = Writer::new(Arc::clone(&shared), options, last);
        let writer = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|error| Error::Open {
                path: path.to_owned(),
                error: error.to_string(),
            })?;
        Ok(Self {
            shared,
            commands: Some(commands),
            writer: Some(writer),
        })
    }

    /// Has the writer do something, and waits until it is durable.
    async fn write<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, Error> {
        self.shared.check()?;
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(Error::Busy("it is closing"))?;
        match commands.send(command(answer)).await {
            Ok(()) => self.answer(answered).await,
            Err(_) => Err(self.writer_ended()),
        }
    }

    async fn answer<T>(&self, answered: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        answered.await.unwrap_or_else(|_| Err(self.writer_ended()))
    }

    /// The writer goes on for as long as the store is there, so it panicked: in sled, or by our fault.
    fn writer_ended(&self) -> Error {
        self.shared
            .broken(Cause::Failed("the writer's thread ended".to_owned()))
    }

    /// Reads away from the runtime's threads: a row may have to come from disk.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.shared.check()?;
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || read(&shared)).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => Err(self.shared.broken(folder::panicked())),
            Err(_) => Err(Error::Busy("the runtime is shutting down")),
        }
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take() {
            // A panic there was already reported to every caller as a broken store.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl EventLog for SledStore {
    async fn ready(&self) -> Result<(), Error> {
        self.shared.check()
    }

    async fn append(&self, event: NewEvent) -> Result<Appended, Error> {
        self.shared.check()?;
        let (answer, answered) = oneshot::channel();
        let event = Box::new(event);
        let commands = self.commands.as_ref().ok_or(Error::Busy("it is closing"))?;
        match commands.try_send(Command::Append { event, answer }) {
            Ok(()) => self.answer(answered).await,
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::Busy("its queue is full")),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.writer_ended()),
        }
    }

    async fn backlog(
        &self,
        tenant: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, Error> {
        let tenant = tenant.clone();
        self.read(move |shared| shared.backlog(&tenant, after, limit))
            .await
    }

    async fn event(&self, id: EventId) -> Result<Option<StoredEvent>, Error> {
        self.read(move |shared| shared.event(id)).await
    }

    fn stored_bytes(&self, tenant: &Name) -> u64 {
        let bytes = self.shared.stored_bytes.read();
        let bytes = bytes.unwrap_or_else(PoisonError::into_inner);
        bytes.get(tenant).copied().unwrap_or(0).max(0) as u64
    }
}

#[async_trait]
impl Outbox for SledStore {
    async fn commit(&self, tenant: &Name, commits: Vec<Commit>) -> Result<(), Error> {
        let tenant = tenant.clone();
        self.write(|answer| Command::Commit {
            tenant,
            commits,
            answer,
        })
        .await
    }

    async fn claim(
        &self,
        now_ms: i64,
        lease_ms: i64,
        wanted: &mut Wanted<'_>,
    ) -> Result<Claimed, Error> {
        self.shared.check()?;
        let ends_ms = now_ms.saturating_add(lease_ms);
        let (mut from, mut taken) = (Bound::Unbounded, Vec::new());
        let next_ms = loop {
            let step = (self.shared.due()).claim(now_ms, ends_ms, wanted, &mut from, &mut taken);
            match step {
                Step::Done(next_ms) => break next_ms,
                Step::Load(line, after) => {
                    self.read(move |shared| shared.load_due(&line, after))
                        .await?;
                }
            }
        };
        let fresh = {
            let mut fresh = self.shared.fresh();
            let taken = taken.iter();
            taken.map(|(_, key)| fresh.pop(&key.1)).collect::<Vec<_>>()
        };
        let deliveries = if fresh.iter().all(Option::is_some) {
            fresh.into_iter().flatten().collect()
        } else {
            self.read(move |shared| shared.deliveries(taken, fresh))
                .await?
        };
        Ok(Claimed {
            deliveries,
            next_ms,
        })
    }

    async fn settle(
        &self,
        id: DeliveryId,
        attempt: Attempt,
        settlement: Settlement,
    ) -> Result<(), Error> {
        self.write(|answer| Command::Settle {
            id,
            attempt,
            settlement,
            answer,
        })
        .await
    }

    async fn next_due(&self) -> Result<Option<i64>, Error> {
        self.shared.check()?;
        loop {
            let next = self.shared.due().next();
            match next {
                Ok(next_ms) => return Ok(next_ms),
                Err((line, after)) => {
                    self.read(move |shared| shared.load_due(&line, after))
                        .await?;
                }
            }
        }
    }

    fn deliveries_changed(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.changed)
    }

    async fn held(
        &self,
        tenant: Option<&Name>,
        after: Option<&(EventId, Name)>,
        limit: usize,
    ) -> Result<Vec<Held>, Error> {
        let (tenant, after) = (tenant.cloned(), after.cloned());
        self.read(move |shared| {
            let keys = shared.held(tenant, after.as_ref(), limit)?;
            let rows = keys.into_iter().map(|key| shared.row(&key));
            rows.filter_map(Result::transpose).collect()
        })
        .await
    }

    async fn resolve_held(
        &self,
        tenant: &Name,
        decision: DecisionRecord,
        deliveries: Vec<Delivery>,
    ) -> Result<bool, Error> {
        let (tenant, decision) = (tenant.clone(), Box::new(decision));
        self.write(|answer| Command::ResolveHeld {
            tenant,
            decision,
            deliveries,
            answer,
        })
        .await
    }

    async fn dead(&self, which: &Which, limit: usize) -> Result<DeadPage, Error> {
        let which = which.clone();
        self.read(move |shared| shared.dead(&which, limit)).await
    }

    async fn redrive(&self, id: DeliveryId, now_ms: i64) -> Result<Option<Delivery>, Error> {
        self.write(|answer| Command::Redrive { id, now_ms, answer })
            .await
    }

    async fn acknowledge(&self, id: DeliveryId, now_ms: i64) -> Result<Acknowledgement, Error> {
        self.write(|answer| Command::Acknowledge { id, now_ms, answer })
            .await
    }

    async fn delivery(&self, id: DeliveryId) -> Result<Option<Delivery>, Error> {
        self.read(move |shared| shared.delivery(id)).await
    }

    async fn switch(&self, line: &Line, disabled: Option<Disabled>) -> Result<(), Error> {
        let line = line.clone();
        self.write(|answer| Command::Switch {
            line,
            disabled,
            answer,
        })
        .await
    }

    async fn disabled(&self) -> Result<Vec<(Line, Disabled)>, Error> {
        self.read(|shared| {
            let from = Bound::Included(vec![keys::CHANNEL]);
            let rows = shared.range(from, vec![keys::CHANNEL + 1]);
            rows.map(|row| {
                let (key, value) = row?;
                let line = keys::line(&key);
                let line = line.ok_or_else(|| shared.bad_row(&key, "no channel in its key"))?;
                Ok((line, shared.decode(&key, &value)?))
            })
            .collect()
        })
        .await
    }

    async fn story(&self, id: EventId) -> Result<Option<Story>, Error> {
        self.read(move |shared| shared.story(id)).await
    }

    async fn stories(&self, tenant: &Name, seek: Seek, limit: usize) -> Result<Vec<Story>, Error> {
        let tenant = tenant.clone();
        self.read(move |shared| shared.stories(&tenant, seek, limit))
            .await
    }
}

impl Shared {
    fn check(&self) -> Result<(), Error> {
        self.broken.get().cloned().map_or(Ok(()), Err)
    }

    /// Ends the store's work. The first cause is the one that is told from then on.
    fn broken(&self, cause: impl Into<Cause>) -> Error {
        let path = self.path.clone();
        self.broken
            .get_or_init(|| match cause.into() {
                Cause::Failed(error) => Error::Broken { path, error },
                Cause::Damaged(what) => {
                    folder::remember_damage(&path, &what);
                    Error::Damaged { path, what }
                }
            })
            .clone()
    }

    fn bad_row(&self, key: &[u8], error: impl Display) -> Error {
        Error::Row {
            path: self.path.clone(),
            row: key.escape_ascii().to_string(),
            error: error.to_string(),
        }
    }

    /// Every change under this lock is whole before anything in it can panic.
    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, Error> {
        self.db.get(key).map_err(|error| self.broken(error))
    }

    fn row<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Error> {
        match self.get(key)? {
            Some(first) => self.decode(key, &first).map(Some),
            None => Ok(None),
        }
    }

    fn decode<T: DeserializeOwned>(&self, key: &[u8], first: &[u8]) -> Result<T, Error> {
        keys::decode(key, first, |piece| self.get(piece))?.map_err(|error| self.bad_row(key, error))
    }

    fn range(
        &self,
        from: Bound<Vec<u8>>,
        to: Vec<u8>,
    ) -> impl DoubleEndedIterator<Item = Result<(IVec, IVec), Error>> {
        self.db
            .range((from, Bound::Excluded(to)))
            .map(|row| row.map_err(|error| self.broken(error)))
    }

    fn cursor(&self, tenant: &Name) -> Result<Option<EventId>, Error> {
        let row = self.get(&keys::cursor(tenant))?;
        Ok(row.and_then(|row| keys::last_id(&row)).map(EventId))
    }

    fn backlog(
        &self,
        tenant: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, Error> {
        let from = match after.max(self.cursor(tenant)?) {
            Some(after) => Bound::Excluded(keys::event(tenant, after)),
            None => Bound::Included(keys::of_tenant(keys::EVENT, tenant)),
        };
        self.range(from, keys::after_tenant(keys::EVENT, tenant))
            .take(limit)
            .map(|row| row.and_then(|(key, value)| self.decode(&key, &value)))
            .collect()
    }

    /// The tenants that have rows of a kind: one seek each, since a tenant's rows stand together.
    fn tenants(&self, kind: u8) -> Result<Vec<Name>, Error> {
        let mut tenants = Vec::new();
        let mut from = vec![kind];
        while let Some(tenant) = self.next_tenant(kind, from)? {
            from = keys::after_tenant(kind, &tenant);
            tenants.push(tenant);
        }
        Ok(tenants)
    }

    /// The first tenant that has rows of a kind from a key on.
    fn next_tenant(&self, kind: u8, from: Vec<u8>) -> Result<Option<Name>, Error> {
        let mut rows = self.range(Bound::Included(from), vec![kind + 1]);
        let Some((key, _)) = rows.next().transpose()? else {
            return Ok(None);
        };
        let tenant = keys::tenant(&key);
        tenant
            .map(Some)
            .ok_or_else(|| self.bad_row(&key, "no tenant in its key"))
    }

    /// An id does not say whose event it is, so every tenant's log is asked. This is for a person
    /// who looks, and what a thousand tenants cost then is a few milliseconds; an index would cost
    /// every event a row.
    fn event(&self, id: EventId) -> Result<Option<StoredEvent>, Error> {
        for tenant in self.tenants(keys::EVENT)? {
            if let Some(event) = self.row(&keys::event(&tenant, id))? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn story(&self, id: EventId) -> Result<Option<Story>, Error> {
        let event = self.event(id)?;
        event.map(|event| self.story_of(event)).transpose()
    }

    fn stories(&self, tenant: &Name, seek: Seek, limit: usize) -> Result<Vec<Story>, Error> {
        let first = Bound::Included(keys::of_tenant(keys::EVENT, tenant));
        let last = keys::after_tenant(keys::EVENT, tenant);
        let event = |row: Result<(IVec, IVec), Error>| {
            row.and_then(|(key, value)| self.decode::<StoredEvent>(&key, &value))
        };
        let events: Vec<_> = match seek {
            Seek::Before(before) => {
                let last = before.map_or(last, |before| keys::event(tenant, before));
                let rows = self.range(first, last);
                rows.rev().take(limit).map(event).collect()
            }
            Seek::After(after) => {
                let first = Bound::Excluded(keys::event(tenant, after));
                self.range(first, last).take(limit).map(event).collect()
            }
        };
        let stories = events.into_iter().map(|event| self.story_of(event?));
        stories.collect()
    }

    fn story_of(&self, event: StoredEvent) -> Result<Story, Error> {
        let id = event.id;
        // Read first: an event that is committed meanwhile must not be told as decided without what
        // was decided.
        let decided = self.cursor(&event.tenant)?.is_some_and(|last| id <= last);
        let made: Made = self.row(&keys::decisions(id))?.unwrap_or_default();
        let deliveries = made.deliveries.iter().map(|id| {
            let row = self.row::<Row>(&keys::delivery(*id))?;
            Ok(row.map(|row| row.into_delivery(*id, &made)))
        });
        let mut after_held = keys::held_of(&event.tenant, id);
        let held = Bound::Included(after_held.clone());
        after_held.push(0xff); // No name has this byte.
        Ok(Story {
            decided,
            deliveries: deliveries
                .filter_map(Result::transpose)
                .collect::<Result<_, Error>>()?,
            decisions: made.decisions,
            held: self
                .range(held, after_held)
                .map(|row| row.and_then(|(key, value)| self.decode(&key, &value)))
                .collect::<Result<_, _>>()?,
            event,
        })
    }

    /// Keys of held events in the order of what follows the tenant, of one tenant or of all.
    fn held(
        &self,
        tenant: Option<Name>,
        after: Option<&(EventId, Name)>,
        limit: usize,
    ) -> Result<Vec<IVec>, Error> {
        let kind = keys::HELD;
        let tenants = match tenant {
            Some(tenant) => vec![tenant],
            None => self.tenants(kind)?,
        };
        let mut keys = Vec::new();
        for tenant in tenants {
            let start = keys::of_tenant(kind, &tenant);
            let skip = start.len();
            let from = match after {
                Some((event, rule)) => Bound::Excluded(keys::held(&tenant, *event, rule)),
                None => Bound::Included(start),
            };
            let rows = self.range(from, keys::after_tenant(kind, &tenant));
            for row in rows.take(limit) {
                keys.push((skip, row?.0));
            }
        }
        keys.sort_by(|(skip_a, a), (skip_b, b)| a[*skip_a..].cmp(&b[*skip_b..]));
        keys.truncate(limit);
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }

    fn dead(&self, which: &Which, limit: usize) -> Result<DeadPage, Error> {
        let tenants = match &which.tenant {
            Some(tenant) => vec![tenant.clone()],
            None => self.tenants(keys::DEAD)?,
        };
        let mut found = Vec::new();
        for tenant in tenants {
            let from = match which.after {
                Some((at_ms, id)) => Bound::Excluded(keys::dead(&tenant, at_ms, id)),
                None => Bound::Included(keys::of_tenant(keys::DEAD, &tenant)),
            };
            let to = match which.before_ms {
                Some(before_ms) => keys::dead_at(&tenant, before_ms),
                None => keys::after_tenant(keys::DEAD, &tenant),
            };
            if matches!(&from, Bound::Excluded(key) if *key >= to) {
                continue;
            }
            for row in self.range(from, to).take(DEAD_LOOKED_AT_MAX + 1) {
                found.extend(keys::moment_and_id(&row?.0));
            }
        }
        found.sort_unstable();
        let mut page = DeadPage::default();
        for (n, at) in found.iter().enumerate() {
            if page.deliveries.len() == limit || n == DEAD_LOOKED_AT_MAX {
                page.next = n.checked_sub(1).map(|last| found[last]);
                break;
            }
            let delivery = self.delivery(at.1)?;
            page.deliveries
                .extend(delivery.filter(|delivery| which.are_of(delivery)));
        }
        Ok(page)
    }

    fn delivery(&self, id: DeliveryId) -> Result<Option<Delivery>, Error> {
        let Some(row) = self.row::<Row>(&keys::delivery(id))? else {
            return Ok(None);
        };
        let made = self.row(&keys::decisions(row.event))?.unwrap_or_default();
        Ok(Some(row.into_delivery(id, &made)))
    }

    /// What was claimed, and is read from disk where it is not fresh.
    fn deliveries(
        &self,
        taken: Vec<(Line, due::Key)>,
        fresh: Vec<Option<Delivery>>,
    ) -> Result<Vec<Delivery>, Error> {
        let mut deliveries = Vec::with_capacity(taken.len());
        for ((line, key), fresh) in taken.into_iter().zip(fresh) {
            if let Some(fresh) = fresh {
                deliveries.push(fresh);
                continue;
            }
            match self.delivery(key.1)? {
                Some(delivery) if delivery.state == (State::Pending { due_ms: key.0 }) => {
                    deliveries.push(delivery);
                }
                // It was settled in between, by someone whose lease had ended.
                _ => self.due().remove(&line, key),
            }
        }
        Ok(deliveries)
    }

    /// Loads what is due next in a line. The lock is held meanwhile: the writer applies a change before
    /// it tells [`Due`] of it, so neither a new row nor an old one is missed.
    fn load_due(&self, line: &Line, after: due::Key) -> Result<(), Error> {
        let mut due = self.due();
        let from = Bound::Excluded(keys::due(line, after));
        let mut loaded = Vec::new();
        for row in self.range(from, keys::after_line(line)).take(due.room()) {
            loaded.extend(keys::moment_and_id(&row?.0));
        }
        let all = loaded.len() < due.room();
        due.load(line, &loaded, all);
        Ok(())
    }

    /// The lines in which anything waits: one seek each.
    fn lines(&self) -> Result<Vec<Line>, Error> {
        let mut lines = Vec::new();
        let mut from = vec![keys::DUE];
        while let Some(row) = self
            .range(Bound::Included(from), vec![keys::DUE + 1])
            .next()
            .transpose()?
        {
            let line =
                keys::line(&row.0).ok_or_else(|| self.bad_row(&row.0, "no line in its key"))?;
            from = keys::after_line(&line);
            lines.push(line);
        }
        Ok(lines)
    }

    fn fresh(&self) -> MutexGuard<'_, LruCache<DeliveryId, Delivery>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was just added for the claim that comes next.
    fn keep_fresh(&self, added: Vec<Delivery>) {
        let mut fresh = self.fresh();
        for delivery in added {
            let bytes = match &delivery.payload {
                Payload::Message(message) => message.text.len(),
                Payload::Body(body) => body.as_bytes().len(),
            };
            if bytes <= FRESH_BYTES_MAX {
                fresh.put(delivery.id, delivery);
            }
        }
    }

    /// The greatest id that was ever given out: the last one of some tenant, or a cursor.
    fn greatest_id(&self) -> Result<Option<EventId>, Error> {
        let mut greatest = None;
        for tenant in self.tenants(keys::EVENT)? {
            let all =
                keys::of_tenant(keys::EVENT, &tenant)..keys::after_tenant(keys::EVENT, &tenant);
            let last = self.db.range(all).next_back().transpose();
            let last = last.map_err(|error| self.broken(error))?;
            greatest = greatest.max(last.and_then(|row| keys::last_id(&row.0)));
        }
        for tenant in self.tenants(keys::CURSOR)? {
            greatest = greatest.max(self.cursor(&tenant)?.map(|id| id.0));
        }
        Ok(greatest.map(EventId))
    }
}
