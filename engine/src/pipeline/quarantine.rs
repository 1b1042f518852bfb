//! A version of a rule that fails again and again is put in quarantine: it is asked no more, and its
//! events are held until somebody resumes it or makes another version live.
//!
//! What a quarantine saves is not only time. A rule that fails on everything says with each failure that
//! it is not fit to decide; what `on_error = "drop"` would throw away is kept for when it is mended.

use crate::id::{Hash, Name};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When a rule is put in quarantine.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How many of its last decisions are looked at; 0 for never.
    pub last_events: usize,
    /// How many of them are failures at least.
    pub failed_percent: usize,
}

/// What `last_events` may be.
pub const LAST_EVENTS_MAX: usize = 10_000;

/// Why a version is in quarantine, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    pub tenant: Name,
    pub rule: Name,
    /// Absent where the rule stands in the tenant's file.
    pub version: Option<u32>,
    /// What it was asked with: another module or configuration is another rule.
    pub module: Hash,
    pub config: Hash,
    pub since_ms: i64,
    pub failed: usize,
    pub of: usize,
    /// The last failure.
    pub error: String,
}

impl Quarantine {
    /// Its key among the store's records.
    pub fn key(&self) -> String {
        key(&self.tenant, &self.rule, self.version)
    }
}

pub(crate) fn key(tenant: &Name, rule: &Name, version: Option<u32>) -> String {
    let version = version.unwrap_or_default();
    format!("quarantine/{tenant}/{rule}/{version:010}")
}

/// How one version of a rule is doing.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the last decisions were failures, newest last.
    last: VecDeque<bool>,
    failed: usize,
    quarantine: Option<Arc<Quarantine>>,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn quarantine(&self) -> Option<Arc<Quarantine>> {
        self.lock().quarantine.clone()
    }

    pub(crate) fn put_in(&self, quarantine: Quarantine) -> Arc<Quarantine> {
        let quarantine = Arc::new(quarantine);
        self.lock().quarantine = Some(quarantine.clone());
        quarantine
    }

    /// It begins anew. Whether it was in quarantine.
    pub(crate) fn resume(&self) -> bool {
        std::mem::take(&mut *self.lock()).quarantine.is_some()
    }

    /// Notes whether it failed; how many of how many failed, where that is too many by now.
    pub(super) fn note(&self, failed: bool, settings: Settings) -> Option<(usize, usize)> {
        if settings.last_events == 0 {
            return None;
        }
        let mut state = self.lock();
        if state.quarantine.is_some() {
            return None;
        }
        state.last.push_back(failed);
        state.failed += usize::from(failed);
        if state.last.len() > settings.last_events && state.last.pop_front() == Some(true) {
            state.failed -= 1;
        }
        let (failed, of) = (state.failed, state.last.len());
        let full = of == settings.last_events;
        (full && failed * 100 >= settings.failed_percent * of).then_some((failed, of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        last_events: 10,
        failed_percent: 80,
    };

    #[test]
    fn eight_of_the_last_ten_are_too_many_and_seven_are_not() {
        let health = Health::default();
        for _ in 0..3 {
            assert_eq!(health.note(false, SETTINGS), None);
        }
        for _ in 0..7 {
            assert_eq!(health.note(true, SETTINGS), None);
        }
        // What came before the last ten is forgotten.
        assert_eq!(health.note(true, SETTINGS), Some((8, 10)));
    }

    #[test]
    fn few_events_prove_nothing_and_who_resumes_begins_anew() {
        let health = Health::default();
        for _ in 0..9 {
            assert_eq!(health.note(true, SETTINGS), None);
        }
        assert_eq!(health.note(true, SETTINGS), Some((10, 10)));
        assert!(!health.resume());
        assert_eq!(health.note(true, SETTINGS), None);
        let never = Settings {
            last_events: 0,
            ..SETTINGS
        };
        assert_eq!(health.note(true, never), None);
    }
}
