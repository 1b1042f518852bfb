//! When to try a delivery again, and when to give it up. Pure: the moment and the randomness are
//! parameters.
//!
//! A schedule is the list of the waits between attempts, each up to a fifth shorter or longer, so that
//! deliveries that failed together do not come back together. A receiver that says how long to stay away
//! stretches a wait and never shortens it, within [`RETRY_AFTER_MAX`].

use std::time::Duration;

/// The longest that a receiver may ask to be left alone: beyond a day it decides what becomes of a
/// delivery, and that is the schedule's part.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How many waits a schedule may have, and how long each may be.
pub const WAITS_MAX: usize = 100;
pub const WAIT_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1_000;

/// The share of a wait by which it varies both ways: 8 to 12 s of 10 s.
const JITTER: f64 = 0.2;

/// How long to wait after each attempt that failed; when they are used up, the delivery is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub waits_ms: Vec<u64>,
}

impl Schedule {
    /// When to try again after an attempt failed, in milliseconds since 1970; `None` when the
    /// attempts are used up. `attempts` counts the one that just failed; `retry_after` is what the
    /// receiver asked for; `random` is uniform from 0 to 1.
    pub fn next(
        &self,
        attempts: u32,
        retry_after: Option<Duration>,
        now_ms: i64,
        random: f64,
    ) -> Option<i64> {
        let wait_ms = *self.waits_ms.get((attempts as usize).checked_sub(1)?)?;
        let wait_ms = wait_ms as f64 * (1.0 + JITTER * (2.0 * random - 1.0));
        let asked_ms = retry_after
            .unwrap_or_default()
            .min(RETRY_AFTER_MAX)
            .as_millis() as i64;
        // A cast from float to integer saturates.
        Some(now_ms.saturating_add((wait_ms as i64).max(asked_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn one_wait() {
        let schedule = Schedule {
            waits_ms: vec![5_000, 3_600_000],
        };
        let second = Duration::from_secs(1);
        for (what, attempts, retry_after, random, expect_ms) in [
            ("the first", 1, None, MIDDLE, Some(5_000)),
            ("the second", 2, None, MIDDLE, Some(3_600_000)),
            ("the least jitter", 1, None, 0.0, Some(4_000)),
            ("the most jitter", 1, None, 1.0, Some(6_000)),
            ("asked for more", 1, Some(60 * second), MIDDLE, Some(60_000)),
            ("asked for less", 1, Some(second), MIDDLE, Some(5_000)),
            (
                "asked for none",
                1,
                Some(Duration::ZERO),
                MIDDLE,
                Some(5_000),
            ),
            (
                "asked for a year",
                1,
                Some(31_536_000 * second),
                MIDDLE,
                Some(86_400_000),
            ),
            (
                "asked for ever",
                1,
                Some(Duration::MAX),
                MIDDLE,
                Some(86_400_000),
            ),
            ("used up", 3, None, MIDDLE, None),
            ("used up, asked to wait", 3, Some(second), MIDDLE, None),
            ("no attempt", 0, None, MIDDLE, None),
        ] {
            let now_ms = 1_700_000_000_000;
            let next = schedule.next(attempts, retry_after, now_ms, random);
            assert_eq!(next, expect_ms.map(|ms| now_ms + ms), "{what}");
        }
    }

    #[test]
    fn extreme_settings_neither_panic_nor_wrap() {
        let schedule = Schedule {
            waits_ms: vec![u64::MAX],
        };
        assert_eq!(schedule.next(1, None, i64::MAX, 1.0), Some(i64::MAX));
        let never = Schedule {
            waits_ms: Vec::new(),
        };
        assert_eq!(never.next(1, None, 0, 0.0), None);
    }
}
