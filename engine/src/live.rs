//! What each tenant has at this moment: where its events come in, where its messages go, and what it may
//! use. A tenant's part is replaced as a whole, so that nobody sees half of a change.

use crate::channel::Channel;
use crate::config::Quotas;
use crate::dispatch::Pace;
use crate::id::Name;
use crate::quota::EventsQuota;
use crate::store::Line;
use crate::tenant::{Source, Tenant};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

type All = HashMap<Name, Arc<OfTenant>>;

/// All tenants.
#[derive(Default)]
pub struct Live {
    tenants: RwLock<All>,
    revision: AtomicU64,
}

/// One of them.
pub struct OfTenant {
    pub sources: BTreeMap<Name, Source>,
    pub channels: BTreeMap<Name, Arc<Channel>>,
    /// How fast each channel may be used.
    pub paces: BTreeMap<Name, Pace>,
    /// Attempts to deliver that may begin in a second; 0 is no quota.
    pub deliveries_per_s: u32,
    pub(crate) events: Arc<EventsQuota>,
}

impl OfTenant {
    pub fn new(tenant: &Tenant, defaults: &Quotas) -> Self {
        let quotas = tenant.quotas.over(defaults);
        Self {
            sources: tenant.sources.clone(),
            channels: tenant.channels.clone(),
            paces: tenant.paces.clone(),
            deliveries_per_s: quotas.deliveries_per_s,
            events: Arc::new(EventsQuota::new(quotas.events_per_s)),
        }
    }
}

impl Live {
    /// What a tenant has now.
    pub fn get(&self, tenant: &Name) -> Option<Arc<OfTenant>> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(tenant).cloned()
    }

    pub fn channel(&self, line: &Line) -> Option<Arc<Channel>> {
        self.get(&line.tenant)?.channels.get(&line.channel).cloned()
    }

    /// Has these be all that there are, and gives those from before. A tenant whose quota is as it was
    /// begins no new second.
    pub fn replace(&self, all: impl IntoIterator<Item = (Name, OfTenant)>) -> All {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let all = all.into_iter().map(|(name, mut new)| {
            if let Some(old) = tenants.get(&name)
                && old.events.per_s() == new.events.per_s()
            {
                new.events = old.events.clone();
            }
            (name, Arc::new(new))
        });
        let all = all.collect();
        let before = std::mem::replace(&mut *tenants, all);
        drop(tenants);
        self.revision.fetch_add(1, Ordering::Release);
        before
    }

    /// Takes back a change.
    pub fn put_back(&self, before: All) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        *tenants = before;
        drop(tenants);
        self.revision.fetch_add(1, Ordering::Release);
    }

    /// Another number after every change.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }
}
