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
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use hooksieve_sdk::wire::{Payload, Timing};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(try_module))
}

/// What is to be tried, and on what.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrialBody {
    /// A rule, whose newest version is tried unless `version` names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Or a module that the tenant has uploaded, with `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<Hash>,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub config: serde_json::Map<String, serde_json::Value>,
    /// The id of an event that came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    pub event: Option<String>,
    /// Or a payload, which is taken to come from `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub payload: Option<serde_json::Value>,
    /// The sender's event name of the payload, such as `issues`; its action is added to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Name>,
}

/// What it decided, and what would have been sent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TrialView {
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
    let turn = admin.registry.turn(&tenant)?;
    let event = event(&admin, &tenant, &body).await?;
    let tried = match (body.rule, body.module) {
        (Some(rule), None) => Tried::Version(rule, body.version),
        (None, Some(module)) => Tried::Module(module, body.config),
        _ => return Err(invalid("it needs either `rule` or `module`")),
    };
    let trial = admin.registry.try_out(&turn, tried, event).await?;
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

async fn event(admin: &Admin, tenant: &Name, body: &TrialBody) -> Result<StoredEvent, Problem> {
    match (&body.event, &body.payload) {
        (Some(id), None) => {
            let id = parse::<EventId>(id, "event")?;
            let event = admin.store.event(id).await.map_err(store_problem)?;
            let own = event.filter(|event| event.tenant == *tenant);
            own.ok_or_else(|| not_found("event", &id.to_string()))
        }
        (None, Some(payload)) => {
            let (Some(kind), Some(source)) = (&body.r#type, &body.source) else {
                return Err(invalid("a `payload` needs its `type` and its `source`"));
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
