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

/// All tenants.
#[derive(Default)]
pub struct Live {
    tenants: RwLock<HashMap<Name, Arc<OfTenant>>>,
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
    /// What its events may take in the store; 0 is no quota.
    pub stored_bytes: u64,
    pub(crate) events: Arc<EventsQuota>,
}

impl OfTenant {
    /// What a tenant's file says.
    pub fn new(tenant: &Tenant, defaults: &Quotas) -> Self {
        let quotas = tenant.quotas.over(defaults);
        Self {
            sources: tenant.sources.clone(),
            channels: tenant.channels.clone(),
            paces: tenant.paces.clone(),
            deliveries_per_s: quotas.deliveries_per_s,
            stored_bytes: quotas.stored_bytes,
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

    /// The tenants whose events may take so many bytes, and how many.
    pub(crate) fn stored_bytes(&self) -> Vec<(Name, u64)> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let bounded = tenants.iter().filter(|(_, of)| of.stored_bytes > 0);
        bounded
            .map(|(name, of)| (name.clone(), of.stored_bytes))
            .collect()
    }

    pub fn channel(&self, line: &Line) -> Option<Arc<Channel>> {
        self.get(&line.tenant)?.channels.get(&line.channel).cloned()
    }

    /// Has a tenant have these from now on. One whose quota is as it was begins no new second.
    pub fn put(&self, tenant: &Name, mut new: OfTenant) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = tenants.get(tenant)
            && old.events.per_s() == new.events.per_s()
        {
            new.events = old.events.clone();
        }
        tenants.insert(tenant.clone(), Arc::new(new));
        drop(tenants);
        self.revision.fetch_add(1, Ordering::Release);
    }

    pub fn remove(&self, tenant: &Name) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.remove(tenant);
        drop(tenants);
        self.revision.fetch_add(1, Ordering::Release);
    }

    /// Another number after every change.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }
}
