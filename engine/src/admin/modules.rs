//! Calls about modules: upload, list, delete.

use super::view::moment;
use super::{Admin, Answer, Shared, Who, parse};
use crate::id::{Hash, Name};
use crate::ingest::read;
use crate::problem::Problem;
use crate::registry::{Caller, Module, Scope};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list_modules, add_module))
        .routes(routes!(module, upload_module, delete_module))
}

/// A module with what its check found.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ModuleView {
    pub sha256: String,
    pub size_bytes: u64,
    /// `reactor` or `command`.
    pub form: String,
    /// Linear memory that it starts with.
    pub memory_bytes: u64,
    /// The machine code that it becomes, on the engine's disk.
    pub code_bytes: u64,
    pub uploaded: String,
    /// How long the check and the compiler took, where it was just uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compiled_ms: Option<u64>,
}

fn view(module: &Module) -> ModuleView {
    ModuleView {
        sha256: module.sha256.to_string(),
        size_bytes: module.size_bytes,
        form: module.form.clone(),
        memory_bytes: module.memory_bytes,
        code_bytes: module.code_bytes,
        uploaded: moment(module.uploaded_ms),
        compiled_ms: None,
    }
}

/// Uploads a module
///
/// It is checked and compiled before the answer. What that takes is charged to the tenant's
/// `compile_s_per_hour`, and its machine code counts against `code_bytes_max`; both are in `[uploads]`. The path names the SHA-256 of the body; the same
/// module again changes nothing.
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}/modules/{sha256}", tag = "modules",
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    responses(
        (status = 201, body = ModuleView),
        (status = 200, body = ModuleView, description = "It was there already"),
    ),
    security(("token" = ["author"])),
)]
async fn upload_module(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, sha256)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    let named = parse::<Hash>(&sha256, "a module, which is its SHA-256")?;
    uploaded(&admin, &caller, &tenant, Some(named), (&headers, body)).await
}

/// Uploads a module, and tells its SHA-256
///
/// For whoever cannot compute it beforehand.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/modules", tag = "modules",
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    responses(
        (status = 201, body = ModuleView),
        (status = 200, body = ModuleView, description = "It was there already"),
    ),
    security(("token" = ["author"])),
)]
async fn add_module(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    uploaded(&admin, &caller, &tenant, None, (&headers, body)).await
}

async fn uploaded(
    admin: &Admin,
    caller: &Caller,
    tenant: &Name,
    named: Option<Hash>,
    (headers, body): (&HeaderMap, Body),
) -> Result<Response, Problem> {
    caller.may(Scope::Author, tenant)?;
    let turn = admin.registry.turn(tenant)?;
    let limit = ("module_bytes of [limits]", admin.module_bytes_max);
    let wasm = read(headers, body, limit, admin.request_timeout).await?;
    let found = Hash::of(&wasm);
    if let Some(named) = named.filter(|named| *named != found) {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "other-module",
            "Another module",
            format!("the body's SHA-256 is {found}, and the path says {named}"),
        ));
    }
    let uploaded = admin.registry.upload(&turn, wasm).await?;
    let status = if uploaded.new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let view = ModuleView {
        compiled_ms: Some(uploaded.compiled_in.as_millis() as u64),
        ..view(&uploaded.module)
    };
    Ok((status, Json(view)).into_response())
}

/// A tenant's modules
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/modules", tag = "modules",
    responses((status = 200, body = Vec<ModuleView>)),
    security(("token" = ["read-only"])),
)]
async fn list_modules(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
) -> Answer<Vec<ModuleView>> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let modules = admin.registry.modules(&tenant).await?;
    Ok(Json(modules.iter().map(view).collect()))
}

/// A module's bytes
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/modules/{sha256}", tag = "modules",
    responses((status = 200, content_type = "application/wasm", body = Vec<u8>)),
    security(("token" = ["author"])),
)]
async fn module(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, sha256)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    let named = parse::<Hash>(&sha256, "a module, which is its SHA-256")?;
    caller.may(Scope::Author, &tenant)?;
    let wasm = admin.registry.wasm(&tenant, named).await?;
    Ok(([(header::CONTENT_TYPE, "application/wasm")], wasm).into_response())
}

/// A module that is gone.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ModuleDeleted {
    pub deleted: String,
}

/// Deletes a module that no version of a rule has
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/modules/{sha256}", tag = "modules",
    responses((status = 200, body = ModuleDeleted)),
    security(("token" = ["author"])),
)]
async fn delete_module(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, sha256)): Path<(String, String)>,
) -> Answer<ModuleDeleted> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    let named = parse::<Hash>(&sha256, "a module, which is its SHA-256")?;
    caller.may(Scope::Author, &tenant)?;
    admin.registry.delete_module(&tenant, named).await?;
    Ok(Json(ModuleDeleted { deleted: sha256 }))
}
