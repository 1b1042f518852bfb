//! Operators' and tenants' calls: tokens, modules, rules, held events, dead letters, an event's story, a
//! channel's test; and the two probes.
//!
//! `/v1` stands behind a token, compared in constant time: the operator's, or one that was made here. A
//! tenant's token sees its own tenant alone; what is another's is answered like what is not there.
//! `/healthz` says that the process answers, `/readyz` that it can store.

mod dead;
mod modules;
mod rules;
mod tokens;

pub use dead::{Page, Purged};
pub use modules::{ModuleDeleted, ModuleView};
pub use rules::{
    AuditView, CanaryView, NewVersionBody, OnError, RoleWord, RuleDeleted, RuleView, ShadowView,
    StageBody, VersionBody, VersionView,
};
pub use tokens::{NewTokenBody, Revoked, TenantView, TokenView, WhoView};

use crate::channel::{Failure, Outgoing};
use crate::clock::now_ms;
use crate::dispatch::{Channels, Switches};
use crate::housekeeping::Watermark;
use crate::id::{DeliveryId, EventId, Name};
use crate::ingest::full;
use crate::ingest::verify::json::{bearer, same};
use crate::pipeline::{Pipeline, ReleaseError};
use crate::problem::Problem;
use crate::registry::{self, Caller, Registry, Scope};
use crate::secret::Secret;
use crate::store::{
    self, About, Acknowledgement, Attempt, DecisionRecord, Delivery, Held, Line, Outcome,
    State as DeliveryState, Store, StoredEvent, Then,
};
use crate::timing::Suppressed;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use hooksieve_sdk::wire::{Event, Message, Payload, SkipIndex, Timing};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the operator's calls need.
pub struct Admin {
    pub store: Arc<dyn Store>,
    pub pipeline: Arc<Pipeline>,
    pub channels: Arc<Channels>,
    pub outgoing: Arc<Outgoing>,
    pub switches: Arc<Switches>,
    pub watermark: Arc<Watermark>,
    pub registry: Arc<Registry>,
    pub token: Secret,
    pub module_bytes_max: usize,
    pub request_timeout: Duration,
}

type Shared = State<Arc<Admin>>;
type Answer<T> = Result<Json<T>, Problem>;

/// How many rows a list returns at most.
const LIST_MAX: usize = 1_000;

impl Admin {
    pub fn router(self) -> Router {
        let admin = Arc::new(self);
        Router::new()
            .route("/v1/events/{id}", get(story))
            .route("/v1/held", get(held))
            .route(
                "/v1/held/{tenant}/{event}/{rule}",
                get(held_one).delete(drop_held),
            )
            .route("/v1/held/{tenant}/{event}/{rule}/release", post(release))
            .merge(dead::router())
            .merge(modules::router())
            .merge(rules::router())
            .merge(tokens::router())
            .route("/v1/deliveries/{id}", get(delivery))
            .route("/v1/deliveries/{id}/acknowledge", post(acknowledge))
            .route("/v1/channels/{tenant}/{channel}/test", post(test))
            .route("/v1/channels/{tenant}/{channel}/enable", post(enable))
            .route_layer(middleware::from_fn_with_state(admin.clone(), authorised))
            .route("/readyz", get(ready))
            .route("/healthz", get(async || "ok"))
            .fallback(unknown)
            .method_not_allowed_fallback(wrong_method)
            .with_state(admin)
    }
}

async fn authorised(
    State(admin): Shared,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let given = bearer(request.headers());
    let caller = given.and_then(|given| {
        if same(given, admin.token.expose()) {
            return Some(Caller::root());
        }
        admin.registry.caller(given)
    });
    let Some(caller) = caller else {
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "not-authorised",
            "Not authorised",
            "send a token that is good as `Authorization: Bearer TOKEN`",
        ));
    };
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

impl Caller {
    /// Whether it may do what needs this scope with this tenant's things. Another tenant's are not
    /// there.
    fn may(&self, scope: Scope, tenant: &Name) -> Result<(), Problem> {
        if self.tenant.as_ref().is_some_and(|own| own != tenant) {
            return Err(not_found("tenant", tenant.as_str()));
        }
        self.has(scope)
    }

    fn has(&self, scope: Scope) -> Result<(), Problem> {
        if self.scope >= scope {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "not-allowed",
            "Not allowed",
            format!(
                "this call needs the scope {scope}, and the token has {}",
                self.scope
            ),
        ))
    }

    /// The tenant that a list is of: its own, or whichever an operator asks for.
    fn listed(&self, asked: Option<Name>) -> Result<Option<Name>, Problem> {
        match (&self.tenant, asked) {
            (Some(own), Some(asked)) if *own != asked => Err(not_found("tenant", asked.as_str())),
            (Some(own), _) => Ok(Some(own.clone())),
            (None, asked) => Ok(asked),
        }
    }

    /// Whether a thing of this tenant is there for it; `what` and `id` are what was asked for.
    fn sees(&self, tenant: &Name, what: &str, id: &str) -> Result<(), Problem> {
        match &self.tenant {
            Some(own) if own != tenant => Err(not_found(what, id)),
            _ => Ok(()),
        }
    }
}

type Who = Extension<Caller>;

async fn unknown() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown-path",
        "Unknown path",
        "there is nothing here; events go to /in/{tenant}/{source}, calls to /v1",
    )
}

async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong-method",
        "Wrong method",
        "this path is there, and takes another method; events are sent by POST",
    )
}

impl From<JsonRejection> for Problem {
    fn from(rejected: JsonRejection) -> Self {
        Problem::new(
            rejected.status(),
            "invalid-body",
            "Invalid body",
            rejected.body_text(),
        )
    }
}

impl From<registry::Error> for Problem {
    fn from(error: registry::Error) -> Self {
        use registry::Error;
        let detail = error.to_string();
        let (status, kind, title) = match error {
            Error::Store(error) => return store_problem(error),
            Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Error::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "Invalid"),
            Error::Refused(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "module-refused",
                "Module refused",
            ),
            Error::Conflict(_) => (StatusCode::CONFLICT, "conflict", "Conflict"),
            Error::Revision { .. } => (
                StatusCode::PRECONDITION_FAILED,
                "changed-meanwhile",
                "Changed meanwhile",
            ),
            Error::Quota { .. } => (StatusCode::FORBIDDEN, "quota", "Limit reached"),
            Error::Busy(_) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return Problem::new(status, "busy", "Not now", detail).retry_after(2);
            }
        };
        Problem::new(status, kind, title, detail)
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejected: QueryRejection) -> Self {
        let detail = rejected.body_text();
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-query",
            "Invalid query",
            detail,
        )
    }
}

async fn ready(State(admin): Shared) -> Result<&'static str, Problem> {
    admin.store.ready().await.map_err(store_problem)?;
    match admin.watermark.refuses() {
        Some(why) => Err(full(why)),
        None => Ok("ready"),
    }
}

/// An event with what became of it, for people and programs.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoryView {
    pub event: EventView,
    /// Whether every rule has seen it.
    pub decided: bool,
    pub decisions: Vec<DecisionView>,
    pub deliveries: Vec<DeliveryView>,
}

/// An event's attributes, named as CloudEvents names them; its data only where it was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct EventView {
    pub id: String,
    pub tenant: Name,
    pub source: Name,
    pub r#type: String,
    pub subject: Option<String>,
    pub time: String,
    pub sender_id: Option<String>,
    pub verified: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct DecisionView {
    pub rule: Name,
    /// Which of its rule's versions decided, where the rule has versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// `dropped`, `notified`, or `failed`.
    pub outcome: String,
    pub reason: Option<String>,
    pub error: Option<String>,
    /// What was done about the failure: `held`, `passed` or `dropped`.
    pub then: Option<Then>,
    pub module: String,
    pub config: String,
    pub fuel: u64,
    pub memory_bytes: u64,
    pub duration_us: u64,
    pub log: Vec<String>,
    pub decided_at: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct DeliveryView {
    pub id: String,
    pub tenant: Name,
    pub event: String,
    pub r#type: String,
    pub rule: Name,
    pub channel: Name,
    /// `pending`, `delivered`, `dead`, `redriven` (dead, and taken up again), `purged` (dead, and no
    /// longer a dead letter), `fallen-back`, `suppressed`, `gathered` or `acknowledged`.
    pub state: String,
    /// When it was delivered or given up, or when it is due.
    pub at: String,
    /// Why it was given up.
    pub reason: Option<String>,
    pub attempts: Vec<AttemptView>,
    /// The dead letter that this one takes up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_of: Option<String>,
    /// The delivery that this state is about: what this one was redriven or fell back as, is listed in,
    /// or repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The dead one that this goes out for, to another channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_of: Option<String>,
    /// The one that this escalates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalation_of: Option<String>,
    /// How many a throttle held back before it.
    #[serde(default)]
    pub held_back: u64,
    /// How many a digest lists.
    #[serde(default)]
    pub gathered: usize,
    /// What the rule said of when and how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Box<Timing>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct AttemptView {
    pub at: String,
    pub duration_ms: u64,
    pub status: Option<u16>,
    pub error: Option<String>,
    /// The beginning of what the receiver answered, where it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The receiver may have taken it although no success was seen.
    #[serde(default, skip_serializing_if = "store::is_false")]
    pub ambiguous: bool,
    pub refused: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct HeldView {
    pub tenant: Name,
    pub event: String,
    pub rule: Name,
    pub error: String,
    pub since: String,
}

#[derive(Debug, Deserialize)]
struct StoryQuery {
    #[serde(default)]
    data: bool,
}

async fn story(
    State(admin): Shared,
    Extension(caller): Who,
    Path(id): Path<String>,
    query: Result<Query<StoryQuery>, QueryRejection>,
) -> Answer<StoryView> {
    let Query(query) = query?;
    let id = parse::<EventId>(&id, "event")?;
    let story = admin.store.story(id).await.map_err(store_problem)?;
    let story = story.ok_or_else(|| not_found("event", &id.to_string()))?;
    caller.sees(&story.event.tenant, "event", &id.to_string())?;
    Ok(Json(StoryView {
        event: event_view(&story.event, query.data),
        decided: story.decided,
        decisions: story.decisions.iter().map(decision_view).collect(),
        deliveries: story
            .deliveries
            .iter()
            .map(|d| delivery_view(d, false))
            .collect(),
    }))
}

#[derive(Debug, Deserialize)]
struct ListQuery {
    tenant: Option<String>,
}

type ListOrNot = Result<Query<ListQuery>, QueryRejection>;

impl ListQuery {
    fn tenant(&self) -> Result<Option<Name>, Problem> {
        self.tenant
            .as_deref()
            .map(|name| parse(name, "tenant"))
            .transpose()
    }
}

async fn held(
    State(admin): Shared,
    Extension(caller): Who,
    query: ListOrNot,
) -> Answer<Vec<HeldView>> {
    let Query(query) = query?;
    let tenant = caller.listed(query.tenant()?)?;
    let held = admin.store.held(tenant.as_ref(), LIST_MAX).await;
    Ok(Json(
        held.map_err(store_problem)?.iter().map(held_view).collect(),
    ))
}

#[derive(Debug, Serialize, Deserialize)]
pub struct HeldStory {
    pub held: HeldView,
    pub event: EventView,
}

type HeldPath = Path<(String, String, String)>;

fn held_path(Path((tenant, event, rule)): HeldPath) -> Result<(Name, EventId, Name), Problem> {
    Ok((
        parse(&tenant, "tenant")?,
        parse(&event, "event")?,
        parse(&rule, "rule")?,
    ))
}

async fn held_one(
    State(admin): Shared,
    Extension(caller): Who,
    path: HeldPath,
) -> Answer<HeldStory> {
    let (tenant, event, rule) = held_path(path)?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let (held, event) = find_held(&admin, &tenant, event, &rule).await?;
    Ok(Json(HeldStory {
        held: held_view(&held),
        event: event_view(&event, true),
    }))
}

async fn find_held(
    admin: &Admin,
    tenant: &Name,
    event: EventId,
    rule: &Name,
) -> Result<(Held, StoredEvent), Problem> {
    let story = admin.store.story(event).await.map_err(store_problem)?;
    let found = story.and_then(|story| {
        let held = story
            .held
            .into_iter()
            .find(|held| held.rule == *rule && held.tenant == *tenant)?;
        Some((held, story.event))
    });
    found.ok_or_else(|| not_found("held event", &event.to_string()))
}

async fn release(
    State(admin): Shared,
    Extension(caller): Who,
    path: HeldPath,
) -> Answer<DecisionView> {
    let (tenant, event, rule) = held_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    match admin.pipeline.release(&tenant, event, &rule).await {
        Ok(decision) => Ok(Json(decision_view(&decision))),
        Err(ReleaseError::NotHeld) => Err(not_found("held event", &event.to_string())),
        Err(ReleaseError::Store(error)) => Err(store_problem(error)),
        Err(error) => Err(Problem::new(
            StatusCode::CONFLICT,
            "not-released",
            "Not released",
            error.to_string(),
        )),
    }
}

async fn drop_held(
    State(admin): Shared,
    Extension(caller): Who,
    path: HeldPath,
) -> Answer<DecisionView> {
    let (tenant, event, rule) = held_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    match admin.pipeline.drop_held(&tenant, event, &rule).await {
        Ok(decision) => Ok(Json(decision_view(&decision))),
        Err(ReleaseError::Store(error)) => Err(store_problem(error)),
        Err(_) => Err(not_found("held event", &event.to_string())),
    }
}

async fn delivery(
    State(admin): Shared,
    Extension(caller): Who,
    Path(id): Path<String>,
) -> Answer<DeliveryView> {
    let id = parse::<DeliveryId>(&id, "delivery")?;
    let delivery = admin.store.delivery(id).await.map_err(store_problem)?;
    let delivery = delivery.ok_or_else(|| not_found("delivery", &id.to_string()))?;
    caller.sees(&delivery.tenant, "delivery", &id.to_string())?;
    Ok(Json(delivery_view(&delivery, true)))
}

#[derive(Debug, Serialize, Deserialize)]
pub struct AcknowledgementView {
    pub outcome: Acknowledgement,
}

/// A delivery that the caller may change.
async fn own_delivery(
    admin: &Admin,
    caller: &Caller,
    id: DeliveryId,
    what: &str,
) -> Result<(), Problem> {
    let found = admin.store.delivery(id).await.map_err(store_problem)?;
    let found = found.ok_or_else(|| not_found(what, &id.to_string()))?;
    caller.sees(&found.tenant, what, &id.to_string())?;
    caller.has(Scope::Author)
}

async fn acknowledge(
    State(admin): Shared,
    Extension(caller): Who,
    Path(id): Path<String>,
) -> Answer<AcknowledgementView> {
    let id = parse::<DeliveryId>(&id, "delivery")?;
    own_delivery(&admin, &caller, id, "delivery that escalates").await?;
    let done = admin.store.acknowledge(id, now_ms()).await;
    let outcome = done.map_err(store_problem)?;
    if outcome == Acknowledgement::Nothing {
        return Err(not_found("delivery that escalates", &id.to_string()));
    }
    Ok(Json(AcknowledgementView { outcome }))
}

/// What came of a channel's test.
#[derive(Debug, Serialize, Deserialize)]
pub struct TestView {
    /// The kind of channel.
    pub kind: String,
    pub delivered: bool,
    /// The HTTP status or SMTP code, where there was an answer.
    pub status: Option<u16>,
    pub error: Option<String>,
    /// The beginning of what the receiver answered, where it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    pub refused: Vec<String>,
    pub duration_ms: u64,
}

/// A channel that was enabled.
#[derive(Debug, Serialize, Deserialize)]
pub struct EnabledView {
    /// Whether it was disabled before.
    pub was_disabled: bool,
}

async fn enable(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, channel)): Path<(String, String)>,
) -> Answer<EnabledView> {
    let line = Line {
        tenant: parse::<Name>(&tenant, "tenant")?,
        channel: parse::<Name>(&channel, "channel")?,
    };
    caller.may(Scope::TenantAdmin, &line.tenant)?;
    let key = (line.tenant.clone(), line.channel.clone());
    if !admin.channels.contains_key(&key) {
        return Err(not_found("channel", &format!("{channel} of {tenant}")));
    }
    let was_disabled = admin.switches.enable(&line).await.map_err(store_problem)?;
    tracing::info!(tenant, channel, was_disabled, "a channel is enabled");
    Ok(Json(EnabledView { was_disabled }))
}

/// Sends one real message. It is an attempt of no event, so nothing of it is stored or tried again.
async fn test(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, channel)): Path<(String, String)>,
) -> Answer<TestView> {
    let key = (
        parse::<Name>(&tenant, "tenant")?,
        parse::<Name>(&channel, "channel")?,
    );
    caller.may(Scope::TenantAdmin, &key.0)?;
    let Some(found) = admin.channels.get(&key) else {
        let (tenant, channel) = key;
        return Err(not_found("channel", &format!("{channel} of {tenant}")));
    };
    let (tenant, channel) = key;
    tracing::info!(%tenant, %channel, "a channel is tested");
    let began = Instant::now();
    let sent = found.send(&admin.outgoing, &a_test(tenant, channel)).await;
    let duration_ms = began.elapsed().as_millis() as u64;
    let (status, error, answer, refused) = match sent {
        Ok(sent) => (sent.status, None, None, sent.refused),
        Err(Failure {
            status,
            error,
            answer,
            refused,
            ..
        }) => (status, Some(error), answer, refused),
    };
    Ok(Json(TestView {
        kind: found.kind().to_owned(),
        delivered: error.is_none(),
        status,
        error,
        answer,
        refused,
        duration_ms,
    }))
}

fn a_test(tenant: Name, channel: Name) -> Delivery {
    let now_ms = now_ms();
    let event = EventId::next(now_ms, None);
    let name = |text: &str| -> Name {
        match text.parse() {
            Ok(name) => name,
            Err(_) => unreachable!("{text} is a name"),
        }
    };
    let (rule, source) = (name("channel-test"), name("hooksieve"));
    let message = Message {
        title: format!("A test of {channel}"),
        text: format!("Hooksieve can deliver to the channel {channel} of {tenant}."),
        link: None,
        fields: Vec::new(),
    };
    Delivery {
        id: DeliveryId::new(event, &rule, 0),
        event,
        rule,
        position: 0,
        reason: "somebody tests this channel".to_owned(),
        payload: Payload::Message(message),
        about: About {
            source,
            kind: "hooksieve.channel.test".to_owned(),
            subject: Some(tenant.to_string()),
            time: moment(now_ms),
        },
        state: DeliveryState::Pending { due_ms: now_ms },
        attempts: Vec::new(),
        created_ms: now_ms,
        timing: None,
        held_back: 0,
        gathered: Vec::new(),
        redrive_of: None,
        fallback_of: None,
        escalation_of: None,
        tenant,
        channel,
    }
}

fn parse<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| {
        let text: String = text.chars().take(80).collect();
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-id",
            "Invalid id",
            format!("{text:?} is not the id or name of {what}"),
        )
    })
}

fn not_found(what: &str, id: &str) -> Problem {
    let detail = format!("there is no {what} {id}");
    Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
}

fn store_problem(error: store::Error) -> Problem {
    tracing::error!(%error, "a call failed");
    let detail = error.to_string();
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "store",
        "The store failed",
        detail,
    )
    .retry_after(5)
}

fn event_view(event: &StoredEvent, with_data: bool) -> EventView {
    let decoded = Event::decode(&event.encoded, SkipIndex::new(&event.index)).ok();
    let json = |value| serde_json::to_value(value).ok();
    EventView {
        id: event.id.to_string(),
        tenant: event.tenant.clone(),
        source: event.source.clone(),
        r#type: event.kind.clone(),
        subject: decoded.and_then(|event| event.subject().map(str::to_owned)),
        time: decoded
            .map(|event| event.time().to_owned())
            .unwrap_or_default(),
        sender_id: event.sender_id.clone(),
        verified: event.verified.clone(),
        headers: decoded
            .filter(|_| with_data)
            .and_then(|event| json(event.headers())),
        data: decoded
            .filter(|_| with_data)
            .and_then(|event| json(event.data())),
    }
}

fn decision_view(decision: &DecisionRecord) -> DecisionView {
    let (outcome, reason, error, then) = match &decision.outcome {
        Outcome::Decided(decided) => {
            let outcome = if decided.actions.is_empty() {
                "dropped"
            } else {
                "notified"
            };
            (outcome, Some(decided.reason.clone()), None, None)
        }
        Outcome::Failed { error, then, .. } => ("failed", None, Some(error.clone()), Some(*then)),
    };
    DecisionView {
        rule: decision.rule.clone(),
        version: decision.version,
        outcome: outcome.to_owned(),
        reason,
        error,
        then,
        module: decision.module.to_string(),
        config: decision.config.to_string(),
        fuel: decision.fuel,
        memory_bytes: decision.memory_bytes,
        duration_us: decision.duration_us,
        log: decision.log.clone(),
        decided_at: moment(decision.decided_ms),
    }
}

fn delivery_view(delivery: &Delivery, with_payload: bool) -> DeliveryView {
    let (state, at, reason) = match &delivery.state {
        DeliveryState::Pending { due_ms } => ("pending", *due_ms, None),
        DeliveryState::Delivered { at_ms } => ("delivered", *at_ms, None),
        DeliveryState::Dead { at_ms, reason } => ("dead", *at_ms, Some(reason.clone())),
        DeliveryState::Redriven { at_ms, reason, .. } => ("redriven", *at_ms, Some(reason.clone())),
        DeliveryState::Purged { at_ms, reason } => ("purged", *at_ms, Some(reason.clone())),
        DeliveryState::FallenBack { at_ms, reason, .. } => {
            ("fallen-back", *at_ms, Some(reason.clone()))
        }
        DeliveryState::Suppressed { at_ms, by, .. } => {
            let reason = match by {
                Suppressed::Dedupe => "it repeats one that was sent",
                Suppressed::Throttle => "enough were sent in this period",
            };
            ("suppressed", *at_ms, Some(reason.to_owned()))
        }
        DeliveryState::Gathered { at_ms, .. } => ("gathered", *at_ms, None),
        DeliveryState::Acknowledged { at_ms } => ("acknowledged", *at_ms, None),
    };
    let other = match &delivery.state {
        DeliveryState::Redriven { to, .. } | DeliveryState::FallenBack { to, .. } => Some(*to),
        DeliveryState::Gathered { into, .. } => Some(*into),
        DeliveryState::Suppressed { first, .. } => *first,
        _ => None,
    };
    DeliveryView {
        id: delivery.id.to_string(),
        tenant: delivery.tenant.clone(),
        event: delivery.event.to_string(),
        r#type: delivery.about.kind.clone(),
        rule: delivery.rule.clone(),
        channel: delivery.channel.clone(),
        state: state.to_owned(),
        at: moment(at),
        reason,
        attempts: delivery.attempts.iter().map(attempt_view).collect(),
        redrive_of: delivery.redrive_of.as_ref().map(|of| of.id.to_string()),
        other: other.map(|id| id.to_string()),
        fallback_of: delivery.fallback_of.map(|id| id.to_string()),
        escalation_of: delivery.escalation_of.map(|id| id.to_string()),
        held_back: delivery.held_back,
        gathered: delivery.gathered.len(),
        timing: delivery.timing.clone(),
        payload: with_payload.then(|| delivery.payload.clone()),
    }
}

fn attempt_view(attempt: &Attempt) -> AttemptView {
    AttemptView {
        at: moment(attempt.at_ms),
        duration_ms: attempt.duration_ms,
        status: attempt.status,
        error: attempt.error.clone(),
        answer: attempt.answer.clone(),
        ambiguous: attempt.ambiguous,
        refused: attempt.refused.clone(),
    }
}

fn held_view(held: &Held) -> HeldView {
    HeldView {
        tenant: held.tenant.clone(),
        event: held.event.to_string(),
        rule: held.rule.clone(),
        error: held.error.clone(),
        since: moment(held.since_ms),
    }
}

fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .unwrap_or_default()
        .to_string()
}
