//! A version of a rule that fails again and again is put in quarantine: it is asked no more, and its
//! events are held until somebody resumes it or makes another version live.
//!
//! What it failed on may have been a stranger's doing, though, and the next event the one that matters. So
//! one event in a while is asked of it all the same, and it is back as soon as it decides one.
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

/// How long a version in quarantine is left alone before it is asked about an event again.
pub(crate) const TRIAL_EVERY_MS: i64 = 60_000;

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
    /// Its thread did not come back: it is never asked again.
    #[serde(default)]
    pub lost: bool,
}

/// What a decision came to for the version that made it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// So many of so many failed, which is too many.
    Failed(usize, usize),
    /// It decided an event that it was asked about in quarantine.
    Resumed(Arc<Quarantine>),
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
    /// When it was asked last in quarantine.
    tried_ms: i64,
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

    /// Whether a version in quarantine is to be asked about this event all the same.
    pub(super) fn is_tried(&self, now_ms: i64) -> bool {
        let mut state = self.lock();
        let Some(quarantine) = state.quarantine.as_ref().filter(|it| !it.lost) else {
            return false;
        };
        if now_ms - quarantine.since_ms.max(state.tried_ms) < TRIAL_EVERY_MS {
            return false;
        }
        state.tried_ms = now_ms;
        true
    }

    /// Notes whether it failed, `tried` where it was asked although it is in quarantine.
    pub(super) fn note(&self, failed: bool, tried: bool, settings: Settings) -> Option<Noted> {
        let mut state = self.lock();
        if state.quarantine.is_some() {
            // What was asked before it was put in says nothing new.
            let back = tried && !failed;
            let quarantine = state.quarantine.take_if(|_| back)?;
            *state = State::default();
            return Some(Noted::Resumed(quarantine));
        }
        if settings.last_events == 0 {
            return None;
        }
        state.last.push_back(failed);
        state.failed += usize::from(failed);
        if state.last.len() > settings.last_events && state.last.pop_front() == Some(true) {
            state.failed -= 1;
        }
        let (failed, of) = (state.failed, state.last.len());
        let full = of == settings.last_events;
        (full && failed * 100 >= settings.failed_percent * of).then_some(Noted::Failed(failed, of))
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
            assert_eq!(health.note(false, false, SETTINGS), None);
        }
        for _ in 0..7 {
            assert_eq!(health.note(true, false, SETTINGS), None);
        }
        // What came before the last ten is forgotten.
        assert_eq!(
            health.note(true, false, SETTINGS),
            Some(Noted::Failed(8, 10))
        );
    }

    #[test]
    fn few_events_prove_nothing_and_who_resumes_begins_anew() {
        let health = Health::default();
        for _ in 0..9 {
            assert_eq!(health.note(true, false, SETTINGS), None);
        }
        assert_eq!(
            health.note(true, false, SETTINGS),
            Some(Noted::Failed(10, 10))
        );
        assert!(!health.resume());
        assert_eq!(health.note(true, false, SETTINGS), None);
        let never = Settings {
            last_events: 0,
            ..SETTINGS
        };
        assert_eq!(health.note(true, false, never), None);
    }
}
