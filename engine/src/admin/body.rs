//! A call's JSON body, within its size and time.

use super::Admin;
use crate::ingest::read;
use crate::ingest::verify::{is_json, media_type};
use crate::problem::Problem;
use axum::extract::{FromRequest, OptionalFromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Error;
use serde_json::error::Category;
use std::sync::Arc;

/// How large it may be.
pub(super) const BODY_BYTES_MAX: usize = 2 << 20;

pub(super) struct Sent<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Admin>> for Sent<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, admin: &Arc<Admin>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let found = media_type(&parts.headers);
        if !is_json(&found) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "Unsupported media type",
                format!("the body has to be application/json, and its Content-Type says {found:?}"),
            ));
        }
        let limit = ("of calls", BODY_BYTES_MAX);
        let bytes = read(&parts.headers, body, limit, admin.request_timeout).await?;
        let taken = serde_json::from_slice(&bytes);
        // serde takes the fields of a structure in a row as well, without their names.
        let in_a_row = bytes.trim_ascii_start().starts_with(b"[");
        let taken = taken.and_then(|taken| match in_a_row {
            true => Err(Error::custom("it is a list, expected an object")),
            false => Ok(Sent(taken)),
        });
        taken.map_err(|error| {
            let status = match error.classify() {
                Category::Data => StatusCode::UNPROCESSABLE_ENTITY,
                _ => StatusCode::BAD_REQUEST,
            };
            let detail = format!("the body is not what this call takes: {error}");
            Problem::new(status, "invalid-body", "Invalid body", detail)
        })
    }
}

/// None where no body is announced, or where it is `null`.
impl<T: DeserializeOwned> OptionalFromRequest<Arc<Admin>> for Sent<T> {
    type Rejection = Problem;

    async fn from_request(
        request: Request,
        admin: &Arc<Admin>,
    ) -> Result<Option<Self>, Self::Rejection> {
        if !request.headers().contains_key(header::CONTENT_TYPE) {
            return Ok(None);
        }
        let sent = <Sent<Option<T>> as FromRequest<_>>::from_request(request, admin);
        sent.await.map(|Sent(body)| body.map(Sent))
    }
}
