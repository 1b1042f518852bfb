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
//! module/{tenant}/{sha256}                a module's size and date
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
mod trial;

pub use access::{Caller, NewToken, Scope, Token};
pub(crate) use once::{ANSWER_BYTES_MAX, Known as KnownCall, OnceKey, Told};
pub use own::{Bounds, Change, Fileless, Settings, Shown, Thing, Usage, Used};
pub use rule::{AuditEntry, Changed, NewVersion, Role, RuleState, Version};
pub use trial::{Trial, Tried};

use own::Own;
use trial::TRIALS_MAX;

use crate::clock::now_ms;
use crate::config::LimitsMax;
use crate::config::Uploads;
use crate::id::{Hash, Name};
use crate::live::{Live, OfTenant};
use crate::pipeline::{
    ActiveRule, Asked, Canary, KeptTally, Pipeline, Rules, Shadow, Tally, programs,
};
use crate::sandbox::{Form, Refused, Sandbox};
use crate::seal::Seal;
use crate::secret::Secret;
use crate::store::{self, Changes, Store};
use crate::tenant::{ModuleRef, Pattern, Rule, Tenant};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
        "the tenant's fuel is used up for now (fuel_per_s of [quotas]); send it again in {0} s"
    )]
    Fuel(u32),
}

/// How many modules are compiled at once for those who upload them; others wait for a while.
const COMPILES_MAX: usize = 4;
const COMPILE_PATIENCE: Duration = Duration::from_secs(10);
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
    compiles: Semaphore,
    trials: Semaphore,
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
            compiles: Semaphore::new(COMPILES_MAX),
            trials: Semaphore::new(TRIALS_MAX),
            once: once::Once::default(),
            uploading: StdMutex::default(),
        };
        let tokens = registry.store.records("token/").await?;
        let tokens = tokens.iter().filter_map(|(key, bytes)| {
            let token: Token = read(key, bytes)?;
            Some((token.id.clone(), token))
        });
        *registry
            .tokens
            .write()
            .unwrap_or_else(PoisonError::into_inner) = tokens.collect();
        registry.load_once().await?;
        registry.load_rules().await?;
        registry.replace(tenants, rules).await?;
        Ok(registry)
    }

    async fn load_rules(&self) -> Result<(), store::Error> {
        let mut all: BTreeMap<Name, BTreeMap<Name, Entry>> = BTreeMap::new();
        for (key, bytes) in self.store.records("rule/").await? {
            if let (Some((tenant, rule, _)), Some(state)) = (parts(&key), read(&key, &bytes)) {
                let entry = Entry {
                    state,
                    ..Entry::default()
                };
                all.entry(tenant).or_default().insert(rule, entry);
            }
        }
        for (key, bytes) in self.store.records("version/").await? {
            if let (Some((tenant, rule, _)), Some(version)) =
                (parts(&key), read::<Version>(&key, &bytes))
                && let Some(entry) = all.get_mut(&tenant).and_then(|rules| rules.get_mut(&rule))
            {
                entry.versions.insert(version.number, version);
            }
        }
        let mut gone = Changes::new();
        for (key, bytes) in self.store.records("shadow/").await? {
            let kept = parts(&key).zip(read::<KeptTally>(&key, &bytes));
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
            return Err(error.into());
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
    async fn compile(
        &self,
        all: &mut BTreeMap<Name, BTreeMap<Name, Entry>>,
    ) -> Result<(), store::Error> {
        let mut wanted = Vec::new();
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
                    let made = self.rule_of(tenant, rule, version).await?;
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
        let compiled = compiled.await.unwrap_or_default();
        for (tenant, rule, number, active) in compiled {
            let entry = all.get_mut(&tenant).and_then(|rules| rules.get_mut(&rule));
            if let Some(entry) = entry {
                entry.active.insert(number, active);
            }
        }
        Ok(())
    }

    /// A version as the pipeline takes it.
    async fn rule_of(
        &self,
        tenant: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<Rule, store::Error> {
        let wasm = self
            .store
            .record(&wasm_key(tenant, &version.module))
            .await?;
        let patterns = version.events.iter();
        Ok(Rule {
            name: name.clone(),
            module: ModuleRef::Uploaded(version.module),
            wasm: wasm.unwrap_or_default().into(),
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
        })
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
                live: entry.state.live.as_ref().and_then(version),
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
    /// When it is refused, the tenant may have no more, or too many are being compiled.
    pub async fn upload(&self, turn: &Turn<'_>, wasm: Vec<u8>) -> Result<Uploaded, Error> {
        let tenant = &turn.tenant;
        let permit = tokio::time::timeout(COMPILE_PATIENCE, self.compiles.acquire());
        let Ok(_permit) = permit.await else {
            return Err(Error::Busy("other modules are being compiled"));
        };
        let (wasm, began): (Arc<[u8]>, _) = (wasm.into(), Instant::now());
        let (sandbox, bytes) = (self.sandbox_of(tenant)?, wasm.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let checked = sandbox.check(&bytes)?;
            let found = (checked.form, checked.memory_bytes());
            sandbox.compile(bytes.clone())?;
            Ok(found)
        });
        let checked = checked.await.map_err(|_| {
            Error::Conflict("the engine panicked over this module; its log says where".to_owned())
        })?;
        let (form, memory_bytes) = checked.map_err(Error::Refused)?;
        let compiled_in = began.elapsed();
        let sha256 = Hash::of(&wasm);
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
        let taken: u64 = all.iter().map(|it| it.size_bytes).sum();
        let limit = self.limits.modules_bytes_max;
        if taken + wasm.len() as u64 > limit {
            return Err(Error::Quota {
                what: format!(
                    "its modules would take {} bytes; delete some that no version has",
                    taken + wasm.len() as u64
                ),
                limit,
                key: "modules_bytes_max",
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
            uploaded_ms: now_ms(),
        };
        let changes = vec![
            (module_key(tenant, &sha256), Some(written(&module))),
            (wasm_key(tenant, &sha256), Some(wasm.to_vec())),
        ];
        self.store.set_records(changes).await?;
        Ok(Uploaded {
            module,
            new: true,
            compiled_in,
        })
    }

    /// The modules that a tenant has uploaded.
    ///
    /// # Errors
    /// When there is no such tenant, or the store fails.
    pub async fn modules(&self, tenant: &Name) -> Result<Vec<Module>, Error> {
        self.fixed(tenant)?;
        let records = self.store.records(&format!("module/{tenant}/")).await?;
        let modules = records.iter();
        Ok(modules
            .filter_map(|(key, bytes)| read(key, bytes))
            .collect())
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
        Ok(self.store.set_records(changes).await?)
    }
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

fn read<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Option<T> {
    match serde_json::from_slice(bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(key, %error, "a record cannot be read; it is left out");
            None
        }
    }
}
