//! The thread that watches turns: it gives the seat of one that is overdue to a spare thread, and gives
//! up one that does not come back.
//!
//! It sleeps without an end while nothing runs. Who begins a turn wakes it only when it sleeps so, or for
//! longer than until that turn would be overdue; while turns follow each other it looks each [`OVERDUE`],
//! however many there are.
//!
//! A turn counts for lost by the time that this thread has seen pass: a process that stood still, because
//! it was stopped or its machine was, has lost nobody.

use super::{LostThread, OVERDUE, Shared, State, spawn};
use crate::clock::now_ms;
use crate::id::Name;
use crate::sandbox::Limits;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// By how much a look may come late before the time beyond it counts as standing still.
const LATE_MAX: Duration = Duration::from_millis(200);

/// How long it waits before it asks the system for a thread again that it did not give.
const NO_THREAD_PAUSE: Duration = Duration::from_secs(1);

/// How many times its wall clock a run may take before it counts for lost: once for reading the
/// configuration, once for the event, and once for all that the watchdog does not bound, such as loading
/// code and putting back.
const LOST_WALL_CLOCKS: u32 = 3;

/// And so much beyond it, which is many times what starting takes on a machine that is overloaded.
const LOST_BEYOND: Duration = Duration::from_secs(2);

/// After what time a run within these limits counts for lost.
pub(crate) fn lost_after(limits: &Limits) -> Duration {
    Duration::from_millis(limits.wall_clock_ms)
        .saturating_mul(LOST_WALL_CLOCKS)
        .saturating_add(LOST_BEYOND)
}

/// What the watching thread knows.
#[derive(Default)]
pub(super) struct Watch {
    /// When it looks next; `None` while it sleeps without an end.
    due: Option<Instant>,
    /// Whether a turn began since it looked last.
    begun: bool,
    /// How much time it has seen pass.
    seen: Duration,
    /// How often it woke up.
    pub(super) looks: u64,
    /// The last thread was refused by the system.
    refused: bool,
}

/// A run that is overdue, and since when, in the time that was seen.
#[derive(Clone, Copy)]
pub(super) struct Watched {
    step: u64,
    since: Duration,
}

/// What a look came to.
struct Look {
    /// Threads that have a seat and are to be started.
    start: Vec<usize>,
    /// Threads that sleep and have something to do.
    wake: Vec<usize>,
}

impl Watch {
    /// Whether it sleeps without an end.
    #[cfg(test)]
    pub(super) fn sleeps(&self) -> bool {
        self.due.is_none()
    }

    /// A turn begins. Whether the watching thread must be woken for it.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        self.begun = true;
        let due = now + OVERDUE;
        if self.due.is_some_and(|it| it <= due) {
            return false;
        }
        self.due = Some(due);
        true
    }
}

impl Shared {
    /// What the watching thread does until the workers end.
    pub(super) fn watch(self: Arc<Self>) {
        let mut state = self.lock();
        let mut last = Instant::now();
        loop {
            let now = Instant::now();
            // It may have been woken before its time, and then it waits on.
            let due = match state.watch.due {
                _ if state.stopping => return,
                None => {
                    state = (self.watch.wait(state)).unwrap_or_else(PoisonError::into_inner);
                    last = Instant::now();
                    continue;
                }
                Some(due) => due,
            };
            if let Some(left) = due.checked_duration_since(now).filter(|it| !it.is_zero()) {
                let waited = self.watch.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let expected = due.saturating_duration_since(last) + LATE_MAX;
            state.watch.seen += now.saturating_duration_since(last).min(expected);
            last = now;
            let look = state.look(&self, now);
            self.tell_waiting(&state);
            drop(state);
            for thread in look.wake {
                self.wake[thread].notify_one();
            }
            for number in look.start {
                self.start(number);
            }
            state = self.lock();
        }
    }

    fn start(self: &Arc<Self>, number: usize) {
        let spawned = spawn(self, number);
        let mut state = self.lock();
        let refused = spawned.is_err();
        if let Err(error) = spawned {
            state.leave(number);
            if !state.watch.refused {
                tracing::error!(%error, "the system gives no more threads: a seat stays empty");
            }
            let again = Instant::now() + NO_THREAD_PAUSE;
            state.watch.due = Some(state.watch.due.map_or(again, |due| due.min(again)));
        }
        state.watch.refused = refused;
    }
}

impl State {
    /// Looks at every turn: who is overdue, who is lost, which seats need somebody; and says when to look
    /// again.
    fn look(&mut self, shared: &Shared, now: Instant) -> Look {
        self.watch.looks += 1;
        let begun = std::mem::take(&mut self.watch.begun);
        let mut due = begun.then(|| now + OVERDUE);
        let mut sooner = |at: Instant| due = Some(due.map_or(at, |it| it.min(at)));
        let mut lost = Vec::new();
        for (number, thread) in self.threads.iter_mut().enumerate() {
            let Some(thread) = thread else { continue };
            let Some(turn) = &mut thread.turn else {
                continue;
            };
            if !turn.overdue {
                let began_ns = thread.place.began_ns.load(Ordering::Relaxed);
                let overdue_at = shared.began + Duration::from_nanos(began_ns) + OVERDUE;
                if overdue_at > now {
                    sooner(overdue_at);
                    continue;
                }
                turn.overdue = true;
                thread.place.overdue.store(true, Ordering::Relaxed);
                self.queue.overdue(turn.line, now);
            }
            let Some((step, lost_after)) = turn.task.runs() else {
                // Between two steps, or at its end.
                sooner(now + OVERDUE);
                continue;
            };
            let seen = self.watch.seen;
            let watched = match turn.watched {
                Some(watched) if watched.step == step => watched,
                _ => Watched { step, since: seen },
            };
            turn.watched = Some(watched);
            let waited = seen - watched.since;
            if waited < lost_after {
                sooner(now + (lost_after - waited));
            } else {
                match turn.task.lose(step, waited) {
                    Some(rule) => lost.push((number, rule, waited)),
                    None => sooner(now + OVERDUE),
                }
            }
        }
        for (number, rule, waited) in lost {
            self.lose(number, rule, waited, now);
        }
        let (look, unserved) = self.fill_seats();
        if unserved {
            sooner(now + NO_THREAD_PAUSE);
        }
        self.watch.due = due;
        look
    }

    /// Gives up a thread. Its work goes on with another.
    fn lose(&mut self, number: usize, rule: Name, waited: Duration, now: Instant) {
        let Some(thread) = &mut self.threads[number] else {
            return;
        };
        let Some(turn) = thread.turn.take() else {
            return;
        };
        let tenant = self.queue.tenant(turn.line).cloned();
        let seat = thread.seat.take();
        // How much of it was processor time cannot be asked any more.
        self.queue.lost(turn.line, now);
        self.queue
            .end(turn.line, waited, turn.overdue, Some(turn.task), now);
        for at in 0..self.seats.len() {
            if seat == Some(at) {
                (self.seats[at].holder, self.seats[at].idle) = (None, false);
            }
            if self.seats[at].owner == Some(number) {
                // Who looked after its seat has it now.
                self.seats[at].owner = self.seats[at].holder;
                let heir = self.seats[at]
                    .holder
                    .and_then(|it| self.threads[it].as_ref());
                if let Some(heir) = heir {
                    heir.place.promoted.store(true, Ordering::Relaxed);
                }
            }
        }
        self.lost_ever += 1;
        if let Some(tenant) = tenant {
            let after_ms = waited.as_millis() as u64;
            tracing::error!(%tenant, %rule, thread = number, after_ms, "a thread does not come back from a rule; it is given up");
            let since_ms = now_ms();
            let lost = LostThread {
                tenant,
                rule,
                since_ms,
            };
            self.lost.insert(number, (turn.line, lost));
        }
    }

    /// Finds somebody for each seat whose holder is overdue or gone. Also says whether one stays without.
    fn fill_seats(&mut self) -> (Look, bool) {
        let mut look = Look {
            start: Vec::new(),
            wake: Vec::new(),
        };
        let mut unserved = false;
        for at in 0..self.seats.len() {
            let holder = self.seats[at].holder;
            let overdue = |it: usize| {
                let turn = self.threads[it].as_ref().and_then(|it| it.turn.as_ref());
                turn.is_some_and(|turn| turn.overdue)
            };
            if holder.is_some_and(|it| !overdue(it)) {
                // What was given back by one that is lost may be for it.
                if self.seats[at].idle && self.queue.lines_waiting() > 0 {
                    self.seats[at].idle = false;
                    look.wake.extend(holder);
                }
                continue;
            }
            let number = match self.spares.pop() {
                Some(spare) => {
                    look.wake.push(spare);
                    spare
                }
                None => {
                    let Some(free) = self.threads.iter().position(Option::is_none) else {
                        unserved = true;
                        continue;
                    };
                    self.threads[free] = Some(super::Thread::new(None));
                    look.start.push(free);
                    free
                }
            };
            if let Some(before) = holder.and_then(|it| self.threads[it].as_mut()) {
                before.seat = None;
            }
            if let Some(thread) = &mut self.threads[number] {
                thread.seat = Some(at);
            }
            let seat = &mut self.seats[at];
            (seat.holder, seat.idle) = (Some(number), false);
            if seat.owner.is_none() {
                seat.owner = Some(number);
                if let Some(thread) = &self.threads[number] {
                    thread.place.promoted.store(true, Ordering::Relaxed);
                }
            }
        }
        (look, unserved)
    }
}
