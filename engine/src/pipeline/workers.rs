//! The threads that run rules. A guest blocks its thread for as long as it has fuel, so rules never
//! run on the threads that serve sockets.
//!
//! Each thread keeps the instances of the rules that it runs. Work comes with a key, its tenant's:
//! the same key goes to the same thread, where its instances wait, unless that thread has a backlog
//! and another has nothing to do.

use crate::sandbox::{Instances, Kept};
use crossbeam_channel::{Sender, bounded};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce(&mut Instances) + Send>;

/// How many jobs wait for each thread; beyond it, whoever brings one waits.
const WAITING_PER_THREAD: usize = 64;

/// A backlog from which on work goes to an idle thread, at the price of an instance more.
const LENT_FROM: usize = 8;

/// A fixed number of threads, each with a bounded queue.
pub struct Workers {
    queues: Vec<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
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
            queues: Vec::with_capacity(count),
            threads: Vec::with_capacity(count),
        };
        for n in 0..count {
            let (queue, jobs) = bounded::<Job>(WAITING_PER_THREAD);
            let thread = std::thread::Builder::new()
                .name(format!("decide-{n}"))
                .spawn(move || {
                    let mut instances = Instances::new(kept);
                    for job in jobs {
                        // A panic here is our own bug: its job's receiver learns of it, and the
                        // thread goes on, with instances that nothing was half done to.
                        if catch_unwind(AssertUnwindSafe(|| job(&mut instances))).is_err() {
                            instances = Instances::new(kept);
                        }
                    }
                })?;
            workers.queues.push(queue);
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Runs `work` on one of the threads, for one key on the same one where load allows. It is queued
    /// at once; the future only waits for the result. `None` when `work` panicked, which is a bug of
    /// ours: the caller must go on all the same.
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
        let refused = match self.queue(key) {
            Some(queue) => match queue.try_send(job) {
                Ok(()) => None,
                Err(full) => Some((queue.clone(), full.into_inner())),
            },
            None => None,
        };
        async move {
            if let Some((queue, job)) = refused {
                // The queue is full: the waiting is done where waiting is allowed.
                let _ = tokio::task::spawn_blocking(move || queue.send(job)).await;
            }
            answered.await.ok()
        }
    }

    fn queue(&self, key: &impl Hash) -> Option<&Sender<Job>> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let home = self
            .queues
            .get(hasher.finish() as usize % self.queues.len().max(1))?;
        if home.len() < LENT_FROM {
            return Some(home);
        }
        let idle = self.queues.iter().find(|queue| queue.is_empty());
        Some(idle.unwrap_or(home))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queues.clear();
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

    #[tokio::test]
    async fn a_key_stays_on_its_thread_and_keys_spread() {
        let workers = Workers::start(4, KEPT).unwrap();
        let mut used = HashSet::new();
        for key in 0..32 {
            let home = where_is(&workers, key).await;
            used.insert(home);
            for _ in 0..3 {
                assert_eq!(where_is(&workers, key).await, home);
            }
        }
        assert_eq!(used.len(), 4);
    }

    #[tokio::test]
    async fn a_backlog_is_lent_to_an_idle_thread() {
        let workers = Workers::start(2, KEPT).unwrap();
        let home = where_is(&workers, 7).await;
        let gate = Arc::new(Barrier::new(2));
        let blocked = {
            let gate = gate.clone();
            workers.run(&7, move |_| gate.wait())
        };
        // One that runs, as many as make a backlog, and one more.
        let behind: Vec<_> = (0..LENT_FROM + 2)
            .map(|_| workers.run(&7, |_| current().id()))
            .collect();
        gate.wait();
        blocked.await.unwrap();
        let mut threads = HashSet::new();
        for ran in behind {
            threads.insert(ran.await.unwrap());
        }
        assert!(threads.contains(&home));
        assert_eq!(threads.len(), 2);
    }

    #[tokio::test]
    async fn a_panic_ends_its_job_and_nothing_else() {
        let workers = Workers::start(1, KEPT).unwrap();
        let panicked = workers.run(&1, |_| -> () { panic!("a bug") }).await;
        assert!(panicked.is_none());
        assert_eq!(workers.run(&1, |_| 5).await, Some(5));
    }
}
