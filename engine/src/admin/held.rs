//! Calls about held events: list, look at, release, drop.

use super::view::{DecisionView, EventView, decision_view, event_view, moment};
use super::{Admin, Answer, Shared, Who, not_found, parse, store_problem};
use crate::id::{EventId, Name};
use crate::pipeline::ReleaseError;
use crate::problem::Problem;
use crate::registry::Scope;
use crate::store::{Held, StoredEvent};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list_held))
        .routes(routes!(held_event, drop_held))
        .routes(routes!(release_held))
}

/// How many a list has at most.
const LIST_MAX: usize = 1_000;

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct HeldView {
    pub tenant: Name,
    pub event: String,
    pub rule: Name,
    pub error: String,
    pub since: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Left out: the token's own, or all where it is an operator's.
    #[param(value_type = Option<Name>)]
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

/// Held events, the oldest first: 1,000 at most
#[utoipa::path(
    get, path = "/v1/held", tag = "held events",
    params(ListQuery),
    responses((status = 200, body = Vec<HeldView>)),
    security(("token" = ["read-only"])),
)]
async fn list_held(
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

#[derive(Debug, Serialize, Deserialize, ToSchema)]
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

/// A held event with its data
#[utoipa::path(
    get, path = "/v1/held/{tenant}/{event}/{rule}", tag = "held events",
    responses((status = 200, body = HeldStory)),
    security(("token" = ["read-only"])),
)]
async fn held_event(
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

/// Asks the rule again
#[utoipa::path(
    post, path = "/v1/held/{tenant}/{event}/{rule}/release", tag = "held events",
    responses((status = 200, body = DecisionView)),
    security(("token" = ["author"])),
)]
async fn release_held(
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

/// Drops a held event
#[utoipa::path(
    delete, path = "/v1/held/{tenant}/{event}/{rule}", tag = "held events",
    responses((status = 200, body = DecisionView)),
    security(("token" = ["author"])),
)]
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

fn held_view(held: &Held) -> HeldView {
    HeldView {
        tenant: held.tenant.clone(),
        event: held.event.to_string(),
        rule: held.rule.clone(),
        error: held.error.clone(),
        since: moment(held.since_ms),
    }
}
