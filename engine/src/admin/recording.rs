//! A recording of a tenant's events, with what was decided of them.

use super::backup::{Chunks, streamed};
use super::{Admin, Shared, Who, parse, store_problem};
use crate::id::{EventId, Name};
use crate::problem::Problem;
use crate::recording::Writer;
use crate::registry::Scope;
use crate::store::{self, Seek, Store};
use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How many events are read at once.
const READ_MAX: usize = 100;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(record))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Which {
    /// RFC 3339; left out, from the oldest event on.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Only events that this rule was asked about.
    #[param(value_type = Option<Name>)]
    rule: Option<String>,
    /// With what looks personal, which is masked otherwise.
    #[serde(default)]
    personal: bool,
}

/// A tenant's events with what was decided of them, as a recording for `hooksieve replay`
///
/// Those that are decided by now, oldest first. Texts under keys such as `email` or `phone`, and texts that
/// are mail addresses, are masked unless `personal` is true.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/recording", tag = "events",
    params(Which),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>)),
    security(("token" = ["read-only"])),
)]
async fn record(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    query: Result<Query<Which>, QueryRejection>,
) -> Result<Response, Problem> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let Query(which) = query?;
    admin.registry.known(&tenant)?;
    let rule = which.rule.as_deref().map(|it| parse::<Name>(it, "rule"));
    let rule = rule.transpose()?;
    let since_ms = match &which.since {
        None => 0,
        Some(text) => text
            .parse::<jiff::Timestamp>()
            .map_err(|error| {
                let detail = format!("`since` is no RFC 3339 time: {error}");
                let status = StatusCode::BAD_REQUEST;
                Problem::new(status, "invalid-query", "Invalid query", detail)
            })?
            .as_millisecond(),
    };
    let (store, masked) = (admin.store.clone(), !which.personal);
    let written = streamed(async move |to| {
        write(&*store, &tenant, rule.as_ref(), since_ms, masked, to).await
    });
    written.await.map_err(|error| match error {
        Some(NotWritten::Store(error)) => store_problem(error),
        Some(NotWritten::Other(error)) => broken(error),
        None => broken("the engine panicked; its log says where".to_owned()),
    })
}

fn broken(detail: String) -> Problem {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Problem::new(status, "recording", "No recording", detail)
}

#[derive(Debug, thiserror::Error)]
enum NotWritten {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("{0}")]
    Other(String),
}

async fn write(
    store: &dyn Store,
    tenant: &Name,
    rule: Option<&Name>,
    since_ms: i64,
    masked: bool,
    to: Chunks,
) -> Result<(), NotWritten> {
    let failed = |error: std::io::Error| NotWritten::Other(error.to_string());
    // The client's pace is waited for, which blocks.
    let mut writer = tokio::task::block_in_place(|| Writer::new(to, masked)).map_err(failed)?;
    let mut after = EventId::before(since_ms);
    loop {
        let stories = store.stories(tenant, Seek::After(after), READ_MAX).await?;
        let read = stories.len();
        let decided = stories.into_iter().take_while(|it| it.decided);
        let decided: Vec<_> = decided.collect();
        let Some(last) = decided.last() else { break };
        after = last.event.id;
        let whole = decided.len() == read && read == READ_MAX;
        let wanted = decided.iter().filter(|story| {
            rule.is_none_or(|rule| story.decisions.iter().any(|it| it.rule == *rule))
        });
        let written = tokio::task::block_in_place(|| {
            wanted.into_iter().try_for_each(|story| writer.story(story))
        });
        written.map_err(failed)?;
        if !whole {
            break;
        }
    }
    let ended = tokio::task::block_in_place(|| writer.end());
    ended.map(drop).map_err(failed)
}
