//! What is over: sweeping out old events, and what the store takes.
//!
//! An event that is decided and not held, and of whose deliveries none waits or is a dead letter, never
//! changes again. So it can be looked for away from the writer, which then removes the rows that were
//! found without looking again.

use super::writer::Command;
use super::{Shared, SledStore, keys};
use crate::id::{DeliveryId, EventId, Name};
use crate::store::{Error, History, Mark, State, Swept, TransferError, Usage, moment_ms};
use async_trait::async_trait;
use serde::Deserialize;
use sled::IVec;
use std::collections::HashMap;
use std::io::Write;
use std::ops::Bound;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// How many events one step of a sweep looks at: about a thousand rows, which one flush takes with it. With
/// fewer, a slow disk would let a sweep forget less than comes in.
const STEP_EVENTS: usize = 256;

/// As much of a row of decisions as a sweep wants.
#[derive(Default, Deserialize)]
struct Deliveries {
    deliveries: Vec<DeliveryId>,
}

/// As much of a delivery's row as a sweep wants.
#[derive(Deserialize)]
struct Stands {
    state: State,
}

#[async_trait]
impl History for SledStore {
    async fn purge(&self, ids: Vec<DeliveryId>) -> Result<usize, Error> {
        self.write(|answer| Command::Purge { ids, answer }).await
    }

    async fn forget(
        &self,
        before_ms: i64,
        only: Option<&Name>,
        from: Option<Mark>,
    ) -> Result<Swept, Error> {
        let only = only.cloned();
        let found = self
            .read(move |shared| shared.over(before_ms, only.as_ref(), from))
            .await?;
        if !found.rows.is_empty() {
            let rows = found.rows;
            self.write(|answer| Command::Remove { rows, answer })
                .await?;
        }
        Ok(Swept {
            seen: found.seen,
            forgotten: found.events,
            next: found.next,
        })
    }

    async fn usage(&self) -> Result<Usage, Error> {
        self.read(Shared::usage).await
    }

    async fn backup(&self, to: Box<dyn Write + Send>, now_ms: i64) -> Result<u64, TransferError> {
        self.copy(to, now_ms).await
    }
}

/// As much of a delivery's row as says whose it is.
#[derive(Deserialize)]
struct Whose {
    tenant: Name,
}

/// What can be removed.
#[derive(Default)]
struct Over {
    seen: usize,
    events: usize,
    rows: Vec<(Name, Vec<u8>)>,
    next: Option<Mark>,
}

impl Shared {
    /// Looks at the next events that came in before this moment.
    fn over(&self, before_ms: i64, only: Option<&Name>, from: Option<Mark>) -> Result<Over, Error> {
        let mut over = Over::default();
        let mut place = match from.as_ref().map(|mark| &mark.tenant).or(only) {
            Some(tenant) => keys::of_tenant(keys::EVENT, tenant),
            None => vec![keys::EVENT],
        };
        while let Some(tenant) = self.next_tenant(keys::EVENT, place)? {
            if only.is_some_and(|only| *only != tenant) {
                break;
            }
            place = keys::after_tenant(keys::EVENT, &tenant);
            let Some(last) = self.cursor(&tenant)? else {
                continue;
            };
            let begin = match from.as_ref().filter(|mark| mark.tenant == tenant) {
                Some(mark) => Bound::Excluded(keys::event(&tenant, mark.event)),
                None => Bound::Included(keys::of_tenant(keys::EVENT, &tenant)),
            };
            for row in self.range(begin, keys::after_tenant(keys::EVENT, &tenant)) {
                let (key, value) = row?;
                let Some(event) = keys::last_id(&key).map(EventId) else {
                    return Err(self.bad_row(&key, "no event in its key"));
                };
                if event > last || moment_ms(event) >= before_ms {
                    break;
                }
                if over.seen == STEP_EVENTS {
                    return Ok(over);
                }
                over.seen += 1;
                if self.add_over(&mut over.rows, &tenant, event)? {
                    over.events += 1;
                    let rows = &mut over.rows;
                    keys::pieces(&key, &value, |piece| rows.push((tenant.clone(), piece)));
                    rows.push((tenant.clone(), key.to_vec()));
                }
                over.next = Some(Mark {
                    tenant: tenant.clone(),
                    event,
                });
            }
        }
        over.next = None;
        Ok(over)
    }

    /// Adds the rows of what was made of an event; `false`, and none, when something can still change.
    fn add_over(
        &self,
        rows: &mut Vec<(Name, Vec<u8>)>,
        tenant: &Name,
        event: EventId,
    ) -> Result<bool, Error> {
        let held = keys::held_of(tenant, event);
        let mut after_held = held.clone();
        after_held.push(0xff); // No name has this byte.
        if (self.range(Bound::Included(held), after_held).next())
            .transpose()?
            .is_some()
        {
            return Ok(false);
        }
        let key = keys::decisions(event);
        let Some(value) = self.get(&key)? else {
            return Ok(true); // No rule was asked.
        };
        let made: Deliveries = self.decode(&key, &value)?;
        let before = rows.len();
        let add = |rows: &mut Vec<_>, key: Vec<u8>, value: &IVec| {
            keys::pieces(&key, value, |piece| rows.push((tenant.clone(), piece)));
            rows.push((tenant.clone(), key));
        };
        for delivery in made.deliveries {
            let key = keys::delivery(delivery);
            let Some(value) = self.get(&key)? else {
                continue;
            };
            let stands: Stands = self.decode(&key, &value)?;
            if !stands.state.is_final() {
                rows.truncate(before);
                return Ok(false);
            }
            add(rows, key, &value);
        }
        // What takes a delivery up again, or falls back on another channel, adds one to the event in the
        // same step in which the old one becomes final.
        if self.get(&key)?.as_ref() != Some(&value) {
            rows.truncate(before);
            return Ok(false);
        }
        add(rows, key, &value);
        Ok(true)
    }

    /// What the rows take, as they say themselves; a store that does not say it is read once.
    pub(super) fn counted_bytes(&self) -> Result<i64, Error> {
        let row = self.get(keys::LIVE_BYTES)?;
        if let Some(bytes) = row.and_then(|row| row.first_chunk::<8>().copied()) {
            return Ok(i64::from_be_bytes(bytes));
        }
        let mut counted = 0;
        for row in self.db.iter() {
            let (key, value) = row.map_err(|error| self.broken(error))?;
            let size = key.first() == Some(&keys::STORED_BYTES);
            if *key != *keys::FORMAT && !size {
                counted += (key.len() + value.len()) as i64;
            }
        }
        Ok(counted)
    }

    /// What each tenant stores, as the rows say; where none does, all are read once.
    pub(super) fn load_stored_bytes(&self) -> Result<(), Error> {
        let mut bytes: HashMap<Name, i64> = HashMap::new();
        let said = Bound::Included(vec![keys::STORED_BYTES]);
        for row in self.range(said, vec![keys::STORED_BYTES + 1]) {
            let (key, value) = row?;
            if let (Some(tenant), Some(said)) = (keys::tenant(&key), value.first_chunk::<8>()) {
                bytes.insert(tenant, i64::from_be_bytes(*said));
            }
        }
        if bytes.is_empty() {
            for row in self.db.iter() {
                let (key, value) = row.map_err(|error| self.broken(error))?;
                // Decisions do not say whose they are; those of an older store are not counted.
                let of = match key.first() {
                    Some(&keys::DELIVERY) => Some(self.decode::<Whose>(&key, &value)?.tenant),
                    _ => None,
                };
                if let Some(tenant) = keys::owner(&key, of.as_ref()) {
                    *bytes.entry(tenant).or_default() += (key.len() + value.len()) as i64;
                }
            }
        }
        self.set_stored_bytes(bytes);
        Ok(())
    }

    /// What these tenants store with so much more each.
    pub(super) fn with_more(&self, mut more: HashMap<Name, i64>) -> HashMap<Name, i64> {
        let bytes = self.stored_bytes.read();
        let bytes = bytes.unwrap_or_else(PoisonError::into_inner);
        for (tenant, more) in &mut more {
            *more += bytes.get(tenant).copied().unwrap_or(0);
        }
        more
    }

    pub(super) fn set_stored_bytes(&self, new: HashMap<Name, i64>) {
        let bytes = self.stored_bytes.write();
        bytes.unwrap_or_else(PoisonError::into_inner).extend(new);
    }

    fn usage(&self) -> Result<Usage, Error> {
        let file_bytes = self.db.size_on_disk();
        let file_bytes = file_bytes.map_err(|error| self.broken(error))?;
        let mut oldest = None;
        for tenant in self.tenants(keys::EVENT)? {
            let from = Bound::Included(keys::of_tenant(keys::EVENT, &tenant));
            let mut events = self.range(from, keys::after_tenant(keys::EVENT, &tenant));
            let first = events.next().transpose()?;
            let id = first.and_then(|(key, _)| keys::last_id(&key)).map(EventId);
            oldest = oldest.into_iter().chain(id).min();
        }
        Ok(Usage {
            live_bytes: self.live_bytes.load(Ordering::Relaxed).max(0) as u64,
            file_bytes,
            oldest_ms: oldest.map(moment_ms),
        })
    }
}
