//! Calls about one delivery: look at it, acknowledge it.

use super::view::{DeliveryView, delivery_view};
use super::{Admin, Answer, Shared, Who, not_found, parse, store_problem};
use crate::clock::now_ms;
use crate::id::DeliveryId;
use crate::problem::Problem;
use crate::registry::{Caller, Scope};
use crate::store::Acknowledgement;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(delivery))
        .routes(routes!(acknowledge))
}

/// A delivery with its attempts and what it says
#[utoipa::path(
    get, path = "/v1/deliveries/{delivery}", tag = "deliveries",
    responses((status = 200, body = DeliveryView)),
    security(("token" = ["read-only"])),
)]
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

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AcknowledgementView {
    pub outcome: Acknowledgement,
}

/// A delivery that the caller may change.
pub(super) async fn own_delivery(
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

/// Makes a delivery's escalation needless
#[utoipa::path(
    post, path = "/v1/deliveries/{delivery}/acknowledge", tag = "deliveries",
    responses((status = 200, body = AcknowledgementView)),
    security(("token" = ["author"])),
)]
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
