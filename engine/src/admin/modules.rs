//! Calls about modules: upload, list, delete.

use super::{Admin, Answer, Shared, Who, moment, parse};
use crate::id::{Hash, Name};
use crate::ingest::read;
use crate::problem::Problem;
use crate::registry::{Module, Scope};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(super) fn router() -> Router<Arc<Admin>> {
    Router::new()
        .route("/v1/tenants/{tenant}/modules", get(list))
        .route(
            "/v1/tenants/{tenant}/modules/{sha256}",
            put(upload).delete(remove),
        )
}

/// A module with what its check found.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModuleView {
    pub sha256: String,
    pub size_bytes: u64,
    /// `reactor` or `command`.
    pub form: String,
    /// Linear memory that it starts with.
    pub memory_bytes: u64,
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
        uploaded: moment(module.uploaded_ms),
        compiled_ms: None,
    }
}

async fn upload(
    State(admin): Shared,
    Extension(caller): Who,
    Path((tenant, sha256)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    let named = parse::<Hash>(&sha256, "a module, which is its SHA-256")?;
    caller.may(Scope::Author, &tenant)?;
    let turn = admin.registry.turn(&tenant)?;
    let limit = ("module_bytes of [limits]", admin.module_bytes_max);
    let wasm = read(&headers, body, limit, admin.request_timeout).await?;
    let found = Hash::of(&wasm);
    if found != named {
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

async fn list(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
) -> Answer<Vec<ModuleView>> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let modules = admin.registry.modules(&tenant).await?;
    Ok(Json(modules.iter().map(view).collect()))
}

/// A module that is gone.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModuleDeleted {
    pub deleted: String,
}

async fn remove(
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
