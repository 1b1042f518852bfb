//! A call that changes something and has an `Idempotency-Key` is made once, however often it is sent.

use super::{Admin, Shared};
use crate::id::Hash;
use crate::ingest::read;
use crate::problem::Problem;
use crate::registry::{Caller, KnownCall as Known, OnceKey, Told};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEY_CHARS_MAX: usize = 255;
/// What an answer says besides its body.
const KEPT_HEADERS: [HeaderName; 2] = [header::CONTENT_TYPE, header::ETAG];

pub(super) async fn once_by_key(
    State(admin): Shared,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(next.run(request).await);
    }
    match key(request.headers())? {
        None => Ok(next.run(request).await),
        Some(key) => once(admin, key, request, next).await,
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(given) = headers.get(KEY) else {
        return Ok(None);
    };
    let text = given.to_str().unwrap_or_default();
    if text.is_empty() || text.len() > KEY_CHARS_MAX {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-idempotency-key",
            "Invalid Idempotency-Key",
            format!("an `Idempotency-Key` has 1 to {KEY_CHARS_MAX} visible ASCII characters"),
        ));
    }
    Ok(Some(text.to_owned()))
}

async fn once(
    admin: Arc<Admin>,
    key: String,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let Some(caller) = parts.extensions.get::<Caller>() else {
        unreachable!("a call stands behind a token");
    };
    let key = OnceKey::new(caller.tenant.clone(), caller.token_id(), &key);
    let limit = (
        "of calls",
        admin.module_bytes_max.max(super::body::BODY_BYTES_MAX),
    );
    let body = read(&parts.headers, body, limit, admin.request_timeout).await?;
    let mut call = format!("{} {} ", parts.method, parts.uri).into_bytes();
    call.extend_from_slice(&body);
    let call = Hash::of(&call);
    let under_way = match admin.registry.once(&key).await? {
        Known::New(under_way) => under_way,
        Known::UnderWay => {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "idempotency-key-in-use",
                "Idempotency-Key in use",
                "a call with this key is being answered; send it again later",
            )
            .retry_after(1));
        }
        Known::Told(told) if told.call != call => {
            return Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "Idempotency-Key reused",
                "this key was sent with another call; each call has a key of its own",
            ));
        }
        Known::Told(told) => return replayed(told),
    };
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    // What was not done may be tried again.
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let text = |value: &axum::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let headers = KEPT_HEADERS.into_iter().filter_map(|name| {
        let value = parts.headers.get(&name)?;
        Some((name.to_string(), text(value)))
    });
    let short = body.len() <= crate::registry::ANSWER_BYTES_MAX;
    let told = Told {
        call,
        status: parts.status.as_u16(),
        headers: headers.collect(),
        body: short.then(|| String::from_utf8_lossy(&body).into_owned()),
    };
    if let Err(error) = under_way.tell(&told).await {
        tracing::error!(%error, "what a call was answered is not kept; sent again, it is made again");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn replayed(told: Told) -> Result<Response, Problem> {
    let Some(body) = told.body else {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "done-already",
            "Done already",
            format!(
                "the call with this key was answered {}, at more length than is kept; read what it was about",
                told.status
            ),
        ));
    };
    let status = StatusCode::from_u16(told.status).unwrap_or_default();
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    for (name, value) in told.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
            headers.insert(name, value);
        }
    }
    headers.insert(REPLAYED, axum::http::HeaderValue::from_static("true"));
    Ok(response)
}
