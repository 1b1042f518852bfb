//! Which version of a rule decides an event, and what one in its shadow would have decided.

use super::{ActiveRule, Failure};
use crate::clock::now_ms;
use crate::id::Name;
use crate::store::StoredEvent;
use hooksieve_sdk::wire::{Decision, Event, SkipIndex};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use utoipa::ToSchema;

/// A rule with the versions of it that are in use.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) name: Name,
    pub(crate) live: Option<Arc<ActiveRule>>,
    /// Decides a part of the events instead of the live one.
    pub(crate) canary: Option<Canary>,
    /// Is asked as well, without effect.
    pub(crate) shadow: Option<Shadow>,
}

#[derive(Clone)]
pub(crate) struct Canary {
    pub(crate) rule: Arc<ActiveRule>,
    pub(crate) share: Share,
}

/// A part of all subjects, in hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share(pub u16);

impl Share {
    const ALL: u64 = 10_000;

    /// Of a percentage: from 0.01 to 100.
    pub fn percent(percent: f64) -> Option<Self> {
        let share = (percent * 100.0).round();
        (1.0..=Self::ALL as f64)
            .contains(&share)
            .then_some(Self(share as u16))
    }

    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// Whether this subject is among them: the same on every machine and after every restart, and for
    /// two rules not the same subjects.
    fn takes(self, rule: &Name, subject: &str) -> bool {
        let hash = Sha256::new()
            .chain_update(rule.as_str())
            .chain_update([0])
            .chain_update(subject)
            .finalize();
        let number = hash.first_chunk().map_or(0, |it| u64::from_be_bytes(*it));
        number % Self::ALL < u64::from(self.0)
    }
}

#[derive(Clone)]
pub(crate) struct Shadow {
    pub(crate) rule: Arc<ActiveRule>,
    pub(crate) tally: Arc<Tally>,
}

impl Asked {
    /// A rule that has one version, and always the same.
    pub(crate) fn of_file(rule: ActiveRule) -> Self {
        Self {
            name: rule.name.clone(),
            live: Some(Arc::new(rule)),
            canary: None,
            shadow: None,
        }
    }

    /// The version that this event belongs to, whether or not it subscribes to it.
    pub(super) fn chosen(&self, event: &StoredEvent) -> Option<&Arc<ActiveRule>> {
        if let Some(canary) = &self.canary {
            let decoded = Event::decode(&event.encoded, SkipIndex::new(&event.index)).ok();
            let taken = match decoded.and_then(|event| event.subject()) {
                Some(subject) => canary.share.takes(&self.name, subject),
                None => canary.share.takes(&self.name, &event.id.to_string()),
            };
            if taken {
                return Some(&canary.rule);
            }
        }
        self.live.as_ref()
    }

    /// The version that decides it.
    pub(super) fn version_for(&self, event: &StoredEvent) -> Option<&Arc<ActiveRule>> {
        self.chosen(event).filter(|rule| rule.sees(event))
    }
}

/// How many differences of a shadow are listed: the last ones.
const DIFFERENCES_MAX: usize = 100;

/// How often a shadow would have decided otherwise since it began.
#[derive(Debug)]
pub struct Tally {
    pub since_ms: i64,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    /// Whether something was noted since it was kept.
    more: bool,
    compared: u64,
    differed: u64,
    last: VecDeque<Difference>,
}

/// A tally as it outlasts the engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KeptTally {
    pub version: u32,
    since_ms: i64,
    compared: u64,
    differed: u64,
    last: VecDeque<Difference>,
}

/// An event of which two versions make different things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    pub event: String,
    pub live: Short,
    pub shadow: Short,
    /// Its type. Tallies that were kept by an earlier build have none.
    #[serde(default, rename = "type")]
    pub kind: String,
}

/// A decision as a line in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Short {
    /// `notified`, `dropped`, `failed`, or `not-asked` where it did not subscribe to it.
    pub outcome: String,
    /// Why: the decision's reason, or the failure.
    pub reason: String,
    /// Where to, in the order of the actions.
    pub channels: Vec<String>,
}

type Made<'a> = Option<&'a Result<Decision, Failure>>;

impl Default for Tally {
    fn default() -> Self {
        Self {
            since_ms: now_ms(),
            noted: Mutex::default(),
        }
    }
}

impl Tally {
    pub(super) fn note(&self, event: &StoredEvent, live: Made<'_>, shadow: Made<'_>) {
        let same = match (live, shadow) {
            (None, None) => return,
            (Some(Ok(live)), Some(Ok(shadow))) => live == shadow,
            (Some(Err(live)), Some(Err(shadow))) => live.kind() == shadow.kind(),
            _ => false,
        };
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.compared += 1;
        noted.more = true;
        if same {
            return;
        }
        noted.differed += 1;
        if noted.last.len() == DIFFERENCES_MAX {
            noted.last.pop_front();
        }
        noted.last.push_back(Difference {
            event: event.id.to_string(),
            live: short(live),
            shadow: short(shadow),
            kind: event.kind.clone(),
        });
    }

    /// What is to be kept of it, where something was noted since it was kept last.
    pub(crate) fn keep(&self, version: u32) -> Option<KeptTally> {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut noted.more).then(|| KeptTally {
            version,
            since_ms: self.since_ms,
            compared: noted.compared,
            differed: noted.differed,
            last: noted.last.clone(),
        })
    }

    /// How many events were compared, of how many they differ, and the last of these, newest first.
    pub fn counts(&self) -> (u64, u64, Vec<Difference>) {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = noted.last.iter().rev().cloned();
        (noted.compared, noted.differed, last.collect())
    }
}

impl From<KeptTally> for Tally {
    fn from(kept: KeptTally) -> Self {
        Self {
            since_ms: kept.since_ms,
            noted: Mutex::new(Noted {
                more: false,
                compared: kept.compared,
                differed: kept.differed,
                last: kept.last,
            }),
        }
    }
}

fn short(made: Made<'_>) -> Short {
    let (outcome, reason, channels) = match made {
        None => ("not-asked", String::new(), Vec::new()),
        Some(Err(failure)) => ("failed", failure.to_string(), Vec::new()),
        Some(Ok(decision)) => {
            let actions = decision.actions.iter();
            let channels: Vec<_> = actions.map(|action| action.channel.clone()).collect();
            let outcome = if channels.is_empty() {
                "dropped"
            } else {
                "notified"
            };
            (outcome, decision.reason.clone(), channels)
        }
    };
    Short {
        outcome: outcome.to_owned(),
        reason,
        channels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EventId;

    #[test]
    fn a_share_is_of_subjects_and_stays() {
        let rule: Name = "triage".parse().unwrap();
        let subjects: Vec<String> = (0..10_000).map(|n| format!("octo/{n}")).collect();
        let taken = |share: Share| {
            let all = subjects.iter();
            all.filter(|it| share.takes(&rule, it)).collect::<Vec<_>>()
        };
        let five = taken(Share::percent(5.0).unwrap());
        assert!((400..600).contains(&five.len()), "{}", five.len());
        // A larger share has all of the smaller one.
        let ten = taken(Share::percent(10.0).unwrap());
        assert!(five.iter().all(|it| ten.contains(it)));
        assert_eq!(taken(Share::percent(100.0).unwrap()).len(), subjects.len());
        // The same on every machine.
        assert_eq!(five[..3], ["octo/22", "octo/41", "octo/52"]);
        for wrong in [0.0, 0.001, 100.01, -1.0, f64::NAN] {
            assert_eq!(Share::percent(wrong), None);
        }
    }

    #[test]
    fn only_what_differs_is_listed_and_only_the_last() {
        let tally = Tally::default();
        let event = |n: i64| StoredEvent {
            id: EventId::next(n, None),
            tenant: "acme".parse().unwrap(),
            source: "hub".parse().unwrap(),
            kind: "push".to_owned(),
            sender_id: None,
            verified: String::new(),
            received_ms: n,
            encoded: Vec::new(),
            index: Vec::new(),
        };
        let dropped: Result<Decision, Failure> = Ok(Decision {
            reason: "no".to_owned(),
            actions: Vec::new(),
        });
        tally.note(&event(1), Some(&dropped), Some(&dropped));
        tally.note(&event(2), None, None);
        for n in 0..DIFFERENCES_MAX as i64 + 5 {
            tally.note(&event(n), Some(&dropped), None);
        }
        let (compared, differed, last) = tally.counts();
        assert_eq!(
            (compared, differed, last.len()),
            (106, 105, DIFFERENCES_MAX)
        );
        assert_eq!(
            (&*last[0].shadow.outcome, &*last[0].kind),
            ("not-asked", "push")
        );
    }
}
