//! A rule as a history of versions, and which of them are in use.

use super::{
    AUDIT_MAX, CONFIG_BYTES_MAX, Changes, Entry, Error, ROLLBACKS_MAX, Registry, Thing, in_slot,
    not_found, read, rule_key, version_key, written,
};
use crate::clock::now_ms;
use crate::config::read::did_you_mean;
use crate::id::{Hash, Name};
use crate::pipeline::{ActiveRule, Share, Tally, Unusable};
use crate::sandbox::{Hold, Program};
use crate::store::Then;
use crate::tenant::{Pattern, Rule};
use hooksieve_sdk::wire::json::Data;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One version of a rule. It never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    pub number: u32,
    pub module: Hash,
    pub config: serde_json::Map<String, serde_json::Value>,
    pub events: Vec<String>,
    /// Empty for all.
    pub sources: Vec<Name>,
    /// Empty for all.
    pub channels: Vec<Name>,
    pub on_error: Then,
    pub created_ms: i64,
    /// Who made it: a token's label and id.
    pub by: String,
}

/// How many patterns a version subscribes with.
const EVENTS_MAX: usize = 100;

impl Version {
    /// About what it takes, in the store and in memory.
    fn bytes(&self) -> usize {
        let lists = self.sources.len() + self.channels.len();
        let events: usize = self.events.iter().map(String::len).sum();
        written(&self.config).len() + events + 64 * lists + 256
    }

    /// Its configuration as its module reads it.
    pub(super) fn config_bytes(&self) -> Result<Vec<u8>, String> {
        config_bytes(&self.config)
    }
}

fn config_bytes(config: &serde_json::Map<String, serde_json::Value>) -> Result<Vec<u8>, String> {
    let value = serde_json::Value::Object(config.clone());
    let data = Data::from_deserializer(value).map_err(|error| error.to_string())?;
    Ok(data.bytes().to_vec())
}

/// A version that is to be made.
#[derive(Clone, Debug)]
pub struct NewVersion {
    pub module: Hash,
    pub config: serde_json::Map<String, serde_json::Value>,
    pub events: Vec<String>,
    pub sources: Vec<Name>,
    pub channels: Vec<Name>,
    pub on_error: Then,
}

/// What a version is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It decides.
    Live,
    /// It is asked as well, without effect, and where it differs is noted.
    Shadow,
    /// It decides this share of the events' subjects.
    Canary(Share),
    /// Nothing yet.
    Kept,
}

/// Which versions of a rule are in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleState {
    /// Grows with every change.
    pub revision: u64,
    /// The number of the newest version there ever was.
    pub last: u32,
    pub live: Option<u32>,
    /// What was live before, newest last.
    pub before: Vec<u32>,
    pub shadow: Option<u32>,
    pub canary: Option<CanaryState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryState {
    pub version: u32,
    pub share: Share,
}

impl RuleState {
    fn uses(&self, number: u32) -> bool {
        let canary = self.canary.as_ref().map(|it| it.version);
        [self.live, self.shadow, canary].contains(&Some(number))
    }

    /// Gives a version a role; whatever other role it had ends.
    fn give(&mut self, number: u32, role: Role) {
        if self.shadow == Some(number) {
            self.shadow = None;
        }
        if self.canary.as_ref().is_some_and(|it| it.version == number) {
            self.canary = None;
        }
        match role {
            Role::Live if self.live == Some(number) => {}
            Role::Live => {
                self.before.extend(self.live.replace(number));
                let surplus = self.before.len().saturating_sub(ROLLBACKS_MAX);
                self.before.drain(..surplus);
            }
            Role::Shadow => self.shadow = Some(number),
            Role::Canary(share) => {
                self.canary = Some(CanaryState {
                    version: number,
                    share,
                });
            }
            Role::Kept => {}
        }
    }
}

/// A change of a rule, for those who ask later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub at_ms: i64,
    pub who: String,
    /// `version`, `promote`, `rollback`, `shadow`, `canary`, `stop`, `resume` or `delete`; `set` or
    /// `remove` of a source or channel.
    pub what: String,
    /// The rule that it was about; of a source or channel, see `thing`.
    pub rule: Name,
    /// What it was about, where that was no rule: `source` or `channel`, and `rule` is its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thing: Option<String>,
    /// What was live before.
    pub from: Option<u32>,
    /// What is live from then on.
    pub to: Option<u32>,
    /// The version that it was about.
    pub version: Option<u32>,
}

/// A rule as a change left it.
#[derive(Clone, Debug)]
pub struct Changed {
    pub name: Name,
    pub state: RuleState,
    pub versions: Vec<Version>,
    pub tally: Arc<Tally>,
}

/// What starts, before it has a number.
pub(super) struct Started {
    rule: Rule,
    program: Program,
    /// Its machine code stays until it is a version, or nothing comes of it.
    _hold: Option<Hold>,
}

impl Started {
    pub(super) fn version(self, number: u32) -> ActiveRule {
        ActiveRule::new(&self.rule, Some(number), Ok(self.program))
    }
}

impl Entry {
    /// Takes what was started for a version, unless it is another one by now.
    fn activate(
        &mut self,
        number: u32,
        (version, active): (Version, Arc<ActiveRule>),
    ) -> Result<(), Error> {
        if self.versions.get(&number) != Some(&version) {
            return Err(Error::Conflict(
                "somebody else has changed the rule meanwhile; try again".to_owned(),
            ));
        }
        self.active.insert(number, active);
        Ok(())
    }

    pub(super) fn in_use(&self) -> impl Iterator<Item = &Version> {
        let versions = self.versions.values();
        versions.filter(|it| self.state.uses(it.number))
    }

    fn seen(&self, name: &Name) -> Changed {
        Changed {
            name: name.clone(),
            state: self.state.clone(),
            versions: self.versions.values().cloned().collect(),
            tally: self.tally.clone(),
        }
    }
}

impl Registry {
    /// A tenant's rules that have versions.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub async fn rules(&self, tenant: &Name) -> Result<Vec<Changed>, Error> {
        self.fixed(tenant)?;
        let rules = self.rules.lock().await;
        let own = rules.get(tenant).into_iter().flatten();
        Ok(own.map(|(name, entry)| entry.seen(name)).collect())
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is none.
    pub async fn rule(&self, tenant: &Name, name: &Name) -> Result<Changed, Error> {
        self.fixed(tenant)?;
        let rules = self.rules.lock().await;
        let entry = rules.get(tenant).and_then(|rules| rules.get(name));
        let entry = entry.ok_or_else(|| not_found("rule", name))?;
        Ok(entry.seen(name))
    }

    /// Makes a version, and the rule with its first one.
    ///
    /// # Errors
    /// When something in it is wrong, it does not start, or the tenant may have no more.
    pub async fn add_version(
        &self,
        (tenant, name): (&Name, &Name),
        new: NewVersion,
        role: Role,
        expected: Option<u64>,
        who: &str,
    ) -> Result<Changed, Error> {
        self.check(tenant, name, &new)?;
        let mut version = Version {
            number: 0,
            module: new.module,
            config: new.config,
            events: new.events,
            sources: new.sources,
            channels: new.channels,
            on_error: new.on_error,
            created_ms: now_ms(),
            by: who.to_owned(),
        };
        // Whatever its role: what does not start is not kept.
        let started = self.start(tenant, name, &version).await?;
        let mut rules = self.rules.lock().await;
        // It may have been deleted while its code was started.
        self.has_module(tenant, &version.module).await?;
        let own = rules.entry(tenant.clone()).or_default();
        if !own.contains_key(name) && own.len() >= self.limits.rules_max {
            return Err(Error::Quota {
                what: format!("there are {} rules", own.len()),
                limit: self.limits.rules_max as u64,
                key: "rules_max",
            });
        }
        let mut entry = own.get(name).cloned().unwrap_or_default();
        at_revision(&entry, expected)?;
        let number = entry.state.last + 1;
        entry.state.last = number;
        version.number = number;
        let active = Arc::new(started.version(number));
        let of_tenant = own.values().flat_map(|entry| entry.versions.values());
        let taken: usize = of_tenant.map(Version::bytes).sum();
        if taken + version.bytes() > self.limits.versions_bytes_max {
            return Err(Error::Quota {
                what: format!(
                    "the versions of its rules would take {taken} bytes and more; delete rules that nobody needs"
                ),
                limit: self.limits.versions_bytes_max as u64,
                key: "versions_bytes_max",
            });
        }
        let mut changes = vec![(version_key(tenant, name, number), Some(written(&version)))];
        entry.versions.insert(number, version);
        entry.active.insert(number, active);
        let before = entry.state.live;
        entry.state.give(number, role);
        let what = match role {
            Role::Live => "promote",
            Role::Shadow => "shadow",
            Role::Canary(_) => "canary",
            Role::Kept => "version",
        };
        if role == Role::Shadow {
            entry.tally = Arc::default();
        }
        self.drop_oldest(&mut entry, (tenant, name), &mut changes)?;
        let audit = audit(who, what, name, before, entry.state.live, Some(number));
        self.commit((tenant, name), own, entry, changes, audit)
            .await
    }

    /// Gives a version a role, at once and as a whole. Without a number: the canary, else the shadow.
    ///
    /// # Errors
    /// When there is no such rule or version, or somebody changed it meanwhile.
    pub async fn give_role(
        &self,
        (tenant, name): (&Name, &Name),
        number: Option<u32>,
        role: Role,
        expected: Option<u64>,
        who: &str,
    ) -> Result<Changed, Error> {
        let which = |state: &RuleState| {
            let canary = state.canary.as_ref().map(|it| it.version);
            number.or(canary).or(state.shadow).ok_or_else(|| {
                Error::Conflict(format!(
                    "the rule {name} has neither a canary nor a shadow; name a version"
                ))
            })
        };
        let active = self.started((tenant, name), which).await?;
        self.change((tenant, name), expected, |entry| {
            let number = which(&entry.state)?;
            if role != Role::Live && entry.state.live == Some(number) {
                return Err(Error::Conflict(format!(
                    "version {number} of the rule {name} is live already"
                )));
            }
            entry.activate(number, active)?;
            let before = entry.state.live;
            if role == Role::Shadow && entry.state.shadow != Some(number) {
                entry.tally = Arc::default();
            }
            entry.state.give(number, role);
            let what = match role {
                Role::Live => "promote",
                Role::Shadow => "shadow",
                Role::Canary(_) => "canary",
                Role::Kept => "stop",
            };
            let live = entry.state.live;
            Ok(audit(who, what, name, before, live, Some(number)))
        })
        .await
    }

    /// Puts the version in charge that was before; any canary ends.
    ///
    /// # Errors
    /// When there was none before.
    pub async fn roll_back(
        &self,
        (tenant, name): (&Name, &Name),
        expected: Option<u64>,
        who: &str,
    ) -> Result<Changed, Error> {
        let which = |state: &RuleState| {
            state.before.last().copied().ok_or_else(|| {
                Error::Conflict(format!(
                    "the rule {name} has no version that was live before; promote one by its number"
                ))
            })
        };
        let active = self.started((tenant, name), which).await?;
        self.change((tenant, name), expected, |entry| {
            let number = which(&entry.state)?;
            entry.activate(number, active)?;
            let state = &mut entry.state;
            state.before.pop();
            let before = state.live.replace(number);
            state.canary = None;
            if state.shadow == Some(number) {
                state.shadow = None;
            }
            let now = Some(number);
            Ok(audit(who, "rollback", name, before, now, now))
        })
        .await
    }

    /// Ends the shadow and the canary.
    ///
    /// # Errors
    /// When there is no such rule.
    pub async fn stop(
        &self,
        (tenant, name): (&Name, &Name),
        expected: Option<u64>,
        who: &str,
    ) -> Result<Changed, Error> {
        self.change((tenant, name), expected, |entry| {
            entry.state.shadow = None;
            entry.state.canary = None;
            let live = entry.state.live;
            Ok(audit(who, "stop", name, live, live, None))
        })
        .await
    }

    /// Deletes a rule with its versions. What was decided by it stays.
    ///
    /// # Errors
    /// When there is none.
    pub async fn delete_rule(
        &self,
        (tenant, name): (&Name, &Name),
        expected: Option<u64>,
        who: &str,
    ) -> Result<(), Error> {
        self.fixed(tenant)?;
        let mut rules = self.rules.lock().await;
        let own = rules.entry(tenant.clone()).or_default();
        let entry = own.get(name).ok_or_else(|| not_found("rule", name))?;
        at_revision(entry, expected)?;
        let live = entry.state.live;
        let numbers = entry.versions.keys();
        let mut changes: Changes = numbers
            .map(|number| (version_key(tenant, name, *number), None))
            .collect();
        changes.push((rule_key(tenant, name), None));
        let resting = entry
            .active
            .values()
            .filter_map(|it| it.health.quarantine());
        changes.extend(resting.map(|it| (it.key(), None)));
        let entry = audit(who, "delete", name, live, None, None);
        self.add_audit(tenant, &entry, &mut changes).await?;
        self.store.set_records(changes).await?;
        own.remove(name);
        self.put_to_work(tenant, own);
        Ok(())
    }

    /// The changes of a tenant's rules, newest first.
    ///
    /// # Errors
    /// When there is no such tenant, or the store fails.
    pub async fn audit(&self, tenant: &Name) -> Result<Vec<AuditEntry>, Error> {
        self.fixed(tenant)?;
        let records = self.store.records(&format!("audit/{tenant}/")).await?;
        let records = records.iter().rev();
        let entries = records.map(|(key, bytes)| read(key, bytes));
        Ok(entries.collect::<Result<_, _>>()?)
    }

    async fn change(
        &self,
        (tenant, name): (&Name, &Name),
        expected: Option<u64>,
        make: impl FnOnce(&mut Entry) -> Result<AuditEntry, Error>,
    ) -> Result<Changed, Error> {
        self.fixed(tenant)?;
        let mut rules = self.rules.lock().await;
        let own = rules.entry(tenant.clone()).or_default();
        let entry = own.get(name).ok_or_else(|| not_found("rule", name))?;
        at_revision(entry, expected)?;
        // A copy, so that what is not stored has not happened.
        let mut entry = entry.clone();
        let audit = make(&mut entry)?;
        self.commit((tenant, name), own, entry, Changes::new(), audit)
            .await
    }

    /// Makes a change durable, and then has it take effect.
    async fn commit(
        &self,
        (tenant, name): (&Name, &Name),
        own: &mut BTreeMap<Name, Entry>,
        mut entry: Entry,
        mut changes: Changes,
        audit: AuditEntry,
    ) -> Result<Changed, Error> {
        entry.state.revision += 1;
        let Entry { state, active, .. } = &mut entry;
        active.retain(|number, version| {
            let used = state.uses(*number);
            // What is used again begins anew.
            if !used && let Some(quarantine) = version.health.quarantine() {
                changes.push((quarantine.key(), None));
            }
            used
        });
        changes.push((rule_key(tenant, name), Some(written(&entry.state))));
        self.add_audit(tenant, &audit, &mut changes).await?;
        self.store.set_records(changes).await?;
        tracing::info!(%tenant, rule = %name, what = audit.what, who = audit.who, from = audit.from, to = audit.to, "a rule is changed");
        let seen = entry.seen(name);
        own.insert(name.clone(), entry);
        self.put_to_work(tenant, own);
        Ok(seen)
    }

    pub(super) async fn add_audit(
        &self,
        tenant: &Name,
        entry: &AuditEntry,
        changes: &mut Changes,
    ) -> Result<(), Error> {
        let before = self.store.records(&format!("audit/{tenant}/")).await?;
        let surplus = (before.len() + 1).saturating_sub(AUDIT_MAX);
        let oldest = before.into_iter().take(surplus);
        changes.extend(oldest.map(|(key, _)| (key, None)));
        let key = format!("audit/{tenant}/{}", uuid::Uuid::now_v7());
        changes.push((key, Some(written(entry))));
        Ok(())
    }

    /// A version of a rule, ready to be used. Started without a lock, since a hostile one may take its
    /// time over it.
    async fn started(
        &self,
        (tenant, name): (&Name, &Name),
        which: impl Fn(&RuleState) -> Result<u32, Error>,
    ) -> Result<(Version, Arc<ActiveRule>), Error> {
        self.fixed(tenant)?;
        let (version, active) = {
            let rules = self.rules.lock().await;
            let entry = rules.get(tenant).and_then(|rules| rules.get(name));
            let entry = entry.ok_or_else(|| not_found("rule", name))?;
            let number = which(&entry.state)?;
            let version = entry.versions.get(&number);
            let version = version.ok_or_else(|| not_found("version", number))?;
            (version.clone(), entry.active.get(&number).cloned())
        };
        let active = match active {
            Some(active) => active,
            None => {
                let started = self.start(tenant, name, &version).await?;
                Arc::new(started.version(version.number))
            }
        };
        Ok((version, active))
    }

    async fn has_module(&self, tenant: &Name, sha256: &Hash) -> Result<(), Error> {
        let known = self.modules(tenant).await?;
        if known.iter().any(|it| it.sha256 == *sha256) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "the tenant has no module {sha256}; upload it first"
        )))
    }

    /// Compiles a version where that is needed, and has it take its configuration.
    pub(super) async fn start(
        &self,
        tenant: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<Started, Error> {
        let sandbox = self.sandbox_of(tenant)?;
        // Before the module is looked for: what is found then stays.
        let hold = sandbox.hold(version.module);
        self.has_module(tenant, &version.module).await?;
        let rule = self.rule_of(tenant, name, version).await?;
        let rule = rule.ok_or_else(|| not_found("module", version.module))?;
        let slot = self.slot(tenant, &sandbox, version.module).await?;
        let started = in_slot(slot, "this version", move |time| {
            let module = sandbox.compile_timed(rule.wasm.clone(), time);
            let program = module.map_err(Unusable::from).and_then(|module| {
                let limits = sandbox.limits().clone();
                Ok(Program::new(module, rule.config.clone(), limits)?)
            });
            program.map(|program| Started {
                rule,
                program,
                _hold: hold,
            })
        });
        let started = started.await?;
        started.map_err(|error| Error::Invalid(format!("it does not start: {error}")))
    }

    /// Whether what a version names is there.
    fn check(&self, tenant: &Name, name: &Name, new: &NewVersion) -> Result<(), Error> {
        let fixed = self.fixed(tenant)?;
        if fixed.rules.names().any(|it| it == name) {
            return Err(Error::Conflict(format!(
                "the rule {name} is in the tenant's file, so it is changed there"
            )));
        }
        if new.events.is_empty() {
            return Err(Error::Invalid(
                "`events` is empty; write [\"*\"] for all".to_owned(),
            ));
        }
        if new.events.len() > EVENTS_MAX {
            return Err(Error::Invalid(format!(
                "`events` has {} patterns, the limit is {EVENTS_MAX}",
                new.events.len()
            )));
        }
        for pattern in &new.events {
            Pattern::new(pattern).map_err(Error::Invalid)?;
        }
        let known = |what: &str, given: &[Name], all: Vec<&Name>| {
            if given.len() > all.len() {
                return Err(Error::Conflict(format!(
                    "{} {what}s are named, and the tenant has {}",
                    given.len(),
                    all.len()
                )));
            }
            let wrong = given.iter().find(|it| !all.contains(it));
            wrong.map_or(Ok(()), |wrong| {
                let mean = did_you_mean(wrong.as_str(), all.iter().map(|it| it.as_str()));
                Err(Error::Conflict(format!("there is no {what} {wrong}{mean}")))
            })
        };
        known("channel", &new.channels, fixed.rules.channels().collect())?;
        known(
            "source",
            &new.sources,
            fixed.sources().into_iter().collect(),
        )?;
        if new.on_error == Then::Passed && !fixed.rules.has_default_channel() {
            return Err(Error::Conflict(
                "`on_error` is `pass`, and the tenant has no `default_channel`".to_owned(),
            ));
        }
        let config_bytes = written(&new.config).len();
        if config_bytes > CONFIG_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "`config` takes {config_bytes} bytes as JSON, the limit is {CONFIG_BYTES_MAX}"
            )));
        }
        Ok(())
    }

    /// Makes room for a new version: the oldest one goes that is not in use and to which nobody can roll
    /// back.
    fn drop_oldest(
        &self,
        entry: &mut Entry,
        (tenant, name): (&Name, &Name),
        changes: &mut Changes,
    ) -> Result<(), Error> {
        while entry.versions.len() > self.limits.versions_max {
            let state = &entry.state;
            let free = |number: &&u32| {
                !state.uses(**number) && !state.before.contains(number) && **number != state.last
            };
            let Some(oldest) = entry.versions.keys().find(free).copied() else {
                return Err(Error::Quota {
                    what: format!("all {} versions are in use", entry.versions.len() - 1),
                    limit: self.limits.versions_max as u64,
                    key: "versions_max",
                });
            };
            entry.versions.remove(&oldest);
            entry.active.remove(&oldest);
            changes.push((version_key(tenant, name, oldest), None));
        }
        Ok(())
    }
}

fn at_revision(entry: &Entry, expected: Option<u64>) -> Result<(), Error> {
    let found = entry.state.revision;
    match expected {
        Some(expected) if expected != found => Err(Error::Revision { expected, found }),
        _ => Ok(()),
    }
}

pub(super) fn audit(
    who: &str,
    what: &str,
    rule: &Name,
    from: Option<u32>,
    to: Option<u32>,
    version: Option<u32>,
) -> AuditEntry {
    AuditEntry {
        at_ms: now_ms(),
        who: who.to_owned(),
        what: what.to_owned(),
        rule: rule.clone(),
        thing: None,
        from,
        to,
        version,
    }
}

impl AuditEntry {
    /// It was about this instead of a rule.
    pub(super) fn about(self, thing: Thing) -> Self {
        Self {
            thing: Some(thing.word().to_owned()),
            ..self
        }
    }
}
