//! Calls about channels: test, enable.

use super::view::moment;
use super::{Admin, Answer, Shared, Who, not_found, parse, store_problem};
use crate::channel::Failure;
use crate::clock::now_ms;
use crate::id::{DeliveryId, EventId, Name};
use crate::registry::Scope;
use crate::store::{About, Delivery, Line, State as DeliveryState};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use hooksieve_sdk::wire::{Message, Payload};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(test_channel))
        .routes(routes!(enable_channel))
}

/// What came of a channel's test.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EnabledView {
    /// Whether it was disabled before.
    pub was_disabled: bool,
}

/// Enables a channel that was disabled
#[utoipa::path(
    post, path = "/v1/channels/{tenant}/{channel}/enable", tag = "channels",
    responses((status = 200, body = EnabledView)),
    security(("token" = ["tenant-admin"])),
)]
async fn enable_channel(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, channel)): Path<(String, String)>,
) -> Answer<EnabledView> {
    let line = Line {
        tenant: parse::<Name>(&tenant, "tenant")?,
        channel: parse::<Name>(&channel, "channel")?,
    };
    caller.may(Scope::TenantAdmin, &line.tenant)?;
    if admin.live.channel(&line).is_none() {
        return Err(not_found("channel", &format!("{channel} of {tenant}")));
    }
    let was_disabled = admin.switches.enable(&line).await.map_err(store_problem)?;
    tracing::info!(tenant, channel, was_disabled, "a channel is enabled");
    Ok(Json(EnabledView { was_disabled }))
}

/// Sends one real message
///
/// It is an attempt of no event, so nothing of it is stored or tried again.
#[utoipa::path(
    post, path = "/v1/channels/{tenant}/{channel}/test", tag = "channels",
    responses((status = 200, body = TestView)),
    security(("token" = ["tenant-admin"])),
)]
async fn test_channel(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, channel)): Path<(String, String)>,
) -> Answer<TestView> {
    let line = Line {
        tenant: parse::<Name>(&tenant, "tenant")?,
        channel: parse::<Name>(&channel, "channel")?,
    };
    caller.may(Scope::TenantAdmin, &line.tenant)?;
    let Some(found) = admin.live.channel(&line) else {
        return Err(not_found("channel", &format!("{channel} of {tenant}")));
    };
    let Line { tenant, channel } = line;
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
