//! Links by which a person acknowledges a delivery, so that it is not escalated.
//!
//! A link holds the delivery's id and a signature over it, so nobody can acknowledge what he was not
//! told of. Its GET shows a page with a button and changes nothing: mail scanners and chat previews
//! fetch links. Only its POST acknowledges.

use crate::clock::now_ms;
use crate::id::DeliveryId;
use crate::problem::Problem;
use crate::secret::Secret;
use crate::store::{Acknowledgement, Store};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use url::Url;

/// How much of the HMAC-SHA256 stands in a link: 128 bits.
const SIGNATURE_BYTES: usize = 16;

/// Makes links, and knows its own.
#[derive(Clone)]
pub struct Links {
    /// Under which the engine is reached from outside; without it no link can be made.
    base: Option<Url>,
    key: Secret,
}

impl Links {
    pub fn new(base: Option<Url>, key: Secret) -> Self {
        Self { base, key }
    }

    /// The address behind which a delivery is acknowledged.
    pub fn address(&self, id: DeliveryId) -> Option<String> {
        let base = self.base.as_ref()?.as_str().trim_end_matches('/');
        Some(format!("{base}/ack/{id}/{}", self.signature(id)))
    }

    fn signature(&self, id: DeliveryId) -> String {
        let key = self.key.expose().as_bytes();
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
        mac.update(b"acknowledge");
        mac.update(id.0.as_bytes());
        URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..SIGNATURE_BYTES])
    }

    fn knows(&self, id: DeliveryId, signature: &str) -> bool {
        let own = self.signature(id);
        own.as_bytes().ct_eq(signature.as_bytes()).into()
    }

    pub fn router(self, store: Arc<dyn Store>) -> Router {
        Router::new()
            .route("/ack/{id}/{signature}", get(ask).post(acknowledge))
            .with_state(Arc::new((self, store)))
    }
}

type Shared = State<Arc<(Links, Arc<dyn Store>)>>;

async fn ask(
    State(shared): Shared,
    Path((id, signature)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let id = known(&shared.0, &id, &signature)?;
    // Both parts of the path are ours: an id and Base64.
    let form = format!(
        "<p>Delivery <code>{id}</code></p>\
         <form method=\"post\" action=\"/ack/{id}/{signature}\"><button>Acknowledge</button></form>"
    );
    let told = "Acknowledge this notification? It is then not passed on to anyone else.";
    Ok(page(StatusCode::OK, told, &form))
}

async fn acknowledge(
    State(shared): Shared,
    Path((id, signature)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let id = known(&shared.0, &id, &signature)?;
    let done = shared.1.acknowledge(id, now_ms()).await;
    let done = done.map_err(|error| {
        tracing::error!(%error, delivery = %id, "an acknowledgement could not be stored");
        let detail = "the acknowledgement could not be stored; try again in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Not now", detail).retry_after(5)
    })?;
    tracing::info!(delivery = %id, ?done, "acknowledged by its link");
    Ok(match done {
        Acknowledgement::Acknowledged => page(
            StatusCode::OK,
            "Acknowledged. It is not passed on to anyone else.",
            "",
        ),
        Acknowledgement::TooLate => page(
            StatusCode::CONFLICT,
            "Too late: it has been passed on already.",
            "",
        ),
        Acknowledgement::Nothing => page(
            StatusCode::OK,
            "There is nothing to acknowledge: it is not passed on to anyone.",
            "",
        ),
    })
}

/// The id in a link that is ours; every other one is told the same.
fn known(links: &Links, id: &str, signature: &str) -> Result<DeliveryId, Problem> {
    let id = id.parse().ok();
    id.filter(|id| links.knows(*id, signature)).ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown-link",
            "Unknown link",
            "this link is not one of ours; copy the whole address from the message",
        )
    })
}

/// A page that works without scripts and loads nothing.
fn page(status: StatusCode, told: &str, more: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"robots\" content=\"noindex\"><title>Hooksieve</title>\
         <style>:root{{color-scheme:light dark}}body{{font:1.1rem/1.5 system-ui,sans-serif;\
         max-width:34rem;margin:4rem auto;padding:0 1rem}}code{{font-size:.85em;\
         overflow-wrap:anywhere}}button{{font:inherit;padding:.5rem 1.5rem}}</style></head>\
         <body><h1>{told}</h1>{more}</body></html>"
    );
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
        ),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{EventId, Name};

    #[test]
    fn a_link_is_known_by_who_made_it() {
        let links = |key: &str| {
            let base = Url::parse("https://hooks.example.com/base/").unwrap();
            Links::new(Some(base), Secret::new(key))
        };
        let rule: Name = "r".parse().unwrap();
        let id = |position| DeliveryId::new(EventId::from_bytes(b"e"), &rule, position);
        let ours = links("a key");
        let address = ours.address(id(0)).unwrap();
        let start = format!("https://hooks.example.com/base/ack/{}/", id(0));
        let signature = address.strip_prefix(&start).unwrap();
        assert_eq!(signature.len(), 22);
        assert!(ours.knows(id(0), signature));
        assert!(!ours.knows(id(1), signature));
        assert!(!ours.knows(id(0), ""));
        assert!(!links("another key").knows(id(0), signature));
        let without = Links::new(None, Secret::new("a key"));
        assert_eq!(without.address(id(0)), None);
    }
}
