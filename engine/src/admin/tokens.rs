//! Calls about access: who am I, which tenants are there, tokens.

use super::body::Sent;
use super::view::moment;
use super::{Admin, Answer, Shared, Who, not_found, parse};
use crate::id::Name;
use crate::problem::Problem;
use crate::registry::{Caller, Fileless, Known, NewToken, Scope, Token};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(who_am_i))
        .routes(routes!(list_tenants))
        .routes(routes!(tenant))
        .routes(routes!(list_tokens, make_token))
        .routes(routes!(revoke_token))
}

/// Who a token belongs to and what it may be used for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WhoView {
    pub scope: Scope,
    /// None for an operator.
    pub tenant: Option<Name>,
    /// As the audit log names it.
    pub who: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

impl From<Caller> for WhoView {
    fn from(caller: Caller) -> Self {
        Self {
            scope: caller.scope,
            tenant: caller.tenant,
            who: caller.who,
            expires: caller.expires_ms.map(moment),
        }
    }
}

/// Who the token belongs to and what it may be used for
#[utoipa::path(
    get, path = "/v1/whoami", tag = "access",
    responses((status = 200, body = WhoView)),
    security(("token" = ["ingest-only"])),
)]
async fn who_am_i(Extension(caller): Who) -> Json<WhoView> {
    Json(caller.into())
}

/// A tenant, as rules see it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TenantView {
    pub name: Name,
    pub sources: Vec<Name>,
    pub channels: Vec<Name>,
    /// Whether it has a file: then its settings are changed there.
    #[serde(default)]
    pub in_file: bool,
    pub settings: Fileless,
}

impl From<Known> for TenantView {
    fn from(known: Known) -> Self {
        Self {
            name: known.name,
            sources: known.sources,
            channels: known.channels,
            in_file: known.in_file,
            settings: known.settings,
        }
    }
}

/// The tenants that the token can see
#[utoipa::path(
    get, path = "/v1/tenants", tag = "tenants",
    responses((status = 200, body = Vec<TenantView>)),
    security(("token" = ["read-only"])),
)]
async fn list_tenants(State(admin): Shared, Extension(caller): Who) -> Answer<Vec<TenantView>> {
    caller.has(Scope::ReadOnly)?;
    let all = admin.registry.tenants().into_iter();
    let seen = all.filter(|it| caller.tenant.as_ref().is_none_or(|own| *own == it.name));
    Ok(Json(seen.map(TenantView::from).collect()))
}

/// A tenant
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}", tag = "tenants",
    responses((status = 200, body = TenantView)),
    security(("token" = ["read-only"])),
)]
async fn tenant(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
) -> Answer<TenantView> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    Ok(Json(admin.registry.tenant(&tenant)?.into()))
}

/// A token, without its text but where it was just made.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub id: String,
    pub scope: Scope,
    pub tenant: Option<Name>,
    pub label: String,
    pub created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Its text, this once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

fn view(token: Token) -> TokenView {
    TokenView {
        id: token.id,
        scope: token.scope,
        tenant: token.tenant,
        label: token.label,
        created: moment(token.created_ms),
        expires: token.expires_ms.map(moment),
        token: None,
    }
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTokenBody {
    pub scope: Scope,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    /// What it is for.
    #[schema(min_length = 1, max_length = 100, pattern = "\\S")]
    pub label: String,
    /// RFC 3339; left out, it is good until it is revoked.
    #[schema(format = DateTime)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// Makes a token
///
/// Its text is in this answer and nowhere else. A tenant's token is made by its tenant-admin or an
/// operator, and an operator's by an operator.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "access",
    request_body = NewTokenBody,
    responses((status = 201, body = TokenView)),
    security(("token" = ["tenant-admin"])),
)]
async fn make_token(
    State(admin): Shared,
    Extension(caller): Who,
    body: Result<Sent<NewTokenBody>, Problem>,
) -> Result<Response, Problem> {
    let Sent(body) = body?;
    match &body.tenant {
        Some(tenant) => caller.may(Scope::TenantAdmin, tenant)?,
        None => caller.has(Scope::Operator)?,
    }
    let expires = body.expires.map(|text| {
        let moment = text.parse::<jiff::Timestamp>();
        moment.map_err(|error| {
            let detail = format!("`expires` is no RFC 3339 time: {error}");
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Problem::new(status, "invalid", "Invalid", detail)
        })
    });
    let new = NewToken {
        scope: body.scope,
        tenant: body.tenant,
        label: body.label,
        expires_ms: expires.transpose()?.map(|it| it.as_millisecond()),
    };
    let (token, text) = admin.registry.make_token(new, &caller).await?;
    tracing::info!(id = token.id, scope = %token.scope, by = caller.who, "a token is made");
    let view = TokenView {
        token: Some(text.expose().to_owned()),
        ..view(token)
    };
    let headers = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, Json(view)).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Whose {
    /// Left out: the token's own, or all where it is an operator's.
    #[param(value_type = Option<Name>)]
    tenant: Option<String>,
}

/// Tokens, without their texts
#[utoipa::path(
    get, path = "/v1/tokens", tag = "access",
    params(Whose),
    responses((status = 200, body = Vec<TokenView>)),
    security(("token" = ["tenant-admin"])),
)]
async fn list_tokens(
    State(admin): Shared,
    Extension(caller): Who,
    query: Result<Query<Whose>, QueryRejection>,
) -> Answer<Vec<TokenView>> {
    let Query(whose) = query?;
    let asked = whose.tenant.map(|name| parse::<Name>(&name, "tenant"));
    let tenant = caller.listed(asked.transpose()?)?;
    caller.has(Scope::TenantAdmin)?;
    let tokens = admin.registry.tokens(tenant.as_ref());
    Ok(Json(tokens.into_iter().map(view).collect()))
}

/// A token that is worthless from now on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Revoked {
    pub revoked: String,
}

/// Makes a token worthless
#[utoipa::path(
    delete, path = "/v1/tokens/{token}", tag = "access",
    responses((status = 200, body = Revoked)),
    security(("token" = ["tenant-admin"])),
)]
async fn revoke_token(
    State(admin): Shared,
    Extension(caller): Who,
    Path(id): Path<String>,
) -> Answer<Revoked> {
    let shown: String = id.chars().take(80).collect();
    let token = admin.registry.token(&id);
    let token = token.ok_or_else(|| not_found("token", &shown))?;
    if let Some(own) = &caller.tenant
        && token.tenant.as_ref() != Some(own)
    {
        return Err(not_found("token", &shown));
    }
    caller.has(Scope::TenantAdmin)?;
    admin.registry.revoke(&id).await?;
    tracing::info!(id, by = caller.who, "a token is revoked");
    Ok(Json(Revoked { revoked: id }))
}
