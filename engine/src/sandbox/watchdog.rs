//! The wall-clock backstop behind fuel: one thread that strikes guests which have run too long, so that
//! they end at their next check as if their fuel were used up.
//!
//! Fuel already bounds the work; this bounds the time when the machine is overloaded or an operator
//! costs far more than it is charged. It needs no signal and nothing from the compiled code. The thread
//! sleeps until the first guest's time is up: while nothing runs it is not woken at all, and otherwise
//! about once in the time that a guest has.
#![allow(unsafe_code)]

use super::meter::Fuel;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// One thread's place under the watchdog.
#[derive(Default)]
struct Watch {
    /// What runs now. The lock is held for a few instructions, and contended only when the watchdog
    /// looks.
    running: Mutex<Option<Running>>,
}

struct Running {
    fuel: Fuel,
    until: Instant,
    struck: bool,
}

/// The watchdog's own state.
struct Watchdog {
    began: Instant,
    watches: Mutex<Vec<Weak<Watch>>>,
    /// When it wakes next, in nanoseconds since it began. `u64::MAX` while it looks around, so that whoever
    /// begins meanwhile wakes it.
    wakes_ns: AtomicU64,
    /// `None` where the system gave no thread.
    thread: Option<Thread>,
}

thread_local! {
    static WATCH: Arc<Watch> = {
        let watch = Arc::new(Watch::default());
        lock(&watchdog().watches).push(Arc::downgrade(&watch));
        watch
    };
}

fn watchdog() -> &'static Watchdog {
    static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();
    WATCHDOG.get_or_init(|| {
        let spawned = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(|| watchdog().patrol());
        if let Err(error) = &spawned {
            tracing::error!(%error, "no thread for the watchdog: rules are bounded by fuel alone");
        }
        Watchdog {
            began: Instant::now(),
            watches: Mutex::default(),
            wakes_ns: AtomicU64::new(u64::MAX),
            thread: spawned.ok().map(|spawned| spawned.thread().clone()),
        }
    })
}

/// Runs `guest` for at most `limit`; tells whether the watchdog struck.
///
/// # Safety
/// The instance that has this fuel must be alive until `guest` has returned.
pub(super) unsafe fn guarded<T>(
    fuel: Fuel,
    limit: Duration,
    guest: impl FnOnce() -> T,
) -> (T, bool) {
    WATCH.with(|watch| {
        let until = Instant::now() + limit;
        *lock(&watch.running) = Some(Running {
            fuel,
            until,
            struck: false,
        });
        watchdog().wakes_by(until);
        let armed = Armed(watch);
        let result = guest();
        (result, armed.disarm())
    })
}

/// What takes the entry out again, also when a panic of ours unwinds through the guest: the fuel is
/// gone after that.
struct Armed<'w>(&'w Watch);

impl Armed<'_> {
    /// Whether the watchdog struck.
    fn disarm(&self) -> bool {
        let running = lock(&self.0.running).take();
        running.is_some_and(|running| running.struck)
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl Watchdog {
    /// Has the thread look around no later than this. A guest mostly has as long as those that began
    /// before it, and then there is nothing to do.
    fn wakes_by(&self, until: Instant) {
        let until_ns = (until - self.began).as_nanos() as u64;
        // The entry was made under its lock: if the thread missed it, it reads `u64::MAX` or later here.
        if until_ns < self.wakes_ns.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.unpark();
        }
    }

    fn patrol(&self) {
        loop {
            self.wakes_ns.store(u64::MAX, Ordering::SeqCst);
            match self.look_around(Instant::now()) {
                Some(next) => {
                    let next_ns = (next - self.began).as_nanos() as u64;
                    self.wakes_ns.store(next_ns, Ordering::SeqCst);
                    std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
                }
                None => std::thread::park(),
            }
        }
    }

    /// Strikes those whose time is up. When that of the next one is.
    fn look_around(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        lock(&self.watches).retain(|watch| {
            let Some(watch) = watch.upgrade() else {
                return false;
            };
            if let Some(running) = &mut *lock(&watch.running)
                && !running.struck
            {
                if running.until <= now {
                    running.struck = true;
                    // The instance lives until `guarded` has taken this entry under the lock.
                    running.fuel.strike();
                } else {
                    next = Some(next.map_or(running.until, |next| running.until.min(next)));
                }
            }
            true
        });
        next
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
