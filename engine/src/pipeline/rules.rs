//! A tenant's rules, without time or threads: an event in, a [`Commit`] out. `rules/deciding.rs` asks
//! them one after another.

mod deciding;

pub(super) use deciding::{Decided, Deciding};

use super::quarantine::{self, Health, Noted, Quarantine};
use super::validate::{self, Invalid};
use super::versions::Asked;

use crate::channel::Channel;
use crate::clock::now_ms;
use crate::id::{DeliveryId, Hash, Name};
use crate::ingest::time;
use crate::quota::FuelQuota;
use crate::sandbox::{self, Instances, LogLine, Program, Refused, Run, Sandbox};
use crate::store::{
    About, Commit, DecisionRecord, Delivery, Held, Outcome, State, StoredEvent, Then,
};
use crate::tenant::{Pattern, Rule, Tenant};
use hooksieve_sdk::wire::{Decision, Event, Field, Message, Payload, SkipIndex, Timing};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The rules of one tenant, compiled, with what their decisions may name.
#[derive(Clone)]
pub struct Rules {
    pub tenant: Name,
    rules: Vec<Asked>,
    /// `None` lets every channel pass: a rule that is tried without a tenant.
    channels: Option<Arc<BTreeMap<Name, Arc<Channel>>>>,
    default_channel: Option<Name>,
    pub(super) fuel: Arc<FuelQuota>,
    quarantine: quarantine::Settings,
}

/// A version of a rule that is compiled and has taken its configuration.
pub struct ActiveRule {
    pub name: Name,
    /// Its number, where the rule has versions.
    pub version: Option<u32>,
    events: Vec<Pattern>,
    sources: Vec<Name>,
    allowed_channels: Vec<Name>,
    on_error: Then,
    module: Hash,
    config: Hash,
    /// Why not, where a version that was in use cannot be used any more: its events are failed on.
    pub program: Result<Program, Unusable>,
    pub(crate) health: Health,
}

/// Why a rule has no valid decision for an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("its decision is not valid: {0}")]
    Invalid(#[from] Invalid),
    #[error("its module cannot be used any more: {0}")]
    Unusable(Unusable),
    #[error(
        "it is in quarantine since {since}, when it had failed on {failed} of its last {of} events; resume it, or make another version live{again}"
    )]
    Quarantined {
        since: String,
        failed: usize,
        of: usize,
        /// Whether it comes back by itself.
        again: &'static str,
    },
    #[error(
        "its thread did not come back within {after_ms} ms and was given up; the rule is in quarantine, and whoever runs the engine should look at it"
    )]
    Lost { after_ms: u64 },
}

impl Failure {
    /// A stable word for the kind of failure, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Sandbox(error) => error.kind(),
            Failure::Invalid(_) => "decision",
            Failure::Unusable(_) => "unusable",
            Failure::Quarantined { .. } => "quarantined",
            Failure::Lost { .. } => "lost",
        }
    }
}

/// What became of a version that decided or failed.
pub(super) enum Changed {
    Quarantined(Arc<Quarantine>),
    Resumed(Arc<Quarantine>),
}

/// Why a rule cannot be put to work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("{0}; {fix}", fix = .0.fix())]
    Refused(#[from] Refused),
    #[error(transparent)]
    Start(#[from] sandbox::Error),
    /// What it is made of cannot be read from the store: its module, or which version is live.
    #[error("{0} is not in the store, or cannot be read; push the rule again")]
    Unkept(&'static str),
}

/// The longest that is kept of why a rule failed; the rest is cut off.
const ERROR_BYTES_MAX: usize = 2_000;

impl From<&Quarantine> for Failure {
    fn from(quarantine: &Quarantine) -> Self {
        Failure::Quarantined {
            since: time(quarantine.since_ms),
            failed: quarantine.failed,
            of: quarantine.of,
            again: match quarantine.lost {
                true => "",
                false => " (one event a minute is asked of it, and it is back when it decides one)",
            },
        }
    }
}

impl ActiveRule {
    /// A rule on its own, which sees every event: for replay.
    pub fn alone(name: Name, program: Program) -> Self {
        Self {
            name,
            version: None,
            events: Vec::new(),
            sources: Vec::new(),
            allowed_channels: Vec::new(),
            on_error: Then::Held,
            module: program.module().hash(),
            config: program.config_hash(),
            program: Ok(program),
            health: Health::default(),
        }
    }

    /// A rule of which is not known what it is: it fails on every event, so that each is held.
    pub(crate) fn unkept(name: Name, version: Option<u32>, what: &'static str) -> Self {
        Self {
            name,
            version,
            events: Vec::new(),
            sources: Vec::new(),
            allowed_channels: Vec::new(),
            on_error: Then::Held,
            module: Hash::of(&[]),
            config: Hash::of(&[]),
            program: Err(Unusable::Unkept(what)),
            health: Health::default(),
        }
    }

    /// A version of a rule with what came of its module.
    pub(crate) fn new(
        rule: &Rule,
        version: Option<u32>,
        program: Result<Program, Unusable>,
    ) -> Self {
        Self {
            name: rule.name.clone(),
            version,
            events: rule.events.clone(),
            sources: rule.sources.clone(),
            allowed_channels: rule.channels.clone(),
            on_error: rule.on_error,
            module: Hash::of(&rule.wasm),
            config: Hash::of(&rule.config),
            program,
            health: Health::default(),
        }
    }

    /// Whether it is what was put in quarantine.
    pub(crate) fn is(&self, quarantine: &Quarantine) -> bool {
        let Quarantine {
            version,
            module,
            config,
            ..
        } = quarantine;
        (self.version, self.module, self.config) == (*version, *module, *config)
    }

    /// What becomes of an event that it has no valid decision for.
    fn then(&self, failure: &Failure) -> Then {
        match (failure, self.on_error) {
            // What it failed on was to be dropped, one by one; what it is not even asked about is not.
            (Failure::Quarantined { .. }, Then::Dropped) => Then::Held,
            (_, then) => then,
        }
    }

    pub(super) fn sees(&self, event: &StoredEvent) -> bool {
        let subscribed =
            self.events.is_empty() || self.events.iter().any(|it| it.matches(&event.kind));
        subscribed && (self.sources.is_empty() || self.sources.contains(&event.source))
    }
}

impl Rules {
    /// Compiles the rules of all tenants, on all cores. Modules that several rules share are compiled
    /// once.
    ///
    /// # Errors
    /// The first rule that cannot be used, with its place in the file.
    pub fn compile(
        tenants: &[Tenant],
        sandbox: &Sandbox,
    ) -> Result<Vec<Self>, crate::config::read::Problem> {
        let sandboxes: Vec<Sandbox> = (tenants.iter())
            .map(|tenant| tenant.limits.within(sandbox))
            .collect();
        let rules: Vec<(&Rule, &Sandbox)> = (tenants.iter().zip(&sandboxes))
            .flat_map(|(tenant, sandbox)| tenant.rules.iter().map(move |rule| (rule, sandbox)))
            .collect();
        let mut programs = programs(&rules).into_iter();
        let mut all = Vec::with_capacity(tenants.len());
        for tenant in tenants {
            let mut rules = Vec::with_capacity(tenant.rules.len());
            for (rule, program) in tenant.rules.iter().zip(&mut programs) {
                let program = program.map_err(|error| crate::config::read::Problem {
                    place: rule.place.clone(),
                    message: format!("rule `{}`: {error}", rule.name),
                })?;
                rules.push(Asked::of_file(ActiveRule::new(rule, None, Ok(program))));
            }
            all.push(Self {
                tenant: tenant.name.clone(),
                rules,
                channels: Some(Arc::new(tenant.channels.clone())),
                default_channel: tenant.default_channel.clone(),
                fuel: Arc::new(FuelQuota::new(0)),
                quarantine: quarantine::Settings::default(),
            });
        }
        Ok(all)
    }

    /// With so much fuel a second (0 is no quota), and bounds on failing.
    #[must_use]
    pub(crate) fn bounded(mut self, fuel_per_s: u64, quarantine: quarantine::Settings) -> Self {
        self.fuel = Arc::new(FuelQuota::new(fuel_per_s));
        self.quarantine = quarantine;
        self
    }

    /// Those of a tenant that has none.
    pub(crate) fn none(tenant: Name, default_channel: Option<Name>) -> Self {
        Self {
            tenant,
            rules: Vec::new(),
            channels: None,
            default_channel,
            fuel: Arc::new(FuelQuota::new(0)),
            quarantine: quarantine::Settings::default(),
        }
    }

    /// With these channels to name instead.
    #[must_use]
    pub(crate) fn naming(&self, channels: BTreeMap<Name, Arc<Channel>>) -> Self {
        Self {
            channels: Some(Arc::new(channels)),
            ..self.clone()
        }
    }

    /// The versions of a rule that are asked, where there is such a rule: those that decide, and then the
    /// one in its shadow.
    pub(crate) fn deciding(&self, name: &Name) -> Option<impl Iterator<Item = &ActiveRule>> {
        let asked = self.rules.iter().find(|rule| rule.name == *name)?;
        let canary = asked.canary.as_ref().map(|canary| &*canary.rule);
        let shadow = asked.shadow.as_ref().map(|shadow| &*shadow.rule);
        Some(
            asked
                .live
                .as_deref()
                .into_iter()
                .chain(canary)
                .chain(shadow),
        )
    }

    /// Takes over what was found out about the same rules, and how much fuel is left.
    pub(crate) fn take_over(&mut self, before: &Self) {
        if self.fuel.per_s() == before.fuel.per_s() {
            self.fuel = before.fuel.clone();
        }
        for asked in &self.rules {
            let now = asked.live.iter();
            for rule in now {
                let mut then = before.deciding(&rule.name).into_iter().flatten();
                let quarantine = then.find_map(|it| it.health.quarantine());
                if let Some(quarantine) = quarantine.filter(|it| rule.is(it)) {
                    rule.health.put_in((*quarantine).clone());
                }
            }
        }
    }

    /// These, and after them others of the same tenant.
    #[must_use]
    pub(crate) fn with(&self, others: impl IntoIterator<Item = Asked>) -> Self {
        let mut all = self.clone();
        all.rules.extend(others);
        all
    }

    /// One rule alone, with what its decisions may name.
    pub(crate) fn only(&self, rule: Asked) -> Self {
        Self {
            rules: vec![rule],
            ..self.clone()
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.rules.iter().map(|rule| &rule.name)
    }

    /// What their decisions may name.
    pub(crate) fn channels(&self) -> impl Iterator<Item = &Name> {
        self.channels.iter().flat_map(|channels| channels.keys())
    }

    pub(crate) fn has_default_channel(&self) -> bool {
        self.default_channel.is_some()
    }

    /// One rule without a tenant's channels: for replay.
    pub fn one(tenant: Name, rule: ActiveRule) -> Self {
        Self {
            tenant,
            rules: vec![Asked::of_file(rule)],
            channels: None,
            default_channel: None,
            fuel: Arc::new(FuelQuota::new(0)),
            quarantine: quarantine::Settings::default(),
        }
    }

    /// A tenant's rule of this name alone, or of any name where there is only one; with what its decisions
    /// may name. `None` where there is no such rule, or more than one to choose from.
    #[must_use]
    pub fn choose(mut self, name: Option<&Name>) -> Option<Self> {
        if let Some(name) = name {
            self.rules.retain(|rule| rule.name == *name);
        }
        (self.rules.len() == 1).then_some(self)
    }

    /// What the first of them runs.
    pub fn program(&self) -> Option<&Program> {
        let rule = self.rules.first()?.live.as_deref()?;
        rule.program.as_ref().ok()
    }

    /// Another rule in place of these, with what their decisions may name.
    #[must_use]
    pub fn instead(&self, rule: ActiveRule) -> Self {
        self.only(Asked::of_file(rule))
    }

    /// Puts a rule in quarantine that has failed too often by now, or ends its quarantine.
    fn note(
        &self,
        rule: &ActiveRule,
        failure: Option<&Failure>,
        tried: bool,
        now_ms: i64,
    ) -> Option<Changed> {
        // A bug of ours says nothing about the rule, and what it was not asked says nothing at all.
        let engine = matches!(
            failure,
            Some(Failure::Sandbox(sandbox::Error::Engine { .. }))
        );
        let asked = !matches!(
            failure,
            Some(Failure::Unusable(_) | Failure::Quarantined { .. })
        );
        if engine || !asked {
            return None;
        }
        Some(
            match rule
                .health
                .note(failure.is_some(), tried, self.quarantine)?
            {
                Noted::Failed(failed, of) => Changed::Quarantined(self.put_in_quarantine(
                    rule,
                    (failed, of),
                    failure,
                    now_ms,
                )),
                Noted::Resumed(quarantine) => Changed::Resumed(quarantine),
            },
        )
    }

    fn put_in_quarantine(
        &self,
        rule: &ActiveRule,
        (failed, of): (usize, usize),
        failure: Option<&Failure>,
        now_ms: i64,
    ) -> Arc<Quarantine> {
        rule.health.put_in(Quarantine {
            tenant: self.tenant.clone(),
            rule: rule.name.clone(),
            version: rule.version,
            module: rule.module,
            config: rule.config,
            since_ms: now_ms,
            failed,
            of,
            error: failure.map_or_else(String::new, |failure| {
                let mut error = failure.to_string();
                validate::cut(&mut error, ERROR_BYTES_MAX);
                error
            }),
            lost: matches!(failure, Some(Failure::Lost { .. })),
        })
    }

    /// What an event comes to on which the engine itself panicked: every rule counts as failed.
    pub(super) fn give_up(&self, event: &StoredEvent, now_ms: i64) -> Commit {
        let mut commit = empty(event);
        for rule in self.subscribed(event) {
            let message = "the engine panicked; its log says where".to_owned();
            let failure = Failure::Sandbox(sandbox::Error::Engine { message });
            self.add(
                &mut commit,
                event,
                rule,
                &Run::default(),
                Err(failure),
                now_ms,
            );
        }
        commit
    }

    fn subscribed(&self, event: &StoredEvent) -> impl Iterator<Item = &Arc<ActiveRule>> {
        let versions = self.rules.iter();
        versions.filter_map(|rule| rule.version_for(event))
    }

    /// What one rule makes of an event, valid or not.
    fn ask(
        &self,
        rule: &ActiveRule,
        event: &StoredEvent,
        instances: &mut Instances,
    ) -> (Run, Result<Decision, Failure>) {
        let program = match &rule.program {
            Ok(program) => program,
            Err(error) => return (Run::default(), Err(Failure::Unusable(error.clone()))),
        };
        let mut run = instances.run(program, &event.encoded, &event.index);
        let outcome = std::mem::replace(&mut run.outcome, Ok(Decision::default()));
        let outcome = self.valid(rule, event, outcome, &mut run.log);
        (run, outcome)
    }

    /// Runs the only rule of a replay, as if the event were decided when it came in.
    pub fn replay(&self, event: &StoredEvent, instances: &mut Instances) -> Option<(Run, Commit)> {
        let rule = self.rules.first()?.version_for(event)?;
        let (run, outcome) = self.ask(rule, event, instances);
        let mut commit = empty(event);
        self.add(&mut commit, event, rule, &run, outcome, event.received_ms);
        Some((run, commit))
    }

    /// Whether the tenant has fuel, or after how many seconds it has some again.
    pub(crate) fn fuel_paid(&self) -> Result<(), u32> {
        self.fuel.paid(now_ms())
    }

    pub(crate) fn charge(&self, price: u64) {
        self.fuel.charge(price, 1, now_ms());
    }

    /// What an answer would lead to that a module gave elsewhere: as [`Rules::replay`], but that nothing is
    /// run.
    pub(crate) fn answered(
        &self,
        event: &StoredEvent,
        rule: &Rule,
        answer: Result<Decision, sandbox::Error>,
    ) -> Commit {
        let elsewhere = sandbox::Error::Engine {
            message: "it ran elsewhere".to_owned(),
        };
        let rule = ActiveRule::new(rule, None, Err(elsewhere.into()));
        let mut commit = empty(event);
        let mut run = Run::default();
        let outcome = self.valid(&rule, event, answer, &mut run.log);
        self.add(&mut commit, event, &rule, &run, outcome, event.received_ms);
        commit
    }

    fn valid(
        &self,
        rule: &ActiveRule,
        event: &StoredEvent,
        answer: Result<Decision, sandbox::Error>,
        log: &mut Vec<LogLine>,
    ) -> Result<Decision, Failure> {
        let mut decision = answer?;
        let tenant = validate::Known {
            allowed: &rule.allowed_channels,
            channels: self.channels.as_deref(),
        };
        let cut = validate::decision(&mut decision, &tenant, event.received_ms)?;
        log.extend(cut);
        Ok(decision)
    }

    fn add(
        &self,
        commit: &mut Commit,
        event: &StoredEvent,
        rule: &ActiveRule,
        run: &Run,
        outcome: Result<Decision, Failure>,
        now_ms: i64,
    ) {
        let about = about(event);
        let deliver = |position: usize,
                       channel: Name,
                       reason: &str,
                       payload: Payload,
                       timing: Option<Box<Timing>>| Delivery {
            id: DeliveryId::new(event.id, &rule.name, position),
            tenant: self.tenant.clone(),
            event: event.id,
            rule: rule.name.clone(),
            position: position as u32,
            channel,
            reason: reason.to_owned(),
            payload,
            about: about.clone(),
            state: State::Pending { due_ms: now_ms },
            attempts: Vec::new(),
            created_ms: now_ms,
            timing,
            held_back: 0,
            gathered: Vec::new(),
            redrive_of: None,
            fallback_of: None,
            escalation_of: None,
        };
        let outcome = match outcome {
            Ok(decision) => {
                for (position, action) in decision.actions.iter().enumerate() {
                    // Valid decisions name channels, and channels have names.
                    if let Ok(channel) = action.channel.parse() {
                        let mut payload = action.payload.clone();
                        if let Payload::Message(message) = &mut payload
                            && message.title.is_empty()
                        {
                            message.title.clone_from(&event.kind);
                        }
                        let timing = action.timing.clone();
                        let delivery =
                            deliver(position, channel, &decision.reason, payload, timing);
                        commit.deliveries.push(delivery);
                    }
                }
                Outcome::Decided(decision)
            }
            Err(failure) => {
                // A rule says in words of its own what it fails on.
                let mut error = failure.to_string();
                validate::cut(&mut error, ERROR_BYTES_MAX);
                let then = rule.then(&failure);
                match (then, &self.default_channel) {
                    (Then::Held, _) => commit.held.push(Held {
                        tenant: self.tenant.clone(),
                        event: event.id,
                        rule: rule.name.clone(),
                        error: error.clone(),
                        since_ms: now_ms,
                    }),
                    (Then::Passed, Some(channel)) => {
                        let message = passed_on(event, &about, rule, &error);
                        let payload = Payload::Message(message);
                        let reason = "passed on because the rule failed";
                        commit
                            .deliveries
                            .push(deliver(0, channel.clone(), reason, payload, None));
                    }
                    _ => {}
                }
                Outcome::Failed {
                    kind: failure.kind().to_owned(),
                    error,
                    then,
                }
            }
        };
        commit.decisions.push(DecisionRecord {
            event: event.id,
            rule: rule.name.clone(),
            version: rule.version,
            module: rule.module,
            config: rule.config,
            outcome,
            fuel: run.fuel,
            memory_bytes: run.memory_bytes,
            duration_us: run.duration.as_micros() as u64,
            log: run.log.clone(),
            decided_ms: now_ms,
            prices: sandbox::PRICES_VERSION,
        });
    }
}

/// The programs of these rules, each within its sandbox, in their order.
pub(crate) fn programs(rules: &[(&Rule, &Sandbox)]) -> Vec<Result<Program, Unusable>> {
    // What is compiled is the same where the bytes and the limits are; these by their address, which stays
    // theirs while the sandboxes are borrowed.
    let modules: Mutex<HashMap<(crate::id::Hash, usize), Arc<Compiled>>> = Mutex::default();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut made = Vec::new();
        // Each takes the next rule that nobody has taken.
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((rule, sandbox)) = rules.get(at) else {
                return made;
            };
            let module = {
                let mut modules = modules.lock().unwrap_or_else(PoisonError::into_inner);
                let limits = Arc::as_ptr(sandbox.limits()) as usize;
                let same = (crate::id::Hash::of(&rule.wasm), limits);
                modules.entry(same).or_default().clone()
            };
            let module = module.get_or_init(|| sandbox.compile(rule.wasm.clone()));
            let program = module.clone().map_err(Unusable::from).and_then(|module| {
                Ok(Program::new(
                    module,
                    rule.config.clone(),
                    sandbox.limits().clone(),
                )?)
            });
            made.push((at, program));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(rules.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut all = work();
        for other in others {
            match other.join() {
                Ok(made) => all.extend(made),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, program)| program).collect()
}

/// A module that is compiled by whoever comes first.
type Compiled = OnceLock<Result<sandbox::Module, Refused>>;

fn empty(event: &StoredEvent) -> Commit {
    Commit {
        event: event.id,
        received_ms: event.received_ms,
        decisions: Vec::new(),
        deliveries: Vec::new(),
        held: Vec::new(),
    }
}

fn about(event: &StoredEvent) -> About {
    let decoded = Event::decode(&event.encoded, SkipIndex::new(&event.index)).ok();
    About {
        source: event.source.clone(),
        kind: event.kind.clone(),
        subject: decoded.and_then(|event| event.subject().map(str::to_owned)),
        time: decoded.map_or_else(|| time(event.received_ms), |event| event.time().to_owned()),
    }
}

/// What the default channel is told about an event that a rule failed on.
fn passed_on(event: &StoredEvent, about: &About, rule: &ActiveRule, error: &str) -> Message {
    let field = |name: &str, value: &str| Field {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    Message {
        title: event.kind.clone(),
        text: format!(
            "The rule {} failed on this event, so it is passed on as it is: {error}.",
            rule.name
        ),
        link: None,
        fields: vec![
            field("Event", &event.id.to_string()),
            field("Source", about.source.as_str()),
            field("Subject", about.subject.as_deref().unwrap_or("none")),
        ],
    }
}
