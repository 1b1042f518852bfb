//! What tenants set up themselves while the engine runs: access tokens, modules, and rules as histories
//! of versions. Kept as records of the store; what is in use is compiled here and handed to the pipeline.
//!
//! - A change is durable before it takes effect, it takes effect as a whole, and the call that made it
//!   returns after that: every event that comes in later is decided by it.
//! - A version never changes; what is live, in the shadow or a canary, is a choice among versions.
//! - Nothing becomes a version that does not compile or refuses its configuration.
//! - Every change is in its tenant's audit log, written with it.
//!
//! What stands in a tenant's file is the operator's, and no call changes it: a rule there has no versions,
//! and no name of a source, a channel or a rule there can be taken.
//!
//! ```text
//! token/{id}                              an access token, as a hash
//! tenant/{tenant}                         a tenant that has no file
//! source/{tenant}/{name}                  a source, sealed
//! channel/{tenant}/{name}                 a channel, sealed
//! module/{tenant}/{sha256}                a module's sizes and date
//! wasm/{tenant}/{sha256}                  its bytes
//! rule/{tenant}/{rule}                    which versions are in use
//! version/{tenant}/{rule}/{number, 10 digits}    a version
//! audit/{tenant}/{UUIDv7}                 a change: who, when, what
//! quarantine/{tenant}/{rule}/{number}     why a version is not asked any more
//! shadow/{tenant}/{rule}                  what a version in the shadow was found to decide
//! once/{tenant, or a dot}/{ms}-{hash}     what a call with an Idempotency-Key was answered, sealed
//! ```

mod access;
mod once;
mod own;
mod rest;
mod rule;
mod slots;
mod trial;

pub use access::{Caller, NewToken, Scope, Token};
pub(crate) use once::{ANSWER_BYTES_MAX, Known as KnownCall, OnceKey, Told};
pub use own::{Bounds, Change, Fileless, Settings, Shown, Thing, Usage, Used};
pub use rule::{AuditEntry, Changed, NewVersion, Role, RuleState, Version};
pub use trial::{Trial, Tried};

use own::Own;
use slots::{Slot, Slots};
use trial::TRIALS_MAX;

use crate::clock::now_ms;
use crate::config::LimitsMax;
use crate::config::Uploads;
use crate::housekeeping::free_bytes;
use crate::id::{Hash, Name};
use crate::live::{Live, OfTenant};
use crate::pipeline::{
    ActiveRule, Asked, Canary, KeptTally, Pipeline, Rules, Shadow, Tally, programs,
};
use crate::sandbox::{CompilerTime, Form, Refused, Sandbox, thread_time};
use crate::seal::Seal;
use crate::secret::Secret;
use crate::store::{self, Changes, Store};
use crate::tenant::{ModuleRef, Pattern, Rule, Tenant};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore};

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("there is no {what} {name}")]
    NotFound { what: &'static str, name: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}; {fix}", fix = .0.fix())]
    Refused(Refused),
    #[error("{0}")]
    Conflict(String),
    /// Somebody else has changed the rule since it was read.
    #[error("the rule is at revision {found} and not at {expected} any more; read it again")]
    Revision { expected: u64, found: u64 },
    #[error("{what}: the limit of a tenant is {limit} ({key} of [uploads])")]
    Quota {
        what: String,
        limit: u64,
        key: &'static str,
    },
    #[error("{0}; send it again later")]
    Busy(&'static str),
    /// So many seconds until there is some.
    #[error(
        "the tenant's time for compiling is used up for now (compile_s_per_hour of [uploads]); send it again in {0} s"
    )]
    CompileTime(u32),
    /// What is free belongs to the senders' events.
    #[error("the disk is nearly full, so no module is compiled; send it again later")]
    Disk { free_bytes: u64, least_bytes: u64 },
    /// So many seconds until there is some.
    #[error(
        "the tenant's fuel is used up for now (fuel_per_s of [quotas]); send it again in {0} s"
    )]
    Fuel(u32),
}

/// How many changes a tenant's audit log keeps: the last ones.
const AUDIT_MAX: usize = 1_000;
/// How much room the configuration of a version takes, as JSON.
const CONFIG_BYTES_MAX: usize = 64 * 1024;
/// How many live versions a rule can be rolled back through.
const ROLLBACKS_MAX: usize = 20;

/// Rules, modules and tokens that are set up while the engine runs.
pub struct Registry {
    store: Arc<dyn Store>,
    pipeline: Arc<Pipeline>,
    live: Arc<Live>,
    sandbox: Sandbox,
    seal: Seal,
    limits: Uploads,
    bounds: Bounds,
    tenants: RwLock<BTreeMap<Name, Arc<Fixed>>>,
    tokens: RwLock<HashMap<String, Token>>,
    /// One change at a time: each reads what the one before it left.
    rules: Mutex<BTreeMap<Name, BTreeMap<Name, Entry>>>,
    room: Room,
    /// Modules are compiled in these, within each tenant's budget.
    compiles: Arc<Slots>,
    /// Modules whose code is there are looked at and started in these, so that promoting and rolling back never
    /// wait behind a compiler.
    starts: Arc<Slots>,
    trials: Arc<Semaphore>,
    once: once::Once,
    /// Who is uploading or trying: one module at a time each.
    uploading: StdMutex<BTreeSet<Name>>,
}

/// Has the versions of a tenant's rules compiled anew, since its limits are others.
fn forget_compiled(rules: Option<&mut BTreeMap<Name, Entry>>) {
    for entry in rules.into_iter().flat_map(BTreeMap::values_mut) {
        entry.active.clear();
    }
}

/// A tenant's turn to upload or try a module.
pub struct Turn<'a> {
    registry: &'a Registry,
    tenant: Name,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let uploading = self.registry.uploading.lock();
        let mut uploading = uploading.unwrap_or_else(PoisonError::into_inner);
        uploading.remove(&self.tenant);
    }
}

/// A tenant as it is now: its file, which no call changes, and what was set up beside it.
#[derive(Clone)]
struct Fixed {
    /// The rules of its file, which may name all of its channels.
    rules: Arc<Rules>,
    /// Its file without the rules.
    file: Arc<Tenant>,
    own: Own,
}

/// What a registry works with.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub pipeline: Arc<Pipeline>,
    pub live: Arc<Live>,
    pub sandbox: Sandbox,
    pub secrets_key: Secret,
    pub limits: Uploads,
    pub bounds: Bounds,
    pub room: Room,
}

/// The disk on which machine code is kept, beside the store.
#[derive(Clone, Debug)]
pub struct Room {
    pub path: PathBuf,
    /// With less than this free, no event is taken.
    pub disk_free_bytes_min: u64,
    /// What one module's code may take.
    pub code_bytes_max: u64,
}

impl Room {
    /// That so many modules can be compiled at once and leave the senders theirs.
    fn has(&self, compiles: usize) -> Result<(), Error> {
        let code_bytes = self.code_bytes_max.saturating_mul(compiles as u64);
        let least_bytes = self.disk_free_bytes_min.saturating_add(code_bytes);
        let free_bytes = free_bytes(&self.path);
        if free_bytes < least_bytes {
            return Err(Error::Disk {
                free_bytes,
                least_bytes,
            });
        }
        Ok(())
    }
}

/// A tenant, with the names of its sources and channels.
#[derive(Clone, Debug)]
pub struct Known {
    pub name: Name,
    pub sources: Vec<Name>,
    pub channels: Vec<Name>,
    /// Whether it has a file.
    pub in_file: bool,
    pub settings: Fileless,
}

impl Fixed {
    fn known(&self, name: &Name) -> Known {
        Known {
            name: name.clone(),
            sources: self.sources().into_iter().cloned().collect(),
            channels: self.rules.channels().cloned().collect(),
            in_file: self.file.in_file,
            settings: Fileless {
                quotas: self.file.quotas,
                limits: self.file.limits,
                default_channel: self.file.default_channel.clone(),
            },
        }
    }

    /// Its sources, of the file and others.
    fn sources(&self) -> BTreeSet<&Name> {
        self.file
            .sources
            .keys()
            .chain(self.own.sources.keys())
            .collect()
    }
}

/// A rule with its versions; those in use are compiled.
#[derive(Clone, Default)]
struct Entry {
    state: RuleState,
    versions: BTreeMap<u32, Version>,
    active: BTreeMap<u32, Arc<ActiveRule>>,
    tally: Arc<Tally>,
    /// The record that says which versions are in use cannot be read.
    unreadable: bool,
}

impl Entry {
    /// The version that is live, as the pipeline takes it. What was live and cannot be read fails on every
    /// event: it is not as if there were none, since its events would go without a decision.
    fn live(&self, name: &Name) -> Option<Arc<ActiveRule>> {
        let unkept = |what| Arc::new(ActiveRule::unkept(name.clone(), self.state.live, what));
        match self.state.live {
            Some(number) => {
                let active = self.active.get(&number).cloned();
                Some(active.unwrap_or_else(|| unkept("the version of the rule that is live")))
            }
            None if self.unreadable => Some(unkept("which version of the rule is live")),
            None => None,
        }
    }
}

/// A module that a tenant has uploaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Module {
    pub sha256: Hash,
    pub size_bytes: u64,
    /// `reactor` or `command`.
    pub form: String,
    /// Linear memory that it starts with.
    pub memory_bytes: u64,
    /// The machine code that it becomes.
    #[serde(default)]
    pub code_bytes: u64,
    pub uploaded_ms: i64,
}

/// What came of an upload.
#[derive(Clone, Debug)]
pub struct Uploaded {
    pub module: Module,
    /// Whether the tenant did not have it before.
    pub new: bool,
    pub compiled_in: Duration,
}

impl Registry {
    /// Reads everything, compiles what is in use and hands it to the pipeline. `rules` are those of the
    /// tenants' files, in their order.
    ///
    /// # Errors
    /// When the store cannot be read, or something sealed in it does not open. A version that cannot be
    /// used any more is logged, and the events of its rule are failed on.
    pub async fn open(
        parts: Parts,
        tenants: Vec<Tenant>,
        rules: Vec<Rules>,
    ) -> Result<Self, Error> {
        let per_hour = Duration::from_secs(parts.limits.compile_s_per_hour);
        let registry = Self {
            seal: Seal::new(&parts.secrets_key),
            store: parts.store,
            pipeline: parts.pipeline,
            live: parts.live,
            sandbox: parts.sandbox,
            limits: parts.limits,
            bounds: parts.bounds,
            tenants: RwLock::default(),
            tokens: RwLock::default(),
            rules: Mutex::default(),
            room: parts.room,
            compiles: Slots::new(Some(per_hour)),
            starts: Slots::new(None),
            trials: Arc::new(Semaphore::new(TRIALS_MAX)),
            once: once::Once::default(),
            uploading: StdMutex::default(),
        };
        let tokens = registry.store.records("token/").await?;
        let tokens = tokens.iter().filter_map(|(key, bytes)| {
            // Who has it is told that it is not good, and is given another.
            let token: Token = read_or_leave_out(key, bytes)?;
            Some((token.id.clone(), token))
        });
        *registry
            .tokens
            .write()
            .unwrap_or_else(PoisonError::into_inner) = tokens.collect();
        registry.load_once().await?;
        registry.load_rules().await?;
        registry.replace(tenants, rules).await?;
        registry.remove_needless_code().await?;
        Ok(registry)
    }

    /// Says which modules tenants have uploaded, those of tenants that rest with them, and removes the machine
    /// code of all others that are in no file either.
    async fn remove_needless_code(&self) -> Result<(), Error> {
        let Some(cache) = self.sandbox.cache().cloned() else {
            return Ok(());
        };
        for (key, _) in self.store.records("module/").await? {
            if let Some(module) = module_of(&key) {
                cache.add_record(module);
            }
        }
        let removed = tokio::task::spawn_blocking(move || cache.remove_needless()).await;
        match removed.map_err(|_| panicked("the cache of compiled modules"))? {
            Ok(0) => {}
            Ok(modules) => tracing::info!(modules, "machine code that nothing needs is removed"),
            // It takes room, and nothing fails for it.
            Err(error) => {
                tracing::warn!(%error, "machine code that nothing needs cannot be looked for");
            }
        }
        Ok(())
    }

    async fn load_rules(&self) -> Result<(), store::Error> {
        let mut all: BTreeMap<Name, BTreeMap<Name, Entry>> = BTreeMap::new();
        for (key, bytes) in self.store.records("rule/").await? {
            let Some((tenant, rule, _)) = parts(&key) else {
                continue;
            };
            let state = read_or_leave_out(&key, &bytes);
            let entry = Entry {
                unreadable: state.is_none(),
                state: state.unwrap_or_default(),
                ..Entry::default()
            };
            all.entry(tenant).or_default().insert(rule, entry);
        }
        for (key, bytes) in self.store.records("version/").await? {
            let Some((tenant, rule, number)) = parts(&key) else {
                continue;
            };
            let entry = all.get_mut(&tenant).and_then(|rules| rules.get_mut(&rule));
            let Some(entry) = entry else {
                continue;
            };
            // No number is given twice, whatever can be read of the version that has it.
            let number = number.parse::<u32>().unwrap_or(0);
            entry.state.last = entry.state.last.max(number);
            if let Some(version) = read_or_leave_out::<Version>(&key, &bytes) {
                entry.versions.insert(version.number, version);
            }
        }
        let mut gone = Changes::new();
        for (key, bytes) in self.store.records("shadow/").await? {
            let kept = parts(&key).zip(read_or_leave_out::<KeptTally>(&key, &bytes));
            let entry = kept.as_ref().and_then(|((tenant, rule, _), kept)| {
                let entry = all.get_mut(tenant)?.get_mut(rule)?;
                (entry.state.shadow == Some(kept.version)).then_some(entry)
            });
            match (entry, kept) {
                (Some(entry), Some((_, kept))) => entry.tally = Arc::new(kept.into()),
                _ => gone.push((key, None)),
            }
        }
        if !gone.is_empty() {
            self.store.set_records(gone).await?;
        }
        *self.rules.lock().await = all;
        Ok(())
    }

    /// Keeps what shadows were found to decide, for after a restart.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn keep_tallies(&self) -> Result<(), store::Error> {
        let rules = self.rules.lock().await;
        let mut changes = Changes::new();
        for (tenant, rules) in &*rules {
            for (rule, entry) in rules {
                let shadow = entry.state.shadow;
                if let Some(kept) = shadow.and_then(|version| entry.tally.keep(version)) {
                    changes.push((format!("shadow/{tenant}/{rule}"), Some(written(&kept))));
                }
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.store.set_records(changes).await
    }

    /// Takes over what the tenants' files say by now. Nothing that was set up by calls changes.
    ///
    /// # Errors
    /// When the store cannot be read; then all stays as it was.
    pub(crate) async fn replace(
        &self,
        tenants: Vec<Tenant>,
        rules: Vec<Rules>,
    ) -> Result<(), Error> {
        let mut all = self.rules.lock().await;
        let (mut own, fileless) = self.load_own().await?;
        let mut now = BTreeMap::new();
        for (mut file, mut rules) in tenants.into_iter().zip(rules) {
            if let Some(before) = self.pipeline.rules(&file.name) {
                rules.take_over(&before);
            }
            // Compiled by now; their modules' bytes need no memory.
            file.rules = Vec::new();
            let fixed = Fixed {
                own: own.remove(&file.name).unwrap_or_default(),
                rules: Arc::new(rules),
                file: Arc::new(file),
            };
            now.insert(fixed.file.name.clone(), Arc::new(fixed));
        }
        for (name, tenant) in fileless {
            if now.contains_key(&name) {
                tracing::warn!(tenant = %name, "it has a file by now, whose quotas hold");
                continue;
            }
            let file = tenant.file(name.clone());
            let fixed = Fixed {
                own: own.remove(&name).unwrap_or_default(),
                rules: Arc::new(self.bounded(&file)),
                file: Arc::new(file),
            };
            now.insert(name, Arc::new(fixed));
        }
        let in_files: HashSet<Hash> = now.values().flat_map(|it| modules_of(&it.rules)).collect();
        let before = std::mem::replace(&mut *self.fixed_now(), now.clone());
        for (name, fixed) in &now {
            let limits = before.get(name).map(|it| it.file.limits);
            if limits.is_some_and(|limits| limits != fixed.file.limits) {
                forget_compiled(all.get_mut(name));
            }
        }
        // A tenant that was not there before may have rules from an earlier time.
        if let Err(error) = self.compile(&mut all).await {
            *self.fixed_now() = before;
            return Err(error);
        }
        if let Some(cache) = self.sandbox.cache() {
            cache.name_files(&in_files);
        }
        for gone in before.keys().filter(|it| !now.contains_key(*it)) {
            self.live.remove(gone);
            self.pipeline.rest(gone);
        }
        let none = BTreeMap::new();
        for (name, fixed) in now {
            self.establish(&name, &fixed, all.get(&name).unwrap_or(&none));
        }
        // Of tenants that come back, and of rules that were compiled anew.
        Ok(self.load_quarantines().await?)
    }

    /// The rules of a tenant without a file: none, within its quota.
    fn bounded(&self, tenant: &Tenant) -> Rules {
        let quotas = tenant.quotas.over(&self.bounds.quotas);
        let rules = Rules::none(tenant.name.clone(), tenant.default_channel.clone());
        rules.bounded(quotas.fuel_per_s, self.bounds.quarantine)
    }

    /// Has a tenant be this from now on: what its rules may name is there before they can.
    fn establish(&self, tenant: &Name, fixed: &Fixed, rules: &BTreeMap<Name, Entry>) {
        let mut live = OfTenant::new(&fixed.file, &self.bounds.quotas);
        for (name, kept) in &fixed.own.sources {
            let source = || kept.given.made.clone();
            live.sources.entry(name.clone()).or_insert_with(source);
        }
        for (name, kept) in &fixed.own.channels {
            if !live.channels.contains_key(name) {
                let (channel, pace) = kept.given.made.clone();
                live.channels.insert(name.clone(), channel);
                live.paces.insert(name.clone(), pace);
            }
        }
        let fixed = Fixed {
            rules: Arc::new(fixed.rules.naming(live.channels.clone())),
            file: fixed.file.clone(),
            own: fixed.own.clone(),
        };
        self.live.put(tenant, live);
        self.fixed_now().insert(tenant.clone(), Arc::new(fixed));
        self.put_to_work(tenant, rules);
    }

    fn fixed_now(&self) -> RwLockWriteGuard<'_, BTreeMap<Name, Arc<Fixed>>> {
        self.tenants.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles what is in use and was not compiled, on all cores.
    async fn compile(&self, all: &mut BTreeMap<Name, BTreeMap<Name, Entry>>) -> Result<(), Error> {
        let (mut wanted, mut unkept) = (Vec::new(), Vec::new());
        for (tenant, rules) in &*all {
            let Ok(sandbox) = self.sandbox_of(tenant) else {
                tracing::warn!(%tenant, "there is no file of this tenant any more; its rules rest");
                continue;
            };
            for (rule, entry) in rules {
                for version in entry.in_use() {
                    if entry.active.contains_key(&version.number) {
                        continue;
                    }
                    let Some(made) = self.rule_of(tenant, rule, version).await? else {
                        let number = version.number;
                        tracing::error!(%tenant, %rule, version = number, "the module of this version is not in the store; its events are failed on");
                        unkept.push((tenant.clone(), rule.clone(), number));
                        continue;
                    };
                    let name = (tenant.clone(), rule.clone());
                    wanted.push((name.0, name.1, version.number, made, sandbox.clone()));
                }
            }
        }
        let compiled = tokio::task::spawn_blocking(move || {
            let rules: Vec<(&Rule, &Sandbox)> = (wanted.iter())
                .map(|(.., rule, sandbox)| (rule, sandbox))
                .collect();
            let programs = programs(&rules);
            let made = wanted.iter().zip(programs);
            let made = made.map(|((tenant, name, number, rule, _), program)| {
                if let Err(error) = &program {
                    tracing::error!(%tenant, rule = %name, version = number, %error, "a rule cannot be used; its events are failed on");
                }
                let active = ActiveRule::new(rule, Some(*number), program);
                (tenant.clone(), name.clone(), *number, Arc::new(active))
            });
            made.collect::<Vec<_>>()
        });
        let compiled = compiled.await.map_err(|_| panicked("a rule"))?;
        let unkept = unkept.into_iter().map(|(tenant, rule, number)| {
            let active = ActiveRule::unkept(rule.clone(), Some(number), "the module of the rule");
            (tenant, rule, number, Arc::new(active))
        });
        for (tenant, rule, number, active) in compiled.into_iter().chain(unkept) {
            let entry = all.get_mut(&tenant).and_then(|rules| rules.get_mut(&rule));
            if let Some(entry) = entry {
                entry.active.insert(number, active);
            }
        }
        Ok(())
    }

    /// A version as the pipeline takes it; none where its module is gone.
    async fn rule_of(
        &self,
        tenant: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<Option<Rule>, store::Error> {
        let wasm = self
            .store
            .record(&wasm_key(tenant, &version.module))
            .await?;
        let Some(wasm) = wasm else {
            return Ok(None);
        };
        let patterns = version.events.iter();
        Ok(Some(Rule {
            name: name.clone(),
            module: ModuleRef::Uploaded(version.module),
            wasm: wasm.into(),
            events: patterns.filter_map(|it| Pattern::new(it).ok()).collect(),
            sources: version.sources.clone(),
            channels: version.channels.clone(),
            config: version.config_bytes().map_err(|error| store::Error::Row {
                path: std::path::PathBuf::new(),
                row: version_key(tenant, name, version.number),
                error,
            })?,
            on_error: version.on_error,
            place: String::new(),
        }))
    }

    /// Has a tenant's events asked of these.
    fn put_to_work(&self, tenant: &Name, rules: &BTreeMap<Name, Entry>) {
        let Ok(fixed) = self.fixed(tenant) else {
            return;
        };
        let asked = rules.iter().filter_map(|(name, entry)| {
            if fixed.rules.names().any(|it| it == name) {
                tracing::warn!(%tenant, rule = %name, "the tenant's file has a rule of this name, so the uploaded one rests");
                return None;
            }
            let version = |number: &u32| entry.active.get(number).cloned();
            Some(Asked {
                name: name.clone(),
                live: entry.live(name),
                canary: entry.state.canary.as_ref().and_then(|canary| {
                    Some(Canary {
                        rule: version(&canary.version)?,
                        share: canary.share,
                    })
                }),
                shadow: entry.state.shadow.as_ref().and_then(|number| {
                    Some(Shadow {
                        rule: version(number)?,
                        tally: entry.tally.clone(),
                    })
                }),
            })
        });
        self.pipeline.set_rules(fixed.rules.with(asked));
    }

    /// What the operator lets a tenant's own limits be.
    pub fn limits_max(&self) -> &LimitsMax {
        &self.bounds.limits_max
    }

    /// That there is such a tenant.
    ///
    /// # Errors
    /// When there is none.
    pub fn known(&self, tenant: &Name) -> Result<(), Error> {
        self.fixed(tenant).map(drop)
    }

    /// The sandbox in which a tenant's limits hold.
    fn sandbox_of(&self, tenant: &Name) -> Result<Sandbox, Error> {
        Ok(self.fixed(tenant)?.file.limits.within(&self.sandbox))
    }

    fn fixed(&self, tenant: &Name) -> Result<Arc<Fixed>, Error> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let fixed = tenants.get(tenant).cloned();
        fixed.ok_or_else(|| not_found("tenant", tenant))
    }

    /// The tenants that there are.
    pub fn tenants(&self) -> Vec<Known> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let known = tenants.iter().map(|(name, fixed)| fixed.known(name));
        known.collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is none.
    pub fn tenant(&self, name: &Name) -> Result<Known, Error> {
        Ok(self.fixed(name)?.known(name))
    }

    /// The names of the rules in a tenant's file.
    pub fn rules_of_file(&self, tenant: &Name) -> Vec<Name> {
        let fixed = self.fixed(tenant);
        fixed.map_or_else(|_| Vec::new(), |it| it.rules.names().cloned().collect())
    }

    /// A tenant's turn to upload, taken before its module is read.
    ///
    /// # Errors
    /// When there is no such tenant, or it is uploading already.
    pub fn turn(&self, tenant: &Name) -> Result<Turn<'_>, Error> {
        self.fixed(tenant)?;
        let uploading = self.uploading.lock();
        let mut uploading = uploading.unwrap_or_else(PoisonError::into_inner);
        if !uploading.insert(tenant.clone()) {
            return Err(Error::Busy(
                "the tenant is uploading or trying another module",
            ));
        }
        Ok(Turn {
            registry: self,
            tenant: tenant.clone(),
        })
    }

    /// Takes a module: checked, compiled, and kept under its SHA-256. The same one again changes
    /// nothing.
    ///
    /// # Errors
    /// When it is refused, the tenant may have no more or has compiled too much lately, others have all slots,
    /// or the disk is nearly full.
    pub async fn upload(&self, turn: &Turn<'_>, wasm: Vec<u8>) -> Result<Uploaded, Error> {
        let tenant = &turn.tenant;
        let sandbox = self.sandbox_of(tenant)?;
        let sha256 = Hash::of(&wasm);
        let wasm: Arc<[u8]> = wasm.into();
        // It goes along with the work, whoever still waits for that: code of which nothing is recorded then
        // is removed.
        let hold = sandbox.hold(sha256);
        let slot = self.slot(tenant, &sandbox, sha256).await?;
        let (began, bytes) = (Instant::now(), wasm.clone());
        let found = in_slot(slot, "this module", move |time| {
            let made = sandbox.check(&bytes).and_then(|checked| {
                let module = sandbox.compile_timed(bytes.clone(), time)?;
                Ok((checked.form, checked.memory_bytes(), module.code_bytes()))
            });
            (made, hold)
        });
        let (found, _hold) = found.await?;
        let (form, memory_bytes, code_bytes) = found.map_err(Error::Refused)?;
        let compiled_in = began.elapsed();
        // One at a time from here on, so that what is counted is what there is.
        let _rules = self.rules.lock().await;
        let all = self.modules(tenant).await?;
        if let Some(module) = all.iter().find(|it| it.sha256 == sha256) {
            return Ok(Uploaded {
                module: module.clone(),
                new: false,
                compiled_in,
            });
        }
        let module = Module {
            sha256,
            size_bytes: wasm.len() as u64,
            form: match form {
                Form::Reactor => "reactor",
                Form::Command => "command",
            }
            .to_owned(),
            memory_bytes,
            code_bytes,
            uploaded_ms: now_ms(),
        };
        self.within_quotas(&all, &module)?;
        let changes = vec![
            (module_key(tenant, &sha256), Some(written(&module))),
            (wasm_key(tenant, &sha256), Some(wasm.to_vec())),
        ];
        self.store.set_records(changes).await?;
        if let Some(cache) = self.sandbox.cache() {
            cache.add_record(sha256);
        }
        Ok(Uploaded {
            module,
            new: true,
            compiled_in,
        })
    }

    /// That a tenant may have one more module beside these.
    fn within_quotas(&self, all: &[Module], new: &Module) -> Result<(), Error> {
        let within = |what: &str, limit: u64, key, bytes: fn(&Module) -> u64| {
            let taken = all.iter().map(bytes).sum::<u64>() + bytes(new);
            if taken <= limit {
                return Ok(());
            }
            Err(Error::Quota {
                what: format!(
                    "{what} would take {taken} bytes; delete modules that no version has"
                ),
                limit,
                key,
            })
        };
        let Uploads {
            modules_bytes_max,
            code_bytes_max,
            ..
        } = self.limits;
        let key = "modules_bytes_max";
        within("its modules", modules_bytes_max, key, |it| it.size_bytes)?;
        let (what, key) = ("the machine code of its modules", "code_bytes_max");
        within(what, code_bytes_max, key, |it| it.code_bytes)
    }

    /// A slot for work at a module. Where its machine code is there, that is no compiler's: it takes no time
    /// to speak of, and asks for no budget.
    async fn slot(&self, tenant: &Name, sandbox: &Sandbox, module: Hash) -> Result<Slot, Error> {
        if sandbox.has_code(module) {
            return self.starts.enter(tenant).await;
        }
        let slot = self.compiles.enter(tenant).await?;
        self.room.has(self.compiles.running())?;
        Ok(slot)
    }

    /// The modules that a tenant has uploaded.
    ///
    /// # Errors
    /// When there is no such tenant, or the store fails.
    pub async fn modules(&self, tenant: &Name) -> Result<Vec<Module>, Error> {
        self.fixed(tenant)?;
        let records = self.store.records(&format!("module/{tenant}/")).await?;
        // What cannot be read is no module less: it counts against the tenant.
        let modules = records.iter().map(|(key, bytes)| read(key, bytes));
        Ok(modules.collect::<Result<_, _>>()?)
    }

    /// The bytes of a module.
    ///
    /// # Errors
    /// When the tenant has no such module, or the store fails.
    pub async fn wasm(&self, tenant: &Name, sha256: Hash) -> Result<Vec<u8>, Error> {
        self.fixed(tenant)?;
        let wasm = self.store.record(&wasm_key(tenant, &sha256)).await?;
        wasm.ok_or_else(|| not_found("module", sha256))
    }

    /// Deletes a module that no version has.
    ///
    /// # Errors
    /// When there is none, or a version has it.
    pub async fn delete_module(&self, tenant: &Name, sha256: Hash) -> Result<(), Error> {
        let rules = self.rules.lock().await;
        if !self
            .modules(tenant)
            .await?
            .iter()
            .any(|it| it.sha256 == sha256)
        {
            return Err(not_found("module", sha256));
        }
        let own = rules.get(tenant).into_iter().flatten();
        for (name, entry) in own {
            if let Some(version) = entry.versions.values().find(|it| it.module == sha256) {
                return Err(Error::Conflict(format!(
                    "version {} of the rule {name} has this module; delete the rule first",
                    version.number
                )));
            }
        }
        let changes = vec![
            (module_key(tenant, &sha256), None),
            (wasm_key(tenant, &sha256), None),
        ];
        self.store.set_records(changes).await?;
        if let Some(cache) = self.sandbox.cache() {
            cache.remove_record(sha256);
        }
        Ok(())
    }
}

/// Does work on a thread that may block, and charges the slot with what it cost; both go on where the call
/// that wanted it is gone. `what` is what the work is about.
async fn in_slot<T: Send + 'static>(
    slot: Slot,
    what: &str,
    work: impl FnOnce(&mut CompilerTime) -> T + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(move || {
        let (began, mut time) = (thread_time(), CompilerTime::default());
        let made = work(&mut time);
        slot.end(time.since(began));
        made
    });
    done.await.map_err(|_| panicked(what))
}

fn panicked(what: &str) -> Error {
    Error::Conflict(format!(
        "the engine panicked over {what}; its log says where"
    ))
}

/// The modules of the rules of a tenant's file.
fn modules_of(rules: &Rules) -> impl Iterator<Item = Hash> {
    let rules = rules.names().filter_map(|name| rules.deciding(name));
    let programs = rules
        .flatten()
        .filter_map(|rule| rule.program.as_ref().ok());
    programs.map(|program| program.module().hash())
}

fn not_found(what: &'static str, name: impl std::fmt::Display) -> Error {
    Error::NotFound {
        what,
        name: name.to_string(),
    }
}

fn module_key(tenant: &Name, sha256: &Hash) -> String {
    format!("module/{tenant}/{sha256}")
}

/// The module of a key that [`module_key`] made.
fn module_of(key: &str) -> Option<Hash> {
    key.strip_prefix("module/")?.split_once('/')?.1.parse().ok()
}

fn wasm_key(tenant: &Name, sha256: &Hash) -> String {
    format!("wasm/{tenant}/{sha256}")
}

fn rule_key(tenant: &Name, rule: &Name) -> String {
    format!("rule/{tenant}/{rule}")
}

fn version_key(tenant: &Name, rule: &Name, number: u32) -> String {
    format!("version/{tenant}/{rule}/{number:010}")
}

/// The tenant, the rule and the rest of a key. No name has a slash.
fn parts(key: &str) -> Option<(Name, Name, &str)> {
    let mut parts = key.splitn(4, '/').skip(1);
    let (tenant, rule) = (parts.next()?, parts.next()?);
    Some((
        tenant.parse().ok()?,
        rule.parse().ok()?,
        parts.next().unwrap_or_default(),
    ))
}

/// A record's value: JSON, so that `store export` shows it as it is.
fn written<T: Serialize>(value: &T) -> Vec<u8> {
    // Maps with text for keys, and numbers: nothing that JSON has no form for.
    serde_json::to_vec(value).unwrap_or_default()
}

fn read<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, store::Error> {
    serde_json::from_slice(bytes).map_err(|error| store::Error::Row {
        path: PathBuf::new(),
        row: key.to_owned(),
        error: error.to_string(),
    })
}

/// For records that something else makes up for, which the caller says.
fn read_or_leave_out<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Option<T> {
    let read = read(key, bytes);
    read.inspect_err(|error| tracing::error!(key, %error, "a record cannot be read"))
        .ok()
}
