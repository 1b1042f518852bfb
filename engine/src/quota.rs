//! What a tenant may use each second, counted as it is used. A quota of 0 is none.

use crate::clock::now_ms;
use crate::dispatch::{Buckets, Rate};
use std::sync::{Mutex, PoisonError};

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
        ask(&mut buckets, now_ms).map_err(|at_ms| {
            let wait_s = (at_ms - now_ms).max(1).unsigned_abs().div_ceil(1_000);
            u32::try_from(wait_s).unwrap_or(u32::MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
