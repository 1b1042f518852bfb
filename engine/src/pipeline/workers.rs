//! The threads that run rules. A guest blocks its thread for as long as it has fuel, so rules never
//! run on the threads that serve sockets.

use crossbeam_channel::{Sender, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// How many jobs wait for each thread; beyond it, whoever brings one waits.
const WAITING_PER_THREAD: usize = 64;

/// A fixed number of threads behind one bounded queue.
pub struct Workers {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `threads` threads, or one for each core where it is 0.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let (queue, jobs) = bounded::<Job>(threads * WAITING_PER_THREAD);
        let spawn = |n| {
            let jobs = jobs.clone();
            std::thread::Builder::new()
                .name(format!("decide-{n}"))
                .spawn(move || {
                    for job in jobs {
                        // A panic here is our own bug: its job's receiver learns of it, and the
                        // thread goes on.
                        let _ = catch_unwind(AssertUnwindSafe(job));
                    }
                })
        };
        Ok(Self {
            threads: (0..threads).map(spawn).collect::<Result<_, _>>()?,
            queue: Some(queue),
        })
    }

    /// Runs `work` on one of the threads. It is queued at once; the future only waits for the result.
    /// `None` when `work` panicked, which is a bug of ours: the caller must go on all the same.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more when the engine is stopping.
            let _ = answer.send(work());
        });
        let refused = match &self.queue {
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
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
