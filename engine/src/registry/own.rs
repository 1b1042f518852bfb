//! What is set up over HTTP beside the tenants' files, or instead of them: tenants, and their sources and
//! channels. A source or a channel is kept sealed, since its settings hold secrets.

use super::access::TOKENS_MAX;
use super::rule::audit;
use super::{Changes, Error, Fixed, Registry, module_of, not_found, parts, read, written};
use crate::channel::Channel;
use crate::config::{LimitsMax, Quotas};
use crate::dispatch::Pace;
use crate::id::Name;
use crate::seal::NotOpened;
use crate::store::{self, Then};
use crate::tenant::{self, Given, OwnLimits, OwnQuotas, Source, Tenant};
use crate::whole::object;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use utoipa::ToSchema;

/// Settings as a call has them.
pub type Settings = serde_json::Map<String, serde_json::Value>;

/// How much room the settings of a source or channel take, as JSON.
const SETTINGS_BYTES_MAX: usize = 16 * 1024;

/// What a tenant has beside its file.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    pub(super) sources: BTreeMap<Name, Kept<Source>>,
    pub(super) channels: BTreeMap<Name, Kept<(Arc<Channel>, Pace)>>,
}

/// A source or a channel with the settings that it is made of, which hold its secrets as they are.
#[derive(Clone)]
pub(super) struct Kept<T> {
    pub(super) settings: Settings,
    pub(super) given: Given<T>,
}

impl<T: fmt::Debug> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Kept");
        shown.field("given", &self.given).finish_non_exhaustive()
    }
}

/// A source or a channel without its secrets.
#[derive(Clone, Debug)]
pub struct Shown {
    pub name: Name,
    pub kind: String,
    /// Whether it stands in the tenant's file, where alone it is changed.
    pub in_file: bool,
    /// Its settings, but for the secrets; empty where it stands in the file.
    pub settings: Settings,
    /// Which secrets it has.
    pub secrets: Vec<String>,
}

/// What setting something up did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Created,
    Changed,
    Unchanged,
}

/// What there are two kinds of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    Source,
    Channel,
}

impl Thing {
    pub fn word(self) -> &'static str {
        match self {
            Thing::Source => "source",
            Thing::Channel => "channel",
        }
    }

    fn key(self, tenant: &Name, name: &Name) -> String {
        format!("{}/{tenant}/{name}", self.word())
    }
}

/// What a tenant without a file is given; what is left out is as the engine's configuration has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fileless {
    /// 0 is no quota.
    #[serde(default, deserialize_with = "object")]
    pub quotas: OwnQuotas,
    #[serde(default, deserialize_with = "object")]
    pub limits: OwnLimits,
    /// Where events go that a rule with `on_error` `pass` failed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_channel: Option<Name>,
}

impl Fileless {
    /// As if it stood in a file.
    pub(super) fn file(&self, name: Name) -> Tenant {
        Tenant {
            quotas: self.quotas,
            limits: self.limits,
            default_channel: self.default_channel.clone(),
            ..Tenant::empty(name)
        }
    }
}

fn masked(settings: &Settings, secrets: &[String]) -> Settings {
    let open = settings.iter().filter(|(key, _)| !secrets.contains(key));
    open.map(|(key, value)| {
        let value = match value.as_object() {
            Some(inner) => masked(inner, secrets).into(),
            None if key == "url" => shown_url(value),
            None => value.clone(),
        };
        (key.clone(), value)
    })
    .collect()
}

/// An address without what may be a credential in it: its user, password and query.
fn shown_url(value: &serde_json::Value) -> serde_json::Value {
    let url = value.as_str().and_then(|it| url::Url::parse(it).ok());
    let Some(mut url) = url else {
        return value.clone();
    };
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if bare {
        return value.clone();
    }
    let _ = url.set_username("");
    let _ = url.set_password(None);
    if url.query().is_some() {
        url.set_query(Some("…"));
    }
    url.to_string().replace("?%E2%80%A6", "?…").into()
}

fn shown<T>(name: &Name, kept: &Kept<T>) -> Shown {
    let kind = kept.settings.get("kind").and_then(|it| it.as_str());
    Shown {
        name: name.clone(),
        kind: kind.unwrap_or_default().to_owned(),
        in_file: false,
        settings: masked(&kept.settings, &kept.given.secrets),
        secrets: kept.given.secrets.clone(),
    }
}

fn of_file(name: &Name, kind: &str) -> Shown {
    Shown {
        name: name.clone(),
        kind: kind.to_owned(),
        in_file: true,
        settings: Settings::new(),
        secrets: Vec::new(),
    }
}

impl Registry {
    /// Reads what is kept: what each tenant has, and the tenants that have no file.
    pub(super) async fn load_own(
        &self,
    ) -> Result<(BTreeMap<Name, Own>, BTreeMap<Name, Fileless>), Error> {
        let mut all: BTreeMap<Name, Own> = BTreeMap::new();
        let mut again = Changes::new();
        for thing in [Thing::Source, Thing::Channel] {
            let prefix = format!("{}/", thing.word());
            for (key, sealed) in self.store.records(&prefix).await? {
                let Some((tenant, name, _)) = parts(&key) else {
                    continue;
                };
                let opened = self.seal.open(&key, &sealed);
                let (bytes, old) = opened.map_err(|error| sealed_error(&key, error))?;
                if old {
                    again.push((key.clone(), Some(self.seal.seal(&key, &bytes))));
                }
                let settings = read::<Settings>(&key, &bytes)?;
                let own = all.entry(tenant.clone()).or_default();
                if let Err(error) = self.take(own, thing, &name, settings) {
                    tracing::error!(%tenant, what = thing.word(), %name, %error, "it cannot be used any more and is left out");
                }
            }
        }
        if !again.is_empty() {
            tracing::info!(count = again.len(), "sealed again with the newest key");
            self.store.set_records(again).await?;
        }
        let mut fileless = BTreeMap::new();
        for (key, bytes) in self.store.records("tenant/").await? {
            let name = key.strip_prefix("tenant/").and_then(|it| it.parse().ok());
            if let Some(name) = name {
                fileless.insert(name, read(&key, &bytes)?);
            }
        }
        Ok((all, fileless))
    }

    /// Makes what settings describe a part of `own`.
    fn take(
        &self,
        own: &mut Own,
        thing: Thing,
        name: &Name,
        settings: Settings,
    ) -> Result<bool, Error> {
        match thing {
            Thing::Source => {
                let given = tenant::source(name, &settings).map_err(Error::Invalid)?;
                if given.made.verify.is_open() && !self.bounds.loopback {
                    return Err(Error::Invalid(
                        "the source is open to everyone, and the engine listens on a public address: give it a `token`"
                            .to_owned(),
                    ));
                }
                let kept = Kept { settings, given };
                Ok(own.sources.insert(name.clone(), kept).is_none())
            }
            Thing::Channel => {
                let timeout_ms = self.bounds.timeout_ms;
                let given = tenant::channel(name, &settings, timeout_ms).map_err(Error::Invalid)?;
                if given.made.0.timeout().as_millis() >= u128::from(self.bounds.lease_ms) {
                    return Err(Error::Invalid(format!(
                        "`timeout_ms` must be shorter than {} ms, the engine's lease",
                        self.bounds.lease_ms
                    )));
                }
                let kept = Kept { settings, given };
                Ok(own.channels.insert(name.clone(), kept).is_none())
            }
        }
    }

    /// A tenant's sources or channels: those of its file first.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub fn things(&self, tenant: &Name, thing: Thing) -> Result<Vec<Shown>, Error> {
        let fixed = self.fixed(tenant)?;
        let (file, own) = (&fixed.file, &fixed.own);
        Ok(match thing {
            Thing::Source => {
                let of_file = file
                    .sources
                    .iter()
                    .map(|(name, it)| of_file(name, it.verify.kind()));
                let own = own
                    .sources
                    .iter()
                    .filter(|(name, _)| !file.sources.contains_key(*name));
                of_file
                    .chain(own.map(|(name, it)| shown(name, it)))
                    .collect()
            }
            Thing::Channel => {
                let of_file = file
                    .channels
                    .iter()
                    .map(|(name, it)| of_file(name, it.kind()));
                let own = own
                    .channels
                    .iter()
                    .filter(|(name, _)| !file.channels.contains_key(*name));
                of_file
                    .chain(own.map(|(name, it)| shown(name, it)))
                    .collect()
            }
        })
    }

    /// Sets up a source or a channel, or puts another in its place. `dry_run` only says what would be done.
    ///
    /// # Errors
    /// When something in it is wrong, it stands in the tenant's file, or the tenant may have no more.
    pub async fn set(
        &self,
        (tenant, thing, name): (&Name, Thing, &Name),
        settings: Settings,
        dry_run: bool,
        who: &str,
    ) -> Result<(Shown, Change), Error> {
        self.fixed(tenant)?;
        let bytes = written(&settings);
        if bytes.len() > SETTINGS_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "the settings take {} bytes as JSON, the limit is {SETTINGS_BYTES_MAX}",
                bytes.len()
            )));
        }
        let mut rules = self.rules.lock().await;
        let fixed = self.fixed(tenant)?;
        not_in_file(&fixed.file, thing, name)?;
        let mut own = fixed.own.clone();
        let same = match thing {
            Thing::Source => own.sources.get(name).map(|it| it.settings == settings),
            Thing::Channel => own.channels.get(name).map(|it| it.settings == settings),
        };
        let new = self.take(&mut own, thing, name, settings)?;
        let change = match same {
            None => Change::Created,
            Some(false) => Change::Changed,
            Some(true) => Change::Unchanged,
        };
        let (count, limit, key) = match thing {
            Thing::Source => (own.sources.len(), self.limits.sources_max, "sources_max"),
            Thing::Channel => (own.channels.len(), self.limits.channels_max, "channels_max"),
        };
        if new && count > limit {
            return Err(Error::Quota {
                what: format!("there are {} {}s", count - 1, thing.word()),
                limit: limit as u64,
                key,
            });
        }
        if dry_run || change == Change::Unchanged {
            let shown = match thing {
                Thing::Source => own.sources.get(name).map(|it| shown(name, it)),
                Thing::Channel => own.channels.get(name).map(|it| shown(name, it)),
            };
            let shown = shown.ok_or_else(|| not_found(thing.word(), name))?;
            return Ok((shown, change));
        }
        let key = thing.key(tenant, name);
        let mut changes = vec![(key.clone(), Some(self.seal.seal(&key, &bytes)))];
        let entry = audit(who, "set", name, None, None, None).about(thing);
        self.add_audit(tenant, &entry, &mut changes).await?;
        self.store.set_records(changes).await?;
        tracing::info!(%tenant, what = thing.word(), %name, who, "it is set");
        self.change_own(
            tenant,
            &fixed,
            own,
            rules.entry(tenant.clone()).or_default(),
        );
        let all = self.things(tenant, thing)?;
        let shown = all.into_iter().find(|it| it.name == *name);
        let shown = shown.ok_or_else(|| not_found(thing.word(), name))?;
        Ok((shown, change))
    }

    /// Removes a source or a channel. What is under way to a channel is given up and kept.
    ///
    /// # Errors
    /// When there is none, or a version that is in use names it.
    pub async fn unset(
        &self,
        (tenant, thing, name): (&Name, Thing, &Name),
        who: &str,
    ) -> Result<(), Error> {
        let mut rules = self.rules.lock().await;
        let fixed = self.fixed(tenant)?;
        not_in_file(&fixed.file, thing, name)?;
        let mut own = fixed.own.clone();
        let removed = match thing {
            Thing::Source => own.sources.remove(name).is_some(),
            Thing::Channel => own.channels.remove(name).is_some(),
        };
        if !removed {
            return Err(not_found(thing.word(), name));
        }
        let entries = rules.entry(tenant.clone()).or_default();
        for (rule, entry) in &*entries {
            let named = |list: &[Name]| list.contains(name);
            let user = entry.in_use().find(|it| match thing {
                Thing::Source => named(&it.sources),
                Thing::Channel => named(&it.channels),
            });
            if let Some(user) = user {
                return Err(Error::Conflict(format!(
                    "version {} of the rule {rule} names the {} {name}",
                    user.number,
                    thing.word()
                )));
            }
        }
        if thing == Thing::Channel && fixed.file.default_channel.as_ref() == Some(name) {
            return Err(Error::Conflict(format!(
                "the channel {name} is the tenant's `default_channel`; name another first"
            )));
        }
        let mut changes = vec![(thing.key(tenant, name), None)];
        let entry = audit(who, "remove", name, None, None, None).about(thing);
        self.add_audit(tenant, &entry, &mut changes).await?;
        self.store.set_records(changes).await?;
        tracing::info!(%tenant, what = thing.word(), %name, who, "it is removed");
        self.change_own(tenant, &fixed, own, entries);
        Ok(())
    }

    fn change_own(
        &self,
        tenant: &Name,
        fixed: &Arc<Fixed>,
        own: Own,
        rules: &BTreeMap<Name, super::Entry>,
    ) {
        let fixed = Fixed {
            rules: fixed.rules.clone(),
            file: fixed.file.clone(),
            own,
        };
        self.establish(tenant, &fixed, rules);
    }

    /// Makes a tenant that has no file, or gives it other settings; whether it was not there before.
    ///
    /// # Errors
    /// When it has a file, or something in the settings is not possible.
    pub async fn set_tenant(
        &self,
        name: &Name,
        settings: Fileless,
        who: &str,
    ) -> Result<bool, Error> {
        settings.quotas.check().map_err(Error::Invalid)?;
        let limits_max = &self.bounds.limits_max;
        settings.limits.check(limits_max).map_err(Error::Invalid)?;
        let mut rules = self.rules.lock().await;
        let before = self.fixed(name).ok();
        if before.as_ref().is_some_and(|it| it.file.in_file) {
            return Err(in_a_file(name));
        }
        let own = before.as_ref().map(|it| it.own.clone()).unwrap_or_default();
        let entries = rules.entry(name.clone()).or_default();
        match &settings.default_channel {
            Some(default) if !own.channels.contains_key(default) => {
                return Err(Error::Conflict(format!(
                    "`default_channel` is {default}, and the tenant has no such channel; set that up first"
                )));
            }
            None => passing(entries)?,
            Some(_) => {}
        }
        let record = (tenant_key(name), Some(written(&settings)));
        self.store.set_records(vec![record]).await?;
        tracing::info!(tenant = %name, who, "a tenant is set");
        let file = settings.file(name.clone());
        let other_limits = before
            .as_ref()
            .is_some_and(|it| it.file.limits != file.limits);
        let fixed = Fixed {
            rules: Arc::new(self.bounded(&file)),
            file: Arc::new(file),
            own,
        };
        self.fixed_now()
            .insert(name.clone(), Arc::new(fixed.clone()));
        if other_limits {
            super::forget_compiled(rules.get_mut(name));
            self.compile(&mut rules).await?;
        }
        let entries = rules.entry(name.clone()).or_default();
        self.establish(name, &fixed, entries);
        self.load_quarantines().await?;
        self.pipeline.begin_lanes();
        Ok(before.is_none())
    }

    /// Removes a tenant that has no file, with all that it has set up. Its events stay until they are
    /// forgotten; what is under way to its channels is given up.
    ///
    /// # Errors
    /// When there is none, or it has a file.
    pub async fn unset_tenant(&self, name: &Name, who: &str) -> Result<(), Error> {
        let mut rules = self.rules.lock().await;
        let fixed = self.fixed(name)?;
        if fixed.file.in_file {
            return Err(in_a_file(name));
        }
        let mut changes = vec![(tenant_key(name), None)];
        let modules = self.store.records(&format!("module/{name}/")).await?;
        for kind in [
            "source",
            "channel",
            "rule",
            "version",
            "module",
            "wasm",
            "audit",
            "quarantine",
            "once",
            "shadow",
        ] {
            let records = self.store.records(&format!("{kind}/{name}/")).await?;
            changes.extend(records.into_iter().map(|(key, _)| (key, None)));
        }
        changes.extend(self.token_keys(name).into_iter().map(|key| (key, None)));
        self.store.set_records(changes).await?;
        if let Some(cache) = self.sandbox.cache() {
            let modules = modules.iter().filter_map(|(key, _)| module_of(key));
            modules.for_each(|module| cache.remove_record(module));
        }
        self.forget_tokens(name);
        self.once.forget(name);
        rules.remove(name);
        self.fixed_now().remove(name);
        self.pipeline.rest(name);
        self.live.remove(name);
        tracing::info!(tenant = %name, who, "a tenant is removed");
        Ok(())
    }
}

/// How much of how much.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub used: u64,
    pub max: u64,
}

/// What a tenant has set up, of what it may, and its quotas.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub rules: Used,
    pub modules_bytes: Used,
    pub code_bytes: Used,
    pub sources: Used,
    pub channels: Used,
    pub tokens: Used,
    pub quotas: Quotas,
}

impl Registry {
    /// What a tenant uses of what it may.
    ///
    /// # Errors
    /// When there is no such tenant, or the store fails.
    pub async fn used(&self, tenant: &Name) -> Result<Usage, Error> {
        let fixed = self.fixed(tenant)?;
        let modules = self.modules(tenant).await?;
        let rules = self.rules.lock().await.get(tenant).map_or(0, BTreeMap::len);
        let used = |used: usize, max: usize| Used {
            used: used as u64,
            max: max as u64,
        };
        Ok(Usage {
            rules: used(rules, self.limits.rules_max),
            modules_bytes: Used {
                used: modules.iter().map(|it| it.size_bytes).sum(),
                max: self.limits.modules_bytes_max,
            },
            code_bytes: Used {
                used: modules.iter().map(|it| it.code_bytes).sum(),
                max: self.limits.code_bytes_max,
            },
            sources: used(fixed.own.sources.len(), self.limits.sources_max),
            channels: used(fixed.own.channels.len(), self.limits.channels_max),
            tokens: used(self.tokens(Some(tenant)).len(), TOKENS_MAX),
            quotas: fixed.file.quotas.over(&self.bounds.quotas),
        })
    }
}

/// That no version in use passes events on: for a tenant without a channel for it.
fn passing(entries: &BTreeMap<Name, super::Entry>) -> Result<(), Error> {
    for (rule, entry) in entries {
        if let Some(version) = entry.in_use().find(|it| it.on_error == Then::Passed) {
            return Err(Error::Conflict(format!(
                "version {} of the rule {rule} has `on_error` `pass`, so the tenant needs a `default_channel`",
                version.number
            )));
        }
    }
    Ok(())
}

fn not_in_file(file: &Tenant, thing: Thing, name: &Name) -> Result<(), Error> {
    let there = match thing {
        Thing::Source => file.sources.contains_key(name),
        Thing::Channel => file.channels.contains_key(name),
    };
    if there {
        return Err(Error::Conflict(format!(
            "the {} {name} is in the tenant's file, so it is changed there",
            thing.word()
        )));
    }
    Ok(())
}

fn in_a_file(name: &Name) -> Error {
    Error::Conflict(format!(
        "the tenant {name} has a file, so it is changed there"
    ))
}

fn tenant_key(name: &Name) -> String {
    format!("tenant/{name}")
}

fn sealed_error(key: &str, error: NotOpened) -> Error {
    Error::Store(store::Error::Row {
        path: std::path::PathBuf::new(),
        row: key.to_owned(),
        error: format!("{error}; give the key that sealed it, see `secrets_key` of [server]"),
    })
}

/// What holds for all tenants, and a call can run into.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub quotas: Quotas,
    pub limits_max: LimitsMax,
    pub quarantine: crate::pipeline::quarantine::Settings,
    /// How long an attempt may take where the channel does not say.
    pub timeout_ms: u64,
    pub lease_ms: u64,
    /// Whether the engine listens on a loopback address.
    pub loopback: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_show_none_of_their_secrets() {
        let settings = serde_json::json!({
            "kind": "webhook", "url": "https://a.example/",
            "secret": "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMjQtYnl0ZXM=",
        });
        let Some(settings) = settings.as_object().cloned() else {
            unreachable!("it is an object");
        };
        let name: Name = "hook".parse().unwrap();
        let given = tenant::channel(&name, &settings, 1_000).unwrap();
        let mut own = Own::default();
        own.channels.insert(name, Kept { settings, given });
        let shown = format!("{own:?}");
        assert!(
            shown.contains("hook") && !shown.contains("whsec"),
            "{shown}"
        );
    }
}
