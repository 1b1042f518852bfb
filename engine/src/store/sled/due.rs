//! Which deliveries are due, and which are out on a lease: the part of the outbox that is in memory.
//!
//! Deliveries wait in lines, one for each channel of a tenant, so that a line that nobody may take from
//! costs the others nothing. The due rows on disk hold every pending delivery. This holds the earliest
//! of each line, up to `loaded_max`, so that a claim neither reads rows that are out on a lease again
//! and again, nor does memory grow with what waits. Invariant: every pending delivery that is not leased
//! and not after its line's `horizon` is in `ready`.
//!
//! Leases are here alone. One process has the store open, so all leases end with it.

use crate::id::DeliveryId;
use crate::store::{Line, Wanted};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;

/// A pending delivery, by when it falls due.
pub(super) type Key = (i64, DeliveryId);

#[derive(Debug)]
pub(super) struct Due {
    lines: HashMap<Line, Queue>,
    /// Every line that has something ready or may have, by when: what is not loaded may be due.
    order: BTreeSet<(i64, Line)>,
    leases: HashMap<DeliveryId, Lease>,
    ends: BTreeSet<Key>,
    /// Being changed by the writer: not given out meanwhile.
    frozen: HashSet<DeliveryId>,
    loaded_max: usize,
}

#[derive(Debug, Default)]
struct Queue {
    ready: BTreeSet<Key>,
    /// How far the rows on disk are known; `None` when all are.
    horizon: Option<Key>,
}

#[derive(Debug)]
struct Lease {
    ends_ms: i64,
    due_ms: i64,
    line: Line,
}

/// What a claim needs next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The rows of this line after the key.
    Load(Line, Key),
    /// It is done; when to claim again unless something changes.
    Done(Option<i64>),
}

impl Due {
    /// Nothing is known yet of what is on disk in these lines.
    pub(super) fn new(loaded_max: usize, lines: impl IntoIterator<Item = Line>) -> Self {
        let mut due = Self {
            lines: HashMap::new(),
            order: BTreeSet::new(),
            leases: HashMap::new(),
            ends: BTreeSet::new(),
            frozen: HashSet::new(),
            loaded_max,
        };
        for line in lines {
            let queue = Queue {
                ready: BTreeSet::new(),
                horizon: Some((i64::MIN, DeliveryId(uuid::Uuid::nil()))),
            };
            due.order.extend(queue.first().map(|at| (at, line.clone())));
            due.lines.insert(line, queue);
        }
        due
    }

    /// A delivery became pending, or its lease ended.
    pub(super) fn put(&mut self, line: &Line, key: Key) {
        let loaded_max = self.loaded_max;
        self.change(line, |queue| {
            if queue.horizon.is_some_and(|horizon| key > horizon) {
                return; // It is on disk, and loaded in its turn.
            }
            queue.ready.insert(key);
            if queue.ready.len() > loaded_max {
                queue.ready.pop_last();
                queue.horizon = queue.ready.last().copied();
            }
        });
    }

    /// A delivery is no longer pending at this moment.
    pub(super) fn remove(&mut self, line: &Line, key: Key) {
        self.change(line, |queue| {
            queue.ready.remove(&key);
        });
        if let Some(lease) = self.leases.remove(&key.1) {
            self.ends.remove(&(lease.ends_ms, key.1));
        }
    }

    /// Changes a line and keeps its place in the order.
    fn change(&mut self, line: &Line, change: impl FnOnce(&mut Queue)) {
        if !self.lines.contains_key(line) {
            self.lines.insert(line.clone(), Queue::default());
        }
        let Some(queue) = self.lines.get_mut(line) else {
            return;
        };
        let before = queue.first();
        change(queue);
        let after = queue.first();
        if before != after {
            if let Some(at) = before {
                self.order.remove(&(at, line.clone()));
            }
            match after {
                Some(at) => {
                    self.order.insert((at, line.clone()));
                }
                None => {
                    self.lines.remove(line);
                }
            }
        } else if after.is_none() {
            self.lines.remove(line);
        }
    }

    /// How many rows to load.
    pub(super) fn room(&self) -> usize {
        self.loaded_max
    }

    /// The next rows of a line after its horizon, in order; `all` when there are no more.
    pub(super) fn load(&mut self, line: &Line, keys: &[Key], all: bool) {
        let leases = std::mem::take(&mut self.leases);
        self.change(line, |queue| {
            let fresh = keys.iter().filter(|key| !leases.contains_key(&key.1));
            queue.ready.extend(fresh);
            match keys.last() {
                _ if all => queue.horizon = None,
                Some(last) => queue.horizon = Some(*last),
                None => {}
            }
        });
        self.leases = leases;
    }

    /// Ends the leases that are over.
    fn expire(&mut self, now_ms: i64) {
        while let Some(&(ends, id)) = self.ends.first()
            && ends <= now_ms
        {
            self.ends.pop_first();
            if let Some(lease) = self.leases.remove(&id) {
                self.put(&lease.line, (lease.due_ms, id));
            }
        }
    }

    /// Takes what is due, earliest first, from the lines that are wanted, until rows must be loaded or
    /// nothing is left. `from` is how far it came: a line that was not wanted is not asked about again.
    pub(super) fn claim(
        &mut self,
        now_ms: i64,
        ends_ms: i64,
        wanted: &mut Wanted<'_>,
        from: &mut Bound<(i64, Line)>,
        taken: &mut Vec<(Line, Key)>,
    ) -> Step {
        self.expire(now_ms);
        loop {
            // A line that was taken from comes back in the order where it was, or later.
            let mut next = self.order.range((from.clone(), Bound::Unbounded));
            let Some((at_ms, line)) = next.next().cloned() else {
                return Step::Done(self.ends.first().map(|end| end.0));
            };
            if at_ms > now_ms {
                let lease = self.ends.first().map_or(i64::MAX, |end| end.0);
                return Step::Done(Some(at_ms.min(lease)));
            }
            let queue = &self.lines[&line];
            if queue.ready.is_empty() {
                match queue.horizon {
                    Some(horizon) => return Step::Load(line, horizon),
                    // A line without both is not in the order.
                    None => return Step::Done(None),
                }
            }
            let mut keys = queue.ready.iter();
            let key = keys.find(|key| !self.frozen.contains(&key.1)).copied();
            let key = key.filter(|key| key.0 <= now_ms);
            match key {
                Some(key) if wanted(&line) => {
                    self.change(&line, |queue| {
                        queue.ready.remove(&key);
                    });
                    let lease = Lease {
                        ends_ms,
                        due_ms: key.0,
                        line: line.clone(),
                    };
                    self.leases.insert(key.1, lease);
                    self.ends.insert((ends_ms, key.1));
                    taken.push((line, key));
                }
                // Not wanted, or all that is due is being changed: the change will tell.
                _ => {
                    *from = Bound::Excluded((at_ms, line));
                }
            }
        }
    }

    /// When the next delivery that nobody holds falls due or a lease ends; a line of which nothing is
    /// loaded has to be loaded first.
    pub(super) fn next(&self) -> Result<Option<i64>, (Line, Key)> {
        if let Some((_, line)) = self.order.first() {
            let queue = &self.lines[line];
            if let (true, Some(horizon)) = (queue.ready.is_empty(), queue.horizon) {
                return Err((line.clone(), horizon));
            }
        }
        let ready = self.order.first().map(|first| first.0);
        let lease = self.ends.first().map(|end| end.0);
        Ok(ready.into_iter().chain(lease).min())
    }

    /// Keeps a delivery from being given out while it is changed; `false` when it is out already.
    pub(super) fn freeze(&mut self, id: DeliveryId) -> bool {
        if self.leases.contains_key(&id) {
            return false;
        }
        self.frozen.insert(id);
        true
    }

    pub(super) fn thaw(&mut self, id: DeliveryId) {
        self.frozen.remove(&id);
    }
}

impl Queue {
    /// When something in it falls due, or may.
    fn first(&self) -> Option<i64> {
        match (self.ready.first(), self.horizon) {
            (Some(first), _) => Some(first.0),
            (None, Some(horizon)) => Some(horizon.0),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        (i64::from(n), DeliveryId(uuid::Uuid::from_u128(n.into())))
    }

    fn line(channel: &str) -> Line {
        Line {
            tenant: "octo".parse().unwrap(),
            channel: channel.parse().unwrap(),
        }
    }

    /// What the store does: loads from the rows on disk whenever it must. Takes one.
    fn take(due: &mut Due, disk: &BTreeSet<Key>, now_ms: i64) -> Option<Key> {
        let (mut from, mut taken) = (Bound::Unbounded, Vec::new());
        let mut left = 1;
        loop {
            let mut wanted = |_: &Line| std::mem::replace(&mut left, 0) > 0;
            let ends_ms = now_ms + 1_000;
            match due.claim(now_ms, ends_ms, &mut wanted, &mut from, &mut taken) {
                Step::Load(line, horizon) => load(due, disk, &line, horizon),
                Step::Done(_) => return taken.first().map(|(_, key)| *key),
            }
        }
    }

    fn load(due: &mut Due, disk: &BTreeSet<Key>, line: &Line, horizon: Key) {
        let after = disk.iter().filter(|key| **key > horizon);
        let keys: Vec<_> = after.take(due.room()).copied().collect();
        due.load(line, &keys, keys.len() < due.room());
    }

    #[test]
    fn what_does_not_fit_in_memory_is_loaded_in_its_turn() {
        let mut disk: BTreeSet<_> = (10..30).map(key).collect();
        let mut due = Due::new(4, [line("a")]);
        assert_eq!(take(&mut due, &disk, 100), Some(key(10)));
        // An earlier one pushes the latest out of memory, not out of the queue.
        for n in 0..6 {
            disk.insert(key(n));
            due.put(&line("a"), key(n));
        }
        let expected = (0..6).chain(11..30).map(key);
        for expected in expected {
            assert_eq!(take(&mut due, &disk, 100), Some(expected));
        }
        assert_eq!(take(&mut due, &disk, 100), None);
        assert_eq!(due.next(), Ok(Some(1_100)));
        // All leases end: the earliest comes first again.
        assert_eq!(take(&mut due, &disk, 1_100), Some(key(0)));
    }

    #[test]
    fn what_is_settled_does_not_come_back() {
        let mut disk = BTreeSet::from([key(1), key(2)]);
        let mut due = Due::new(4, [line("a")]);
        assert_eq!(take(&mut due, &disk, 5), Some(key(1)));
        disk.remove(&key(1));
        due.remove(&line("a"), key(1));
        assert_eq!(take(&mut due, &disk, 5_000), Some(key(2)));
        assert_eq!(take(&mut due, &disk, 5_000), None);
    }

    #[test]
    fn lines_are_taken_from_earliest_first_and_only_where_wanted() {
        let mut due = Due::new(4, []);
        for (channel, n) in [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 90)] {
            due.put(&line(channel), key(n));
        }
        let (mut from, mut taken) = (Bound::Unbounded, Vec::new());
        let mut wanted = |of: &Line| *of != line("a");
        let done = due.claim(50, 60, &mut wanted, &mut from, &mut taken);
        assert_eq!(taken, [(line("b"), key(2)), (line("c"), key(4))]);
        // The lease ends before the next one that could be taken.
        assert_eq!(done, Step::Done(Some(60)));
        assert_eq!(due.next(), Ok(Some(1)));
    }

    #[test]
    fn what_is_being_changed_is_not_given_out() {
        let mut due = Due::new(4, []);
        let nothing = BTreeSet::new();
        due.put(&line("a"), key(1));
        assert!(due.freeze(key(1).1));
        assert_eq!(take(&mut due, &nothing, 5), None);
        due.thaw(key(1).1);
        assert_eq!(take(&mut due, &nothing, 5), Some(key(1)));
        assert!(!due.freeze(key(1).1), "it is out");
    }
}
