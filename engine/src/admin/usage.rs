//! Calls about what a tenant uses, and what its rules did lately.

use super::view::moment;
use super::{Admin, Answer, Shared, Who, not_found, parse};
use crate::clock::now_ms;
use crate::id::Name;
use crate::registry::{Scope, Used};
use crate::stats::Minute;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(usage))
        .routes(routes!(minutes))
}

/// What a tenant uses, and may use.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct UsageView {
    /// Rules that were uploaded.
    pub rules: UsedView,
    pub modules_bytes: UsedView,
    /// The machine code that its modules become.
    pub code_bytes: UsedView,
    /// Sources and channels that were set up by calls.
    pub sources: UsedView,
    pub channels: UsedView,
    pub tokens: UsedView,
    /// What its events take in the store, and all that became of them; 0 in `max` is no quota.
    pub stored_bytes: UsedView,
    /// In the last whole minute, on average; 0 in `max` is no quota.
    pub events_per_s: RateView,
    pub fuel_per_s: RateView,
    pub deliveries_per_s: RateView,
    /// Each minute of the last hour in which something happened, the oldest first.
    pub minutes: Vec<MinuteView>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct UsedView {
    pub used: u64,
    pub max: u64,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RateView {
    pub used: f64,
    pub max: u64,
}

/// What happened in one minute. It is counted in memory, since the engine was started.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct MinuteView {
    /// When it began.
    pub at: String,
    /// Events that came in.
    pub events: u64,
    /// Decisions of rules.
    pub notified: u64,
    pub dropped: u64,
    pub failed: u64,
    pub fuel: u64,
    /// Deliveries that arrived, and that were given up.
    pub delivered: u64,
    pub dead: u64,
}

fn view(minute: &Minute) -> MinuteView {
    MinuteView {
        at: moment(minute.at_min.saturating_mul(60_000)),
        events: minute.accepted,
        notified: minute.notified,
        dropped: minute.dropped,
        failed: minute.failed,
        fuel: minute.fuel,
        delivered: minute.delivered,
        dead: minute.dead,
    }
}

/// What a tenant uses of what it may use
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/usage", tag = "tenants",
    responses((status = 200, body = UsageView)),
    security(("token" = ["read-only"])),
)]
async fn usage(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
) -> Answer<UsageView> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let used = admin.registry.used(&tenant).await?;
    let now_ms = now_ms();
    let minutes = admin.metrics.stats.last(&tenant, None, now_ms);
    let whole = minutes
        .iter()
        .find(|it| it.at_min == now_ms.div_euclid(60_000) - 1);
    let whole = whole.copied().unwrap_or_default();
    let each = |used: Used| UsedView {
        used: used.used,
        max: used.max,
    };
    let rate = |used: u64, max: u64| RateView {
        used: used as f64 / 60.0,
        max,
    };
    Ok(Json(UsageView {
        rules: each(used.rules),
        modules_bytes: each(used.modules_bytes),
        code_bytes: each(used.code_bytes),
        sources: each(used.sources),
        channels: each(used.channels),
        tokens: each(used.tokens),
        stored_bytes: UsedView {
            used: admin.store.stored_bytes(&tenant),
            max: used.quotas.stored_bytes,
        },
        events_per_s: rate(whole.accepted, used.quotas.events_per_s.into()),
        fuel_per_s: rate(whole.fuel, used.quotas.fuel_per_s),
        deliveries_per_s: rate(whole.delivered, used.quotas.deliveries_per_s.into()),
        minutes: minutes.iter().map(view).collect(),
    }))
}

/// What a rule did in each minute of the last hour
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/rules/{rule}/minutes", tag = "rules",
    responses((status = 200, body = Vec<MinuteView>)),
    security(("token" = ["read-only"])),
)]
async fn minutes(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, rule)): Path<(String, String)>,
) -> Answer<Vec<MinuteView>> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    let rule = parse::<Name>(&rule, "rule")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let rules = admin.pipeline.rules(&tenant);
    if !rules.is_some_and(|rules| rules.names().any(|it| *it == rule)) {
        return Err(not_found("rule", rule.as_str()));
    }
    let minutes = admin.metrics.stats.last(&tenant, Some(&rule), now_ms());
    Ok(Json(minutes.iter().map(view).collect()))
}
