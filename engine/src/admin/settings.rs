//! Calls about what tenants consist of: tenants without a file, sources and channels. What stands in a
//! tenant's file is shown here and changed there.

use super::body::Sent;
use super::{Admin, Answer, Shared, Who, parse};
use crate::id::Name;
use crate::problem::Problem;
use crate::registry::{Change, Fileless, Scope, Settings, Shown, Thing};
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
        .routes(routes!(set_tenant, remove_tenant))
        .routes(routes!(list_sources))
        .routes(routes!(set_source, remove_source))
        .routes(routes!(list_channels))
        .routes(routes!(set_channel, remove_channel))
}

/// A source or a channel, without its secrets: they are written and never read.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SettingView {
    pub name: Name,
    pub kind: String,
    /// Whether it stands in the tenant's file: then no call changes it, and its settings are not shown.
    pub in_file: bool,
    #[schema(value_type = Object)]
    pub settings: Settings,
    /// Which secrets it has.
    pub secrets: Vec<String>,
    /// What setting it did, or would have done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Try {
    /// Only say what would be done; for operators, because it tells whether secrets are the same.
    #[serde(default)]
    dry_run: bool,
}

impl From<Shown> for SettingView {
    fn from(shown: Shown) -> Self {
        Self {
            name: shown.name,
            kind: shown.kind,
            in_file: shown.in_file,
            settings: shown.settings,
            secrets: shown.secrets,
            change: None,
        }
    }
}

/// What would stand in a tenant's file as a `[[source]]` or `[[channel]]`, but for the name. A secret is its
/// text. All of it is given anew each time: a secret that is left out is gone.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct SettingsBody {
    /// Which kind of source or channel it is.
    pub kind: String,
    #[serde(flatten)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// What is gone.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    pub removed: Name,
}

/// A tenant that was made or changed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TenantSet {
    pub name: Name,
    pub settings: Fileless,
}

fn status(new: bool) -> StatusCode {
    if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    }
}

/// Makes a tenant that has no file, or gives it other settings
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}", tag = "tenants",
    request_body = Fileless,
    responses((status = 200, body = TenantSet), (status = 201, body = TenantSet)),
    security(("token" = ["operator"])),
)]
async fn set_tenant(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    body: Result<Sent<Fileless>, Problem>,
) -> Result<(StatusCode, Json<TenantSet>), Problem> {
    let name = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::Operator, &name)?;
    let Sent(settings) = body?;
    let registry = &admin.registry;
    let new = registry
        .set_tenant(&name, settings.clone(), &caller.who)
        .await?;
    Ok((status(new), Json(TenantSet { name, settings })))
}

/// Removes a tenant that has no file, with its tokens, rules, modules, sources and channels
///
/// Its events stay for as long as all events do.
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}", tag = "tenants",
    responses((status = 200, body = Removed)),
    security(("token" = ["operator"])),
)]
async fn remove_tenant(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
) -> Answer<Removed> {
    let removed = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::Operator, &removed)?;
    admin.registry.unset_tenant(&removed, &caller.who).await?;
    Ok(Json(Removed { removed }))
}

/// A tenant's sources
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/sources", tag = "sources",
    responses((status = 200, body = Vec<SettingView>)),
    security(("token" = ["read-only"])),
)]
async fn list_sources(state: Shared, who: Who, tenant: Path<String>) -> Answer<Vec<SettingView>> {
    list(state, who, tenant, Thing::Source)
}

/// Sets up a source, or puts another in its place
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}/sources/{source}", tag = "sources",
    params(Try),
    request_body = SettingsBody,
    responses((status = 200, body = SettingView), (status = 201, body = SettingView)),
    security(("token" = ["tenant-admin"])),
)]
async fn set_source(
    state: Shared,
    who: Who,
    path: Path<(String, String)>,
    query: Result<Query<Try>, QueryRejection>,
    body: Result<Sent<SettingsBody>, Problem>,
) -> Result<(StatusCode, Json<SettingView>), Problem> {
    set(state, who, path, query, body, Thing::Source).await
}

/// Removes a source
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/sources/{source}", tag = "sources",
    responses((status = 200, body = Removed)),
    security(("token" = ["tenant-admin"])),
)]
async fn remove_source(state: Shared, who: Who, path: Path<(String, String)>) -> Answer<Removed> {
    remove(state, who, path, Thing::Source).await
}

/// A tenant's channels
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/channels", tag = "channels",
    responses((status = 200, body = Vec<SettingView>)),
    security(("token" = ["read-only"])),
)]
async fn list_channels(state: Shared, who: Who, tenant: Path<String>) -> Answer<Vec<SettingView>> {
    list(state, who, tenant, Thing::Channel)
}

/// Sets up a channel, or puts another in its place
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}/channels/{channel}", tag = "channels",
    params(Try),
    request_body = SettingsBody,
    responses((status = 200, body = SettingView), (status = 201, body = SettingView)),
    security(("token" = ["tenant-admin"])),
)]
async fn set_channel(
    state: Shared,
    who: Who,
    path: Path<(String, String)>,
    query: Result<Query<Try>, QueryRejection>,
    body: Result<Sent<SettingsBody>, Problem>,
) -> Result<(StatusCode, Json<SettingView>), Problem> {
    set(state, who, path, query, body, Thing::Channel).await
}

/// Removes a channel
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/channels/{channel}", tag = "channels",
    responses((status = 200, body = Removed)),
    security(("token" = ["tenant-admin"])),
)]
async fn remove_channel(state: Shared, who: Who, path: Path<(String, String)>) -> Answer<Removed> {
    remove(state, who, path, Thing::Channel).await
}

fn list(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    thing: Thing,
) -> Answer<Vec<SettingView>> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let all = admin.registry.things(&tenant, thing)?.into_iter();
    Ok(Json(all.map(SettingView::from).collect()))
}

async fn set(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, name)): Path<(String, String)>,
    query: Result<Query<Try>, QueryRejection>,
    body: Result<Sent<SettingsBody>, Problem>,
    thing: Thing,
) -> Result<(StatusCode, Json<SettingView>), Problem> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    let name = parse::<Name>(&name, thing.word())?;
    caller.may(Scope::TenantAdmin, &tenant)?;
    let Query(Try { dry_run }) = query?;
    if dry_run {
        caller.has(Scope::Operator)?;
    }
    let Sent(SettingsBody { kind, mut settings }) = body?;
    settings.insert("kind".to_owned(), kind.into());
    let at = (&tenant, thing, &name);
    let set = admin.registry.set(at, settings, dry_run, &caller.who);
    let (shown, change) = set.await?;
    let view = SettingView {
        change: Some(change),
        ..shown.into()
    };
    Ok((status(change == Change::Created && !dry_run), Json(view)))
}

async fn remove(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, name)): Path<(String, String)>,
    thing: Thing,
) -> Answer<Removed> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    let removed = parse::<Name>(&name, thing.word())?;
    caller.may(Scope::TenantAdmin, &tenant)?;
    let at = (&tenant, thing, &removed);
    admin.registry.unset(at, &caller.who).await?;
    Ok(Json(Removed { removed }))
}
