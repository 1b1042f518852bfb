//! From events to decisions to deliveries: which rules see an event, what they decide, whether that
//! is valid, and what it becomes. `serve` and `replay` run this same code with the same limits.
//!
//! [`Rules`] is the part without time or threads: an event in, a [`Commit`] out. [`Pipeline`] takes
//! each tenant's backlog through it, on threads that run nothing but rules, and commits.
//!
//! Architecture invariant: nothing here delivers. A decision takes effect by being committed.

pub mod quarantine;
mod rules;
mod validate;
mod versions;
mod workers;

pub(crate) use rules::programs;
pub use rules::{ActiveRule, Failure, Rules, Unusable};
pub use validate::{Invalid, MESSAGE_LIMITS};
pub(crate) use versions::{Asked, Canary, KeptTally, Shadow};
pub use versions::{Difference, Share, Short, Tally};
pub(crate) use workers::lost_after;
pub use workers::{LOST_OF_TENANT_MAX, LostThread, OVERDUE, SPARES_MAX, Threads, Workers};

use quarantine::Quarantine;
use rules::{Changed, Decided, Deciding};

use crate::clock::now_ms;
use crate::id::{EventId, Name};
use crate::metrics::{Metrics, Seen};
use crate::notice;
use crate::store::{Commit, DecisionRecord, Outcome, Store, StoredEvent, Then};
use crate::telemetry::{Kind, Span};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Takes events from the log through the rules into the outbox: a lane for each tenant, so that a
/// slow tenant stalls nobody.
pub struct Pipeline {
    store: Arc<dyn Store>,
    workers: Arc<Workers>,
    /// What each tenant's events are asked of. Whoever changes it puts a whole set in place of another,
    /// so that every event is decided by one.
    rules: RwLock<HashMap<Name, Arc<Rules>>>,
    wakes: Mutex<HashMap<Name, Arc<Notify>>>,
    /// Who has a lane, and what ends them all.
    lanes: TaskTracker,
    running: Mutex<HashSet<Name>>,
    cancel: CancellationToken,
    metrics: Arc<Metrics>,
    batch_max: usize,
}

impl Pipeline {
    pub fn new(
        store: Arc<dyn Store>,
        workers: Arc<Workers>,
        metrics: Arc<Metrics>,
        batch_max: usize,
    ) -> Self {
        Self {
            store,
            workers,
            rules: RwLock::default(),
            wakes: Mutex::default(),
            lanes: TaskTracker::new(),
            running: Mutex::default(),
            cancel: CancellationToken::new(),
            metrics,
            batch_max,
        }
    }

    /// What a tenant's events are asked of now.
    pub fn rules(&self, tenant: &Name) -> Option<Arc<Rules>> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        rules.get(tenant).cloned()
    }

    /// Asks these from now on. A batch that is being decided ends with those that it began with.
    pub(crate) fn set_rules(&self, new: Rules) {
        let tenant = new.tenant.clone();
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        rules.insert(tenant.clone(), Arc::new(new));
        drop(rules);
        // What a tenant that comes back has in the store waited for this.
        self.wake(&tenant);
    }

    /// Asks nothing of a tenant any more. What it has in the store waits there.
    pub(crate) fn rest(&self, tenant: &Name) {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        rules.remove(tenant);
    }

    /// How the threads that run rules are doing.
    pub fn threads(&self) -> Threads {
        self.workers.threads()
    }

    /// Tells a tenant's lane that its backlog has grown.
    pub fn wake(&self, tenant: &Name) {
        self.notify(tenant).notify_one();
    }

    fn notify(&self, tenant: &Name) -> Arc<Notify> {
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        match wakes.get(tenant) {
            Some(notify) => notify.clone(),
            None => wakes.entry(tenant.clone()).or_default().clone(),
        }
    }

    /// Runs the lanes until cancelled; each ends between two batches.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        self.begin_lanes();
        cancel.cancelled().await;
        self.cancel.cancel();
        self.lanes.close();
        self.lanes.wait().await;
    }

    /// Begins the lanes of the tenants that have none yet.
    pub(crate) fn begin_lanes(self: &Arc<Self>) {
        let tenants: Vec<Name> = {
            let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
            rules.keys().cloned().collect()
        };
        self.metrics.tell_apart(&tenants);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for tenant in tenants {
            if !running.insert(tenant.clone()) {
                continue;
            }
            let (pipeline, cancel) = (self.clone(), self.cancel.clone());
            let wake = self.notify(&tenant);
            self.lanes.spawn(async move {
                let mut ahead = Vec::new();
                // What was left by an earlier run needs no wake-up.
                loop {
                    match pipeline.step(&tenant, &mut ahead).await {
                        Ok(Step { count: 0, .. }) => tokio::select! {
                            () = wake.notified() => {}
                            () = cancel.cancelled() => return,
                        },
                        Ok(Step { rest, .. }) if rest.is_zero() => {
                            if cancel.is_cancelled() {
                                return;
                            }
                        }
                        Ok(Step { rest, .. }) => tokio::select! {
                            () = tokio::time::sleep(rest) => {}
                            () = cancel.cancelled() => return,
                        },
                        Err(error) => {
                            tracing::error!(%tenant, %error, "events wait: the store failed");
                            tokio::select! {
                                () = tokio::time::sleep(AFTER_ERROR) => {}
                                () = cancel.cancelled() => return,
                            }
                        }
                    }
                }
            });
        }
    }

    /// Decides and commits one batch of a tenant. `ahead` is what was read of the next one meanwhile.
    ///
    /// A commit waits for the disk, so the batch is as large as the backlog allows: a disk that takes
    /// longer makes larger batches and not fewer events in a second.
    async fn step(
        &self,
        tenant: &Name,
        ahead: &mut Vec<StoredEvent>,
    ) -> Result<Step, crate::store::Error> {
        let mut events = std::mem::take(ahead);
        if events.is_empty() {
            events = self.store.backlog(tenant, None, QUEUED_MAX).await?;
        }
        let mut batch = Batch::default();
        let mut bytes = 0;
        let mut rest = Duration::ZERO;
        while let Some(last) = events.last().map(|event| event.id) {
            // Taken after the events were read, so that a change holds for all that come in after it.
            let Some(rules) = self.rules(tenant) else {
                break;
            };
            let others = events.split_off(rules.fuel.at_once(events.len()));
            bytes += events.iter().map(|it| it.encoded.len()).sum::<usize>();
            let (began, paid) = (batch.commits.len(), batch.price);
            let decided = self.decide(tenant, &rules, events, &mut batch);
            let all = if others.is_empty() {
                let next = self.store.backlog(tenant, Some(last), QUEUED_MAX);
                let (all, next) = tokio::join!(decided, next);
                events = next?;
                all
            } else {
                events = others;
                decided.await
            };
            if !all || self.cancel.is_cancelled() {
                // What was read ahead is in the store.
                events.clear();
                break;
            }
            let (price, count) = (batch.price - paid, batch.commits.len() - began);
            rest = rules.fuel.charge(price, count, now_ms());
            let full = batch.commits.len() >= self.batch_max || bytes >= BATCH_BYTES_MAX;
            if full || !rest.is_zero() {
                break;
            }
        }
        let count = batch.commits.len();
        if count > 0 {
            let seen = Seen::all(&batch.commits);
            self.store.commit(tenant, batch.commits).await?;
            self.metrics.decided(tenant, &seen);
        }
        for changed in &batch.changed {
            self.changed(changed).await;
        }
        *ahead = events;
        Ok(Step { count, rest })
    }

    async fn changed(&self, changed: &Changed) {
        match changed {
            Changed::Quarantined(quarantine) => self.quarantined(quarantine).await,
            Changed::Resumed(quarantine) => self.resumed(quarantine).await,
        }
    }

    /// Forgets a quarantine whose rule decides again, and tells the tenant.
    async fn resumed(&self, quarantine: &Quarantine) {
        let (tenant, rule) = (&quarantine.tenant, &quarantine.rule);
        let version = quarantine.version;
        tracing::info!(%tenant, %rule, version, "a rule decides again, and is no longer in quarantine");
        let forgotten = self.store.set_records(vec![(quarantine.key(), None)]).await;
        if let Err(error) = forgotten {
            tracing::error!(%tenant, %rule, %error, "a quarantine is not forgotten; a restart will bring it back");
        }
        let body = serde_json::json!({ "rule": rule.as_str(), "version": version });
        self.tell(tenant, "hooksieve.rule.resumed", rule, &body, now_ms())
            .await;
    }

    /// Has a quarantine outlast the engine, and tells the tenant.
    async fn quarantined(&self, quarantine: &Quarantine) {
        let Quarantine {
            tenant,
            rule,
            version,
            failed,
            of,
            error,
            ..
        } = quarantine;
        tracing::warn!(%tenant, %rule, version, failed, of, "a rule is in quarantine");
        // Numbers and texts: nothing that JSON has no form for.
        let record = serde_json::to_vec(quarantine).unwrap_or_default();
        let changes = vec![(quarantine.key(), Some(record))];
        let mut kept = self.store.set_records(changes).await;
        // It may have been resumed, or its rule deleted, while it was written.
        let still = self.rules(tenant).is_some_and(|rules| {
            let mut deciding = rules.deciding(rule).into_iter().flatten();
            deciding.any(|it| it.health.quarantine().as_deref() == Some(quarantine))
        });
        if kept.is_ok() && !still {
            kept = self.store.set_records(vec![(quarantine.key(), None)]).await;
        }
        if let Err(error) = kept {
            tracing::error!(%tenant, %rule, %error, "a quarantine is not kept as it is; a restart may change it");
        }
        let body = serde_json::json!({
            "rule": rule.as_str(),
            "version": version,
            "failed": failed,
            "of": of,
            "error": error,
        });
        let kind = "hooksieve.rule.quarantined";
        self.tell(tenant, kind, rule, &body, quarantine.since_ms)
            .await;
    }

    /// An event of the engine's own.
    async fn tell(
        &self,
        tenant: &Name,
        kind: &str,
        rule: &Name,
        body: &serde_json::Value,
        at_ms: i64,
    ) {
        let told = match notice::event(tenant, kind, rule, body, at_ms) {
            Ok(event) => match self.store.append(event).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::error!(%tenant, %rule, error, "the tenant could not be told");
        }
        self.wake(tenant);
    }

    /// Decides these events, each in its turn. When the engine stops, what takes long is left: it is in the
    /// store, and decided after the next start. Whether all of them were decided.
    async fn decide(
        &self,
        tenant: &Name,
        rules: &Arc<Rules>,
        events: Vec<StoredEvent>,
        batch: &mut Batch,
    ) -> bool {
        let jobs = events.into_iter().map(|event| {
            let event = Arc::new(event);
            let deciding = Deciding::new(rules.clone(), event.clone(), now_ms);
            (event, self.workers.run(tenant, deciding))
        });
        let jobs: Vec<_> = jobs.collect();
        let patience = async {
            self.cancel.cancelled().await;
            tokio::time::sleep(STOP_PATIENCE).await;
        };
        let mut patience = std::pin::pin!(patience);
        for (event, job) in jobs {
            let decided = tokio::select! {
                biased;
                decided = job => decided,
                () = &mut patience => return false,
            };
            let commit = match decided {
                Some(decided) => {
                    let Decided {
                        commit,
                        price,
                        changed,
                        lost,
                    } = decided;
                    batch.price = batch.price.saturating_add(price);
                    batch.changed.extend(changed);
                    // Not after the commit: an engine that is killed until then must not ask it again.
                    for quarantine in &lost {
                        self.quarantined(quarantine).await;
                    }
                    commit
                }
                // An event on which the engine itself breaks must not stop those behind it.
                None => rules.give_up(&event, now_ms()),
            };
            for decision in &commit.decisions {
                report(tenant, decision);
                self.trace(tenant, decision);
            }
            batch.commits.push(commit);
        }
        true
    }

    fn trace(&self, tenant: &Name, decision: &DecisionRecord) {
        let traces = &self.metrics.traces;
        if !traces.traces(decision.event) {
            return;
        }
        let (outcome, kind) = match &decision.outcome {
            Outcome::Decided(decided) if decided.actions.is_empty() => ("dropped", None),
            Outcome::Decided(_) => ("notified", None),
            Outcome::Failed { kind, .. } => ("failed", Some(kind.to_string())),
        };
        let attributes = [
            ("hooksieve.tenant", tenant.as_str().into()),
            ("hooksieve.rule", decision.rule.as_str().into()),
            ("hooksieve.rule.version", decision.version.into()),
            ("hooksieve.outcome", outcome.into()),
            ("hooksieve.fuel", decision.fuel.into()),
            ("error.type", kind.into()),
        ];
        let took = Duration::from_micros(decision.duration_us);
        let span = Span {
            kind: Kind::Internal,
            name: format!("decide {}", decision.rule),
            began_ms: decision.decided_ms - took.as_millis() as i64,
            took,
            attributes: &attributes,
            failed: outcome == "failed",
        };
        traces.did(decision.event, &span);
    }

    /// Asks a rule again about an event it was held for, and commits what it decides. An event that
    /// it fails on again stays held, with the new error told.
    ///
    /// # Errors
    /// When it is not held, the rule is gone, or it fails again.
    pub async fn release(
        &self,
        tenant: &Name,
        event: EventId,
        rule: &Name,
    ) -> Result<DecisionRecord, ReleaseError> {
        // Before anything runs: a rule sees its own tenant's events alone, and those that it is held for.
        let story = self.store.story(event).await?;
        let held = |story: &crate::store::Story| story.held.iter().any(|held| held.rule == *rule);
        let own = story.filter(|story| story.event.tenant == *tenant && held(story));
        let stored = own.ok_or(ReleaseError::NotHeld)?.event;
        let rules = self.rules(tenant).ok_or(ReleaseError::NoRule)?;
        let lost = self.workers.threads().lost;
        if lost.iter().filter(|it| it.tenant == *tenant).count() >= LOST_OF_TENANT_MAX {
            return Err(ReleaseError::Lost);
        }
        let fuel = rules.fuel.clone();
        fuel.paid(now_ms()).map_err(ReleaseError::Fuel)?;
        let deciding = Deciding::again(rules, rule, Arc::new(stored), now_ms);
        let deciding = deciding.ok_or(ReleaseError::NoRule)?;
        let decided = self.workers.run(tenant, deciding).await.ok_or_else(|| {
            ReleaseError::FailedAgain("the engine panicked; its log says where".to_owned())
        })?;
        fuel.charge(decided.price, 1, now_ms());
        for quarantine in &decided.lost {
            self.quarantined(quarantine).await;
        }
        let mut commit = decided.commit;
        let decision = commit.decisions.pop().ok_or(ReleaseError::NoRule)?;
        if let Outcome::Failed { error, .. } = decision.outcome {
            return Err(ReleaseError::FailedAgain(error));
        }
        let kept = decision.clone();
        if self
            .store
            .resolve_held(tenant, decision, commit.deliveries)
            .await?
        {
            Ok(kept)
        } else {
            Err(ReleaseError::NotHeld)
        }
    }

    /// Ends the holding of an event for one rule, with nothing done about it.
    ///
    /// # Errors
    /// When it is not held, or the store fails.
    pub async fn drop_held(
        &self,
        tenant: &Name,
        event: EventId,
        rule: &Name,
    ) -> Result<DecisionRecord, ReleaseError> {
        let story = self.store.story(event).await?;
        let own = story.filter(|story| story.event.tenant == *tenant);
        let decisions = own.into_iter().flat_map(|story| story.decisions);
        let mut decision = decisions
            .into_iter()
            .find(|decision| decision.rule == *rule)
            .ok_or(ReleaseError::NotHeld)?;
        if let Outcome::Failed { then, .. } = &mut decision.outcome {
            *then = Then::Dropped;
        }
        decision.decided_ms = now_ms();
        let resolved = self
            .store
            .resolve_held(tenant, decision.clone(), Vec::new());
        if resolved.await? {
            Ok(decision)
        } else {
            Err(ReleaseError::NotHeld)
        }
    }
}

/// Why a held event was not released, or not dropped.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error("the event is not held for this rule")]
    NotHeld,
    #[error("the rule does not exist any more; drop the held event, or bring the rule back")]
    NoRule,
    #[error(
        "the tenant's fuel is used up for now (fuel_per_s of [quotas]); send it again in {0} s"
    )]
    Fuel(u32),
    #[error(
        "{LOST_OF_TENANT_MAX} threads do not come back from the tenant's rules, so none is asked until the engine is started anew"
    )]
    Lost,
    #[error("the rule failed again, so the event stays held: {0}")]
    FailedAgain(String),
    #[error(transparent)]
    Store(#[from] crate::store::Error),
}

/// What is committed together.
#[derive(Default)]
struct Batch {
    commits: Vec<Commit>,
    price: u64,
    changed: Vec<Changed>,
}

/// What came of a batch.
struct Step {
    /// How many events it held.
    count: usize,
    /// How long the tenant waits before its next one.
    rest: Duration,
}

/// How many of a tenant's events wait for the decide threads at once.
const QUEUED_MAX: usize = 64;

/// A batch takes no further events once those in it have this many bytes.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// How long the decisions that are under way are waited for when the engine stops. Those of a tenant come in
/// their order, so behind a slow one all of its others wait.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// How long a lane waits after the store failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// One line for each decision, without anything of the event's content.
fn report(tenant: &Name, decision: &DecisionRecord) {
    let DecisionRecord {
        event, rule, fuel, ..
    } = decision;
    match &decision.outcome {
        Outcome::Decided(decided) => {
            tracing::debug!(%tenant, %event, %rule, fuel, actions = decided.actions.len(), "decided");
        }
        Outcome::Failed { kind, then, .. } => {
            tracing::warn!(%tenant, %event, %rule, fuel, kind, ?then, "a rule failed");
        }
    }
}
