//! Trying a module on one event: what it would decide and what would be sent, without effect.

use super::rule::Version;
use super::{Error, Registry, Turn, not_found, panicked, slots};
use crate::clock::now_ms;
use crate::id::{Hash, Name};
use crate::pipeline::{Asked, lost_after};
use crate::quota::price;
use crate::sandbox::{self, Instances, Kept, Run, thread_time};
use crate::store::{Commit, StoredEvent, Then};
use crate::tenant::{ModuleRef, Pattern, Rule};
use std::sync::Arc;

/// How many modules are tried at once; others wait for a while.
pub(super) const TRIALS_MAX: usize = 2;

/// What is tried.
pub enum Tried {
    /// A version of a rule; left out, the newest.
    Version(Name, Option<u32>),
    /// A module of the tenant's, with a configuration.
    Module(Hash, serde_json::Map<String, serde_json::Value>),
}

/// What came of it.
pub struct Trial {
    pub run: Run,
    /// What would have been stored.
    pub commit: Commit,
    /// Whether the version has subscribed to such events; a module alone subscribes to all.
    pub subscribed: bool,
}

impl Registry {
    /// Has a module decide an event.
    ///
    /// # Errors
    /// When there is no such version or module, it does not start, or others are being tried.
    pub async fn try_out(
        &self,
        turn: &Turn<'_>,
        tried: Tried,
        event: StoredEvent,
    ) -> Result<Trial, Error> {
        let tenant = &turn.tenant;
        let rules = self.fixed(tenant)?.rules.clone();
        rules.fuel_paid().map_err(Error::Fuel)?;
        let (name, version) = self.tried(tenant, tried).await?;
        let subscribed = subscribes(&version, &event);
        // It is asked whatever it subscribes to.
        let asked = Version {
            events: Vec::new(),
            sources: Vec::new(),
            ..version
        };
        let started = self.start(tenant, &name, &asked).await?;
        let rule = started.version(asked.number);
        let lost_after = lost_after(self.sandbox_of(tenant)?.limits());
        let asked = rules.only(Asked::of_file(rule));
        let permit = tokio::time::timeout(slots::PATIENCE, self.trials.clone().acquire_owned());
        let Ok(Ok(permit)) = permit.await else {
            return Err(Error::Busy("other modules are being tried"));
        };
        // It is bounded and charged also where nobody waits for it any more.
        let tried = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let one = Kept {
                count_max: 1,
                bytes_max: usize::MAX,
            };
            let before = thread_time();
            let (run, commit) = asked.replay(&event, &mut Instances::new(one))?;
            rules.charge(price(run.fuel, thread_time().saturating_sub(before)));
            Some((run, commit))
        });
        let Ok(tried) = tokio::time::timeout(lost_after, tried).await else {
            // The thread is lost, and keeps its permit: few are given for trials.
            tracing::error!(%tenant, rule = %name, "a trial does not come back; its thread is given up");
            return Err(Error::Conflict(
                "the module did not come back, and was given up; the engine's log says so"
                    .to_owned(),
            ));
        };
        match tried {
            Ok(Some((run, commit))) => Ok(Trial {
                run,
                commit,
                subscribed,
            }),
            _ => Err(panicked("this module")),
        }
    }
}

impl Registry {
    /// The version that is meant. What a module alone is called shows nowhere.
    async fn tried(&self, tenant: &Name, tried: Tried) -> Result<(Name, Version), Error> {
        match tried {
            Tried::Version(name, number) => {
                let rule = self.rule(tenant, &name).await?;
                let mut versions = rule.versions.into_iter().rev();
                let version = match number {
                    Some(number) => versions.find(|it| it.number == number),
                    None => versions.next(),
                };
                let version = version.ok_or_else(|| not_found("version", "of it"))?;
                Ok((name, version))
            }
            Tried::Module(module, config) => Ok((tenant.clone(), alone(module, config))),
        }
    }

    /// The configuration with which a module is tried, as the module reads it.
    ///
    /// # Errors
    /// When there is no such version.
    pub async fn config_of(&self, tenant: &Name, tried: Tried) -> Result<Vec<u8>, Error> {
        let (_, version) = self.tried(tenant, tried).await?;
        version.config_bytes().map_err(Error::Invalid)
    }

    /// What a module's answer would lead to that was run elsewhere, in a browser; `version` says which
    /// channels it may name, and all of the tenant's may be where there is none.
    ///
    /// # Errors
    /// When there is no such version.
    pub async fn answered(
        &self,
        tenant: &Name,
        version: Option<(Name, Option<u32>)>,
        answer: &[u8],
        event: StoredEvent,
    ) -> Result<Trial, Error> {
        let tried = match version {
            Some((name, number)) => Tried::Version(name, number),
            None => Tried::Module(Hash::of(&[]), serde_json::Map::new()),
        };
        let (name, version) = self.tried(tenant, tried).await?;
        let subscribed = subscribes(&version, &event);
        let rule = Rule {
            name,
            module: ModuleRef::Uploaded(version.module),
            wasm: Arc::new([]),
            events: Vec::new(),
            sources: Vec::new(),
            channels: version.channels,
            config: Vec::new(),
            on_error: version.on_error,
            place: String::new(),
        };
        let answer = sandbox::decision(answer, self.sandbox_of(tenant)?.limits());
        let commit = self.fixed(tenant)?.rules.answered(&event, &rule, answer);
        Ok(Trial {
            run: Run::default(),
            commit,
            subscribed,
        })
    }
}

fn subscribes(version: &Version, event: &StoredEvent) -> bool {
    let mut patterns = version.events.iter().filter_map(|it| Pattern::new(it).ok());
    version.events.is_empty() || patterns.any(|it| it.matches(&event.kind))
}

fn alone(module: Hash, config: serde_json::Map<String, serde_json::Value>) -> Version {
    Version {
        number: 0,
        module,
        config,
        events: Vec::new(),
        sources: Vec::new(),
        channels: Vec::new(),
        on_error: Then::Held,
        created_ms: now_ms(),
        by: String::new(),
    }
}
