//! Calls about dead letters: list, redrive, purge.

use super::deliveries::own_delivery;
use super::view::{DeliveryView, delivery_view};
use super::{Admin, Answer, Page, Shared, Who, not_found, page_limit, parse, store_problem};
use crate::clock::now_ms;
use crate::id::{DeliveryId, Name};
use crate::problem::Problem;
use crate::registry::Scope;
use crate::store::Which;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How many dead letters a page has, unless fewer are asked for.
const PAGE_MAX: usize = 1_000;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list_dead, purge_all))
        .routes(routes!(purge))
        .routes(routes!(redrive))
}

/// How many dead letters were purged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Purged {
    pub purged: usize,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Left out: the token's own, or all where it is an operator's.
    #[param(value_type = Option<Name>)]
    tenant: Option<String>,
    #[param(value_type = Option<Name>)]
    channel: Option<String>,
    /// RFC 3339: only those that were given up before.
    #[param(format = DateTime)]
    before: Option<String>,
    /// What an earlier page gave as `next`.
    #[param(pattern = "^-?[0-9]{1,18}[.][0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    after: Option<String>,
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

type WantedOrNot = Result<Query<Wanted>, QueryRejection>;

/// The same without a page: whoever wrote a `limit` would not expect all of them to go.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Unwanted {
    /// Left out: the token's own, or all where it is an operator's.
    #[param(value_type = Option<Name>)]
    tenant: Option<String>,
    #[param(value_type = Option<Name>)]
    channel: Option<String>,
    /// RFC 3339: only those that were given up before.
    #[param(format = DateTime)]
    before: Option<String>,
}

impl From<Unwanted> for Wanted {
    fn from(unwanted: Unwanted) -> Self {
        Self {
            tenant: unwanted.tenant,
            channel: unwanted.channel,
            before: unwanted.before,
            after: None,
            limit: None,
        }
    }
}

impl Wanted {
    fn which(&self) -> Result<Which, Problem> {
        let name = |text: &Option<String>, what| {
            let text = text.as_deref();
            text.map(|name| parse(name, what)).transpose()
        };
        let before = self.before.as_deref().map(|text| {
            let moment = text.parse::<jiff::Timestamp>();
            moment.map_err(|error| invalid(format!("`before` is no RFC 3339 time: {error}")))
        });
        let after = self.after.as_deref().map(|text| {
            let (at_ms, id) = text.split_once('.').ok_or(())?;
            Ok((at_ms.parse().map_err(drop)?, id.parse().map_err(drop)?))
        });
        let no_cursor =
            |()| invalid("`after` is not what an earlier page gave as `next`".to_owned());
        Ok(Which {
            tenant: name(&self.tenant, "tenant")?,
            channel: name(&self.channel, "channel")?,
            before_ms: before.transpose()?.map(|moment| moment.as_millisecond()),
            after: after.transpose().map_err(no_cursor)?,
        })
    }

    fn limit(&self) -> Result<usize, Problem> {
        page_limit(self.limit, PAGE_MAX)
    }
}

fn invalid(detail: String) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "invalid-query",
        "Invalid query",
        detail,
    )
}

/// Dead letters, the oldest first
#[utoipa::path(
    get, path = "/v1/dead", tag = "dead letters",
    params(Wanted),
    responses((status = 200, body = Page<DeliveryView>)),
    security(("token" = ["read-only"])),
)]
async fn list_dead(
    State(admin): Shared,
    Extension(caller): Who,
    query: WantedOrNot,
) -> Answer<Page<DeliveryView>> {
    let Query(wanted) = query?;
    let limit = wanted.limit()?;
    let mut which = wanted.which()?;
    which.tenant = caller.listed(which.tenant)?;
    let page = admin.store.dead(&which, limit).await;
    let page = page.map_err(store_problem)?;
    let items = page.deliveries.iter().map(|it| delivery_view(it, false));
    Ok(Json(Page {
        items: items.collect(),
        next: page.next.map(|(at_ms, id)| format!("{at_ms}.{id}")),
    }))
}

/// Takes a dead letter up again, under a new id
#[utoipa::path(
    post, path = "/v1/dead/{delivery}/redrive", tag = "dead letters",
    responses((status = 200, body = DeliveryView)),
    security(("token" = ["author"])),
)]
async fn redrive(
    State(admin): Shared,
    Extension(caller): Who,
    Path(id): Path<String>,
) -> Answer<DeliveryView> {
    let id = parse::<DeliveryId>(&id, "delivery")?;
    own_delivery(&admin, &caller, id, "dead letter").await?;
    let redriven = admin.store.redrive(id, now_ms()).await;
    let redriven = redriven.map_err(store_problem)?;
    let new = redriven.ok_or_else(|| not_found("dead letter", &id.to_string()))?;
    tracing::info!(delivery = %id, new = %new.id, "a dead letter is redriven");
    Ok(Json(delivery_view(&new, false)))
}

/// Makes a dead letter none
#[utoipa::path(
    delete, path = "/v1/dead/{delivery}", tag = "dead letters",
    responses((status = 200, body = Purged)),
    security(("token" = ["author"])),
)]
async fn purge(
    State(admin): Shared,
    Extension(caller): Who,
    Path(id): Path<String>,
) -> Answer<Purged> {
    let id = parse::<DeliveryId>(&id, "delivery")?;
    own_delivery(&admin, &caller, id, "dead letter").await?;
    let purged = admin.store.purge(vec![id]).await.map_err(store_problem)?;
    if purged == 0 {
        return Err(not_found("dead letter", &id.to_string()));
    }
    tracing::info!(delivery = %id, "a dead letter is purged");
    Ok(Json(Purged { purged }))
}

/// Makes all dead letters none that a list with the same query has, on all of its pages
#[utoipa::path(
    delete, path = "/v1/dead", tag = "dead letters",
    params(Unwanted),
    responses((status = 200, body = Purged)),
    security(("token" = ["author"])),
)]
async fn purge_all(
    State(admin): Shared,
    Extension(caller): Who,
    query: Result<Query<Unwanted>, QueryRejection>,
) -> Answer<Purged> {
    let Query(unwanted) = query?;
    let mut which = Wanted::from(unwanted).which()?;
    which.tenant = caller.listed(which.tenant)?;
    caller.has(Scope::Author)?;
    let mut purged = 0;
    loop {
        let page = admin.store.dead(&which, PAGE_MAX).await;
        let page = page.map_err(store_problem)?;
        let ids = page.deliveries.iter().map(|dead| dead.id).collect();
        purged += admin.store.purge(ids).await.map_err(store_problem)?;
        which.after = page.next;
        if which.after.is_none() {
            break;
        }
    }
    tracing::info!(purged, "dead letters are purged");
    Ok(Json(Purged { purged }))
}
