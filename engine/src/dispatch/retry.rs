//! When to try a delivery again, and when to give it up. Pure: the moment and the randomness are
//! parameters.
//!
//! ```text
//! delay after attempt n = min(base * factor^(n-1), max), then up to the jitter's share more or less
//! ```
//!
//! The jitter keeps deliveries that failed together from coming back together. A receiver that says
//! how long to stay away stretches the delay and never shortens it, within [`RETRY_AFTER_MAX`].

use std::time::Duration;

/// The longest that a receiver may ask to be left alone: beyond a day it decides what becomes of a
/// delivery, and that is the schedule's part.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long to wait between attempts, and how many there are.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The delay after the first attempt.
    pub base_ms: u64,
    /// By how much each delay grows over the one before; 1 or more.
    pub factor: f64,
    /// What no delay grows beyond, but for its jitter.
    pub max_ms: u64,
    /// All attempts, the first one included.
    pub attempts_max: u32,
    /// The share of a delay by which it varies both ways, from 0 to 1: 0.2 makes 8 to 12 s of 10 s.
    pub jitter: f64,
}

impl Default for Schedule {
    /// 5, 10, 20, 40, 80, 160, 320, 640, 1280 and 2560 s, then every hour: 16 attempts over 6 h 25 min.
    /// A restarting receiver gets its deliveries within seconds, and an outage of an evening loses
    /// none. (With 12 attempts the same schedule ends after 2 h 25 min.)
    fn default() -> Self {
        Self {
            base_ms: 5_000,
            factor: 2.0,
            max_ms: 3_600_000,
            attempts_max: 16,
            jitter: 0.2,
        }
    }
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
        if attempts >= self.attempts_max {
            return None;
        }
        let grown = self.base_ms as f64 * self.factor.powf(attempts.saturating_sub(1).into());
        // `min` also takes the infinity that a large factor grows to.
        let delay_ms = grown.min(self.max_ms as f64) * (1.0 + self.jitter * (2.0 * random - 1.0));
        let asked_ms = retry_after
            .unwrap_or_default()
            .min(RETRY_AFTER_MAX)
            .as_millis() as i64;
        // A cast from float to integer saturates.
        Some(now_ms.saturating_add((delay_ms as i64).max(asked_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn delays_double_up_to_the_longest() {
        let schedule = Schedule::default();
        let delays: Vec<_> = (1..)
            .map_while(|attempts| schedule.next(attempts, None, 0, MIDDLE))
            .map(|delay_ms| delay_ms / 1000)
            .collect();
        assert_eq!(
            delays,
            [
                5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600, 3600, 3600
            ]
        );
        let total_s: i64 = delays.iter().sum();
        assert_eq!((total_s / 3600, total_s / 60 % 60), (6, 25));
    }

    #[test]
    fn one_delay() {
        let schedule = Schedule::default();
        let second = Duration::from_secs(1);
        for (what, attempts, retry_after, random, expect_ms) in [
            ("the least jitter", 1, None, 0.0, Some(4_000)),
            ("the most jitter", 1, None, 1.0, Some(6_000)),
            ("jitter on the longest", 11, None, 1.0, Some(4_320_000)),
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
            (
                "the last attempt but one",
                15,
                None,
                MIDDLE,
                Some(3_600_000),
            ),
            ("the last attempt", 16, None, MIDDLE, None),
            (
                "the last attempt, asked to wait",
                16,
                Some(second),
                MIDDLE,
                None,
            ),
            ("more attempts than there are", 17, None, MIDDLE, None),
        ] {
            let now_ms = 1_700_000_000_000;
            let next = schedule.next(attempts, retry_after, now_ms, random);
            assert_eq!(next, expect_ms.map(|ms| now_ms + ms), "{what}");
        }
    }

    #[test]
    fn extreme_settings_neither_panic_nor_wrap() {
        let schedule = Schedule {
            base_ms: u64::MAX,
            factor: 1e300,
            max_ms: u64::MAX,
            attempts_max: u32::MAX,
            jitter: 1.0,
        };
        assert_eq!(
            schedule.next(u32::MAX - 1, None, i64::MAX, 1.0),
            Some(i64::MAX)
        );
        let constant = Schedule {
            factor: 1.0,
            jitter: 0.0,
            ..Schedule::default()
        };
        assert_eq!(constant.next(9, None, 0, 0.0), Some(5_000));
        let once = Schedule {
            attempts_max: 1,
            ..Schedule::default()
        };
        assert_eq!(once.next(1, None, 0, 0.0), None);
    }
}
