//! What happened in each minute of the last hour, by tenant and rule: for people who look. It is in memory,
//! and begins when the engine does; `/metrics` has what machines keep.

use crate::id::Name;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// How many minutes are kept.
pub const MINUTES_MAX: usize = 60;

/// One minute. What concerns no rule is 0 in a rule's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minute {
    /// Minutes since 1970 (UTC).
    pub at_min: i64,
    pub accepted: u64,
    pub notified: u64,
    pub dropped: u64,
    pub failed: u64,
    pub fuel: u64,
    pub delivered: u64,
    pub dead: u64,
}

/// The minutes in which something happened, the oldest first.
#[derive(Debug, Default)]
struct Minutes(VecDeque<Minute>);

impl Minutes {
    fn at(&mut self, at_min: i64) -> &mut Minute {
        // A clock that went back counts for the minute that it had come to.
        if self.0.back().is_none_or(|last| last.at_min < at_min) {
            if self.0.len() == MINUTES_MAX {
                self.0.pop_front();
            }
            self.0.push_back(Minute {
                at_min,
                ..Minute::default()
            });
        }
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    fn since(&self, from_min: i64) -> Vec<Minute> {
        let minutes = self.0.iter().copied();
        minutes.filter(|it| it.at_min > from_min).collect()
    }
}

#[derive(Debug, Default)]
struct OfTenant {
    all: Minutes,
    rules: HashMap<Name, Minutes>,
}

/// What a rule made of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    Notified,
    Dropped,
    Failed,
}

/// The minutes of all tenants.
#[derive(Debug, Default)]
pub struct Stats {
    tenants: RwLock<HashMap<Name, Arc<Mutex<OfTenant>>>>,
}

fn minute(now_ms: i64) -> i64 {
    now_ms.div_euclid(60_000)
}

fn lock(of: &Mutex<OfTenant>) -> MutexGuard<'_, OfTenant> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stats {
    fn of(&self, tenant: &Name) -> Arc<Mutex<OfTenant>> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(of) = tenants.get(tenant) {
            return of.clone();
        }
        drop(tenants);
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.entry(tenant.clone()).or_default().clone()
    }

    pub(crate) fn accepted(&self, tenant: &Name, now_ms: i64) {
        lock(&self.of(tenant)).all.at(minute(now_ms)).accepted += 1;
    }

    pub(crate) fn decided<'a>(
        &self,
        tenant: &Name,
        decisions: impl Iterator<Item = (&'a Name, Made, u64)>,
        now_ms: i64,
    ) {
        let of = self.of(tenant);
        let mut of = lock(&of);
        let OfTenant { all, rules } = &mut *of;
        let at_min = minute(now_ms);
        for (rule, made, fuel) in decisions {
            if !rules.contains_key(rule) {
                // A rule that has gone needs no minutes any more.
                rules.retain(|_, it| !it.since(at_min - MINUTES_MAX as i64).is_empty());
                rules.insert(rule.clone(), Minutes::default());
            }
            let own = rules.get_mut(rule).map(|it| it.at(at_min));
            for minute in own.into_iter().chain([all.at(at_min)]) {
                minute.fuel = minute.fuel.saturating_add(fuel);
                match made {
                    Made::Notified => minute.notified += 1,
                    Made::Dropped => minute.dropped += 1,
                    Made::Failed => minute.failed += 1,
                }
            }
        }
    }

    pub(crate) fn delivered(&self, tenant: &Name, now_ms: i64) {
        lock(&self.of(tenant)).all.at(minute(now_ms)).delivered += 1;
    }

    pub(crate) fn dead(&self, tenant: &Name, now_ms: i64) {
        lock(&self.of(tenant)).all.at(minute(now_ms)).dead += 1;
    }

    /// The minutes of the last hour in which something happened, of a tenant or one of its rules.
    pub fn last(&self, tenant: &Name, rule: Option<&Name>, now_ms: i64) -> Vec<Minute> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let Some(of) = tenants.get(tenant) else {
            return Vec::new();
        };
        let of = lock(of);
        let minutes = match rule {
            None => Some(&of.all),
            Some(rule) => of.rules.get(rule),
        };
        let from_min = minute(now_ms) - MINUTES_MAX as i64;
        minutes.map_or_else(Vec::new, |it| it.since(from_min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_by_tenant_and_rule() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let (acme, one) = (name("acme"), name("one"));
        let stats = Stats::default();
        let start_ms = 1_000_000 * 60_000;
        for n in 0..100 {
            stats.accepted(&acme, start_ms + n * 60_000);
        }
        let now_ms = start_ms + 99 * 60_000;
        let made = [(&one, Made::Notified, 7), (&one, Made::Failed, 5)];
        stats.decided(&acme, made.into_iter(), now_ms);
        stats.delivered(&acme, now_ms);
        stats.dead(&acme, now_ms - 60_000);
        let last = stats.last(&acme, None, now_ms);
        assert_eq!(last.len(), MINUTES_MAX);
        let newest = Minute {
            at_min: 1_000_099,
            accepted: 1,
            notified: 1,
            failed: 1,
            fuel: 12,
            delivered: 1,
            dead: 1,
            dropped: 0,
        };
        assert_eq!(last.last(), Some(&newest));
        let own = stats.last(&acme, Some(&one), now_ms);
        assert_eq!((own.len(), own[0].fuel, own[0].accepted), (1, 12, 0));
        assert!(stats.last(&acme, Some(&name("two")), now_ms).is_empty());
        assert!(stats.last(&name("other"), None, now_ms).is_empty());
        // What is older than an hour is not told, however long nothing happened.
        assert!(stats.last(&acme, None, now_ms + 3_600_000).is_empty());
        // Rules that have not been asked for an hour are forgotten.
        let two = name("two");
        let later_ms = now_ms + 7_200_000;
        stats.decided(&acme, [(&two, Made::Dropped, 1)].into_iter(), later_ms);
        assert_eq!(lock(&stats.of(&acme)).rules.len(), 1);
    }
}
