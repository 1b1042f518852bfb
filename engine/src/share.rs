//! How much one tenant takes of something that all share.

use crate::id::Name;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is taken now, by tenant, within a limit for all and one for each.
pub struct Shares {
    all_max: usize,
    each_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by: BTreeMap<Name, usize>,
}

/// A share, until it is dropped.
pub(crate) struct Share {
    shares: Arc<Shares>,
    tenant: Name,
}

impl Shares {
    pub fn new(all_max: usize, each_max: usize) -> Arc<Self> {
        Arc::new(Self {
            all_max,
            each_max,
            taken: Mutex::default(),
        })
    }

    pub(crate) fn take(self: &Arc<Self>, tenant: &Name) -> Option<Share> {
        let mut taken = self.taken();
        let own = taken.by.get(tenant).copied().unwrap_or(0);
        if taken.all >= self.all_max || own >= self.each_max {
            return None;
        }
        taken.all += 1;
        taken.by.insert(tenant.clone(), own + 1);
        Some(Share {
            shares: self.clone(),
            tenant: tenant.clone(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all -= 1;
        match taken.by.get_mut(&self.tenant) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.by.remove(&self.tenant)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_a_share() {
        let shares = Shares::new(3, 2);
        let name = |text: &str| text.parse::<Name>().unwrap();
        let first = shares.take(&name("a")).unwrap();
        let _second = shares.take(&name("a")).unwrap();
        assert!(shares.take(&name("a")).is_none());
        let _third = shares.take(&name("b")).unwrap();
        assert!(shares.take(&name("c")).is_none());
        drop(first);
        let _fourth = shares.take(&name("c")).unwrap();
        let taken = shares.taken();
        assert_eq!((taken.all, taken.by.len()), (3, 3));
    }
}
