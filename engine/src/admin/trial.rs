//! The call that tries a module on an event, without effect.

use super::body::Sent;
use super::view::{OutcomeWord, outcome_word};
use super::{Admin, Answer, Shared, Who, not_found, parse, store_problem};
use crate::channel::Preview;
use crate::id::{EventId, Hash, Name};
use crate::problem::Problem;
use crate::registry::{Scope, Tried};
use crate::replay::{self, Defaults};
use crate::store::{Outcome, StoredEvent};
use crate::whole::whole;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use hooksieve_sdk::wire::{Event, Payload, SkipIndex, Timing};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(try_module))
        .routes(routes!(try_input))
}

/// What is to be tried, and on what.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrialBody {
    /// A rule, whose newest version is tried unless `version` names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Name>,
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub version: Option<u32>,
    /// Or a module that the tenant has uploaded, with `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<Hash>,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Or what a module answered that was run elsewhere, in base64; with `rule` it is judged as if that had
    /// answered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")]
    pub answer: Option<String>,
    /// The id of an event that came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    pub event: Option<String>,
    /// Or a payload, which is taken to come from `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub payload: Option<serde_json::Value>,
    /// The sender's event name of the payload, such as `issues`; its action is added to it. A source of JSON
    /// knows the type itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Name>,
}

/// What it decided, and what would have been sent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TrialView {
    /// What the event was.
    pub r#type: String,
    pub subject: Option<String>,
    pub outcome: OutcomeWord,
    pub reason: Option<String>,
    pub error: Option<String>,
    /// Whether the version has subscribed to such events.
    pub subscribed: bool,
    pub fuel: u64,
    pub memory_bytes: u64,
    pub duration_us: u64,
    pub log: Vec<String>,
    pub actions: Vec<TrialAction>,
}

/// One action, as its channel would send it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TrialAction {
    pub channel: Name,
    /// The kind of channel.
    pub kind: String,
    #[schema(value_type = Object)]
    pub payload: Payload,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub timing: Option<Box<Timing>>,
    pub preview: Option<Preview>,
}

fn invalid(detail: impl Into<String>) -> Problem {
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    Problem::new(status, "invalid", "Invalid", detail)
}

/// Tries a module on an event, without effect
///
/// With the limits of real events. Nothing is stored and nothing is sent.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/try", tag = "rules",
    request_body = TrialBody,
    responses((status = 200, body = TrialView)),
    security(("token" = ["author"])),
)]
async fn try_module(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    body: Result<Sent<TrialBody>, Problem>,
) -> Answer<TrialView> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::Author, &tenant)?;
    let Sent(body) = body?;
    let event = event(&admin, &tenant, &body).await?;
    let (kind, subject) = (event.kind.clone(), subject(&event));
    let trial = if let Some(answer) = &body.answer {
        if body.module.is_some() {
            return Err(invalid("an `answer` goes with a `rule` or alone"));
        }
        let answer = BASE64_STANDARD.decode(answer);
        let answer = answer.map_err(|error| invalid(format!("`answer` is no base64: {error}")))?;
        let version = body.rule.clone().map(|rule| (rule, body.version));
        let registry = &admin.registry;
        registry.answered(&tenant, version, &answer, event).await?
    } else {
        let turn = admin.registry.turn(&tenant)?;
        let tried = tried(body)?;
        admin.registry.try_out(&turn, tried, event).await?
    };
    let Some(decision) = trial.commit.decisions.into_iter().next() else {
        return Err(invalid("the module was not asked"));
    };
    let (reason, error) = match &decision.outcome {
        Outcome::Decided(decided) => (Some(decided.reason.clone()), None),
        Outcome::Failed { error, .. } => (None, Some(error.clone())),
    };
    let actions = trial.commit.deliveries.into_iter().map(|delivery| {
        let channel = admin.live.channel(&delivery.line());
        TrialAction {
            kind: channel.as_ref().map_or("", |it| it.kind()).to_owned(),
            preview: channel.and_then(|it| it.preview(&delivery).ok()),
            channel: delivery.channel,
            payload: delivery.payload,
            timing: delivery.timing,
        }
    });
    Ok(Json(TrialView {
        r#type: kind,
        subject,
        outcome: outcome_word(&decision.outcome),
        reason,
        error,
        subscribed: trial.subscribed,
        fuel: decision.fuel,
        memory_bytes: decision.memory_bytes,
        duration_us: decision.duration_us,
        actions: actions.collect(),
        log: decision.log,
    }))
}

/// What a module is given that runs elsewhere, in base64.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TrialInput {
    /// What the event is.
    pub r#type: String,
    /// As the contract with a rule has them: an event with its skip index, and a configuration.
    pub event: String,
    pub index: String,
    pub config: String,
}

/// What a module would be given, for whoever runs it elsewhere
///
/// The console runs modules in the browser with it, before they are uploaded.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/try/input", tag = "rules",
    request_body = TrialBody,
    responses((status = 200, body = TrialInput)),
    security(("token" = ["author"])),
)]
async fn try_input(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    body: Result<Sent<TrialBody>, Problem>,
) -> Answer<TrialInput> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::Author, &tenant)?;
    let Sent(mut body) = body?;
    let event = event(&admin, &tenant, &body).await?;
    if body.rule.is_none() && body.module.is_none() {
        // It is not uploaded, and its configuration needs nothing of it.
        body.module = Some(Hash::of(&[]));
    }
    let config = admin.registry.config_of(&tenant, tried(body)?).await?;
    Ok(Json(TrialInput {
        r#type: event.kind.clone(),
        event: BASE64_STANDARD.encode(&event.encoded),
        index: BASE64_STANDARD.encode(&event.index),
        config: BASE64_STANDARD.encode(config),
    }))
}

fn tried(body: TrialBody) -> Result<Tried, Problem> {
    match (body.rule, body.module) {
        (Some(rule), None) => Ok(Tried::Version(rule, body.version)),
        (None, Some(module)) => Ok(Tried::Module(module, body.config)),
        _ => Err(invalid("it needs either `rule` or `module`")),
    }
}

fn subject(event: &StoredEvent) -> Option<String> {
    let decoded = Event::decode(&event.encoded, SkipIndex::new(&event.index)).ok()?;
    decoded.subject().map(str::to_owned)
}

async fn event(admin: &Admin, tenant: &Name, body: &TrialBody) -> Result<StoredEvent, Problem> {
    admin.registry.known(tenant)?;
    match (&body.event, &body.payload) {
        (Some(id), None) => {
            let id = parse::<EventId>(id, "event")?;
            let event = admin.store.event(id).await.map_err(store_problem)?;
            let own = event.filter(|event| event.tenant == *tenant);
            own.ok_or_else(|| not_found("event", &id.to_string()))
        }
        (None, Some(payload)) => {
            let Some(source) = &body.source else {
                return Err(invalid(
                    "a `payload` needs the `source` that it would come in at",
                ));
            };
            let live = admin.live.get(tenant);
            if let Some(source) = live.as_ref().and_then(|live| live.sources.get(source)) {
                let payload = payload.to_string();
                let kind = body.r#type.as_deref();
                let recorded = replay::payload_at(payload.as_bytes(), source, kind, tenant);
                return Ok(recorded.map_err(|error| invalid(error.to_string()))?.event);
            }
            let Some(kind) = &body.r#type else {
                let named = format!("{source}, so a `payload` from it needs its `type`");
                return Err(not_found("source", &named));
            };
            let defaults = Defaults {
                tenant: tenant.clone(),
                source: source.clone(),
                kind: Some(kind.clone()),
            };
            let recorded = replay::payload(payload.to_string().as_bytes(), &defaults);
            Ok(recorded.map_err(|error| invalid(error.to_string()))?.event)
        }
        _ => Err(invalid("it needs either `event` or `payload`")),
    }
}
