//! The threads that run rules. A guest blocks its thread for as long as it has fuel, so rules never
//! run on the threads that serve sockets.
//!
//! Each thread keeps the instances of the rules that it runs. Work comes with a key, its tenant's: the
//! same key goes to the same thread, where its instances wait. Work that waits there longer than a
//! moment is taken by a thread that has nothing to do, at the price of an instance more: one tenant's
//! slow rules hold up no other while there is a thread.

use crate::sandbox::{Instances, Kept};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

type Job = Box<dyn FnOnce(&mut Instances) + Send>;

/// How many jobs may wait, for each thread; beyond it, whoever brings one waits.
const WAITING_PER_THREAD: usize = 64;

/// How long a job waits for the thread that it belongs to. To start an instance elsewhere takes about
/// as long.
const PATIENCE: Duration = Duration::from_millis(1);

/// A fixed number of threads, each with a queue.
pub struct Workers {
    shared: Arc<Shared>,
    /// One permit for each job that may wait.
    room: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// One for each thread.
    wake: Vec<Condvar>,
}

struct State {
    /// One for each thread.
    queues: Vec<VecDeque<Waiting>>,
    /// Which threads have nothing to do.
    idle: Vec<bool>,
    stopping: bool,
}

struct Waiting {
    since: Instant,
    job: Job,
    _room: OwnedSemaphorePermit,
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
        let kept = Kept {
            count_max: kept.count_max / count,
            bytes_max: kept.bytes_max / count,
        };
        let mut workers = Self {
            shared: Arc::new(Shared::new(count)),
            room: Arc::new(Semaphore::new(count * WAITING_PER_THREAD)),
            threads: Vec::with_capacity(count),
        };
        for n in 0..count {
            let shared = workers.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("decide-{n}"))
                .spawn(move || {
                    let mut instances = Instances::new(kept);
                    while let Some(job) = shared.next(n) {
                        // A panic here is our own bug: its job's receiver learns of it, and the
                        // thread goes on, with instances that nothing was half done to.
                        if catch_unwind(AssertUnwindSafe(|| job(&mut instances))).is_err() {
                            instances = Instances::new(kept);
                        }
                    }
                })?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Runs `work` on one of the threads, for one key on the same one where load allows. It is queued
    /// at once where there is room. `None` when `work` panicked, which is a bug of ours: the caller
    /// must go on all the same.
    pub fn run<T: Send + 'static>(
        &self,
        key: &impl Hash,
        work: impl FnOnce(&mut Instances) -> T + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |instances| {
            // Nobody waits any more when the engine is stopping.
            let _ = answer.send(work(instances));
        });
        let home = self.home(key);
        let refused = match self.room.clone().try_acquire_owned() {
            Ok(room) => {
                self.shared.queue(home, job, room);
                None
            }
            Err(_) => Some((self.shared.clone(), self.room.clone(), job)),
        };
        async move {
            if let Some((shared, room, job)) = refused {
                // Never closed.
                shared.queue(home, job, room.acquire_owned().await.ok()?);
            }
            answered.await.ok()
        }
    }

    /// The thread that a key belongs to.
    fn home(&self, key: &impl Hash) -> usize {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish() as usize % self.threads.len()
    }
}

impl Shared {
    fn new(threads: usize) -> Self {
        Self {
            state: Mutex::new(State {
                queues: (0..threads).map(|_| VecDeque::new()).collect(),
                idle: vec![false; threads],
                stopping: false,
            }),
            wake: (0..threads).map(|_| Condvar::new()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, home: usize, job: Job, room: OwnedSemaphorePermit) {
        let mut state = self.lock();
        state.queues[home].push_back(Waiting {
            since: Instant::now(),
            job,
            _room: room,
        });
        // If its own thread is busy, an idle one looks after it.
        let whom = if state.idle[home] {
            Some(home)
        } else {
            state.idle.iter().position(|idle| *idle)
        };
        drop(state);
        if let Some(thread) = whom {
            self.wake[thread].notify_one();
        }
    }

    /// What a thread does next; waits for it. `None` when nothing is left to do and none will come.
    fn next(&self, thread: usize) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(own) = state.queues[thread].pop_front() {
                return Some(own.job);
            }
            let waiting = |queue: &VecDeque<Waiting>| queue.front().map(|oldest| oldest.since);
            let oldest = state
                .queues
                .iter()
                .enumerate()
                .filter_map(|(home, queue)| Some((waiting(queue)?, home)))
                .min();
            let patience = match oldest {
                Some((since, home)) => {
                    let patience = PATIENCE.saturating_sub(since.elapsed());
                    if patience.is_zero() || state.stopping {
                        return state.queues[home].pop_front().map(|taken| taken.job);
                    }
                    Some(patience)
                }
                None if state.stopping => return None,
                None => None,
            };
            state.idle[thread] = true;
            let wake = &self.wake[thread];
            state = match patience {
                Some(patience) => {
                    let waited = wake.wait_timeout(state, patience);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.idle[thread] = false;
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        for wake in &self.shared.wake {
            wake.notify_all();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::{Arc, Barrier};
    use std::thread::{ThreadId, current};

    const KEPT: Kept = Kept {
        count_max: 10,
        bytes_max: 1 << 20,
    };

    async fn where_is(workers: &Workers, key: u32) -> ThreadId {
        workers.run(&key, |_| current().id()).await.unwrap()
    }

    #[test]
    fn keys_spread_over_the_threads() {
        let workers = Workers::start(4, KEPT).unwrap();
        let homes: HashSet<usize> = (0..32).map(|key| workers.home(&key)).collect();
        assert_eq!(homes.len(), 4);
    }

    /// Without threads, so that the order is the test's: what belongs to thread 1 stays there until it
    /// has waited, and a thread does its own work first.
    #[test]
    fn a_key_stays_on_its_thread_until_it_has_waited() {
        let shared = Shared::new(2);
        let room = Arc::new(Semaphore::new(9));
        let ran = Arc::new(Mutex::new(Vec::new()));
        let queue = |home: usize, name: &'static str| {
            let ran = ran.clone();
            let job: Job = Box::new(move |_| ran.lock().unwrap().push(name));
            let room = room.clone().try_acquire_owned().unwrap();
            shared.queue(home, job, room);
        };
        let mut instances = Instances::new(KEPT);
        let mut next = |thread: usize| shared.next(thread).unwrap()(&mut instances);
        let queued = Instant::now();
        queue(1, "another's");
        queue(0, "own");
        next(0);
        next(0);
        assert!(queued.elapsed() >= PATIENCE);
        queue(1, "at home");
        next(1);
        assert_eq!(*ran.lock().unwrap(), ["own", "another's", "at home"]);
    }

    /// However few wait, and whatever came before them there: another key's as well as its own.
    #[tokio::test]
    async fn what_waits_for_a_busy_thread_is_taken_by_an_idle_one() {
        let workers = Workers::start(2, KEPT).unwrap();
        let gate = Arc::new(Barrier::new(2));
        let (begun, at) = oneshot::channel();
        let blocked = {
            let gate = gate.clone();
            workers.run(&7, move |_| {
                let _ = begun.send(current().id());
                gate.wait()
            })
        };
        let busy = at.await.unwrap();
        let mut neighbour = 8;
        while workers.home(&neighbour) != workers.home(&7) {
            neighbour += 1;
        }
        let mut threads = Vec::new();
        for key in [7, neighbour] {
            threads.push(where_is(&workers, key).await);
        }
        // Before anything is asserted: a thread that waits forever would be waited for.
        gate.wait();
        blocked.await.unwrap();
        assert!(!threads.contains(&busy));
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let workers = Workers::start(1, KEPT).unwrap();
        let gate = Arc::new(Barrier::new(2));
        let begun = Arc::new(Barrier::new(2));
        let blocked = {
            let (gate, begun) = (gate.clone(), begun.clone());
            workers.run(&1, move |_| (begun.wait(), gate.wait()))
        };
        begun.wait();
        let mut behind: Vec<_> = (0..WAITING_PER_THREAD + 1)
            .map(|n| workers.run(&1, move |_| n))
            .collect();
        assert_eq!(workers.shared.lock().queues[0].len(), WAITING_PER_THREAD);
        gate.wait();
        blocked.await.unwrap();
        // The last one is queued by whoever waits for it.
        assert_eq!(behind.pop().unwrap().await, Some(WAITING_PER_THREAD));
        for (n, ran) in behind.into_iter().enumerate() {
            assert_eq!(ran.await, Some(n));
        }
    }

    #[tokio::test]
    async fn a_panic_ends_its_job_and_nothing_else() {
        let workers = Workers::start(1, KEPT).unwrap();
        let panicked = workers.run(&1, |_| -> () { panic!("a bug") }).await;
        assert!(panicked.is_none());
        assert_eq!(workers.run(&1, |_| 5).await, Some(5));
    }
}
