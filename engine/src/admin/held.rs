//! Calls about held events: list, look at, release (one or all of a rule's), drop.

use super::body::Sent;
use super::view::{DecisionView, EventView, decision_view, event_view, moment};
use super::{Admin, Answer, Page, Shared, Who, not_found, page_limit, parse, store_problem};
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
use std::time::{Duration, Instant};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list_held))
        .routes(routes!(held_event, drop_held))
        .routes(routes!(release_held))
        .routes(routes!(release_all))
}

/// How many a page has at most.
const PAGE_MAX: usize = 1_000;
/// How many one call releases at most, and for how long it goes on at most.
const RELEASED_MAX: usize = 100;
const RELEASING_FOR: Duration = Duration::from_secs(10);

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
    /// What an earlier page gave as `next`
    #[param(
        pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}[.][a-z0-9][a-z0-9_-]{0,62}$"
    )]
    after: Option<String>,
    /// How many at most; 1,000 where left out
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
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

/// Where a page ends: the event and the rule. No id has a dot, and no name.
fn cursor(after: Option<&str>) -> Result<Option<(EventId, Name)>, Problem> {
    let Some(text) = after else {
        return Ok(None);
    };
    let read = text.split_once('.').and_then(|(event, rule)| {
        let read = (event.parse().ok()?, rule.parse().ok()?);
        Some(read)
    });
    read.map(Some).ok_or_else(|| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-query",
            "Invalid query",
            "`after` is not what an earlier page gave as `next`",
        )
    })
}

fn next(held: &[Held], limit: usize) -> Option<String> {
    let last = held.last().filter(|_| held.len() == limit)?;
    Some(format!("{}.{}", last.event, last.rule))
}

/// Held events, the oldest first
#[utoipa::path(
    get, path = "/v1/held", tag = "held events",
    params(ListQuery),
    responses((status = 200, body = Page<HeldView>)),
    security(("token" = ["read-only"])),
)]
async fn list_held(
    State(admin): Shared,
    Extension(caller): Who,
    query: ListOrNot,
) -> Answer<Page<HeldView>> {
    let Query(query) = query?;
    let tenant = caller.listed(query.tenant()?)?;
    let after = cursor(query.after.as_deref())?;
    let limit = page_limit(query.limit, PAGE_MAX)?;
    let held = admin
        .store
        .held(tenant.as_ref(), after.as_ref(), limit)
        .await;
    let held = held.map_err(store_problem)?;
    Ok(Json(Page {
        items: held.iter().map(held_view).collect(),
        next: next(&held, limit),
    }))
}

/// From where on a rule's held events are released.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseBody {
    /// What an earlier call gave as `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}[.][a-z0-9][a-z0-9_-]{0,62}$"
    )]
    pub after: Option<String>,
}

/// What came of releasing a part of a rule's held events.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Released {
    pub released: usize,
    /// On which the rule failed again; they stay held.
    pub failed: usize,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the next call is made with; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Asks a rule again about its held events, the oldest first
///
/// One call takes up to 100 of them, and goes on for 10 s at most.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/rules/{rule}/release", tag = "held events",
    request_body = Option<ReleaseBody>,
    responses((status = 200, body = Released)),
    security(("token" = ["author"])),
)]
async fn release_all(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, rule)): Path<(String, String)>,
    body: Result<Option<Sent<ReleaseBody>>, Problem>,
) -> Answer<Released> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    let rule = parse::<Name>(&rule, "rule")?;
    caller.may(Scope::Author, &tenant)?;
    let body = body?.map_or_else(ReleaseBody::default, |Sent(body)| body);
    let known = admin.pipeline.rules(&tenant);
    if !known.is_some_and(|rules| rules.names().any(|it| *it == rule)) {
        return Err(not_found("rule", rule.as_str()));
    }
    let mut after = cursor(body.after.as_deref())?;
    let began = Instant::now();
    let mut done = Released {
        released: 0,
        failed: 0,
        error: None,
        next: None,
    };
    loop {
        let page = admin.store.held(Some(&tenant), after.as_ref(), PAGE_MAX);
        let page = page.await.map_err(store_problem)?;
        for held in &page {
            let told = format!("{}.{}", held.event, held.rule);
            let over = began.elapsed() >= RELEASING_FOR;
            if held.rule == rule {
                match admin.pipeline.release(&tenant, held.event, &rule).await {
                    Ok(_) => done.released += 1,
                    // Somebody else was quicker.
                    Err(ReleaseError::NotHeld) => {}
                    Err(ReleaseError::Store(error)) => return Err(store_problem(error)),
                    Err(error @ ReleaseError::Fuel(wait_s)) => {
                        let Some((event, rule)) = &after else {
                            return Err(no_fuel(&error, wait_s));
                        };
                        done.next = Some(format!("{event}.{rule}"));
                        done.error = Some(error.to_string());
                        return Ok(Json(done));
                    }
                    Err(error) => {
                        done.failed += 1;
                        done.error = Some(error.to_string());
                    }
                }
            }
            if over || done.released + done.failed == RELEASED_MAX {
                done.next = Some(told);
                return Ok(Json(done));
            }
            after = Some((held.event, held.rule.clone()));
        }
        if page.len() < PAGE_MAX {
            return Ok(Json(done));
        }
    }
}

/// Until the tenant's fuel is paid for.
pub(super) fn no_fuel(error: &dyn std::fmt::Display, wait_s: u32) -> Problem {
    let status = StatusCode::TOO_MANY_REQUESTS;
    Problem::new(status, "fuel-quota", "No fuel", error.to_string()).retry_after(wait_s)
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
        Err(error @ ReleaseError::Fuel(wait_s)) => Err(no_fuel(&error, wait_s)),
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
