//! Which channels are disabled: nothing is sent to them until a person has enabled them again.
//!
//! It is kept in the store, so that a restart changes nothing, and here in memory, where every attempt
//! looks. What is here is what is in the store: a change is stored first.

use crate::id::Name;
use crate::store::{Disabled, Error, Line, NewEvent, Store};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// What the event is called that tells a tenant.
const DISABLED: &str = "hooksieve.channel.disabled";

/// Told that a tenant has a new event.
pub type Wake = Arc<dyn Fn(&Name) + Send + Sync>;

/// The channels that are disabled.
pub struct Switches {
    store: Arc<dyn Store>,
    wake: Wake,
    off: RwLock<HashMap<Line, Disabled>>,
}

impl Switches {
    /// As the store has them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn load(store: Arc<dyn Store>, wake: Wake) -> Result<Self, Error> {
        let off = store.disabled().await?.into_iter().collect();
        Ok(Self {
            store,
            wake,
            off: RwLock::new(off),
        })
    }

    /// Why a channel is disabled, if it is.
    pub fn get(&self, line: &Line) -> Option<Disabled> {
        let off = self.off.read().unwrap_or_else(PoisonError::into_inner);
        off.get(line).cloned()
    }

    /// Disables a channel and tells its tenant, in an event of its own.
    pub(super) async fn disable(&self, line: Line, disabled: Disabled) {
        if self.get(&line).is_some() {
            return;
        }
        let (tenant, channel) = (&line.tenant, &line.channel);
        if let Err(error) = self.store.switch(&line, Some(disabled.clone())).await {
            tracing::error!(%tenant, %channel, %error, "a channel could not be disabled");
            return;
        }
        tracing::warn!(%tenant, %channel, reason = disabled.reason, "a channel is disabled");
        match notice(&line, &disabled) {
            Ok(notice) => match self.store.append(notice).await {
                Ok(_) => (self.wake)(tenant),
                Err(error) => {
                    tracing::error!(%tenant, %channel, %error, "the tenant could not be told");
                }
            },
            Err(error) => tracing::error!(%tenant, %channel, error, "the tenant could not be told"),
        }
        let mut off = self.off.write().unwrap_or_else(PoisonError::into_inner);
        off.insert(line, disabled);
    }

    /// Enables a channel again; `false` when it was not disabled.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub async fn enable(&self, line: &Line) -> Result<bool, Error> {
        self.store.switch(line, None).await?;
        let mut off = self.off.write().unwrap_or_else(PoisonError::into_inner);
        Ok(off.remove(line).is_some())
    }
}

/// The event that tells a tenant.
fn notice(line: &Line, disabled: &Disabled) -> Result<NewEvent, String> {
    let body = serde_json::json!({
        "channel": line.channel.as_str(),
        "reason": disabled.reason,
    });
    let (tenant, channel) = (&line.tenant, &line.channel);
    crate::notice::event(tenant, DISABLED, channel, &body, disabled.at_ms)
}
