//! How fast deliveries go to one channel: its rates, and the breaker that gives a failing receiver rest.
//! Pure: the moment is a parameter.
//!
//! ```text
//!            FAILURES_MAX in a row                 rest is over
//!   closed ------------------------> open (rests) --------------> half-open: one attempt, a probe
//!     ^                                ^                             |            |
//!     |                                +------- it fails: twice as long a rest ---+
//!     +---------------------------------------- it arrives --------+
//! ```
//!
//! Deliveries of a channel that rests wait where they are, and no attempt of theirs is used up.

use super::retry::Schedule;
use std::time::Duration;

/// How many failures in a row open the breaker.
const FAILURES_MAX: u32 = 5;
/// The first rest, and the longest.
const REST_MS: i64 = 5_000;
const REST_MAX_MS: i64 = 300_000;

/// At most `count` deliveries in each `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

impl Rate {
    pub const fn new(count: u32, per_s: u64) -> Self {
        Self {
            count,
            per: Duration::from_secs(per_s),
        }
    }

    /// Reads "5/s", "100/min" or "1000/h".
    ///
    /// # Errors
    /// One sentence that says how a rate is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read = text.split_once('/').and_then(|(count, per)| {
            let per_s = match per.trim() {
                "s" => 1,
                "min" => 60,
                "h" => 3_600,
                _ => return None,
            };
            let count = count.trim().parse().ok()?;
            (1..=100_000)
                .contains(&count)
                .then_some(Self::new(count, per_s))
        });
        read.ok_or_else(|| {
            format!("{text:?} is no rate; it is written as \"5/s\", \"100/min\" or \"1000/h\"")
        })
    }
}

/// What a tenant may say of a channel beside where it leads.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// All of them hold.
    pub rates: Vec<Rate>,
    pub in_flight_max: Option<usize>,
    pub schedule: Option<Schedule>,
}

/// Lets through what the rates allow: a bucket for each, full at the beginning.
#[derive(Clone, Debug)]
pub(crate) struct Buckets {
    buckets: Vec<Bucket>,
    at_ms: i64,
}

#[derive(Clone, Debug)]
struct Bucket {
    rate: Rate,
    tokens: f64,
}

impl Buckets {
    pub(crate) fn new(rates: &[Rate], now_ms: i64) -> Self {
        let full = rates.iter().map(|rate| Bucket {
            rate: *rate,
            tokens: f64::from(rate.count),
        });
        Self {
            buckets: full.collect(),
            at_ms: now_ms,
        }
    }

    /// Whether there is one to take, or when there is.
    pub(crate) fn ready(&mut self, now_ms: i64) -> Result<(), i64> {
        // A clock that went back gives nothing.
        let passed_ms = (now_ms - self.at_ms).max(0) as f64;
        self.at_ms = now_ms;
        let mut wait_ms = 0.0_f64;
        for bucket in &mut self.buckets {
            let count = f64::from(bucket.rate.count);
            let per_ms = bucket.rate.per.as_millis() as f64 / count;
            bucket.tokens = (bucket.tokens + passed_ms / per_ms).min(count);
            wait_ms = wait_ms.max((1.0 - bucket.tokens) * per_ms);
        }
        if wait_ms > 0.0 {
            return Err(now_ms + wait_ms.ceil() as i64);
        }
        Ok(())
    }

    /// Takes one, or says when there is one again.
    pub(crate) fn take(&mut self, now_ms: i64) -> Result<(), i64> {
        self.ready(now_ms)?;
        for bucket in &mut self.buckets {
            bucket.tokens -= 1.0;
        }
        Ok(())
    }

    /// Takes over other rates. Where they are the same, nobody begins anew with all that they allow.
    pub(super) fn follow(&mut self, new: Self) {
        let rates = |buckets: &Self| -> Vec<Rate> {
            buckets.buckets.iter().map(|bucket| bucket.rate).collect()
        };
        if rates(self) != rates(&new) {
            *self = new;
        }
    }

    /// Whether forgetting it would change nothing.
    pub(crate) fn is_full(&self, now_ms: i64) -> bool {
        let passed_ms = (now_ms - self.at_ms).max(0) as f64;
        self.buckets.iter().all(|bucket| {
            let count = f64::from(bucket.rate.count);
            let per_ms = bucket.rate.per.as_millis() as f64 / count;
            bucket.tokens + passed_ms / per_ms >= count
        })
    }
}

/// Gives a receiver that fails again and again a rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Breaker {
    failures: u32,
    /// When a probe may be made; `None` while it is closed.
    rests_until_ms: Option<i64>,
    rest_ms: i64,
    probing: bool,
    /// Since when nothing arrived.
    failing_since_ms: Option<i64>,
}

impl Breaker {
    /// Whether an attempt may begin, or when it may. [`Breaker::begun`] says that it did.
    pub(super) fn allows(&self, now_ms: i64) -> Result<(), Option<i64>> {
        match self.rests_until_ms {
            None => Ok(()),
            Some(_) if self.probing => Err(None),
            Some(until_ms) if until_ms <= now_ms => Ok(()),
            Some(until_ms) => Err(Some(until_ms)),
        }
    }

    pub(super) fn begun(&mut self) {
        self.probing = self.rests_until_ms.is_some();
    }

    /// There was nothing to attempt after all.
    pub(super) fn not_begun(&mut self) {
        self.probing = false;
    }

    /// The receiver took one, or refused it for a reason of that one's own.
    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    /// The receiver was not there, or is not well. Since when, if it is long enough to tell; whether
    /// the breaker has just opened.
    pub(super) fn failed(&mut self, now_ms: i64) -> (i64, bool) {
        let since_ms = *self.failing_since_ms.get_or_insert(now_ms);
        self.failures += 1;
        let was_open = self.rests_until_ms.is_some();
        if self.failures >= FAILURES_MAX && (!was_open || self.probing) {
            self.rest_ms = (self.rest_ms * 2).clamp(REST_MS, REST_MAX_MS);
            self.rests_until_ms = Some(now_ms.saturating_add(self.rest_ms));
        }
        self.probing = false;
        (since_ms, !was_open && self.rests_until_ms.is_some())
    }

    pub(super) fn is_closed(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        assert_eq!(Rate::parse("5/s"), Ok(Rate::new(5, 1)));
        assert_eq!(Rate::parse(" 100 / min"), Ok(Rate::new(100, 60)));
        assert_eq!(Rate::parse("1000/h"), Ok(Rate::new(1_000, 3_600)));
        for wrong in ["", "5", "0/s", "-1/s", "5/d", "1.5/s", "100001/s"] {
            assert!(Rate::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn all_rates_hold() {
        // Five a second and eight a minute, as fast as it lets through.
        let mut buckets = Buckets::new(&[Rate::new(5, 1), Rate::new(8, 60)], 0);
        let mut sent_ms = Vec::new();
        let mut now_ms = 0;
        while now_ms < 60_000 {
            match buckets.take(now_ms) {
                Ok(()) => sent_ms.push(now_ms),
                Err(at_ms) => now_ms = at_ms,
            }
        }
        assert_eq!(sent_ms[..5], [0; 5]);
        assert_eq!(sent_ms[5..8], [200, 400, 600]);
        // Then one each 7.5 s, as the minute's bucket fills.
        assert_eq!(
            sent_ms[8..],
            [7_500, 15_000, 22_500, 30_000, 37_500, 45_000, 52_500]
        );
        assert!(!buckets.is_full(60_000));
        assert!(buckets.is_full(200_000));
        assert_eq!(Buckets::new(&[], 0).take(0), Ok(()));
    }

    #[test]
    fn a_receiver_that_fails_gets_longer_and_longer_rests() {
        let mut breaker = Breaker::default();
        for n in 1..FAILURES_MAX {
            assert_eq!(breaker.failed(i64::from(n)), (1, false));
            assert_eq!(breaker.allows(i64::from(n)), Ok(()));
        }
        assert_eq!(breaker.failed(10), (1, true));
        let mut now_ms = 10;
        for rest_ms in [
            5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000,
        ] {
            assert_eq!(breaker.allows(now_ms), Err(Some(now_ms + rest_ms)));
            // What was under way when it opened does not prolong it.
            assert_eq!(breaker.failed(now_ms + 1), (1, false));
            now_ms += rest_ms;
            assert_eq!(breaker.allows(now_ms), Ok(()));
            breaker.begun();
            assert_eq!(breaker.allows(now_ms), Err(None), "one probe at a time");
            assert_eq!(breaker.failed(now_ms), (1, false));
        }
        breaker.answered();
        assert!(breaker.is_closed());
        assert_eq!(breaker.allows(now_ms), Ok(()));
    }
}
