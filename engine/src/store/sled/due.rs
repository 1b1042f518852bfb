//! Which deliveries are due, and which are out on a lease: the part of the outbox that is in memory.
//!
//! The due rows on disk hold every pending delivery. This holds the earliest of them, up to
//! `loaded_max`, so that a claim neither reads rows that are out on a lease again and again, nor does
//! memory grow with what waits. Invariant: every pending delivery that is not leased and not after
//! `horizon` is in `ready`.
//!
//! Leases are here alone. One process has the store open, so all leases end with it.

use crate::id::DeliveryId;
use std::collections::{BTreeSet, HashMap};

/// A pending delivery, by when it falls due.
pub(super) type Key = (i64, DeliveryId);

#[derive(Debug)]
pub(super) struct Due {
    ready: BTreeSet<Key>,
    /// How far the rows on disk are known; `None` when all are.
    horizon: Option<Key>,
    /// When the lease ends, and when the delivery fell due.
    leases: HashMap<DeliveryId, (i64, i64)>,
    ends: BTreeSet<(i64, DeliveryId)>,
    loaded_max: usize,
}

impl Due {
    /// Nothing is known yet of what is on disk.
    pub(super) fn new(loaded_max: usize) -> Self {
        Self {
            ready: BTreeSet::new(),
            horizon: Some((i64::MIN, DeliveryId(uuid::Uuid::nil()))),
            leases: HashMap::new(),
            ends: BTreeSet::new(),
            loaded_max,
        }
    }

    /// A delivery became pending, or its lease ended.
    pub(super) fn put(&mut self, key: Key) {
        if self.horizon.is_some_and(|horizon| key > horizon) {
            return; // It is on disk, and loaded in its turn.
        }
        self.ready.insert(key);
        if self.ready.len() > self.loaded_max {
            self.ready.pop_last();
            self.horizon = self.ready.last().copied();
        }
    }

    /// A delivery is no longer pending at this moment.
    pub(super) fn remove(&mut self, key: Key) {
        self.ready.remove(&key);
        if let Some((ends, _)) = self.leases.remove(&key.1) {
            self.ends.remove(&(ends, key.1));
        }
    }

    /// The horizon, when rows beyond it are needed to know what is due first.
    pub(super) fn wants(&self) -> Option<Key> {
        self.horizon.filter(|_| self.ready.is_empty())
    }

    /// How many rows to load.
    pub(super) fn room(&self) -> usize {
        self.loaded_max
    }

    /// The next rows after the horizon, in order; `all` when there are no more.
    pub(super) fn load(&mut self, keys: &[Key], all: bool) {
        let fresh = keys.iter().filter(|key| !self.leases.contains_key(&key.1));
        self.ready.extend(fresh);
        match keys.last() {
            _ if all => self.horizon = None,
            Some(last) => self.horizon = Some(*last),
            None => {}
        }
    }

    /// Ends the leases that are over.
    pub(super) fn expire(&mut self, now_ms: i64) {
        while let Some(&(ends, id)) = self.ends.first()
            && ends <= now_ms
        {
            self.ends.pop_first();
            if let Some((_, due_ms)) = self.leases.remove(&id) {
                self.put((due_ms, id));
            }
        }
    }

    /// Takes the earliest delivery that is due.
    pub(super) fn take(&mut self, now_ms: i64, ends_ms: i64) -> Option<Key> {
        let key = *self.ready.first().filter(|key| key.0 <= now_ms)?;
        self.ready.remove(&key);
        self.leases.insert(key.1, (ends_ms, key.0));
        self.ends.insert((ends_ms, key.1));
        Some(key)
    }

    /// When the next delivery falls due or a lease ends.
    pub(super) fn next(&self) -> Option<i64> {
        let ready = self.ready.first().map(|key| key.0);
        let lease = self.ends.first().map(|end| end.0);
        ready.into_iter().chain(lease).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        (i64::from(n), DeliveryId(uuid::Uuid::from_u128(n.into())))
    }

    /// What the store does: loads from the rows on disk whenever it must.
    fn take(due: &mut Due, disk: &BTreeSet<Key>, now_ms: i64) -> Option<Key> {
        due.expire(now_ms);
        while let Some(horizon) = due.wants() {
            let keys: Vec<_> = disk
                .iter()
                .filter(|key| **key > horizon)
                .take(due.room())
                .copied()
                .collect();
            due.load(&keys, keys.len() < due.room());
        }
        due.take(now_ms, now_ms + 1_000)
    }

    #[test]
    fn what_does_not_fit_in_memory_is_loaded_in_its_turn() {
        let mut disk: BTreeSet<_> = (10..30).map(key).collect();
        let mut due = Due::new(4);
        assert_eq!(take(&mut due, &disk, 100), Some(key(10)));
        // An earlier one pushes the latest out of memory, not out of the queue.
        for n in 0..6 {
            disk.insert(key(n));
            due.put(key(n));
        }
        let expected = (0..6).chain(11..30).map(key);
        for expected in expected {
            assert_eq!(take(&mut due, &disk, 100), Some(expected));
        }
        assert_eq!(take(&mut due, &disk, 100), None);
        assert_eq!(due.next(), Some(1_100));
        // All leases end: the earliest comes first again.
        assert_eq!(take(&mut due, &disk, 1_100), Some(key(0)));
    }

    #[test]
    fn what_is_settled_does_not_come_back() {
        let mut disk = BTreeSet::from([key(1), key(2)]);
        let mut due = Due::new(4);
        assert_eq!(take(&mut due, &disk, 5), Some(key(1)));
        disk.remove(&key(1));
        due.remove(key(1));
        assert_eq!(take(&mut due, &disk, 5_000), Some(key(2)));
        assert_eq!(take(&mut due, &disk, 5_000), None);
    }
}
