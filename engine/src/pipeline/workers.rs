//! The threads that run rules. A guest blocks its thread for as long as it has fuel, so rules never
//! run on the threads that serve sockets.
//!
//! A seat is a place where tenants are served, one for each configured thread; `workers/queue.rs` says
//! who is served next. Whoever sits there does a job rule by rule, and gives it back after a turn when
//! others wait. Each thread keeps the instances of the rules that it runs, so the same tenant goes to the
//! same seat where load allows.
//!
//! Guarantees:
//! - No guest holds up another tenant for longer than [`OVERDUE`]: then a spare thread takes the seat,
//!   and the one that was overdue takes it back when it is done (`workers/watch.rs`).
//! - A thread that does not come back loses one rule's run and no more: that rule has failed, and the
//!   event's other rules are asked by another thread. It is never waited for.
//! - When nothing runs, nothing wakes up.
//!
//! Architecture invariant: nothing here knows rules or events. What is done is a [`Work`].

mod queue;
mod task;
mod watch;

pub use queue::LOST_OF_TENANT_MAX;
pub(super) use task::{Guest, Work};
pub(crate) use watch::lost_after;

use crate::id::Name;
use crate::sandbox::{Instances, Kept, thread_time};
use queue::{Next, Queue};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use task::{Stepped, Stepwise, Task};
use tokio::sync::oneshot;

/// How long a job goes on before others that wait have their turn. It is looked at between two rules.
const TURN: Duration = Duration::from_millis(2);

/// After how long a turn no longer holds a seat: no guest holds up another tenant for longer.
pub const OVERDUE: Duration = Duration::from_millis(25);

/// How many threads there may be beyond the configured ones. Those that do not come back count.
pub const SPARES_MAX: usize = 64;

/// How long a spare thread with nothing to do stays.
const SPARE_STAYS: Duration = Duration::from_secs(10);

/// The part of the instances that may be kept which all spares have together: an eighth.
const SPARES_SHARE: usize = 8;

/// How long the threads are waited for when the engine ends.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Below this, the time that passed stands for the processor time: to ask for it takes a part of that.
const MEASURED_FROM: Duration = Duration::from_micros(20);

/// The threads, and what waits for them.
pub struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// One for each thread that there may be.
    wake: Vec<Condvar>,
    /// For the thread that watches.
    watch: Condvar,
    /// When the last thread has ended.
    ended: Condvar,
    /// How many lines have a job that may begin, as it was told last.
    lines_waiting: AtomicUsize,
    began: Instant,
    kept: Kept,
    kept_by_spares: Kept,
}

struct State {
    queue: Queue<Arc<dyn Task>>,
    seats: Vec<Seat>,
    /// By number; as many as there may be.
    threads: Vec<Option<Thread>>,
    /// Threads without a seat that have nothing to do, the last one first.
    spares: Vec<usize>,
    /// Threads that do not come back, by number, each with its line.
    lost: BTreeMap<usize, (usize, LostThread)>,
    lost_ever: u64,
    watch: watch::Watch,
    stopping: bool,
}

struct Seat {
    /// Whose it is; a spare looks after it while the owner is overdue.
    owner: Option<usize>,
    holder: Option<usize>,
    /// Whether the holder sleeps.
    idle: bool,
}

struct Thread {
    seat: Option<usize>,
    turn: Option<Turn>,
    place: Arc<Place>,
}

/// What a thread does now.
struct Turn {
    line: usize,
    task: Arc<dyn Task>,
    overdue: bool,
    watched: Option<watch::Watched>,
}

/// What is said of a thread without the lock.
#[derive(Default)]
struct Place {
    /// When its turn began, in nanoseconds since the workers did.
    began_ns: AtomicU64,
    overdue: AtomicBool,
    /// It has become its seat's owner, and may keep as many instances as owners do.
    promoted: AtomicBool,
}

/// A thread that does not come back, and whose run it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostThread {
    pub tenant: Name,
    pub rule: Name,
    pub since_ms: i64,
}

/// How the threads are doing.
#[derive(Clone, Debug, Default)]
pub struct Threads {
    /// All that there are, lost ones among them.
    pub count: usize,
    /// Those that do not come back.
    pub lost: Vec<LostThread>,
    /// How often one was given up since the start.
    pub lost_ever: u64,
    /// Whether there is a thread that decides.
    pub decides: bool,
}

/// How a turn ended.
struct Ended {
    used: Duration,
    /// There is more to do, and others have their turn first.
    back: bool,
}

impl Workers {
    /// Starts `threads` threads, or one for each core where it is 0, which share what may be kept.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(threads: usize, kept: Kept) -> std::io::Result<Self> {
        let count = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let share = |parts: usize, of: usize| Kept {
            count_max: kept.count_max * parts / (SPARES_SHARE * of),
            bytes_max: kept.bytes_max * parts / (SPARES_SHARE * of),
        };
        let threads = (0..count + SPARES_MAX).map(|_| None).collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Queue::new(count),
                seats: Vec::with_capacity(count),
                threads,
                spares: Vec::new(),
                lost: BTreeMap::new(),
                lost_ever: 0,
                watch: watch::Watch::default(),
                stopping: false,
            }),
            wake: (0..count + SPARES_MAX).map(|_| Condvar::new()).collect(),
            watch: Condvar::new(),
            ended: Condvar::new(),
            lines_waiting: AtomicUsize::new(0),
            began: Instant::now(),
            kept: share(SPARES_SHARE - 1, count),
            kept_by_spares: share(1, SPARES_MAX),
        });
        let workers = Self {
            shared: shared.clone(),
        };
        for number in 0..count {
            let mut state = shared.lock();
            state.seats.push(Seat {
                owner: Some(number),
                holder: Some(number),
                idle: false,
            });
            let owner = Thread::new(Some(number));
            owner.place.promoted.store(true, Ordering::Relaxed);
            state.threads[number] = Some(owner);
            drop(state);
            let spawned = spawn(&shared, number);
            if let Err(error) = spawned {
                shared.lock().threads[number] = None;
                return Err(error);
            }
        }
        let watching = shared.clone();
        std::thread::Builder::new()
            .name("decide-watch".to_owned())
            .spawn(move || watching.watch())?;
        Ok(workers)
    }

    /// Has this work done for a tenant. It is queued at once where there is room. `None` when a step
    /// panicked, which is a bug of ours: the caller must go on all the same.
    pub(super) fn run<W: Work>(
        &self,
        tenant: &Name,
        work: W,
    ) -> impl Future<Output = Option<W::Answer>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let task: Arc<dyn Task> = Arc::new(Stepwise::new(work, answer));
        let mut state = self.shared.lock();
        let room = state.queue.room(tenant);
        let refused = match room.clone().try_acquire_owned() {
            Ok(room) => {
                self.shared.queue(state, tenant, task, Some(room));
                None
            }
            Err(_) => {
                drop(state);
                Some((self.shared.clone(), tenant.clone(), room, task))
            }
        };
        async move {
            if let Some((shared, tenant, room, task)) = refused {
                // Never closed.
                let room = room.acquire_owned().await.ok()?;
                shared.queue(shared.lock(), &tenant, task, Some(room));
            }
            answered.await.ok()
        }
    }

    /// How the threads are doing.
    pub fn threads(&self) -> Threads {
        let state = self.shared.lock();
        Threads {
            count: state.threads.iter().flatten().count(),
            lost: state.lost.values().map(|(_, it)| it.clone()).collect(),
            lost_ever: state.lost_ever,
            decides: state.seats.iter().any(|seat| seat.holder.is_some()),
        }
    }
}

impl Thread {
    fn new(seat: Option<usize>) -> Self {
        Self {
            seat,
            turn: None,
            place: Arc::default(),
        }
    }
}

/// Starts a thread that has its number already.
fn spawn(shared: &Arc<Shared>, number: usize) -> std::io::Result<()> {
    let place = shared.lock().threads[number]
        .as_ref()
        .map(|thread| thread.place.clone());
    let place = place.unwrap_or_default();
    let shared = shared.clone();
    std::thread::Builder::new()
        .name(format!("decide-{number}"))
        .spawn(move || shared.serve(number, &place))
        .map(drop)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(
        &self,
        mut state: MutexGuard<'_, State>,
        tenant: &Name,
        task: Arc<dyn Task>,
        room: Option<tokio::sync::OwnedSemaphorePermit>,
    ) {
        let home = state.queue.push(tenant, task, room, Instant::now());
        self.tell_waiting(&state);
        let whom = state.wake_one(Some(home));
        drop(state);
        if let Some(thread) = whom {
            self.wake[thread].notify_one();
        }
    }

    fn tell_waiting(&self, state: &State) {
        let waiting = state.queue.lines_waiting();
        self.lines_waiting.store(waiting, Ordering::Relaxed);
    }

    fn since_began(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.began);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// What a thread does until it ends.
    fn serve(self: Arc<Self>, number: usize, place: &Place) {
        let mut kept = self.kept_by_spares;
        let mut instances = Instances::new(kept);
        let mut meter = Meter::default();
        let mut ended = None;
        while let Some((task, mut began)) = self.next(number, ended.take(), &mut meter) {
            if place.promoted.swap(false, Ordering::Relaxed) {
                kept = self.kept;
                instances = Instances::new(kept);
            }
            let first = began;
            let (stepped, now) = loop {
                // A panic here is our own bug: its job's receiver learns of it, and the thread goes on,
                // with instances that nothing was half done to.
                let step = AssertUnwindSafe(|| task.step(&mut instances));
                let Ok(stepped) = catch_unwind(step) else {
                    instances = Instances::new(kept);
                    task.abandon();
                    break (Stepped::Done, Instant::now());
                };
                let now = Instant::now();
                if stepped != Stepped::More {
                    break (stepped, now);
                }
                if now.saturating_duration_since(began) >= TURN {
                    let others = self.lines_waiting.load(Ordering::Relaxed) > 0;
                    if others || place.overdue.load(Ordering::Relaxed) {
                        break (stepped, now);
                    }
                    began = now;
                    let began_ns = self.since_began(now);
                    place.began_ns.store(began_ns, Ordering::Relaxed);
                }
            };
            let used = meter.used(now.saturating_duration_since(first));
            match stepped {
                Stepped::More => task.put_back(used),
                Stepped::Done => task.end(used),
                Stepped::GivenUp => {}
            }
            ended = Some(Ended {
                used,
                back: stepped == Stepped::More,
            });
        }
    }

    /// Ends a thread's turn, and says what it does next, and since when; waits for it. `None` when the
    /// thread is to end.
    fn next(
        &self,
        number: usize,
        ended: Option<Ended>,
        meter: &mut Meter,
    ) -> Option<(Arc<dyn Task>, Instant)> {
        let mut state = self.lock();
        let mut now = Instant::now();
        if let Some(ended) = ended {
            state.end_turn(number, &ended, now);
        }
        if let Some((line, _)) = state.lost.remove(&number) {
            state.queue.found(line, now);
            // It has been replaced, and what it did was gone on with by another.
            tracing::warn!(
                thread = number,
                "a thread that was given up for lost came back, and ends"
            );
            state.leave(number);
            return None;
        }
        if let Some(sleeper) = state.take_seat_back(number) {
            self.wake[sleeper].notify_one();
        }
        loop {
            let seat = state.seat_of(number);
            let patience = match seat {
                Some(seat) => {
                    let hurry = state.stopping;
                    match state.queue.next(seat, now, hurry) {
                        Next::Run { line, job } => {
                            self.tell_waiting(&state);
                            let also = self.begin_turn(&mut state, number, line, &job, now);
                            drop(state);
                            if let Some(thread) = also {
                                self.wake[thread].notify_one();
                            }
                            return Some((job, now));
                        }
                        Next::Wait(patience) => Some(patience),
                        Next::Nothing if state.stopping => {
                            state.leave(number);
                            self.ended.notify_all();
                            return None;
                        }
                        Next::Nothing => None,
                    }
                }
                None if state.stopping => {
                    state.leave(number);
                    self.ended.notify_all();
                    return None;
                }
                None => {
                    state.spares.push(number);
                    Some(SPARE_STAYS)
                }
            };
            self.tell_waiting(&state);
            if let Some(seat) = seat {
                state.seats[seat].idle = true;
            }
            // Now, where it holds up nobody: to wake up is what a turn may be charged besides.
            meter.begin();
            let wake = &self.wake[number];
            let before = now;
            state = match patience {
                Some(patience) => {
                    let waited = wake.wait_timeout(state, patience);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            now = Instant::now();
            state.spares.retain(|spare| *spare != number);
            match state.seat_of(number) {
                Some(seat) => state.seats[seat].idle = false,
                None if seat.is_none() && now.duration_since(before) >= SPARE_STAYS => {
                    state.leave(number);
                    self.ended.notify_all();
                    return None;
                }
                None => {}
            }
        }
    }

    /// Notes what a thread does, has it watched, and says whom else to wake.
    fn begin_turn(
        &self,
        state: &mut State,
        number: usize,
        line: usize,
        task: &Arc<dyn Task>,
        now: Instant,
    ) -> Option<usize> {
        if let Some(thread) = &mut state.threads[number] {
            let place = &thread.place;
            place
                .began_ns
                .store(self.since_began(now), Ordering::Relaxed);
            place.overdue.store(false, Ordering::Relaxed);
            thread.turn = Some(Turn {
                line,
                task: task.clone(),
                overdue: false,
                watched: None,
            });
        }
        if state.watch.begins(now) {
            self.watch.notify_one();
        }
        // Who queued may have woken this thread for more than one.
        if state.queue.lines_waiting() > 0 {
            return state.wake_one(None);
        }
        None
    }
}

impl State {
    /// Where a thread sits. One that has no seat takes one that nobody has.
    fn seat_of(&mut self, number: usize) -> Option<usize> {
        let thread = self.threads[number].as_mut()?;
        if thread.seat.is_none() {
            let free = self.seats.iter().position(|seat| seat.holder.is_none())?;
            self.seats[free].holder = Some(number);
            self.seats[free].owner.get_or_insert(number);
            thread.seat = Some(free);
        }
        thread.seat
    }

    /// Somebody who sleeps in a seat: in this one, or else in any. Who is named is woken by the caller.
    fn wake_one(&mut self, home: Option<usize>) -> Option<usize> {
        let idle = |seat: &usize| self.seats[*seat].idle;
        let at = home.filter(idle);
        let at = at.or_else(|| self.seats.iter().position(|seat| seat.idle))?;
        self.seats[at].idle = false;
        self.seats[at].holder
    }

    fn end_turn(&mut self, number: usize, ended: &Ended, now: Instant) {
        let turn = self.threads[number].as_mut().and_then(|it| it.turn.take());
        // One that was given up has none.
        if let Some(turn) = turn {
            let back = ended.back.then_some(turn.task);
            self.queue
                .end(turn.line, ended.used, turn.overdue, back, now);
        }
    }

    /// Has an owner sit in its seat again. Returns who sleeps there, and has to be told.
    fn take_seat_back(&mut self, number: usize) -> Option<usize> {
        let seat = self.seats.iter().position(|it| it.owner == Some(number))?;
        let substitute = self.seats[seat].holder.filter(|it| *it != number);
        self.seats[seat].holder = Some(number);
        if let Some(thread) = &mut self.threads[number] {
            thread.seat = Some(seat);
        }
        let substitute = substitute?;
        if let Some(thread) = &mut self.threads[substitute] {
            thread.seat = None;
        }
        std::mem::take(&mut self.seats[seat].idle).then_some(substitute)
    }

    /// A thread ends.
    fn leave(&mut self, number: usize) {
        self.threads[number] = None;
        for seat in &mut self.seats {
            if seat.holder == Some(number) {
                (seat.holder, seat.idle) = (None, false);
            }
            if seat.owner == Some(number) {
                seat.owner = None;
            }
        }
    }
}

/// What a thread uses of a processor.
#[derive(Default)]
struct Meter {
    at: Duration,
    /// What was told since, without asking the system.
    told: Duration,
}

impl Meter {
    /// What the thread used until now is nobody's.
    fn begin(&mut self) {
        (self.at, self.told) = (thread_time(), Duration::ZERO);
    }

    /// What was used in the time that has passed: no more than that.
    fn used(&mut self, passed: Duration) -> Duration {
        if passed < MEASURED_FROM {
            self.told += passed;
            return passed;
        }
        let now = thread_time();
        let used = now.saturating_sub(self.at).saturating_sub(self.told);
        (self.at, self.told) = (now, Duration::ZERO);
        used.min(passed)
    }
}

impl Drop for Workers {
    /// Ends the threads that are at work for a moment only; what does not end is left to the end of the
    /// process.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        for wake in &self.shared.wake {
            wake.notify_all();
        }
        self.shared.watch.notify_all();
        let until = Instant::now() + END_PATIENCE;
        loop {
            let living = state.threads.iter().flatten().count();
            let left = until.saturating_duration_since(Instant::now());
            if living <= state.lost.len() || left.is_zero() {
                return;
            }
            let waited = self.shared.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests;
