//! Rules in quarantine: found again at a start, and resumed. `pipeline/quarantine.rs` puts them there.

use super::rule::audit;
use super::{Changes, Registry, not_found, read_or_leave_out};
use crate::id::Name;
use crate::pipeline::quarantine::Quarantine;
use crate::registry::Error;
use crate::store;
use std::sync::Arc;

impl Registry {
    /// Puts back what was in quarantine when the engine ended. What has another module or configuration
    /// by now begins anew.
    pub(super) async fn load_quarantines(&self) -> Result<(), store::Error> {
        let mut changes = Changes::new();
        for (key, bytes) in self.store.records("quarantine/").await? {
            // Without it, the rule is asked, and put in quarantine again if it fails again.
            let Some(quarantine) = read_or_leave_out::<Quarantine>(&key, &bytes) else {
                continue;
            };
            let Some(rules) = self.pipeline.rules(&quarantine.tenant) else {
                continue;
            };
            let name = quarantine.rule.clone();
            let mut deciding = rules.deciding(&name).into_iter().flatten();
            match deciding.find(|rule| rule.is(&quarantine)) {
                Some(rule) => drop(rule.health.put_in(quarantine)),
                None => changes.push((key, None)),
            }
        }
        if !changes.is_empty() {
            self.store.set_records(changes).await?;
        }
        Ok(())
    }

    /// Why a rule is not asked any more, if so.
    pub fn quarantine(&self, tenant: &Name, rule: &Name) -> Option<Arc<Quarantine>> {
        let rules = self.pipeline.rules(tenant)?;
        let mut deciding = rules.deciding(rule)?;
        deciding.find_map(|rule| rule.health.quarantine())
    }

    /// Has a rule asked again that was in quarantine; `false` where it was not.
    ///
    /// # Errors
    /// When there is no such rule, or the store cannot take it.
    pub async fn resume(&self, tenant: &Name, name: &Name, who: &str) -> Result<bool, Error> {
        self.fixed(tenant)?;
        // One change at a time.
        let _rules = self.rules.lock().await;
        let rules = self.pipeline.rules(tenant);
        let rules = rules.ok_or_else(|| not_found("tenant", tenant))?;
        let deciding = rules.deciding(name);
        let deciding = deciding.ok_or_else(|| not_found("rule", name))?;
        let resting: Vec<_> = deciding
            .filter_map(|rule| Some((rule, rule.health.quarantine()?)))
            .collect();
        if resting.is_empty() {
            return Ok(false);
        }
        let keys = resting.iter().map(|(_, it)| (it.key(), None));
        let mut changes: Changes = keys.collect();
        let version = resting.first().and_then(|(_, it)| it.version);
        let entry = audit(who, "resume", name, version, version, version);
        self.add_audit(tenant, &entry, &mut changes).await?;
        self.store.set_records(changes).await?;
        for (rule, _) in &resting {
            rule.health.resume();
        }
        tracing::info!(%tenant, rule = %name, who, "a rule is resumed");
        Ok(true)
    }
}
