//! A backup of everything, taken while the engine runs.

use super::{Admin, Shared, Who};
use crate::clock::now_ms;
use crate::problem::Problem;
use crate::registry::Scope;
use crate::store::TransferError;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What is sent at once, and how many of these wait for a slow client.
const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS_MAX: usize = 16;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(backup))
}

/// A backup of the store as it stands at this moment
///
/// It is what `hooksieve store import` reads. The keys that seal secrets, sign links and stand for the
/// operator are not in it: they are files of the data folder.
#[utoipa::path(
    get, path = "/v1/backup", tag = "operations",
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>)),
    security(("token" = ["operator"])),
)]
async fn backup(State(admin): Shared, Extension(caller): Who) -> Result<Response, Problem> {
    caller.has(Scope::Operator)?;
    let store = admin.store.clone();
    let answered = streamed(async move |to| {
        let made = store.backup(Box::new(to), now_ms()).await;
        match &made {
            Ok(rows) => tracing::info!(rows, by = caller.who, "a backup is taken"),
            Err(error) => tracing::warn!(%error, by = caller.who, "a backup is not taken"),
        }
        made.map(drop)
    });
    answered.await.map_err(problem)
}

/// Answers with what is written, while it is written. What goes wrong after the beginning breaks the answer
/// off, so that nobody takes it for whole.
pub(super) async fn streamed<F, E>(
    write: impl FnOnce(Chunks) -> F + Send + 'static,
) -> Result<Response, Option<E>>
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let (chunks, mut taken) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_MAX);
    let to = Chunks {
        full: Vec::with_capacity(CHUNK_BYTES),
        chunks: chunks.clone(),
    };
    let made = tokio::spawn(async move {
        let made = write(to).await;
        if let Err(error) = &made {
            let broken = io::Error::other(error.to_string());
            let _ = chunks.send(Err(broken)).await;
        }
        made
    });
    let first = match taken.recv().await {
        Some(Ok(first)) => first,
        _ => return Err(made.await.ok().and_then(Result::err)),
    };
    let rest = stream::unfold(taken, async |mut taken| {
        let chunk = taken.recv().await?;
        Some((chunk, taken))
    });
    let all = futures_util::StreamExt::chain(stream::iter([Ok(first)]), rest);
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(all)).into_response())
}

fn problem(error: Option<TransferError>) -> Problem {
    let (status, detail) = match error {
        None => (StatusCode::INTERNAL_SERVER_ERROR, "it is empty".to_owned()),
        Some(TransferError::Store(error)) => return super::store_problem(error),
        Some(error @ TransferError::UnderWay) => (StatusCode::CONFLICT, error.to_string()),
        Some(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    };
    Problem::new(status, "backup", "No backup", detail)
}

/// What is written, in pieces for the client; the one who writes waits for it.
pub(super) struct Chunks {
    full: Vec<u8>,
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

impl io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.full.extend_from_slice(bytes);
        if self.full.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.full, Vec::with_capacity(CHUNK_BYTES));
        let gone = |_| io::Error::other("the client is gone");
        self.chunks.blocking_send(Ok(full.into())).map_err(gone)
    }
}
