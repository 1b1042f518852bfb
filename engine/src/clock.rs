//! The one clock of the running engine: the machine's, except that it does not follow a jump at once.
//!
//! A clock that is years ahead for a minute would otherwise leave its marks for years: in ids, which
//! only grow, in retries that fall due when the year has come, and in events that look old. So a jump
//! counts only when it has lasted; until then this clock goes on at the pace of the monotonic one.
//!
//! What is signed, and what senders have signed, goes by the machine's own clock.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// By how much the machine's clock may be off from one look to the next without having jumped.
const JUMP_MS: i64 = 10_000;
/// How long a jump has to last to be followed.
const PATIENCE_MS: i64 = 10 * 60 * 1_000;

/// The moment, in milliseconds since 1970 (UTC).
pub fn now_ms() -> i64 {
    static CLOCK: OnceLock<(Instant, Mutex<Clock>)> = OnceLock::new();
    let machine_ms = jiff::Timestamp::now().as_millisecond();
    let (began, clock) = CLOCK.get_or_init(|| (Instant::now(), Mutex::new(Clock::new(machine_ms))));
    let steady_ms = began.elapsed().as_millis() as i64;
    // Every change under the lock is whole.
    let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
    let (now_ms, step) = clock.look(machine_ms, steady_ms);
    drop(clock);
    match step {
        Some(Step::Jumped(by_ms)) => {
            tracing::warn!(
                by_ms,
                "the machine's clock jumped; it is followed if that lasts for ten minutes"
            );
        }
        Some(Step::Followed(by_ms)) => {
            tracing::warn!(by_ms, "the machine's clock is followed again");
        }
        None => {}
    }
    now_ms
}

/// Something a person should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Jumped(i64),
    Followed(i64),
}

/// Both clocks when they last agreed, and since when they do not.
struct Clock {
    machine_ms: i64,
    steady_ms: i64,
    apart_since_ms: Option<i64>,
}

impl Clock {
    fn new(machine_ms: i64) -> Self {
        Self {
            machine_ms,
            steady_ms: 0,
            apart_since_ms: None,
        }
    }

    fn look(&mut self, machine_ms: i64, steady_ms: i64) -> (i64, Option<Step>) {
        let expected_ms = self.machine_ms + (steady_ms - self.steady_ms);
        let by_ms = machine_ms - expected_ms;
        let since_ms = self.apart_since_ms;
        let step = if by_ms.abs() < JUMP_MS {
            self.apart_since_ms = None;
            since_ms.map(|_| Step::Followed(by_ms))
        } else {
            match since_ms {
                Some(since_ms) if steady_ms - since_ms >= PATIENCE_MS => {
                    self.apart_since_ms = None;
                    Some(Step::Followed(by_ms))
                }
                Some(_) => return (expected_ms, None),
                None => {
                    self.apart_since_ms = Some(steady_ms);
                    return (expected_ms, Some(Step::Jumped(by_ms)));
                }
            }
        };
        (self.machine_ms, self.steady_ms) = (machine_ms, steady_ms);
        (machine_ms, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_followed_only_when_it_lasts() {
        const YEAR_MS: i64 = 365 * 86_400 * 1_000;
        let mut clock = Clock::new(1_000_000);
        // It runs a little slow, and is corrected.
        assert_eq!(clock.look(1_000_900, 1_000), (1_000_900, None));
        assert_eq!(clock.look(1_003_000, 3_000), (1_003_000, None));
        let (now_ms, step) = clock.look(YEAR_MS + 1_004_000, 4_000);
        assert_eq!((now_ms, step), (1_004_000, Some(Step::Jumped(YEAR_MS))));
        assert_eq!(clock.look(YEAR_MS + 1_005_000, 5_000), (1_005_000, None));
        // It was a mistake.
        assert_eq!(
            clock.look(1_006_000, 6_000),
            (1_006_000, Some(Step::Followed(0)))
        );
        // Back by a day, for good.
        let back = |steady_ms: i64| 1_000_000 + steady_ms - 86_400_000;
        let jumped = Some(Step::Jumped(-86_400_000));
        assert_eq!(clock.look(back(7_000), 7_000), (1_007_000, jumped));
        let later = 7_000 + PATIENCE_MS;
        let (now_ms, _) = clock.look(back(later - 1), later - 1);
        assert_eq!(now_ms, 1_000_000 + later - 1);
        let followed = Some(Step::Followed(-86_400_000));
        assert_eq!(clock.look(back(later), later), (back(later), followed));
        assert_eq!(
            clock.look(back(later + 5), later + 5),
            (back(later + 5), None)
        );
    }
}
