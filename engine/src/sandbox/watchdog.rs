//! The wall-clock backstop behind fuel: one thread that takes the fuel away from guests that have
//! run too long, so that they end at their next check as if it were used up.
//!
//! Fuel already bounds the work; this bounds the time when the machine is overloaded or an operator
//! costs far more than it is charged. It needs no signal and nothing from the compiled code.
#![allow(unsafe_code)]

use super::meter::Fuel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(5);

/// One thread's place under the watchdog.
#[derive(Default)]
pub(super) struct Watch {
    /// What runs now. The lock is held for a few instructions, and contended only when the watchdog
    /// strikes.
    running: Mutex<Option<Running>>,
}

struct Running {
    fuel: Fuel,
    until: Instant,
    struck: bool,
}

static WATCHES: OnceLock<Mutex<Vec<Weak<Watch>>>> = OnceLock::new();

thread_local! {
    static WATCH: Arc<Watch> = {
        let watch = Arc::new(Watch::default());
        let watches = WATCHES.get_or_init(|| {
            let spawned = std::thread::Builder::new().name("watchdog".to_owned()).spawn(patrol);
            if let Err(error) = spawned {
                tracing::error!(%error, "no thread for the watchdog: rules are bounded by fuel alone");
            }
            Mutex::default()
        });
        lock(watches).push(Arc::downgrade(&watch));
        watch
    };
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
        *lock(&watch.running) = Some(Running {
            fuel,
            until: Instant::now() + limit,
            struck: false,
        });
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

fn patrol() {
    loop {
        std::thread::sleep(TICK);
        let now = Instant::now();
        let Some(watches) = WATCHES.get() else {
            continue;
        };
        lock(watches).retain(|watch| {
            let Some(watch) = watch.upgrade() else {
                return false;
            };
            if let Some(running) = &mut *lock(&watch.running)
                && running.until <= now
            {
                running.struck = true;
                // The instance lives until `guarded` has taken this entry under the lock. The guest
                // may be storing to the same place; both stores are whole, and one that is lost to
                // the guest's own is repeated at the next tick.
                running.fuel.take_away();
            }
            true
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
