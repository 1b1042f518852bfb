//! Calls about dead letters: list, redrive, purge.

use super::{
    Admin, Answer, DeliveryView, Shared, Who, delivery_view, not_found, own_delivery, parse,
    store_problem,
};
use crate::clock::now_ms;
use crate::id::DeliveryId;
use crate::problem::Problem;
use crate::registry::Scope;
use crate::store::Which;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How many dead letters a page has, unless fewer are asked for.
const PAGE_MAX: usize = 1_000;

pub(super) fn router() -> Router<Arc<Admin>> {
    Router::new()
        .route("/v1/dead", get(list).delete(purge_all))
        .route("/v1/dead/{id}", delete(purge))
        .route("/v1/dead/{id}/redrive", post(redrive))
}

/// A part of a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// What the next page is asked for with, as `after`; absent at the end. A page may have few items,
    /// or none, and not be the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How many dead letters were purged.
#[derive(Debug, Serialize, Deserialize)]
pub struct Purged {
    pub purged: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    tenant: Option<String>,
    channel: Option<String>,
    /// RFC 3339: only those that were given up before.
    before: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

type WantedOrNot = Result<Query<Wanted>, QueryRejection>;

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
}

fn invalid(detail: String) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "invalid-query",
        "Invalid query",
        detail,
    )
}

async fn list(
    State(admin): Shared,
    Extension(caller): Who,
    query: WantedOrNot,
) -> Answer<Page<DeliveryView>> {
    let Query(wanted) = query?;
    let limit = wanted.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
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

async fn purge_all(
    State(admin): Shared,
    Extension(caller): Who,
    query: WantedOrNot,
) -> Answer<Purged> {
    let Query(wanted) = query?;
    let mut which = wanted.which()?;
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
