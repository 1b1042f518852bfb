//! What a tenant may use each second, counted as it is used. A quota of 0 is none.

use crate::clock::now_ms;
use crate::dispatch::{Buckets, Rate};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One tenant's `events_per_s`: a bucket that holds one second's worth, full at the beginning. An
/// event costs a short lock and no allocation.
pub(crate) struct EventsQuota {
    per_s: u32,
    buckets: Mutex<Buckets>,
}

impl EventsQuota {
    pub(crate) fn new(per_s: u32) -> Self {
        let rate = (per_s > 0).then(|| Rate::new(per_s, 1));
        Self {
            per_s,
            buckets: Mutex::new(Buckets::new(rate.as_slice(), now_ms())),
        }
    }

    pub(crate) fn per_s(&self) -> u32 {
        self.per_s
    }

    /// Whether there is room for an event, or after how many whole seconds there is. Takes nothing, so
    /// that a stranger who cannot sign uses up nothing either.
    pub(crate) fn ready(&self, now_ms: i64) -> Result<(), u32> {
        self.with(now_ms, Buckets::ready)
    }

    /// Takes the room for one event, or says after how many whole seconds there is some.
    pub(crate) fn take(&self, now_ms: i64) -> Result<(), u32> {
        self.with(now_ms, Buckets::take)
    }

    fn with(
        &self,
        now_ms: i64,
        ask: impl FnOnce(&mut Buckets, i64) -> Result<(), i64>,
    ) -> Result<(), u32> {
        if self.per_s == 0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&mut buckets, now_ms).map_err(|at_ms| wait_s(at_ms, now_ms))
    }
}

/// `calls_per_s` of each token that has called lately, with one second's worth at once.
pub(crate) struct CallRates {
    per_s: u32,
    tokens: Mutex<HashMap<String, Buckets>>,
}

/// How many tokens are remembered before those are forgotten that have rested.
const TOKENS_REMEMBERED: usize = 4_096;

impl CallRates {
    pub(crate) fn new(per_s: u32) -> Self {
        Self {
            per_s,
            tokens: Mutex::default(),
        }
    }

    pub(crate) fn per_s(&self) -> u32 {
        self.per_s
    }

    /// Takes the room for one call, or says after how many whole seconds there is some.
    pub(crate) fn take(&self, token: &str, now_ms: i64) -> Result<(), u32> {
        if self.per_s == 0 {
            return Ok(());
        }
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS_REMEMBERED {
            tokens.retain(|_, buckets| !buckets.is_full(now_ms));
        }
        let full = || Buckets::new(&[Rate::new(self.per_s, 1)], now_ms);
        let buckets = tokens.entry(token.to_owned()).or_insert_with(full);
        buckets.take(now_ms).map_err(|at_ms| wait_s(at_ms, now_ms))
    }
}

fn wait_s(at_ms: i64, now_ms: i64) -> u32 {
    let wait_s = (at_ms - now_ms).max(1).unsigned_abs().div_ceil(1_000);
    u32::try_from(wait_s).unwrap_or(u32::MAX)
}

/// One tenant's `fuel_per_s`. What its rules ran for is known only afterwards, so its [`price`] is charged
/// then, and a tenant in debt waits until that is paid.
#[derive(Debug)]
pub(crate) struct FuelQuota {
    per_s: u64,
    state: Mutex<Fuel>,
}

#[derive(Debug)]
struct Fuel {
    /// Below zero in debt.
    left: f64,
    at_ms: i64,
    /// What its last events cost, each.
    each: f64,
}

/// What a nanosecond of a core is charged at least: fuel alone would sell what misses the caches, and the
/// starts of instances, for less than their time. The default `fuel_per_s` is so half of one core at most.
pub(crate) const FUEL_PER_NS: u64 = 2;

/// What is charged for so much fuel that took so much processor time: the greater of both.
pub(crate) fn price(fuel: u64, used: Duration) -> u64 {
    let used_ns = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
    fuel.max(used_ns.saturating_mul(FUEL_PER_NS))
}

/// How much of a second's worth a tenant begins at once: a bound on the debt that it can get into.
const AT_ONCE: f64 = 0.1;
/// How many events it begins at once while nothing is known of their cost.
const UNKNOWN_AT_ONCE: usize = 8;

impl FuelQuota {
    pub(crate) fn new(per_s: u64) -> Self {
        Self {
            per_s,
            state: Mutex::new(Fuel {
                left: per_s as f64,
                at_ms: now_ms(),
                each: 0.0,
            }),
        }
    }

    pub(crate) fn per_s(&self) -> u64 {
        self.per_s
    }

    /// How many of so many events may begin at once, by what the last ones cost: 1 at least.
    pub(crate) fn at_once(&self, most: usize) -> usize {
        let state = self.lock();
        if self.per_s == 0 {
            return most;
        }
        if state.each <= 0.0 {
            return most.min(UNKNOWN_AT_ONCE);
        }
        let fit = AT_ONCE * self.per_s as f64 / state.each;
        (fit as usize).clamp(1, most)
    }

    /// Whether nothing is owed, or after how many whole seconds that is so.
    pub(crate) fn paid(&self, now_ms: i64) -> Result<(), u32> {
        match self.charge(0, 1, now_ms) {
            Duration::ZERO => Ok(()),
            wait => Err(u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX)),
        }
    }

    /// Charges the price of so many events; how long the tenant then waits before its next ones.
    pub(crate) fn charge(&self, price: u64, events: usize, now_ms: i64) -> Duration {
        if self.per_s == 0 || events == 0 {
            return Duration::ZERO;
        }
        let mut state = self.lock();
        let per_s = self.per_s as f64;
        // A clock that went back gives nothing.
        let passed_s = (now_ms - state.at_ms).max(0) as f64 / 1_000.0;
        state.at_ms = now_ms;
        state.left = (state.left + passed_s * per_s).min(per_s) - price as f64;
        if price > 0 {
            state.each = price as f64 / events as f64;
        }
        Duration::from_secs_f64((-state.left / per_s).max(0.0))
    }

    fn lock(&self) -> MutexGuard<'_, Fuel> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::thread_time;

    #[test]
    fn a_tenant_has_one_second_s_worth_at_once_and_then_its_rate() {
        let quota = EventsQuota::new(2);
        let now_ms = now_ms();
        assert_eq!(quota.take(now_ms), Ok(()));
        assert_eq!(quota.ready(now_ms), Ok(()));
        assert_eq!(quota.ready(now_ms), Ok(()), "asking takes nothing");
        assert_eq!(quota.take(now_ms), Ok(()));
        assert_eq!(quota.ready(now_ms), Err(1));
        assert_eq!(quota.take(now_ms + 499), Err(1));
        assert_eq!(quota.take(now_ms + 500), Ok(()));
        assert_eq!(quota.take(now_ms + 500), Err(1));
        // However long it rests, it has no more than a second's worth.
        let later_ms = now_ms + 60_000;
        let taken = (0..10).filter(|_| quota.take(later_ms).is_ok()).count();
        assert_eq!(taken, 2);
    }

    #[test]
    fn zero_is_no_quota() {
        let quota = EventsQuota::new(0);
        assert!((0..1_000).all(|_| quota.take(0).is_ok()));
    }

    #[test]
    fn each_token_calls_at_its_own_rate() {
        let rates = CallRates::new(2);
        assert!((0..2).all(|_| rates.take("a", 0).is_ok()));
        assert_eq!(rates.take("a", 0), Err(1));
        assert_eq!(rates.take("b", 0), Ok(()));
        assert_eq!(rates.take("a", 500), Ok(()));
        for n in 0..TOKENS_REMEMBERED {
            assert_eq!(rates.take(&n.to_string(), 10_000), Ok(()));
        }
        assert!(rates.tokens.lock().unwrap().len() <= TOKENS_REMEMBERED);
    }

    #[test]
    fn the_greater_of_fuel_and_time_is_charged() {
        let us = Duration::from_micros;
        assert_eq!(price(10_000, us(5)), 10_000);
        assert_eq!(price(9_999, us(5)), 10_000);
        assert_eq!(price(0, Duration::from_secs(1)), 2_000_000_000);
        assert_eq!(price(u64::MAX, Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_thread_s_time_is_its_own() {
        let before = thread_time();
        let mut noise = 1_u64;
        while thread_time() - before < Duration::from_millis(5) {
            noise = std::hint::black_box(noise.wrapping_mul(3));
        }
        let elsewhere = std::thread::spawn(thread_time).join().unwrap();
        assert!(elsewhere < Duration::from_millis(5), "{elsewhere:?}");
    }

    #[test]
    fn fuel_is_paid_after_it_was_used() {
        let quota = FuelQuota::new(1_000);
        let now_ms = now_ms();
        assert_eq!(quota.at_once(64), UNKNOWN_AT_ONCE);
        assert_eq!(quota.charge(1_000, 10, now_ms), Duration::ZERO);
        assert_eq!(quota.at_once(64), 1, "one costs all that may begin at once");
        assert_eq!(quota.charge(500, 1, now_ms), Duration::from_millis(500));
        // Half of what came back in a second pays the debt, and the other half is left.
        assert_eq!(quota.charge(500, 100, now_ms + 1_000), Duration::ZERO);
        assert_eq!(quota.at_once(64), 20);
        assert_eq!(quota.charge(1, 1, now_ms + 1_000), Duration::from_millis(1));
        assert_eq!(quota.charge(1_000, 1, now_ms + 60_000), Duration::ZERO);
        let free = FuelQuota::new(0);
        assert_eq!(free.charge(u64::MAX, 1, now_ms), Duration::ZERO);
        assert_eq!(free.at_once(64), 64);
        assert_eq!(free.paid(now_ms), Ok(()));
        let spent = FuelQuota::new(10);
        assert_eq!(spent.paid(now_ms), Ok(()));
        spent.charge(45, 1, now_ms);
        assert_eq!(spent.paid(now_ms), Err(4));
    }
}
